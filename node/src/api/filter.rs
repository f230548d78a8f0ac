//! Which messages a group wants: a filter as clients write it, checked once and then asked of encoded messages.

use prost::Message as _;
use skein_proto::node::{self as wire, filter::Filter as Choice};
use tonic::{Code, Status};

use super::status;
use crate::batch::Fields;

/// The most filters inside each other.
const DEPTH_MAX: usize = 8;

/// The most filters in one.
const PARTS_MAX: usize = 64;

/// The longest name, value or pattern, in bytes.
const TEXT_BYTES_MAX: usize = 1_024;

/// A filter that was found to be sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filter {
    HeaderExists(String),
    HeaderEquals(String, Vec<u8>),
    HeaderPrefix(String, Vec<u8>),
    KeyEquals(Vec<u8>),
    KeyPrefix(Vec<u8>),
    KeyMatches(Vec<Word>),
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
}

/// A part of a pattern between two dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    Exactly(Vec<u8>),
    Any,
    AnyNumber,
}

/// A filter as a group keeps it; empty where there is none.
pub(super) fn encode(filter: Option<&wire::Filter>) -> Result<Vec<u8>, Status> {
    match filter {
        Some(filter) => Filter::new(filter).map(|_| filter.encode_to_vec()),
        None => Ok(Vec::new()),
    }
}

/// What a group keeps, as clients read it.
pub(super) fn decode(kept: &[u8]) -> Option<wire::Filter> {
    wire::Filter::decode(kept).ok()
}

impl Filter {
    /// Checks a filter.
    pub(super) fn new(filter: &wire::Filter) -> Result<Self, Status> {
        check(filter, DEPTH_MAX, &mut 0)
    }

    /// Whether an encoded message is wanted.
    pub(super) fn wants(&self, message: &Fields<'_>) -> bool {
        match self {
            Self::HeaderExists(name) => message.header(name).is_some(),
            Self::HeaderEquals(name, value) => message.header(name) == Some(value),
            Self::HeaderPrefix(name, prefix) => {
                message.header(name).is_some_and(|value| value.starts_with(prefix))
            }
            Self::KeyEquals(key) => message.key() == key,
            Self::KeyPrefix(prefix) => message.key().starts_with(prefix),
            Self::KeyMatches(pattern) => {
                let words: Vec<_> = message.key().split(|&byte| byte == b'.').collect();
                matches(pattern, &words)
            }
            Self::All(filters) => filters.iter().all(|filter| filter.wants(message)),
            Self::Any(filters) => filters.iter().any(|filter| filter.wants(message)),
            Self::Not(filter) => !filter.wants(message),
        }
    }
}

fn check(filter: &wire::Filter, depth_left: usize, parts: &mut usize) -> Result<Filter, Status> {
    *parts += 1;
    if depth_left == 0 {
        return Err(invalid(format!("filter is more than {DEPTH_MAX} deep; write a flatter one")));
    }
    if *parts > PARTS_MAX {
        return Err(invalid(format!("filter has more than {PARTS_MAX} parts; write a smaller one")));
    }
    let choice = filter.filter.as_ref().ok_or_else(|| {
        invalid("filter has a part without content; leave the filter out to want every message".to_owned())
    })?;
    let mut list = |list: &wire::FilterList| -> Result<Vec<_>, Status> {
        list.filters.iter().map(|filter| check(filter, depth_left - 1, parts)).collect()
    };
    Ok(match choice {
        Choice::HeaderExists(name) => Filter::HeaderExists(check_name(name)?),
        Choice::HeaderEquals(header) => {
            Filter::HeaderEquals(check_name(&header.name)?, check_text("value", &header.value)?)
        }
        Choice::HeaderPrefix(header) => {
            Filter::HeaderPrefix(check_name(&header.name)?, check_text("value", &header.value)?)
        }
        Choice::KeyEquals(key) => Filter::KeyEquals(check_text("key", key)?),
        Choice::KeyPrefix(prefix) => Filter::KeyPrefix(check_text("key", prefix)?),
        Choice::KeyMatches(pattern) => Filter::KeyMatches(check_pattern(pattern)?),
        Choice::All(filters) => Filter::All(list(filters)?),
        Choice::Any(filters) => Filter::Any(list(filters)?),
        Choice::Not(filter) => Filter::Not(Box::new(check(filter, depth_left - 1, parts)?)),
    })
}

fn check_name(name: &str) -> Result<String, Status> {
    if name.is_empty() {
        return Err(invalid("filter asks for a header without a name; give one".to_owned()));
    }
    check_text("name", name.as_bytes()).map(|_| name.to_owned())
}

fn check_text(what: &str, text: &[u8]) -> Result<Vec<u8>, Status> {
    if text.len() > TEXT_BYTES_MAX {
        let bytes = text.len();
        return Err(invalid(format!("filter has a {what} of {bytes} bytes; {TEXT_BYTES_MAX} is the most")));
    }
    Ok(text.to_vec())
}

fn check_pattern(pattern: &str) -> Result<Vec<Word>, Status> {
    check_text("pattern", pattern.as_bytes())?;
    let word = |word: &str| match word {
        "*" => Ok(Word::Any),
        "#" => Ok(Word::AnyNumber),
        "" => Err(invalid(format!(
            "filter has the pattern {pattern:?} with an empty word; write words between dots"
        ))),
        word if word.contains(['*', '#']) => Err(invalid(format!(
            "filter has the pattern {pattern:?} with {word:?} in it; `*` and `#` stand for whole words"
        ))),
        word => Ok(Word::Exactly(word.as_bytes().to_vec())),
    };
    pattern.split('.').map(word).collect()
}

