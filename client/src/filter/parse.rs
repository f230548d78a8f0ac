//! Filters as text.

use std::{iter::Peekable, str::FromStr, vec};

use super::Filter;

/// Filters inside each other, beyond which no node takes one anyway.
const DEPTH_MAX: usize = 64;

/// A text that is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; write a filter such as \"key ~ orders.*.created and not header.region = eu\"")]
pub struct ParseFilterError {
    what: String,
}

/// A piece of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    /// A word without quotes, which may be a keyword or an operator.
    Word(String),
    /// A text in quotes, which may not.
    Quoted(String),
}

impl FromStr for Filter {
    type Err = ParseFilterError;

    fn from_str(text: &str) -> Result<Self, ParseFilterError> {
        let mut parser = Parser { tokens: tokens(text)?.into_iter().peekable(), depth: 0 };
        let filter = parser.any()?;
        match parser.tokens.next() {
            None => Ok(filter),
            Some(token) => Err(error(format!("{} stands where the filter should end", token.text()))),
        }
    }
}

/// A value as the text of a filter has it.
pub(super) fn quoted(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let is_plain = |c: char| !c.is_whitespace() && !"()'\"\\".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) && !KEYWORDS.contains(&&*text) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Words that mean something where a value could stand.
const KEYWORDS: [&str; 10] = ["and", "or", "not", "exists", "all", "none", "key", "=", "^=", "~"];

fn tokens(text: &str) -> Result<Vec<Token>, ParseFilterError> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            '\'' | '"' => tokens.push(Token::Quoted(quoted_text(c, &mut rest)?)),
            c => {
                let mut word = String::from(c);
                while let Some(c) = rest.next_if(|&c| !c.is_whitespace() && !"()'\"".contains(c)) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

/// The rest of a text in quotes. A backslash takes the meaning from what follows it.
fn quoted_text(quote: char, rest: &mut impl Iterator<Item = char>) -> Result<String, ParseFilterError> {
    let mut text = String::new();
    while let Some(c) = rest.next() {
        match c {
            c if c == quote => return Ok(text),
            '\\' => text.extend(rest.next()),
            c => text.push(c),
        }
    }
    Err(error(format!("a text in {quote} has no end")))
}

struct Parser {
    tokens: Peekable<vec::IntoIter<Token>>,
    depth: usize,
}

impl Parser {
    fn any(&mut self) -> Result<Filter, ParseFilterError> {
        let first = self.all()?;
        let mut filters = vec![first];
        while self.take("or") {
            filters.push(self.all()?);
        }
        Ok(one_or(filters, Filter::Any))
    }

    fn all(&mut self) -> Result<Filter, ParseFilterError> {
        let mut filters = vec![self.one()?];
        while self.take("and") {
            filters.push(self.one()?);
        }
        Ok(one_or(filters, Filter::All))
    }

    fn one(&mut self) -> Result<Filter, ParseFilterError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(error("the filter is too deep".to_owned()));
        }
        let filter = match self.tokens.next() {
            Some(Token::Open) => {
                let filter = self.any()?;
                match self.tokens.next() {
                    Some(Token::Close) => filter,
                    _ => return Err(error("a parenthesis is not closed".to_owned())),
                }
            }
            Some(Token::Word(word)) => match word.as_str() {
                "not" => self.one()?.negate(),
                "all" => Filter::All(Vec::new()),
                "none" => Filter::Any(Vec::new()),
                "key" => self.key()?,
                word => match word.strip_prefix("header.") {
                    Some(name) => self.header(name)?,
                    None => return Err(error(format!("{word:?} stands where a test should begin"))),
                },
            },
            Some(token) => return Err(error(format!("{} stands where a test should begin", token.text()))),
            None => return Err(error("the filter ends where a test should begin".to_owned())),
        };
        self.depth -= 1;
        Ok(filter)
    }

    fn key(&mut self) -> Result<Filter, ParseFilterError> {
        match self.operator("key")?.as_str() {
            "=" => Ok(Filter::key_equals(self.value()?)),
            "^=" => Ok(Filter::key_prefix(self.value()?)),
            "~" => Ok(Filter::key_matches(self.value()?)),
            other => Err(error(format!("{other:?} follows key, where = or ^= or ~ should"))),
        }
    }

    fn header(&mut self, name: &str) -> Result<Filter, ParseFilterError> {
        // A name with blanks in it is in quotes.
        let name = match self.tokens.next_if(|token| name.is_empty() && matches!(token, Token::Quoted(_))) {
            Some(quoted) => quoted.into_text(),
            None => name.to_owned(),
        };
        if name.is_empty() {
            return Err(error("header. is followed by no name".to_owned()));
        }
        match self.operator(&name)?.as_str() {
            "exists" => Ok(Filter::header_exists(name)),
            "=" => Ok(Filter::header_equals(name, self.value()?)),
            "^=" => Ok(Filter::header_prefix(name, self.value()?)),
            other => Err(error(format!("{other:?} follows header.{name}, where = or ^= or exists should"))),
        }
    }

    fn operator(&mut self, after: &str) -> Result<String, ParseFilterError> {
        match self.tokens.next() {
            Some(Token::Word(word)) => Ok(word),
            Some(token) => Err(error(format!("{} follows {after}, where an operator should", token.text()))),
            None => Err(error(format!("nothing follows {after}"))),
        }
    }

    fn value(&mut self) -> Result<String, ParseFilterError> {
        match self.tokens.next() {
            Some(token @ (Token::Word(_) | Token::Quoted(_))) => Ok(token.into_text()),
            _ => Err(error("a value is missing".to_owned())),
        }
    }

    fn take(&mut self, keyword: &str) -> bool {
        self.tokens.next_if(|token| matches!(token, Token::Word(word) if word == keyword)).is_some()
    }
}

