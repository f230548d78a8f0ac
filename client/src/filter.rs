//! Which messages a consumer group wants.

mod parse;

use std::fmt;

use bytes::Bytes;
use skein_proto::broker::{self, filter::Filter as Choice};

pub use self::parse::ParseFilterError;

/// Which messages a consumer group wants; the others count as acked by it.
///
/// A filter can be written as text, and shows itself that way:
///
/// ```
/// # use skein_client::Filter;
/// let filter: Filter = "key ~ orders.*.created and not header.region = eu".parse()?;
/// let same = Filter::key_matches("orders.*.created").and(Filter::header_equals("region", "eu").negate());
/// assert_eq!(filter, same);
/// # Ok::<(), skein_client::ParseFilterError>(())
/// ```
///
/// `=` asks for a value, `^=` for how it begins, `exists` whether a header is there, and `~` whether the words of the
/// key between its dots are as a pattern says: `*` stands for one word, `#` for any number of them. Values with blanks
/// or parentheses are put in quotes. `not` binds closer than `and`, and that closer than `or`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// The header is there, whatever its value.
    HeaderExists(String),
    /// The header has this value.
    HeaderEquals(String, Bytes),
    /// The header has a value that begins like this.
    HeaderPrefix(String, Bytes),
    /// The key is this one.
    KeyEquals(Bytes),
    /// The key begins like this.
    KeyPrefix(Bytes),
    /// The words of the key are as this pattern says.
    KeyMatches(String),
    /// All of them want it.
    All(Vec<Self>),
    /// Any of them wants it.
    Any(Vec<Self>),
    /// It does not want it.
    Not(Box<Self>),
}

impl Filter {
    /// Wants messages that have this header.
    #[must_use]
    pub fn header_exists(name: impl Into<String>) -> Self {
        Self::HeaderExists(name.into())
    }

    /// Wants messages whose header has this value.
    #[must_use]
    pub fn header_equals(name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::HeaderEquals(name.into(), value.into())
    }

    /// Wants messages whose header begins like this.
    #[must_use]
    pub fn header_prefix(name: impl Into<String>, prefix: impl Into<Bytes>) -> Self {
        Self::HeaderPrefix(name.into(), prefix.into())
    }

    /// Wants messages with this key.
    #[must_use]
    pub fn key_equals(key: impl Into<Bytes>) -> Self {
        Self::KeyEquals(key.into())
    }

    /// Wants messages whose key begins like this.
    #[must_use]
    pub fn key_prefix(prefix: impl Into<Bytes>) -> Self {
        Self::KeyPrefix(prefix.into())
    }

    /// Wants messages whose key is as a pattern says, such as `orders.*.created` or `audit.#`.
    #[must_use]
    pub fn key_matches(pattern: impl Into<String>) -> Self {
        Self::KeyMatches(pattern.into())
    }

    /// Wants what both want.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::All(mut all) => {
                all.push(other);
                Self::All(all)
            }
            first => Self::All(vec![first, other]),
        }
    }

    /// Wants what either wants.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::Any(mut any) => {
                any.push(other);
                Self::Any(any)
            }
            first => Self::Any(vec![first, other]),
        }
    }

    /// Wants what it did not want.
    #[must_use]
    pub fn negate(self) -> Self {
        Self::Not(Box::new(self))
    }

    pub(crate) fn into_wire(self) -> broker::Filter {
        let header = |name, value| broker::HeaderValue { name, value };
        let list = |filters: Vec<Self>| broker::FilterList {
            filters: filters.into_iter().map(Self::into_wire).collect(),
        };
        let choice = match self {
            Self::HeaderExists(name) => Choice::HeaderExists(name),
            Self::HeaderEquals(name, value) => Choice::HeaderEquals(header(name, value)),
            Self::HeaderPrefix(name, prefix) => Choice::HeaderPrefix(header(name, prefix)),
            Self::KeyEquals(key) => Choice::KeyEquals(key),
            Self::KeyPrefix(prefix) => Choice::KeyPrefix(prefix),
            Self::KeyMatches(pattern) => Choice::KeyMatches(pattern),
            Self::All(filters) => Choice::All(list(filters)),
            Self::Any(filters) => Choice::Any(list(filters)),
            Self::Not(filter) => Choice::Not(Box::new(filter.into_wire())),
        };
        broker::Filter { filter: Some(choice) }
    }

    /// Nothing when a newer node knows kinds of filters that this library does not.
    pub(crate) fn from_wire(wire: broker::Filter) -> Option<Self> {
        let list = |list: broker::FilterList| -> Option<Vec<_>> {
            list.filters.into_iter().map(Self::from_wire).collect()
        };
        Some(match wire.filter? {
            Choice::HeaderExists(name) => Self::HeaderExists(name),
            Choice::HeaderEquals(header) => Self::HeaderEquals(header.name, header.value),
            Choice::HeaderPrefix(header) => Self::HeaderPrefix(header.name, header.value),
            Choice::KeyEquals(key) => Self::KeyEquals(key),
            Choice::KeyPrefix(prefix) => Self::KeyPrefix(prefix),
            Choice::KeyMatches(pattern) => Self::KeyMatches(pattern),
            Choice::All(filters) => Self::All(list(filters)?),
            Choice::Any(filters) => Self::Any(list(filters)?),
            Choice::Not(filter) => Self::Not(Box::new(Self::from_wire(*filter)?)),
        })
    }

    /// How close its parts are bound: those of a closer one need no parentheses.
    const fn binding(&self) -> u8 {
        match self {
            Self::Any(_) => 0,
            Self::All(_) => 1,
            _ => 2,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, filters: &[Self], by: &str| {
            for (place, filter) in filters.iter().enumerate() {
                let before = if place > 0 { by } else { "" };
                // A list of the same kind inside is kept as it is.
                let is_closer = filter.binding() > self.binding();
                if is_closer { write!(f, "{before}{filter}")? } else { write!(f, "{before}({filter})")? }
            }
            Ok(())
        };
        match self {
            Self::HeaderExists(name) => write!(f, "header.{} exists", parse::quoted(name.as_bytes())),
            Self::HeaderEquals(name, value) => {
                write!(f, "header.{} = {}", parse::quoted(name.as_bytes()), parse::quoted(value))
            }
            Self::HeaderPrefix(name, prefix) => {
                write!(f, "header.{} ^= {}", parse::quoted(name.as_bytes()), parse::quoted(prefix))
            }
            Self::KeyEquals(key) => write!(f, "key = {}", parse::quoted(key)),
            Self::KeyPrefix(prefix) => write!(f, "key ^= {}", parse::quoted(prefix)),
            Self::KeyMatches(pattern) => write!(f, "key ~ {}", parse::quoted(pattern.as_bytes())),
            Self::All(filters) if filters.is_empty() => f.write_str("all"),
            Self::Any(filters) if filters.is_empty() => f.write_str("none"),
            Self::All(filters) => joined(f, filters, " and "),
            Self::Any(filters) => joined(f, filters, " or "),
            Self::Not(filter) if filter.binding() == 2 => write!(f, "not {filter}"),
            Self::Not(filter) => write!(f, "not ({filter})"),
        }
    }
}