/// Whether words are as a pattern says. Keeps for each place in the pattern whether the words so far may lead there, so
/// that many `#` cost no more than few.
fn matches(pattern: &[Word], words: &[&[u8]]) -> bool {
    let mut reached = vec![false; pattern.len() + 1];
    reached[0] = true;
    skip_any_number(pattern, &mut reached);
    for word in words {
        let mut next = vec![false; pattern.len() + 1];
        for (place, expected) in pattern.iter().enumerate().filter(|(place, _)| reached[*place]) {
            match expected {
                Word::Exactly(exactly) => next[place + 1] |= exactly == word,
                Word::Any => next[place + 1] = true,
                Word::AnyNumber => next[place] = true,
            }
        }
        skip_any_number(pattern, &mut next);
        reached = next;
    }
    reached[pattern.len()]
}

fn skip_any_number(pattern: &[Word], reached: &mut [bool]) {
    for (place, expected) in pattern.iter().enumerate() {
        if reached[place] && *expected == Word::AnyNumber {
            reached[place + 1] = true;
        }
    }
}

fn invalid(message: String) -> Status {
    status::status(Code::InvalidArgument, wire::Reason::InvalidFilter, message)
}

#[cfg(test)]
mod tests {
    use skein_proto::broker::Message;

    use super::*;

    fn filter(choice: Choice) -> wire::Filter {
        wire::Filter { filter: Some(choice) }
    }

    fn header(name: &str, value: &str) -> wire::HeaderValue {
        wire::HeaderValue { name: name.to_owned(), value: value.to_owned().into() }
    }

    fn list(choices: impl IntoIterator<Item = Choice>) -> wire::FilterList {
        wire::FilterList { filters: choices.into_iter().map(filter).collect() }
    }

    fn wants(choice: Choice, message: &Message) -> bool {
        let encoded = message.encode_to_vec();
        Filter::new(&filter(choice)).unwrap().wants(&Fields::of(&encoded))
    }

    #[test]
    fn each_kind_asks_what_it_says() {
        let headers = [("region", "eu-west"), ("empty", "")].map(|(name, value)| (name.into(), value.into()));
        let message =
            Message { key: "orders.7.created".into(), headers: headers.into(), ..Message::default() };
        let is_wanted = [
            (Choice::HeaderExists("empty".into()), true),
            (Choice::HeaderExists("colour".into()), false),
            (Choice::HeaderEquals(header("region", "eu-west")), true),
            (Choice::HeaderEquals(header("region", "eu")), false),
            (Choice::HeaderEquals(header("colour", "")), false),
            (Choice::HeaderPrefix(header("region", "eu")), true),
            (Choice::HeaderPrefix(header("region", "us")), false),
            (Choice::KeyEquals("orders.7.created".into()), true),
            (Choice::KeyEquals("orders".into()), false),
            (Choice::KeyPrefix("orders.".into()), true),
            (Choice::KeyMatches("orders.*.created".into()), true),
            (Choice::KeyMatches("orders.*".into()), false),
            (Choice::All(list([])), true),
            (Choice::Any(list([])), false),
        ];
        for (choice, expected) in is_wanted {
            assert_eq!(wants(choice.clone(), &message), expected, "{choice:?}");
            let negated = Choice::Not(Box::new(filter(choice.clone())));
            assert_eq!(wants(negated, &message), !expected, "not {choice:?}");
            for other in [true, false] {
                let other_choice = if other { Choice::All(list([])) } else { Choice::Any(list([])) };
                let both = [choice.clone(), other_choice];
                assert_eq!(wants(Choice::All(list(both.clone())), &message), expected && other);
                assert_eq!(wants(Choice::Any(list(both)), &message), expected || other);
            }
        }
    }

    #[test]
    fn patterns_match_words() {
        let cases = [
            ("audit.#", &["audit", "audit.a", "audit.a.b"][..], &["audits", "a.audit", ""][..]),
            ("#", &["", "a", "a.b"], &[]),
            ("*", &["", "a"], &["a.b"]),
            ("#.error.#", &["error", "a.error", "error.b", "a.b.error.c"], &["a", "a.errors"]),
            ("a.*.#.d", &["a.b.d", "a.b.c.d", "a.b.d.d"], &["a.d", "a.b.c"]),
        ];
        for (pattern, matching, others) in cases {
            let message = |key: &str| Message { key: key.to_owned().into(), ..Message::default() };
            let wants = |key: &str| wants(Choice::KeyMatches(pattern.to_owned()), &message(key));
            assert!(matching.iter().all(|key| wants(key)), "{pattern}");
            assert!(!others.iter().any(|key| wants(key)), "{pattern}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let exists = || filter(Choice::HeaderExists("a".into()));
        let deep = (0..DEPTH_MAX).fold(exists(), |inner, _| filter(Choice::Not(Box::new(inner))));
        let large = filter(Choice::All(wire::FilterList { filters: vec![exists(); PARTS_MAX] }));
        let wrong = [
            (wire::Filter { filter: None }, "a part without content"),
            (
                filter(Choice::All(wire::FilterList { filters: vec![wire::Filter { filter: None }] })),
                "without content",
            ),
            (deep, "8 deep"),
            (large, "64 parts"),
            (filter(Choice::HeaderExists(String::new())), "without a name"),
            (filter(Choice::KeyEquals(vec![0; TEXT_BYTES_MAX + 1].into())), "1024 is the most"),
            (filter(Choice::KeyMatches("a..b".into())), "an empty word"),
            (filter(Choice::KeyMatches("a.b*".into())), "whole words"),
        ];
        for (filter, message) in wrong {
            let refused = Filter::new(&filter).unwrap_err();
            assert!(refused.message().contains(message), "{refused}");
        }
    }
}
