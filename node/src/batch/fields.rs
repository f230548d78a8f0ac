//! Fields of an encoded message that can be asked for without decoding it.

use super::{
    FIELD_HEADERS, FIELD_KEY, FIELD_MESSAGE_ID,
    wire::{skip, take_delimited, take_tag},
};

/// The fields of a checked message that can be asked for without decoding it. Each time it is asked it looks through
/// the message, which costs less than taking it apart for one question.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Those of an encoded message.
    #[must_use]
    pub const fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &'a [u8] {
        delimited(self.0).filter(|(field, _)| *field == FIELD_KEY).last().map_or(&[], |(_, key)| key)
    }

    /// Its id, empty where it has none.
    #[must_use]
    pub fn message_id(&self) -> &'a [u8] {
        delimited(self.0).filter(|(field, _)| *field == FIELD_MESSAGE_ID).last().map_or(&[], |(_, id)| id)
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let headers = delimited(self.0).filter(|(field, _)| *field == FIELD_HEADERS);
        let named = headers.filter_map(|(_, header)| {
            let part = |wanted| delimited(header).filter(|(field, _)| *field == wanted).last();
            let header_name = part(1).map_or(&[][..], |(_, name)| name);
            (header_name == name.as_bytes()).then(|| part(2).map_or(&[][..], |(_, value)| value))
        });
        // Of several, a decoder takes the last.
        named.last()
    }
}

/// The length-delimited fields of an encoded message, by number, up to one that cannot be read.
fn delimited(mut rest: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            match take_tag(&mut rest)? {
                (field, 2) => return Some((field, take_delimited(&mut rest)?)),
                (_, wire_type) => skip(&mut rest, wire_type)?,
            }
        }
        None
    })
}
