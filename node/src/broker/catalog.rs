//! The state of shard 0: which queues there are, which shard carries each, and which nodes the cluster has.

mod partitioned;
mod recent;
mod topics;

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::{
    ids::{NodeId, QueueId, ShardId},
    partitions,
};

use self::recent::RecentChanges;
use super::{
    CatalogCommand, CatalogOutcome, CatalogQueueRecord, CatalogRecord, ClusterNode, EntryMeta, NodeCommand,
    NodeOutcome, Record, RecordKey, RestoreError, Settings, Topic, nodes::Nodes, topics::Topics,
};

/// The names, ids, places and settings of all queues; the topics; the nodes.
#[derive(Debug)]
pub struct Catalog {
    /// Boxed, since trees have more room than they use.
    queues: BTreeMap<String, Box<CatalogQueue>>,
    /// Their names, by id.
    queue_names: BTreeMap<QueueId, String>,
    topics: Topics,
    nodes: Nodes,
    next_queue: QueueId,
    revision: u64,
    replicated_index: u64,
    /// How many queues each shard carries. Follows from `queues`, as does the next one.
    shard_loads: BTreeMap<ShardId, u64>,
    /// For each dead-letter queue, the names of the queues that name it.
    dead_letter_sources: BTreeMap<String, BTreeSet<String>>,
    head_changed: bool,
    /// Queues created, changed or deleted since the last checkpoint.
    changed: BTreeMap<QueueId, Option<CatalogQueueRecord>>,
    recent: RecentChanges,
}

/// A queue as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogQueue {
    /// Its id, never given to another queue.
    pub queue: QueueId,
    /// The shard that carries it.
    pub shard: ShardId,
    /// How it behaves.
    pub settings: Settings,
    /// The catalog's revision when it took its settings.
    pub settings_revision: u64,
}

impl Catalog {
    /// A catalog without queues.
    #[must_use]
    pub fn new() -> Self {
        Self {
            queues: BTreeMap::new(),
            queue_names: BTreeMap::new(),
            topics: Topics::new(),
            nodes: Nodes::new(),
            next_queue: QueueId::new(1),
            revision: 0,
            replicated_index: 0,
            shard_loads: BTreeMap::new(),
            dead_letter_sources: BTreeMap::new(),
            head_changed: false,
            changed: BTreeMap::new(),
            recent: RecentChanges::default(),
        }
    }

    /// Applies one entry: one outcome for each command, in order. Entries are applied in the order of the log.
    pub fn apply(&mut self, entry: EntryMeta, commands: &[CatalogCommand]) -> Vec<CatalogOutcome> {
        self.replicated_index = self.replicated_index.max(entry.replicated_index);
        self.head_changed = true;
        commands
            .iter()
            .map(|command| match command {
                CatalogCommand::CreateQueue { name, settings, shard_count, colocated_with } => {
                    self.create_queue(name, settings, *shard_count, colocated_with.as_deref())
                }
                CatalogCommand::UpdateQueue { name, expected, settings, shard_count } => {
                    self.update_queue(name, expected, settings, *shard_count)
                }
                CatalogCommand::DeleteQueue { name, queue } => self.delete_queue(name, *queue),
                CatalogCommand::CreateTopic { name, alternate } => {
                    self.create_topic(name, alternate.as_deref())
                }
                CatalogCommand::UpdateTopic { name, alternate } => {
                    self.update_topic(name, alternate.as_deref())
                }
                CatalogCommand::DeleteTopic { name } => self.delete_topic(name),
                CatalogCommand::Bind { topic, queue, filter } => self.bind(topic, queue, filter),
                CatalogCommand::Unbind { topic, queue, filter } => self.unbind(topic, queue, filter),
                CatalogCommand::Node(command) => self.change_nodes(command),
            })
            .collect()
    }

    /// The queue of this name.
    #[must_use]
    pub fn queue(&self, name: &str) -> Option<&CatalogQueue> {
        self.queues.get(name).map(Box::as_ref)
    }

    /// All queues, by name.
    pub fn queues(&self) -> impl Iterator<Item = (&str, &CatalogQueue)> {
        self.queues.iter().map(|(name, queue)| (name.as_str(), queue.as_ref()))
    }

