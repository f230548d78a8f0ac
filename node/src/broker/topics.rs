//! The catalog's topics: names to which messages are published that then go to the queues that are bound to them.

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::{
    ids::{QueueId, TopicId},
    limits::{TOPIC_BINDINGS_MAX, TOPIC_FILTER_BYTES_MAX},
};

use super::CatalogTopicRecord;

/// What a binding counts as besides its filter.
const BINDING_BYTES: usize = 16;

/// A topic as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its id, never given to another topic.
    pub id: TopicId,
    /// Its name, unique among topics and queues.
    pub name: String,
    /// Which queues get which messages.
    pub bindings: BTreeSet<Binding>,
    /// The queue that gets messages that no other one gets.
    pub alternate: Option<QueueId>,
    /// The catalog's revision when it changed last.
    pub revision: u64,
}

/// Says that a queue gets some messages of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// The queue.
    pub queue: QueueId,
    /// Which messages, as a filter that the core keeps and does not read; empty for all.
    pub filter: Vec<u8>,
}

/// What became of a change of a topic's bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    Changed,
    AlreadySo,
    TooMany,
}

#[derive(Debug)]
pub(super) struct Topics {
    by_id: BTreeMap<TopicId, Topic>,
    by_name: BTreeMap<String, TopicId>,
    /// The topics that name a queue, in a binding or as their alternate.
    by_queue: BTreeMap<QueueId, BTreeSet<TopicId>>,
    next: TopicId,
    /// Created, changed or deleted since the last checkpoint.
    changed: BTreeSet<TopicId>,
}

impl Topics {
    pub(super) const fn new() -> Self {
        Self {
            by_id: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_queue: BTreeMap::new(),
            next: TopicId::new(1),
            changed: BTreeSet::new(),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Topic> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// Those whose names come after `after`, by name.
    pub(super) fn after(&self, after: &str) -> impl Iterator<Item = &Topic> {
        use std::ops::Bound::{Excluded, Unbounded};
        let later = self.by_name.range::<str, _>((Excluded(after), Unbounded));
        later.filter_map(|(_, id)| self.by_id.get(id))
    }

    pub(super) const fn next_id(&self) -> TopicId {
        self.next
    }

    /// Whether any of them names this queue.
    pub(super) fn name(&self, queue: QueueId) -> bool {
        self.by_queue.contains_key(&queue)
    }

    /// A topic whose alternate this queue is.
    pub(super) fn with_alternate(&self, queue: QueueId) -> Option<&Topic> {
        let topics = self.by_queue.get(&queue)?.iter().filter_map(|id| self.by_id.get(id));
        topics.into_iter().find(|topic| topic.alternate == Some(queue))
    }

    pub(super) fn create(&mut self, name: &str, alternate: Option<QueueId>, revision: u64) {
        let id = self.next;
        self.next = TopicId::new(id.get() + 1);
        self.changed.insert(id);
        self.insert(Topic { id, name: name.to_owned(), bindings: BTreeSet::new(), alternate, revision });
    }

    pub(super) fn delete(&mut self, name: &str) -> bool {
        let Some(id) = self.by_name.remove(name) else { return false };
        if let Some(topic) = self.by_id.remove(&id) {
            let queues = topic.bindings.into_iter().map(|binding| binding.queue).chain(topic.alternate);
            queues.for_each(|queue| self.forget_queue_of(id, queue));
        }
        self.changed.insert(id);
        true
    }

    /// Names another alternate. Nothing when there is no such topic.
    pub(super) fn set_alternate(
        &mut self,
        name: &str,
        alternate: Option<QueueId>,
        revision: u64,
    ) -> Option<()> {
        let before =
            self.change(name, revision, |topic| std::mem::replace(&mut topic.alternate, alternate))?;
        let id = *self.by_name.get(name)?;
        before.into_iter().for_each(|queue| self.forget_unnamed(id, queue));
        alternate.into_iter().for_each(|queue| self.remember(id, queue));
        Some(())
    }

    /// Nothing when there is no such topic.
    pub(super) fn bind(&mut self, name: &str, binding: Binding, revision: u64) -> Option<Bound> {
        let topic = self.get(name)?;
        if topic.bindings.contains(&binding) {
            return Some(Bound::AlreadySo);
        }
        let cost = |binding: &Binding| binding.filter.len() + BINDING_BYTES;
        let bytes: usize = topic.bindings.iter().chain([&binding]).map(cost).sum();
        if topic.bindings.len() >= TOPIC_BINDINGS_MAX || bytes > TOPIC_FILTER_BYTES_MAX {
            return Some(Bound::TooMany);
        }
        let (id, queue) = (topic.id, binding.queue);
        self.change(name, revision, |topic| topic.bindings.insert(binding));
        self.remember(id, queue);
        Some(Bound::Changed)
    }

    /// Nothing when there is no such topic.
    pub(super) fn unbind(&mut self, name: &str, binding: &Binding, revision: u64) -> Option<Bound> {
        let topic = self.get(name)?;
        if !topic.bindings.contains(binding) {
            return Some(Bound::AlreadySo);
        }
        let id = topic.id;
        self.change(name, revision, |topic| topic.bindings.remove(binding));
        self.forget_unnamed(id, binding.queue);
        Some(Bound::Changed)
    }

    /// Takes all bindings of a queue away.
    pub(super) fn unbind_queue(&mut self, queue: QueueId, revision: u64) {
        for id in self.by_queue.remove(&queue).unwrap_or_default() {
            if let Some(topic) = self.by_id.get_mut(&id) {
                topic.bindings.retain(|binding| binding.queue != queue);
                topic.revision = revision;
                self.changed.insert(id);
            }
        }
    }

    pub(super) fn records(&self) -> impl Iterator<Item = (TopicId, CatalogTopicRecord)> {
        self.by_id.iter().map(|(&id, topic)| (id, topic.record()))
    }

    /// What changed since the last call; nothing for what is gone.
    pub(super) fn take_changes(&mut self) -> Vec<(TopicId, Option<CatalogTopicRecord>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.by_id.get(&id).map(Topic::record))).collect()
    }

