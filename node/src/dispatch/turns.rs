//! Whose turn it is to take messages.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
};

use super::ConsumerId;

/// Consumers that may take messages: those with a higher priority first, and those of one priority in turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// None of them empty.
    by_priority: BTreeMap<Reverse<i32>, VecDeque<ConsumerId>>,
}

impl Turns {
    /// How many share what there is: those with the highest priority.
    pub(super) fn sharer_count(&self) -> usize {
        self.by_priority.first_key_value().map_or(0, |(_, line)| line.len())
    }

    pub(super) fn push_back(&mut self, id: ConsumerId, priority: i32) {
        self.by_priority.entry(Reverse(priority)).or_default().push_back(id);
    }

    pub(super) fn push_front(&mut self, id: ConsumerId, priority: i32) {
        self.by_priority.entry(Reverse(priority)).or_default().push_front(id);
    }

    pub(super) fn pop_front(&mut self) -> Option<ConsumerId> {
        let mut line = self.by_priority.first_entry()?;
        let id = line.get_mut().pop_front();
        if line.get().is_empty() {
            line.remove();
        }
        id
    }

    pub(super) fn remove(&mut self, id: ConsumerId, priority: i32) {
        if let Some(line) = self.by_priority.get_mut(&Reverse(priority)) {
            line.retain(|&other| other != id);
            if line.is_empty() {
                self.by_priority.remove(&Reverse(priority));
            }
        }
    }
}
