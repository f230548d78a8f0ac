//! What a leader's dispatcher needs to hear about. Events never influence replicated state.

use skein_proto::ids::{GroupId, Offset, QueueId};

use crate::offsets::OffsetRange;

/// Something that changed what can be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A queue was opened, or took new settings.
    QueueOpened {
        /// The queue.
        queue: QueueId,
    },
    /// A queue was forgotten, with its groups.
    QueueClosed {
        /// The queue.
        queue: QueueId,
    },
    /// Messages were appended. One event for each queue, after all others, however many batches came.
    Appended {
        /// The queue.
        queue: QueueId,
        /// The offset after the last message.
        next_offset: Offset,
    },
    /// A group goes on from elsewhere: what is known of its deliveries is void.
    GroupMoved {
        /// The queue.
        queue: QueueId,
        /// The group.
        group: GroupId,
    },
    /// A group was created.
    GroupCreated {
        /// The queue.
        queue: QueueId,
        /// The group.
        group: GroupId,
    },
    /// A group was forgotten.
    GroupDeleted {
        /// The queue.
        queue: QueueId,
        /// The group.
        group: GroupId,
    },
    /// Messages came back and are to be delivered again. Those that are given up make no such event.
    Returned {
        /// The queue.
        queue: QueueId,
        /// The group.
        group: GroupId,
        /// Which messages.
        range: OffsetRange,
        /// How often they were delivered.
        attempts: u32,
        /// Not to be delivered before this wall-clock time; 0 for at once.
        not_before_ms: u64,
    },
    /// Messages were given up: they came back too often, or nobody took them in time.
    GivenUp {
        /// The queue.
        queue: QueueId,
        /// The group.
        group: GroupId,
        /// Which messages.
        range: OffsetRange,
    },
    /// All messages below an offset were deleted or given up.
    Purged {
        /// The queue.
        queue: QueueId,
        /// The first one that was not, or the next one.
        below: Offset,
    },
    /// A group has messages that wait to be moved to the dead-letter queue.
    DeadLettersPending {
        /// The queue.
        queue: QueueId,
        /// The group.
        group: GroupId,
    },
}
