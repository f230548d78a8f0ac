//! What the pages of `docs/guide/` show is what happens: every `console` block is run against a cluster, line by line.
//!
//! A line that begins with `$ ` is a command; what follows, up to the next one, is what it prints, first on stdout and
//! then on stderr. `…` stands for anything. A command whose output begins with `skein: ` or `error: ` has to fail, and
//! any other has to succeed. That the `rust` blocks compile is checked by the doctests of `skein-client`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use skein_cluster_tests::{cluster::Cluster, process::command_line_binary};
use tokio::{process::Command, time};

/// One command. The slowest ones wait for messages that are due, or expire, within seconds.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// What commands may consist of, beside the command line itself: nothing that readers do not have.
const PROGRAMS: [&str; 3] = ["skein", "printf", "seq"];

/// How the command line begins what it says when it fails: itself, and the parser of its arguments.
const FAILURES: [&str; 2] = ["skein: ", "error: "];

/// As for the code.
const LINE_CHARS_MAX: usize = 120;

/// Stands for anything in what a command prints.
const ANYTHING: char = '…';

/// A command of a page, and what it prints.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    /// Counted from 1.
    line: usize,
    command: String,
    expected: String,
}

/// What a command did.
struct Ran {
    printed: String,
    succeeded: bool,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide")
}

/// The names of all pages with their texts, by name.
fn pages() -> Result<Vec<(String, String)>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(directory()).context("there is no guide")? {
        let entry = entry?;
        pages.push((entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?));
    }
    pages.sort();
    Ok(pages)
}

/// The commands in the `console` blocks of a page.
fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut in_console = false;
    for (line, text) in (1..).zip(page.lines()) {
        if text.starts_with("```") {
            in_console = text == "```console";
        } else if !in_console {
        } else if let Some(command) = text.strip_prefix("$ ") {
            examples.push(Example { line, command: command.to_owned(), expected: String::new() });
        } else if let Some(example) = examples.last_mut() {
            example.expected.push_str(text);
            example.expected.push('\n');
        }
    }
    for example in &mut examples {
        // Blank lines keep examples apart.
        example.expected.truncate(example.expected.trim_end().len());
    }
    examples
}

/// Whether a text is as expected, where `…` stands for anything.
fn is_as_expected(expected: &str, text: &str) -> bool {
    let mut parts = expected.split(ANYTHING);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

async fn run(command: &str, cluster: &Cluster, skein: &Path) -> Result<Ran> {
    for part in command.split('|') {
        let program = part.split_whitespace().next().unwrap_or_default();
        ensure!(PROGRAMS.contains(&program), "{program:?} is none of {}", PROGRAMS.join(", "));
    }
    let programs = skein.parent().context("the command line lies nowhere")?;
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([programs.to_owned()].into_iter().chain(env::split_paths(&path)))?;
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).env("PATH", path).env("SKEIN_SERVERS", cluster.addresses().join(","));
    let child = shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = child.spawn().context("cannot run sh")?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let Ok(output) = time::timeout(COMMAND_LIMIT, child.wait_with_output()).await else {
        kill_process_group(group.context("it has no process id")?, Signal::KILL)?;
        bail!("it did not end within {COMMAND_LIMIT:?}");
    };
    let output = output?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).trim_end().to_owned();
    Ok(Ran { printed, succeeded: output.status.success() })
}

/// What is wrong with an example; nothing when it is as the page says.
async fn complaint(example: &Example, cluster: &Cluster, skein: &Path) -> Option<String> {
    let Example { command, expected, .. } = example;
    let Ran { printed, succeeded } = match run(command, cluster, skein).await {
        Ok(ran) => ran,
        Err(error) => return Some(format!("{error:#}")),
    };
    let shall_succeed = !FAILURES.iter().any(|failure| expected.starts_with(failure));
    if !is_as_expected(expected, &printed) {
        let lines = |mark: char, text: &str| text.lines().map(|line| format!("{mark} {line}\n")).collect();
        let [expected, printed]: [String; 2] = [lines('-', expected), lines('+', &printed)];
        return Some(format!("it printed what has a +, not what has a -:\n{expected}{printed}"));
    }
    match (shall_succeed, succeeded) {
        (true, false) => Some("it failed, though its output does not look like that".to_owned()),
        (false, true) => Some("it succeeded, though its output looks like a failure".to_owned()),
        _ => None,
    }
}

#[tokio::test]
async fn what_the_guide_shows_is_what_happens() {
    let skein = command_line_binary().unwrap();
    let cluster = Cluster::start(3).await.unwrap();
    let mut complaints = Vec::new();
    for (name, page) in pages().unwrap() {
        for example in examples(&page) {
            if let Some(complaint) = complaint(&example, &cluster, &skein).await {
                let Example { line, command, .. } = example;
                complaints.push(format!("docs/guide/{name}:{line}: $ {command}\n{complaint}"));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn every_page_is_in_the_index_and_is_compiled() {
    let index = fs::read_to_string(directory().join("README.md")).unwrap();
    let compiled = fs::read_to_string(directory().join("../../client/src/lib.rs")).unwrap();
    for (name, page) in pages().unwrap() {
        assert!(name == "README.md" || index.contains(&format!("]({name})")), "README.md lacks {name}");
        if page.contains("```rust") {
            assert!(compiled.contains(&format!("docs/guide/{name}")), "client/src/lib.rs lacks {name}");
        }
        for (number, line) in (1..).zip(page.lines()) {
            let opening = ["```", "```console", "```rust,no_run", "```toml"];
            assert!(!line.starts_with("```") || opening.contains(&line), "{name}:{number}: {line}");
            assert!(line.chars().count() <= LINE_CHARS_MAX, "{name}:{number} is too long");
        }
    }
}

#[test]
fn examples_are_read_from_console_blocks() {
    let page = "A\n```rust\n$ no\n```\n```console\n$ skein a | b\none\n\ntwo\n\n$ skein c\n```\n$ no\n";
    let example = |line, command: &str, expected: &str| Example {
        line,
        command: command.to_owned(),
        expected: expected.to_owned(),
    };
    assert_eq!(examples(page), [example(6, "skein a | b", "one\n\ntwo"), example(11, "skein c", "")]);
}

#[test]
fn an_ellipsis_stands_for_anything() {
    for (expected, text) in [("a", "a"), ("…", ""), ("…", "a\nb"), ("a…c…e", "abcde"), ("a…a", "aa")]
    {
        assert!(is_as_expected(expected, text), "{expected} is {text}");
    }
    for (expected, text) in [("a", "ab"), ("", "a"), ("a…a", "a"), ("a…c…e", "aec"), ("…b", "ba")] {
        assert!(!is_as_expected(expected, text), "{expected} is not {text}");
    }
}
