//! Lease tokens: how a client without a stream names a message it holds.

use std::{fmt, str::FromStr};

use skein_proto::ids::Offset;

use crate::dispatch::ConsumerId;

/// Names one delivery. Valid at the leader of the term it was given in, until the lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseToken {
    /// The term of the leader that gave it.
    pub term: u64,
    /// The holder, as that leader knows it.
    pub consumer: ConsumerId,
    /// The message.
    pub offset: Offset,
}

/// A token that this node cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a lease token is three hexadecimal numbers joined by dots; pass it back as Receive gave it")]
pub struct MalformedToken;

impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}.{:x}", self.term, self.consumer.get(), self.offset.get())
    }
}

impl FromStr for LeaseToken {
    type Err = MalformedToken;

    fn from_str(token: &str) -> Result<Self, MalformedToken> {
        let mut numbers = token.split('.').map(|part| u64::from_str_radix(part, 16));
        let mut next = || numbers.next().and_then(Result::ok).ok_or(MalformedToken);
        let token = Self { term: next()?, consumer: ConsumerId::new(next()?), offset: Offset::new(next()?) };
        if numbers.next().is_some() { Err(MalformedToken) } else { Ok(token) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_anything_else_is_refused() {
        let token = LeaseToken { term: 7, consumer: ConsumerId::new(u64::MAX), offset: Offset::new(300) };
        assert_eq!(token.to_string().parse(), Ok(token));
        for wrong in ["", "1", "1.2", "1.2.3.4", "1.2.x", "1..3", "1.2.10000000000000000"] {
            assert_eq!(wrong.parse::<LeaseToken>(), Err(MalformedToken), "{wrong:?}");
        }
    }
}
