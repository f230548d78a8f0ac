//! The files of the repository, read once for every rule.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// Every text file that is tracked, or would be with `git add --all`.
pub(crate) struct Repository {
    /// In the order of their paths.
    pub(crate) files: Vec<File>,
    /// Paths of all files, text or not, and of the folders they lie in.
    pub(crate) paths: BTreeSet<String>,
}

/// One text file.
pub(crate) struct File {
    /// From the root of the repository, with `/` between the parts.
    pub(crate) path: String,
    /// As it lies on disk.
    pub(crate) text: String,
}

impl File {
    /// Whether it is Rust source.
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Reads what git knows about, so that build output never counts.
pub(crate) fn read(root: &Path) -> Result<Repository> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git to list the files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    let listed = String::from_utf8(output.stdout).context("a path is not UTF-8")?;

    let mut repository = Repository { files: Vec::new(), paths: BTreeSet::new() };
    // Sorted and deduplicated: git lists a file once per stage while a merge is under way.
    for path in listed.split_terminator('\0').collect::<BTreeSet<_>>() {
        // Deleted but not yet staged, or a link that leads nowhere.
        let Ok(bytes) = fs::read(root.join(path)) else {
            continue;
        };
        repository.add_path(path);
        if let Ok(text) = String::from_utf8(bytes) {
            repository.files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(repository)
}

impl Repository {
    fn add_path(&mut self, path: &str) {
        self.paths.insert(path.to_owned());
        for (end, _) in path.match_indices('/') {
            self.paths.insert(path[..end].to_owned());
        }
    }

    /// A repository of these files, to try rules on.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let mut repository = Self { files: Vec::new(), paths: BTreeSet::new() };
        for (path, text) in files {
            repository.add_path(path);
            repository.files.push(File { path: (*path).to_owned(), text: (*text).to_owned() });
        }
        repository
    }
}
