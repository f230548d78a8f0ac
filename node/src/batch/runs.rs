//! The parts of a batch whose messages are to be treated alike.

use skein_proto::limits;

use super::{BatchError, MessageLimits};
use crate::broker::{BatchRun, Properties};

/// What a message says about its delivery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DeliveryFields {
    pub(super) ttl_ms: u64,
    pub(super) deliver_at_ms: u64,
    pub(super) delay_ms: u64,
    pub(super) priority: u64,
    /// See [`Properties::key_slot`].
    pub(super) key_slot: u16,
}

impl DeliveryFields {
    pub(super) fn check(&self, limits: &MessageLimits, position: usize) -> Result<(), BatchError> {
        let bounds = [
            ("ttl_ms", self.ttl_ms, limits::DELAY_MS_MAX),
            ("deliver_at_ms", self.deliver_at_ms, limits.deliver_at_ms_max),
            ("delay_ms", self.delay_ms, limits::DELAY_MS_MAX),
            ("priority", self.priority, limits::PRIORITY_MAX.into()),
        ];
        match bounds.into_iter().find(|(_, value, value_max)| value > value_max) {
            Some((field, value, value_max)) => {
                Err(BatchError::Property { position, field, value, value_max })
            }
            None => Ok(()),
        }
    }
}

/// Gathers the parts of a batch that are to be treated alike.
pub(super) struct Runs {
    one_by_one: bool,
    before: Vec<BatchRun>,
    last: DeliveryFields,
    count: u32,
    length: usize,
}

impl Runs {
    pub(super) fn new(one_by_one: bool) -> Self {
        Self { one_by_one, before: Vec::new(), last: DeliveryFields::default(), count: 0, length: 0 }
    }

    pub(super) fn push(&mut self, fields: DeliveryFields, length: usize) {
        if (self.one_by_one || fields != self.last) && self.count > 0 {
            self.end_run();
        }
        self.last = fields;
        self.count += 1;
        self.length += length;
    }

    fn end_run(&mut self) {
        let DeliveryFields { ttl_ms, deliver_at_ms, delay_ms, priority, key_slot } = self.last;
        let priority = u8::try_from(priority).expect("bounded by PRIORITY_MAX");
        self.before.push(BatchRun {
            count: std::mem::take(&mut self.count),
            length: u32::try_from(std::mem::take(&mut self.length)).expect("bounded by BATCH_BYTES_MAX"),
            properties: Properties { ttl_ms, deliver_at_ms, priority, key_slot },
            delay_ms,
        });
    }

    pub(super) fn finish(mut self) -> Vec<BatchRun> {
        if self.one_by_one || !self.before.is_empty() || self.last != DeliveryFields::default() {
            self.end_run();
        }
        self.before
    }
}
