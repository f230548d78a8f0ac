//! A queue as records: what a checkpoint or a snapshot holds of it, and back.

use super::{
    super::{QueuePart, QueueRecord, Record, RecordKey, RestoreError, Retention, Spill},
    Blocks, Group, OffsetRange, Queue, QueueId, RecentIds,
};

impl Queue {
    /// Everything, for a snapshot.
    pub(in crate::broker) fn records(&self) -> impl Iterator<Item = (RecordKey, Record)> {
        let groups =
            self.groups.values().map(|group| (QueuePart::Group(group.id()), Record::Group(group.record())));
        let pages = self.blocks.pages().map(|(number, page)| (QueuePart::Page(number), Record::Page(page)));
        let producers =
            self.producers.records().map(|(id, record)| (QueuePart::Producer(id), Record::Producer(record)));
        let ids = self.ids.records().map(|(page, record)| (QueuePart::Ids(page), Record::Ids(record)));
        let head = [(QueuePart::Head, self.head())].into_iter();
        let parts = head.chain(groups).chain(pages).chain(producers).chain(ids);
        parts.map(|(part, record)| (self.key(part), record))
    }

    /// What changed since the last call; nothing for what is gone.
    pub(in crate::broker) fn take_changes(&mut self) -> Vec<(RecordKey, Option<Record>)> {
        let mut parts = vec![(QueuePart::Head, Some(self.head()))];
        for id in std::mem::take(&mut self.changed_groups) {
            let record = self.groups.get(&id).map(|group| Record::Group(group.record()));
            parts.push((QueuePart::Group(id), record));
        }
        let (gone, written) = self.blocks.take_changes();
        // First: a page that is gone may have come again.
        parts.extend(gone.into_iter().map(|number| (QueuePart::Page(number), None)));
        parts.extend(
            written.into_iter().map(|(number, page)| (QueuePart::Page(number), Some(Record::Page(page)))),
        );
        let producers = self.producers.take_changes();
        parts.extend(producers.map(|(id, record)| (QueuePart::Producer(id), record.map(Record::Producer))));
        let ids = self.ids.take_changes().into_iter();
        parts.extend(ids.map(|(page, record)| (QueuePart::Ids(page), record.map(Record::Ids))));
        parts.into_iter().map(|(part, record)| (self.key(part), record)).collect()
    }

    /// The keys of all records that a checkpoint may have of this queue.
    pub(in crate::broker) fn saved_keys(&self) -> impl Iterator<Item = RecordKey> {
        let groups = self.groups.keys().chain(&self.changed_groups).copied().map(QueuePart::Group);
        let pages = self.blocks.saved_pages().map(QueuePart::Page);
        let producers = self.producers.ids().map(QueuePart::Producer);
        let ids = self.ids.saved_pages().map(QueuePart::Ids);
        let head = [QueuePart::Head].into_iter();
        head.chain(groups).chain(pages).chain(producers).chain(ids).map(|part| self.key(part))
    }

    pub(in crate::broker) fn restore_head(id: QueueId, record: QueueRecord) -> Result<Self, RestoreError> {
        if record.first_offset > record.next_offset || record.length_floor > record.next_offset {
            let key = RecordKey::Queue { queue: id, part: QueuePart::Head };
            return Err(RestoreError::Contradiction { key, what: "the queue begins after its end" });
        }
        Ok(Self {
            first_offset: record.first_offset,
            next_offset: record.next_offset,
            blocks: Blocks::starting_at(record.next_block),
            next_group: record.next_group,
            ids: RecentIds::starting_at(record.first_id),
            growths: record.growths,
            // Records of earlier versions have none.
            length_floor: record.length_floor.max(record.first_offset),
            ..Self::new(id, record.name, record.settings, record.settings_revision, record.used_at_ms)
        })
    }

