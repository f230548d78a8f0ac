//! The pieces of protobuf that a batch is made of.

use bytes::Buf as _;

/// The tag of `MessageBatch.messages`: field 1, length-delimited.
pub(super) const MESSAGE_TAG: u8 = 0x0a;

/// The next message of a batch.
pub(super) fn take_message<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&tag, after_tag) = rest.split_first()?;
    if tag != MESSAGE_TAG {
        return None;
    }
    *rest = after_tag;
    take_delimited(rest)
}

/// Field number and wire type. A field number of 0 does not exist, and one over 2^29 - 1 does not decode.
pub(super) fn take_tag(rest: &mut &[u8]) -> Option<(u64, u64)> {
    let tag = take_varint(rest)?;
    let field = tag >> 3;
    (1..1 << 29).contains(&field).then_some((field, tag & 7))
}

pub(super) fn take_delimited<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(rest)?).ok()?;
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

pub(super) fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    match rest.first() {
        Some(&byte) if byte < 0x80 => {
            rest.advance(1);
            Some(u64::from(byte))
        }
        _ => prost::encoding::decode_varint(rest).ok(),
    }
}

/// Skips a field this version does not know. Groups (wire types 3 and 4) do not exist in proto3.
pub(super) fn skip(rest: &mut &[u8], wire_type: u64) -> Option<()> {
    let fixed_bytes = match wire_type {
        0 => return take_varint(rest).map(drop),
        2 => return take_delimited(rest).map(drop),
        1 => 8,
        5 => 4,
        _ => return None,
    };
    *rest = rest.get(fixed_bytes..)?;
    Some(())
}