impl Token {
    fn text(&self) -> String {
        match self {
            Self::Open => "\"(\"".to_owned(),
            Self::Close => "\")\"".to_owned(),
            Self::Word(text) | Self::Quoted(text) => format!("{text:?}"),
        }
    }

    fn into_text(self) -> String {
        match self {
            Self::Open | Self::Close => String::new(),
            Self::Word(text) | Self::Quoted(text) => text,
        }
    }
}

fn one_or(mut filters: Vec<Filter>, list: impl FnOnce(Vec<Filter>) -> Filter) -> Filter {
    if filters.len() == 1 { filters.remove(0) } else { list(filters) }
}

fn error(what: String) -> ParseFilterError {
    ParseFilterError { what }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn any_filter() -> impl Strategy<Value = Filter> {
        let text = || "[a-c '\"()\\\\.=~]{1,6}|and|not|exists|=";
        let leaf = prop_oneof![
            text().prop_map(Filter::header_exists),
            (text(), text()).prop_map(|(name, value)| Filter::header_equals(name, value)),
            (text(), text()).prop_map(|(name, value)| Filter::header_prefix(name, value)),
            text().prop_map(Filter::key_equals),
            text().prop_map(Filter::key_prefix),
            text().prop_map(Filter::key_matches),
            Just(Filter::All(Vec::new())),
            Just(Filter::Any(Vec::new())),
        ];
        leaf.prop_recursive(4, 16, 3, |inner| {
            prop_oneof![
                vec(inner.clone(), 2..4).prop_map(Filter::All),
                vec(inner.clone(), 2..4).prop_map(Filter::Any),
                inner.prop_map(Filter::negate),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_as_the_same(filter in any_filter()) {
            let text = filter.to_string();
            prop_assert_eq!(text.parse(), Ok(filter.clone()), "{}", text);
            prop_assert_eq!(Filter::from_wire(filter.clone().into_wire()), Some(filter));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = text.parse::<Filter>();
        }
    }

    #[test]
    fn closer_words_bind_first() {
        let filter: Filter = "key = a or not key ^= b and header.c exists".parse().unwrap();
        let both = Filter::key_prefix("b").negate().and(Filter::header_exists("c"));
        assert_eq!(filter, Filter::key_equals("a").or(both));
        let grouped: Filter = "(key = a or key = b) and header.c = 'd e'".parse().unwrap();
        let either = Filter::key_equals("a").or(Filter::key_equals("b"));
        assert_eq!(grouped, either.and(Filter::header_equals("c", "d e")));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, what) in [
            ("", "ends where a test should begin"),
            ("colour = red", "\"colour\" stands where a test should begin"),
            ("key", "nothing follows key"),
            ("key is a", "\"is\" follows key, where = or ^= or ~ should"),
            ("key =", "a value is missing"),
            ("header. = 3", "header. is followed by no name"),
            ("header.a ~ b", "\"~\" follows header.a"),
            ("(key = a", "a parenthesis is not closed"),
            ("key = a b", "\"b\" stands where the filter should end"),
            ("key = 'a", "has no end"),
        ] {
            let message = text.parse::<Filter>().unwrap_err().to_string();
            assert!(message.contains(what), "{text}: {message}");
        }
    }
}
