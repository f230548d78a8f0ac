//! Rust source with comments and the contents of literals blanked out, so that a rule about code is not misled by
//! prose. Lines and columns stay where they are.

use crate::repository::File;

/// A Rust file, as written and as code alone.
pub(crate) struct Source<'a> {
    pub(crate) file: &'a File,
    /// As long as the text in characters; comments and the insides of literals are spaces.
    pub(crate) code: String,
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &'a File) -> Self {
        Self { file, code: Masker::new(&file.text).mask() }
    }

    /// The lines of code, counted from 1.
    pub(crate) fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.code.lines())
    }
}

/// Every place in `line` where `word` stands by itself.
pub(crate) fn word_positions<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    line.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = at.checked_sub(1).map(|before| line.as_bytes()[before]);
        let after = line.as_bytes().get(at + word.len()).copied();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

struct Masker {
    input: Vec<char>,
    at: usize,
    output: String,
}

impl Masker {
    fn new(text: &str) -> Self {
        Self { input: text.chars().collect(), at: 0, output: String::with_capacity(text.len()) }
    }

    fn mask(mut self) -> String {
        while let Some(&char) = self.input.get(self.at) {
            match (char, self.peek(1)) {
                ('/', Some('/')) => self.blank_while(|masker| masker.peek(0) != Some('\n')),
                ('/', Some('*')) => self.blank_block_comment(),
                ('"', _) => self.blank_string(0),
                ('r', Some('"' | '#')) if !self.follows_a_word() => self.blank_raw_string(),
                ('\'', _) => self.blank_char_or_keep_lifetime(),
                _ => self.keep(),
            }
        }
        self.output
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.input.get(self.at + ahead).copied()
    }

    fn keep(&mut self) {
        self.output.push(self.input[self.at]);
        self.at += 1;
    }

    fn blank(&mut self) {
        self.output.push(if self.input[self.at] == '\n' { '\n' } else { ' ' });
        self.at += 1;
    }

    fn blank_while(&mut self, inside: impl Fn(&Self) -> bool) {
        while self.at < self.input.len() && inside(self) {
            self.blank();
        }
    }

    fn blank_block_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.input.len() {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => depth += 1,
                (Some('*'), Some('/')) => depth -= 1,
                _ => {
                    self.blank();
                    continue;
                }
            }
            self.blank();
            self.blank();
            if depth == 0 {
                break;
            }
        }
    }

    /// Keeps the quotes. With hashes it is a raw string, without it has escapes.
    fn blank_string(&mut self, hashes: usize) {
        self.keep();
        while let Some(char) = self.peek(0) {
            let ends = char == '"' && (1..=hashes).all(|ahead| self.peek(ahead) == Some('#'));
            if ends {
                self.keep();
                return;
            }
            if char == '\\' && hashes == 0 && self.peek(1).is_some() {
                self.blank();
            }
            self.blank();
        }
    }

    fn blank_raw_string(&mut self) {
        let hashes = (1..).take_while(|&ahead| self.peek(ahead) == Some('#')).count();
        if self.peek(1 + hashes) != Some('"') {
            // A raw identifier.
            self.keep();
            return;
        }
        for _ in 0..=hashes {
            self.blank();
        }
        if hashes == 0 {
            self.keep();
            self.blank_while(|masker| masker.peek(0) != Some('"'));
            if self.at < self.input.len() {
                self.keep();
            }
        } else {
            self.blank_string(hashes);
        }
    }

    fn blank_char_or_keep_lifetime(&mut self) {
        let escaped = self.peek(1) == Some('\\');
        self.keep();
        if escaped {
            self.blank();
            self.blank();
            self.blank_while(|masker| masker.peek(0) != Some('\''));
        } else if self.peek(1) == Some('\'') {
            self.blank();
        } else {
            return;
        }
        if self.at < self.input.len() {
            self.keep();
        }
    }

    fn follows_a_word(&self) -> bool {
        // `b` and `c` make byte and C strings of raw ones.
        self.at > 0 && {
            let before = self.input[self.at - 1];
            before.is_alphanumeric() && !matches!(before, 'b' | 'c') || before == '_'
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_comments_and_literals_and_nothing_else() {
        let cases = [
            ("a(); // b()", "a();       "),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x\"y", 'z', '\n', '\'')"#, r#"f("    ", ' ', '  ', '  ')"#),
            ("let s: &'a str = \"{\";", "let s: &'a str = \" \";"),
            (r###"r#"x " y"# + 1"###, r###"  "     "# + 1"###),
            (r##"br"\" + r#fn"##, r##"b " " + r#fn"##),
            ("\"a\nb\"", "\" \n \""),
            ("var\"x\"", "var\" \""),
        ];
        for (text, code) in cases {
            let file = File { path: "a.rs".to_owned(), text: text.to_owned() };
            assert_eq!(Source::new(&file).code, code, "{text}");
        }
    }

    #[test]
    fn a_word_is_not_found_inside_another() {
        assert_eq!(word_positions("sled, my_sled, sledge, sled::x", "sled").collect::<Vec<_>>(), [0, 23]);
    }
}