    pub(in crate::broker) fn restore_part(
        &mut self,
        part: QueuePart,
        record: Record,
    ) -> Result<(), RestoreError> {
        let key = self.key(part);
        let contradiction = |what| RestoreError::Contradiction { key, what };
        match (part, record) {
            (QueuePart::Group(id), Record::Group(record)) => {
                let group = Group::restore(id, record);
                let acked_to = group.untouched_from();
                if group.acked_floor() < self.first_offset
                    || acked_to > self.next_offset
                    || id >= self.next_group
                {
                    return Err(contradiction("the group lies outside the queue"));
                }
                if !group.has_true_floor() {
                    return Err(contradiction("the group has acked the message at its floor"));
                }
                self.group_names.insert(group.name().to_owned(), id);
                self.groups.insert(id, group);
            }
            (QueuePart::Page(number), Record::Page(page)) => {
                self.blocks.restore_page(number, &page).map_err(contradiction)?;
            }
            (QueuePart::Producer(id), Record::Producer(record)) => self.producers.restore(id, &record),
            (QueuePart::Ids(page), Record::Ids(record)) => {
                self.ids.restore_page(page, &record).map_err(contradiction)?;
            }
            _ => return Err(RestoreError::Misplaced(key)),
        }
        Ok(())
    }

    /// What the pages take in memory that could be spilled.
    pub(in crate::broker) fn page_bytes(&self) -> u64 {
        self.blocks.row_bytes()
    }

    /// Lets go of the memory of pages that the newest checkpoint has. All pages take `bytes`. Gives what is left.
    pub(in crate::broker) fn spill(&mut self, bytes: u64, spill: &Spill) -> u64 {
        self.blocks.spill(self.id, bytes, spill)
    }

    /// Lets go of the memory of the page that was restored last, unless there is room for it besides `taken_bytes`.
    /// Gives what is taken then.
    pub(in crate::broker) fn spill_restored(&mut self, spill: &Spill, taken_bytes: u64) -> u64 {
        let bytes = taken_bytes + self.blocks.last_row_bytes();
        if bytes <= spill.keep_bytes {
            return bytes;
        }
        taken_bytes + self.blocks.spill_last(self.id, &spill.pages)
    }

    /// Checks what can only be checked when all parts are there.
    pub(in crate::broker) fn finish_restore(&mut self, message_count: u64) -> Result<(), RestoreError> {
        self.blocks.drop_below(self.first_offset);
        self.check_blocks(message_count)
            .map_err(|what| RestoreError::Contradiction { key: self.key(QueuePart::Head), what })
    }

    fn check_blocks(&self, message_count: u64) -> Result<(), &'static str> {
        if self.blocks.back().is_some_and(|back| back.end > self.next_offset) {
            return Err("the queue has blocks after its end");
        }
        let first_kept = self.blocks.front().map_or(self.next_offset, |front| front.first);
        if first_kept > self.first_offset || self.message_count() != message_count {
            return Err("blocks are missing");
        }
        let lowest_floor = self.groups.values().map(Group::acked_floor).min();
        if self.settings.retention == Retention::UntilAcked
            && lowest_floor.is_some_and(|floor| floor != self.first_offset)
        {
            return Err("the queue does not begin at the lowest floor of its groups");
        }
        let mut holes = self.blocks.gaps(OffsetRange::between(self.first_offset, self.next_offset));
        let is_needed = |hole: OffsetRange| self.groups.values().any(|group| !group.has_acked(hole));
        if holes.any(is_needed) {
            return Err("a group needs a block that is missing");
        }
        Ok(())
    }

    fn head(&self) -> Record {
        Record::Queue(QueueRecord {
            name: self.name.clone(),
            settings: self.settings.clone(),
            first_offset: self.first_offset,
            next_offset: self.next_offset,
            message_count: self.message_count(),
            next_block: self.blocks.next_number(),
            next_group: self.next_group,
            settings_revision: self.settings_revision,
            length_floor: self.length_floor,
            used_at_ms: self.used_at_ms,
            first_id: self.ids.first_number(),
            growths: self.growths.clone(),
        })
    }

    const fn key(&self, part: QueuePart) -> RecordKey {
        RecordKey::Queue { queue: self.id, part }
    }
}
