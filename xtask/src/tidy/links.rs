//! Relative links in the documentation lead to files that exist.

use super::Finding;
use crate::repository::Repository;

pub(super) fn check(repository: &Repository, findings: &mut Vec<Finding>) {
    for file in repository.files.iter().filter(|file| file.path.ends_with(".md")) {
        let mut in_code = false;
        for (number, line) in (1..).zip(file.text.lines()) {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            }
            if in_code {
                continue;
            }
            for target in targets(line) {
                let resolved = resolve(&file.path, target);
                if !resolved.as_ref().is_some_and(|path| path.is_empty() || repository.paths.contains(path)) {
                    let what = format!("{target} leads nowhere: correct the link or add the file");
                    findings.push(Finding::new(&file.path, number, "link", what));
                }
            }
        }
    }
}

/// The relative targets of a line's links, without their anchors.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', ' ']).next()?.split('#').next()?;
        (!target.is_empty() && !target.contains(':')).then_some(target)
    })
}

/// The target's path from the root of the repository. `None` when it leads out of it.
fn resolve(from: &str, target: &str) -> Option<String> {
    let (folder, target) = match target.strip_prefix('/') {
        Some(target) => ("", target),
        None => (from.rsplit_once('/').map_or("", |(folder, _)| folder), target),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> usize {
        let repository = Repository::of(&[("docs/a.md", text), ("docs/b.md", ""), ("README.md", "")]);
        let mut findings = Vec::new();
        check(&repository, &mut findings);
        findings.len()
    }

    #[test]
    fn finds_only_links_that_lead_nowhere() {
        let cases = [
            ("[b](b.md) [r](../README.md) [d](../docs/) [a](#top) [b](b.md#part \"title\")", 0),
            ("[w](https://example.org/x.md) [m](mailto:a@example.org) [root](/README.md)", 0),
            ("[c](c.md)", 1),
            ("[b](b.md) and [c](c.md#x) and [d](../../d.md)", 2),
            ("```\n[c](c.md)\n```", 0),
        ];
        for (text, count) in cases {
            assert_eq!(findings(text), count, "{text}");
        }
    }
}
