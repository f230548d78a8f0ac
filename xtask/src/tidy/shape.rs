//! How long files, functions and lines may be, and how a file opens.

use super::{
    Finding,
    source::{Source, word_positions},
};

/// A file of this many lines can still be read in one sitting.
const FILE_LINES_MAX: usize = 500;
/// About what fits a screen.
const FUNCTION_LINES_MAX: usize = 70;
/// rustfmt.toml wraps code at 110 and leaves long strings and prose alone.
const LINE_CHARS_MAX: usize = 120;

pub(super) fn check(source: &Source<'_>, findings: &mut Vec<Finding>) {
    let path = &source.file.path;
    let text = &source.file.text;

    if !text.starts_with("//! ") {
        findings.push(Finding::new(
            path,
            1,
            "opening",
            "open the file with a `//!` line that says its one job",
        ));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        let what = format!("{lines} lines, at most {FILE_LINES_MAX}: split the file by job");
        findings.push(Finding::new(path, FILE_LINES_MAX + 1, "file-length", what));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let chars = line.chars().count();
        if chars > LINE_CHARS_MAX {
            let what = format!("{chars} characters, at most {LINE_CHARS_MAX}: wrap the line");
            findings.push(Finding::new(path, number, "line-length", what));
        }
    }
    for Function { name, first_line, lines } in functions(source) {
        if lines > FUNCTION_LINES_MAX {
            let what =
                format!("`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}: take a step out of it");
            findings.push(Finding::new(path, first_line, "function-length", what));
        }
    }
}

struct Function {
    name: String,
    first_line: usize,
    lines: usize,
}

/// Every function with a body, from the line of its `fn` to the line of its closing brace.
fn functions(source: &Source<'_>) -> Vec<Function> {
    let mut functions = Vec::new();
    for at in word_positions(&source.code, "fn") {
        let rest = &source.code[at + "fn".len()..];
        let name: String =
            rest.trim_start().chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
        // A function pointer type has no name, a trait's declaration no body.
        if name.is_empty() {
            continue;
        }
        let Some(length) = body_end(rest) else { continue };
        functions.push(Function {
            name,
            first_line: 1 + source.code[..at].matches('\n').count(),
            lines: 1 + rest[..length].matches('\n').count(),
        });
    }
    functions
}

/// Where the brace that closes the function's body is. `None` when a semicolon comes before the body.
fn body_end(rest: &str) -> Option<usize> {
    let mut braces = 0_usize;
    let mut brackets = 0_usize;
    for (at, char) in rest.char_indices() {
        match char {
            '[' | '(' => brackets += 1,
            ']' | ')' => brackets = brackets.saturating_sub(1),
            '{' => braces += 1,
            '}' if braces == 1 && brackets == 0 => return Some(at),
            '}' => braces = braces.saturating_sub(1),
            // Inside brackets it belongs to an array's type.
            ';' if braces == 0 && brackets == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::tidy::check_one;

    fn function(lines: usize) -> String {
        format!("//! A.\nfn a(b: [u8; 2]) {{\n{}}}\n", "    b;\n".repeat(lines - 2))
    }

    #[test]
    fn finds_what_is_too_long() {
        assert_eq!(check_one("a.rs", &function(70)), [""; 0]);
        assert_eq!(check_one("a.rs", &function(71)), ["2:function-length"]);
        assert_eq!(check_one("a.rs", &format!("//! A.\n{}", "\n".repeat(499))), [""; 0]);
        assert_eq!(check_one("a.rs", &format!("//! A.\n{}", "\n".repeat(500))), ["501:file-length"]);
        assert_eq!(check_one("a.rs", &format!("//! {}\n", "é".repeat(116))), [""; 0]);
        assert_eq!(check_one("a.rs", &format!("//! {}\n", "é".repeat(117))), ["1:line-length"]);
        let string = |chars: usize| format!("//! A.\nconst A: &str = \"{}\";\n", "a".repeat(chars));
        assert_eq!(check_one("a.rs", &string(101)), [""; 0]);
        assert_eq!(check_one("a.rs", &string(102)), ["2:line-length"]);
    }

    #[test]
    fn counts_nested_functions_and_skips_declarations() {
        let long = "    x;\n".repeat(70);
        let nested = format!("//! A.\nfn a() {{\nfn b() {{}}\n{long}}}\n");
        assert_eq!(check_one("a.rs", &nested), ["2:function-length"]);
        let declared = format!("//! A.\ntrait A {{ fn a(&self); }}\nmod b {{\n{long}}}\n");
        assert_eq!(check_one("a.rs", &declared), [""; 0]);
    }

    #[test]
    fn finds_a_file_that_does_not_say_its_job() {
        assert_eq!(check_one("a.rs", "use std::fmt;\n"), ["1:opening"]);
        assert_eq!(check_one("a.md", "prose\n"), [""; 0]);
    }
}
