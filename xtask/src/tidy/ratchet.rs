//! What the rules forgive today. The list may only shrink: an entry that forgives more than there is, is a finding.

use std::collections::BTreeMap;

use super::Finding;

/// So many findings of one rule in one file are known.
pub(super) struct Exception {
    path: &'static str,
    rule: &'static str,
    count: usize,
}

pub(super) const EXCEPTIONS: [Exception; 0] = [];

/// Leaves out what is forgiven, and adds what the list itself has wrong.
pub(super) fn forgive(findings: Vec<Finding>, exceptions: &[Exception]) -> Vec<Finding> {
    let mut counts: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for finding in &findings {
        *counts.entry((finding.path.clone(), finding.rule)).or_default() += 1;
    }
    let allowed = |path: &str, rule: &str| {
        exceptions
            .iter()
            .find(|exception| exception.path == path && exception.rule == rule)
            .map_or(0, |e| e.count)
    };

    let mut left: Vec<_> = findings
        .into_iter()
        .filter(|finding| {
            counts[&(finding.path.clone(), finding.rule)] > allowed(&finding.path, finding.rule)
        })
        .collect();
    for Exception { path, rule, count } in exceptions {
        let found = counts.get(&((*path).to_owned(), *rule)).copied().unwrap_or(0);
        if found < *count {
            let what =
                format!("{path} breaks `{rule}` {found} times, not {count}: lower or drop the exception");
            left.push(Finding::new("xtask/src/tidy/ratchet.rs", 1, "ratchet", what));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgives_what_is_known_and_only_shrinks() {
        let exceptions = [Exception { path: "a.rs", rule: "line-length", count: 2 }];
        let findings =
            |count: usize| (1..=count).map(|line| Finding::new("a.rs", line, "line-length", "")).collect();
        assert_eq!(forgive(findings(2), &exceptions), []);
        assert_eq!(forgive(findings(3), &exceptions).len(), 3);
        assert_eq!(forgive(findings(1), &exceptions)[0].rule, "ratchet");
        assert_eq!(forgive(vec![Finding::new("a.rs", 1, "opening", "")], &[]).len(), 1);
    }
}
