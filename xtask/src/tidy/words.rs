//! Words that must not be in the repository: unfinished work, module names that say nothing, paths of one machine.

use super::{
    Finding,
    source::{Source, word_positions},
};
use crate::repository::File;

/// In code. What is unfinished stays on a branch.
const BANNED_IN_CODE: [(&str, &str); 3] = [
    ("todo!", "finish it, or leave it out"),
    ("unimplemented!", "finish it, or leave it out"),
    ("#[ignore", "make the test reliable and fast, or delete it"),
];

/// Anywhere, comments included. Put together here, so that this file does not break its own rule.
const BANNED_IN_TEXT: [(&str, &str); 2] = [
    (concat!("FIX", "ME"), "fix it, or say plainly what the limitation is"),
    (concat!("XX", "X"), "say plainly what the matter is"),
];

/// Where people keep their files; nobody else has them.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];

/// A module is named after what it is about.
const EMPTY_NAMES: [&str; 6] = ["common", "helper", "helpers", "misc", "util", "utils"];

/// Other people's texts.
const FOREIGN: [&str; 2] = ["Cargo.lock", "LICENSE"];

pub(super) fn check_text(file: &File, findings: &mut Vec<Finding>) {
    if FOREIGN.contains(&file.path.as_str()) {
        return;
    }
    for (number, line) in (1..).zip(file.text.lines()) {
        for (word, what) in BANNED_IN_TEXT {
            if word_positions(line, word).next().is_some() {
                findings.push(Finding::new(&file.path, number, "unfinished", format!("{word}: {what}")));
            }
        }
        for machine_path in MACHINE_PATHS {
            if is_machine_path(line, machine_path) {
                let what =
                    format!("{machine_path}: only one machine has it; name files from the repository's root");
                findings.push(Finding::new(&file.path, number, "machine-path", what));
            }
        }
    }
}

pub(super) fn check_source(source: &Source<'_>, findings: &mut Vec<Finding>) {
    let path = &source.file.path;
    for part in path.split('/').map(|part| part.trim_end_matches(".rs")) {
        if EMPTY_NAMES.contains(&part) {
            findings.push(Finding::new(
                path,
                1,
                "module-name",
                format!("`{part}`: name the module after its job"),
            ));
        }
    }
    for (number, line) in source.code_lines() {
        for (word, what) in BANNED_IN_CODE {
            if line.contains(word) {
                findings.push(Finding::new(path, number, "unfinished", format!("{word}: {what}")));
            }
        }
        for name in EMPTY_NAMES {
            if line.contains(&format!("mod {name} {{")) {
                let what = format!("`{name}`: name the module after its job");
                findings.push(Finding::new(path, number, "module-name", what));
            }
        }
    }
}

/// Whether the line names an absolute path below this one; `target/x/` is relative, and a URL is no path.
fn is_machine_path(line: &str, machine_path: &str) -> bool {
    line.match_indices(machine_path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before
            .is_some_and(|before| before.is_alphanumeric() || matches!(before, '.' | '-' | '_' | '}' | '~'))
    })
}

#[cfg(test)]
mod tests {
    use crate::tidy::check_one;

    #[test]
    fn finds_unfinished_work() {
        let cases = [
            ("//! A.\nfn a() { todo!() }\n", vec!["2:unfinished"]),
            ("//! A.\nfn a() { unimplemented!() }\n", vec!["2:unfinished"]),
            ("//! A.\n#[ignore = \"slow\"]\nfn a() {}\n", vec!["2:unfinished"]),
            (concat!("//! A.\n// FIX", "ME later\n"), vec!["2:unfinished"]),
            ("//! A.\n// Says todo! in prose.\nconst A: &str = \"todo!\";\n", vec![]),
        ];
        for (text, findings) in cases {
            assert_eq!(check_one("a.rs", text), findings, "{text}");
        }
    }

    #[test]
    fn finds_names_that_say_nothing() {
        assert_eq!(check_one("client/src/utils.rs", "//! A.\n"), ["1:module-name"]);
        assert_eq!(check_one("client/src/common/a.rs", "//! A.\n"), ["1:module-name"]);
        assert_eq!(check_one("client/src/a.rs", "//! A.\nmod helpers {}\n"), ["2:module-name"]);
        assert_eq!(check_one("client/src/commonplace.rs", "//! A.\n"), [""; 0]);
    }

    #[test]
    fn finds_paths_of_one_machine() {
        assert_eq!(check_one("a.md", concat!("See `/ho", "me/me/notes`.\n")), ["1:machine-path"]);
        assert_eq!(check_one("a.toml", concat!("dir = \"/wo", "rk/x\"\n")), ["1:machine-path"]);
        assert_eq!(check_one("a.md", concat!("Run `./wo", "rk/x` or https://a.org/ho", "me/x.\n")), [""; 0]);
    }
}