    /// The queues whose names come after `after`, by name.
    pub fn queues_after(&self, after: &str) -> impl Iterator<Item = (&str, &CatalogQueue)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let later = self.queues.range::<str, _>((Excluded(after), Unbounded));
        later.map(|(name, queue)| (name.as_str(), queue.as_ref()))
    }

    /// The queues that were created, changed or deleted after a revision; nothing when that is too long ago to tell.
    #[must_use]
    pub fn queues_changed_since(&self, revision: u64) -> Option<BTreeSet<QueueId>> {
        self.recent.since(revision).map(Iterator::collect)
    }

    /// The name of a queue.
    #[must_use]
    pub fn queue_name(&self, queue: QueueId) -> Option<&str> {
        self.queue_names.get(&queue).map(String::as_str)
    }

    /// Whether a topic names the queue of this name, with or without partitions.
    #[must_use]
    pub fn is_bound(&self, name: &str) -> bool {
        self.queue_or_first_partition(name).is_some_and(|queue| self.topics.name(queue.queue))
    }

    /// The topic of this name.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(name)
    }

    /// The topics whose names come after `after`, by name.
    pub fn topics_after(&self, after: &str) -> impl Iterator<Item = &Topic> {
        self.topics.after(after)
    }

    /// The nodes that the cluster has, is to have, or is to lose, by id; none before they were noted once.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &ClusterNode)> {
        self.nodes.iter()
    }

    /// The id that the next invited node gets: every node below it is known here, or was and is no more.
    #[must_use]
    pub const fn next_node(&self) -> NodeId {
        self.nodes.next_id()
    }

    /// Counts the changes: two catalogs of one cluster with the same revision are the same.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The id that the next created queue gets: every queue below it was created, and exists or was deleted.
    #[must_use]
    pub const fn next_queue(&self) -> QueueId {
        self.next_queue
    }

    /// The highest index that is known to be on the disks of all replicas.
    #[must_use]
    pub const fn replicated_index(&self) -> u64 {
        self.replicated_index
    }

    /// The whole state, in key order, for a snapshot.
    #[must_use]
    pub fn records(&self) -> Vec<(RecordKey, Record)> {
        let queues = self.queues.iter().map(|(name, queue)| {
            let key = RecordKey::CatalogQueue { queue: queue.queue };
            (key, Record::CatalogQueue(queue.record(name)))
        });
        let topics = self
            .topics
            .records()
            .map(|(topic, record)| (RecordKey::CatalogTopic { topic }, Record::CatalogTopic(record)));
        let nodes = self.nodes.iter();
        let nodes = nodes
            .map(|(node, record)| (RecordKey::CatalogNode { node }, Record::CatalogNode(record.clone())));
        let head = [(RecordKey::Catalog, self.head())];
        let mut records: Vec<_> = head.into_iter().chain(queues).chain(topics).chain(nodes).collect();
        records.sort_unstable_by_key(|(key, _)| *key);
        records
    }

    /// What changed since the last call, or since the state was restored, in key order; nothing for what is gone.
    pub fn take_changes(&mut self) -> Vec<(RecordKey, Option<Record>)> {
        let head = std::mem::take(&mut self.head_changed).then(|| (RecordKey::Catalog, Some(self.head())));
        let queues = std::mem::take(&mut self.changed).into_iter();
        let queues = queues
            .map(|(queue, record)| (RecordKey::CatalogQueue { queue }, record.map(Record::CatalogQueue)));
        let topics = self.topics.take_changes().into_iter();
        let topics = topics
            .map(|(topic, record)| (RecordKey::CatalogTopic { topic }, record.map(Record::CatalogTopic)));
        let nodes = self.nodes.take_changes().into_iter();
        let nodes =
            nodes.map(|(node, record)| (RecordKey::CatalogNode { node }, record.map(Record::CatalogNode)));
        head.into_iter().chain(queues).chain(topics).chain(nodes).collect()
    }

    /// The state that these records are of, in any order.
    ///
    /// # Errors
    /// When they are not the records of a catalog.
    pub fn restore(records: impl Iterator<Item = (RecordKey, Record)>) -> Result<Self, RestoreError> {
        let mut catalog = Self::new();
        for (key, record) in records {
            match (key, record) {
                (RecordKey::Catalog, Record::Catalog(record)) => {
                    catalog.next_queue = record.next_queue;
                    catalog.revision = record.revision;
                    catalog.replicated_index = record.replicated_index;
                    catalog.topics.restore_next(record.next_topic);
                    catalog.nodes.restore_next(record.next_node);
                }
                (RecordKey::CatalogQueue { queue }, Record::CatalogQueue(record)) => {
                    let CatalogQueueRecord { name, shard, settings, settings_revision } = record;
                    if catalog.queues.contains_key(&name) {
                        return Err(RestoreError::Contradiction {
                            key,
                            what: "another queue has the same name",
                        });
                    }
                    catalog.insert(name, CatalogQueue { queue, shard, settings, settings_revision });
                }
                (RecordKey::CatalogTopic { topic }, Record::CatalogTopic(record)) => {
                    if !catalog.topics.restore(topic, record) {
                        return Err(RestoreError::Contradiction {
                            key,
                            what: "another topic has the same name",
                        });
                    }
                }
                (RecordKey::CatalogNode { node }, Record::CatalogNode(record)) => {
                    catalog.nodes.restore(node, record);
                }
                _ => return Err(RestoreError::Misplaced(key)),
            }
        }
        catalog.recent = RecentChanges::starting_at(catalog.revision);
        Ok(catalog)
    }

    fn create_queue(
        &mut self,
        name: &str,
        settings: &Settings,
        shard_count: u32,
        colocated_with: Option<&str>,
    ) -> CatalogOutcome {
        if let Some(queue) = self.partitioned_queue_of(name) {
            return CatalogOutcome::IsPartition { of: queue.to_owned() };
        }
        if let Some(existing) = self.queue_or_first_partition(name) {
            let CatalogQueue { queue, shard, .. } = *existing;
            return if existing.settings == *settings {
                CatalogOutcome::Exists { queue, shard }
            } else {
                CatalogOutcome::ExistsDifferent { queue, shard, settings: existing.settings.clone() }
            };
        }
        if self.topics.get(name).is_some() {
            return CatalogOutcome::NameTaken;
        }
        if let Some(refused) = self.refuse_dead_letter_queue(name, settings) {
            return refused;
        }
        if settings.partitions > 0 {
            return self.create_partitions(name, settings, shard_count);
        }
        let shard = match colocated_with.map(|other| self.queues.get(other)) {
            Some(None) => return CatalogOutcome::NotFound,
            Some(Some(other)) => other.shard,
            None => self.place(shard_count),
        };
        self.revision += 1;
        let queue = self.add_queue(name, settings, shard);
        CatalogOutcome::Created { queue, shard }
    }

    /// Adds a queue that is created at this revision.
    fn add_queue(&mut self, name: &str, settings: &Settings, shard: ShardId) -> QueueId {
        let queue = self.next_queue;
        self.next_queue = QueueId::new(queue.get() + 1);
        let settings = settings.clone();
        let created = CatalogQueue { queue, shard, settings, settings_revision: self.revision };
        self.note_change(queue, Some(created.record(name)));
        self.insert(name.to_owned(), created);
        queue
    }

    fn update_queue(
        &mut self,
        name: &str,
        expected: &Settings,
        settings: &Settings,
        shard_count: u32,
    ) -> CatalogOutcome {
        if let Some(queue) = self.partitioned_queue_of(name) {
            return CatalogOutcome::IsPartition { of: queue.to_owned() };
        }
        let Some(existing) = self.queue_or_first_partition(name) else {
            return CatalogOutcome::NotFound;
        };
        if existing.settings != *expected {
            return CatalogOutcome::NotAsExpected;
        }
        let partitions = existing.settings.partitions;
        if settings.partitions < partitions || (partitions == 0 && settings.partitions > 0) {
            return CatalogOutcome::PartitionsOnlyRise { partitions };
        }
        if let Some(refused) = self.refuse_dead_letter_queue(name, settings) {
            return refused;
        }
        if partitions > 0 {
            return self.update_partitions(name, partitions, settings, shard_count);
        }
        self.revision += 1;
        self.change_settings(name, settings);
        let Some(CatalogQueue { queue, shard, settings_revision: revision, .. }) = self.queue(name) else {
            return CatalogOutcome::NotFound;
        };
        CatalogOutcome::Updated { queue: *queue, shard: *shard, revision: *revision }
    }

    /// Gives a queue settings at this revision.
    fn change_settings(&mut self, name: &str, settings: &Settings) {
        let Some(mut updated) = self.remove(name) else { return };
        updated.settings.clone_from(settings);
        updated.settings_revision = self.revision;
        self.note_change(updated.queue, Some(updated.record(name)));
        self.insert(name.to_owned(), updated);
    }

    fn delete_queue(&mut self, name: &str, only: Option<QueueId>) -> CatalogOutcome {
        if let Some(queue) = self.partitioned_queue_of(name) {
            return CatalogOutcome::IsPartition { of: queue.to_owned() };
        }
        let Some(existing) = self.queue_or_first_partition(name) else {
            return CatalogOutcome::NotFound;
        };
        if only.is_some_and(|only| existing.queue != only) {
            return CatalogOutcome::NotFound;
        }
        let CatalogQueue { queue, shard, ref settings, .. } = *existing;
        let names = match settings.partitions {
            0 => vec![name.to_owned()],
            partitions => (0..partitions).map(|partition| partitions::name(name, partition)).collect(),
        };
        // Others name it as a whole, or one of its partitions.
        let refused =
            names.iter().map(String::as_str).chain([name]).find_map(|name| self.refuse_to_delete(name));
        if let Some(refused) = refused {
            return refused;
        }
        self.revision += 1;
        for name in names {
            if let Some(CatalogQueue { queue, .. }) = self.remove(&name) {
                self.note_change(queue, None);
                self.topics.unbind_queue(queue, self.revision);
            }
        }
        CatalogOutcome::Deleted { queue, shard }
    }

    /// Notes what a queue becomes at this revision; nothing when it is deleted.
    fn note_change(&mut self, queue: QueueId, record: Option<CatalogQueueRecord>) {
        self.changed.insert(queue, record);
        self.recent.push(self.revision, queue);
    }

    /// Whether others need a queue.
    fn refuse_to_delete(&self, name: &str) -> Option<CatalogOutcome> {
        if let Some(by) = self.dead_letter_sources.get(name).and_then(BTreeSet::first) {
            return Some(CatalogOutcome::InUse { by: by.clone() });
        }
        let topic = self.topics.with_alternate(self.queues.get(name)?.queue)?;
        Some(CatalogOutcome::InUseByTopic { by: topic.name.clone() })
    }

    fn change_nodes(&mut self, command: &NodeCommand) -> CatalogOutcome {
        let outcome = self.nodes.apply(command);
        if matches!(outcome, NodeOutcome::Changed | NodeOutcome::Invited(_) | NodeOutcome::Joined(_)) {
            self.revision += 1;
        }
        CatalogOutcome::Node(outcome)
    }

    /// A dead-letter queue must exist, and messages must not come back from there to where they were given up.
    fn refuse_dead_letter_queue(&self, name: &str, settings: &Settings) -> Option<CatalogOutcome> {
        let mut next = settings.dead_letter_queue.as_deref();
        while let Some(dead_letter_queue) = next {
            // A partition stands for the whole: what one gives up another one may.
            if self.partitioned_queue_of(dead_letter_queue).unwrap_or(dead_letter_queue) == name {
                return Some(CatalogOutcome::DeadLetterQueueCycle);
            }
            let Some(queue) = self.queue_or_first_partition(dead_letter_queue) else {
                return Some(CatalogOutcome::DeadLetterQueueNotFound);
            };
            // Those that exist make no cycle, so that this ends.
            next = queue.settings.dead_letter_queue.as_deref();
        }
        None
    }

    fn remove(&mut self, name: &str) -> Option<CatalogQueue> {
        let queue = self.queues.remove(name)?;
        self.queue_names.remove(&queue.queue);
        if let Some(load) = self.shard_loads.get_mut(&queue.shard) {
            *load -= 1;
        }
        if let Some(dead_letter_queue) = &queue.settings.dead_letter_queue
            && let Some(sources) = self.dead_letter_sources.get_mut(dead_letter_queue)
        {
            sources.remove(name);
            if sources.is_empty() {
                self.dead_letter_sources.remove(dead_letter_queue);
            }
        }
        Some(*queue)
    }

    fn insert(&mut self, name: String, queue: CatalogQueue) {
        *self.shard_loads.entry(queue.shard).or_default() += 1;
        if let Some(dead_letter_queue) = &queue.settings.dead_letter_queue {
            self.dead_letter_sources.entry(dead_letter_queue.clone()).or_default().insert(name.clone());
        }
        self.queue_names.insert(queue.queue, name.clone());
        self.queues.insert(name, Box::new(queue));
    }

    /// The shard with the fewest queues; of several, the one with the lowest id.
    fn place(&self, shard_count: u32) -> ShardId {
        let load = |shard: &ShardId| self.shard_loads.get(shard).copied().unwrap_or_default();
        let shards = (1..=shard_count).map(ShardId::new);
        shards.min_by_key(load).unwrap_or(ShardId::new(1))
    }

    const fn head(&self) -> Record {
        Record::Catalog(CatalogRecord {
            next_queue: self.next_queue,
            revision: self.revision,
            replicated_index: self.replicated_index,
            next_topic: self.topics.next_id(),
            next_node: self.nodes.next_id(),
        })
    }
}

impl Default for Catalog {
    fn default() -> Self {
        Self::new()
    }
}

impl CatalogQueue {
    fn record(&self, name: &str) -> CatalogQueueRecord {
        CatalogQueueRecord {
            name: name.to_owned(),
            shard: self.shard,
            settings: self.settings.clone(),
            settings_revision: self.settings_revision,
        }
    }
}
