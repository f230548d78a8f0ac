//! How a message is to be treated, as far as that is not the same for its whole queue.

/// What a message says about its delivery. Ordinary messages say nothing, and take no room for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Properties {
    /// How long it may wait, from when it was published or became due; 0 for as long as the queue says.
    pub ttl_ms: u64,
    /// Not to be delivered before this wall-clock time; 0 for at once.
    pub deliver_at_ms: u64,
    /// Of the messages that wait, those with the highest go first.
    pub priority: u8,
    /// Tells keys apart where their order matters, and else is 0, as for a message without a key. Messages with the
    /// same key have the same slot; others may have it as well.
    pub key_slot: u16,
}

/// Messages of a batch that follow each other and are to be treated alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRun {
    /// How many messages.
    pub count: u32,
    /// How many bytes of the batch they take.
    pub length: u32,
    /// How to treat them.
    pub properties: Properties,
    /// Not to be delivered before this long after they were published.
    pub delay_ms: u64,
}

impl Properties {
    /// Whether the message is to be treated as any other, but for the order of keys.
    #[must_use]
    pub const fn are_ordinary(&self) -> bool {
        self.ttl_ms == 0 && self.deliver_at_ms == 0 && self.priority == 0
    }

    /// When a message may wait no longer, in a queue with this time to live; nothing when it may for ever.
    #[must_use]
    pub fn expires_at_ms(&self, published_at_ms: u64, queue_ttl_ms: Option<u64>) -> Option<u64> {
        let own_ttl_ms = (self.ttl_ms > 0).then_some(self.ttl_ms);
        let ttl_ms = own_ttl_ms.into_iter().chain(queue_ttl_ms).min()?;
        Some(published_at_ms.max(self.deliver_at_ms).saturating_add(ttl_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_time_to_live_counts_from_when_the_message_is_due() {
        let own = |ttl_ms, deliver_at_ms| Properties { ttl_ms, deliver_at_ms, ..Properties::default() };
        assert_eq!(own(0, 0).expires_at_ms(100, None), None);
        assert_eq!(own(0, 0).expires_at_ms(100, Some(5)), Some(105));
        assert_eq!(own(3, 0).expires_at_ms(100, Some(5)), Some(103));
        assert_eq!(own(9, 50).expires_at_ms(100, Some(5)), Some(105));
        assert_eq!(own(9, 500).expires_at_ms(100, None), Some(509));
    }
}
