//! The rules of this repository that neither rustfmt nor clippy checks. A rule is a function from the repository to
//! findings; what it forgives is in `ratchet.rs`.

use std::fmt;

use crate::repository::Repository;

mod layers;
mod links;
mod ratchet;
mod shape;
mod source;
mod words;

/// A place where a rule is broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    /// From 1.
    line: usize,
    rule: &'static str,
    what_to_do: String,
}

impl Finding {
    /// A finding at a line, counted from 1.
    pub(crate) fn new(path: &str, line: usize, rule: &'static str, what_to_do: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule, what_to_do: what_to_do.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.what_to_do)
    }
}

/// Every finding that the ratchet does not forgive, in the order of the files.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &repository.files {
        words::check_text(file, &mut findings);
        if file.is_rust() {
            let source = source::Source::new(file);
            shape::check(&source, &mut findings);
            words::check_source(&source, &mut findings);
            layers::check(&source, &mut findings);
        }
    }
    links::check(repository, &mut findings);
    let mut findings = ratchet::forgive(findings, &ratchet::EXCEPTIONS);
    findings.sort();
    // One line may name the same module twice.
    findings.dedup();
    findings
}

/// The findings in one planted file.
#[cfg(test)]
fn check_one(path: &str, text: &str) -> Vec<String> {
    let repository = Repository::of(&[(path, text)]);
    let mut findings = Vec::new();
    for finding in check(&repository) {
        // The real ratchet's entries are about other files.
        if finding.path == path {
            findings.push(format!("{}:{}", finding.line, finding.rule));
        }
    }
    findings
}