    pub(super) const fn restore_next(&mut self, next: TopicId) {
        self.next = next;
    }

    /// False when another topic has the same name.
    pub(super) fn restore(&mut self, id: TopicId, record: CatalogTopicRecord) -> bool {
        let CatalogTopicRecord { name, bindings, alternate, revision } = record;
        let is_new = !self.by_name.contains_key(&name);
        self.insert(Topic { id, name, bindings: bindings.into_iter().collect(), alternate, revision });
        is_new
    }

    fn insert(&mut self, topic: Topic) {
        let queues = topic.bindings.iter().map(|binding| binding.queue).chain(topic.alternate);
        for queue in queues {
            self.by_queue.entry(queue).or_default().insert(topic.id);
        }
        self.by_name.insert(topic.name.clone(), topic.id);
        self.by_id.insert(topic.id, topic);
    }

    fn change<T>(&mut self, name: &str, revision: u64, change: impl FnOnce(&mut Topic) -> T) -> Option<T> {
        let topic = self.by_id.get_mut(self.by_name.get(name)?)?;
        topic.revision = revision;
        self.changed.insert(topic.id);
        Some(change(topic))
    }

    fn remember(&mut self, id: TopicId, queue: QueueId) {
        self.by_queue.entry(queue).or_default().insert(id);
    }

    /// Takes note that a topic may no longer name a queue.
    fn forget_unnamed(&mut self, id: TopicId, queue: QueueId) {
        if self.by_id.get(&id).is_none_or(|topic| !topic.names(queue)) {
            self.forget_queue_of(id, queue);
        }
    }

    fn forget_queue_of(&mut self, id: TopicId, queue: QueueId) {
        if let Some(topics) = self.by_queue.get_mut(&queue) {
            topics.remove(&id);
            if topics.is_empty() {
                self.by_queue.remove(&queue);
            }
        }
    }
}

impl Topic {
    fn names(&self, queue: QueueId) -> bool {
        let first = Binding { queue, filter: Vec::new() };
        let bound = self.bindings.range(first..).next().is_some_and(|binding| binding.queue == queue);
        bound || self.alternate == Some(queue)
    }

    fn record(&self) -> CatalogTopicRecord {
        CatalogTopicRecord {
            name: self.name.clone(),
            bindings: self.bindings.iter().cloned().collect(),
            alternate: self.alternate,
            revision: self.revision,
        }
    }
}
