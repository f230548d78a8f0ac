//! What is done to topics, as far as it takes the queues that they name.

use skein_proto::ids::QueueId;

use super::{
    super::{Binding, topics::Bound},
    Catalog, CatalogOutcome,
};

/// Why a topic cannot name a queue.
enum NoTarget {
    /// There is none of that name.
    NotFound,
    /// It is one of several.
    Partition { of: String },
}

impl From<NoTarget> for CatalogOutcome {
    fn from(no_target: NoTarget) -> Self {
        match no_target {
            NoTarget::NotFound => Self::NotFound,
            NoTarget::Partition { of } => Self::IsPartition { of },
        }
    }
}

impl Catalog {
    pub(super) fn create_topic(&mut self, name: &str, alternate: Option<&str>) -> CatalogOutcome {
        if let Some(topic) = self.topics.get(name) {
            let alternate = topic.alternate.and_then(|queue| self.target_name(queue));
            return CatalogOutcome::TopicExists { alternate: alternate.map(str::to_owned) };
        }
        if self.queue_or_first_partition(name).is_some() || self.partitioned_queue_of(name).is_some() {
            return CatalogOutcome::NameTaken;
        }
        let alternate = match alternate.map(|queue| self.find_target(queue)).transpose() {
            Ok(alternate) => alternate,
            Err(no_target) => return no_target.into(),
        };
        self.revision += 1;
        self.topics.create(name, alternate, self.revision);
        CatalogOutcome::TopicCreated
    }

    pub(super) fn update_topic(&mut self, name: &str, alternate: Option<&str>) -> CatalogOutcome {
        let alternate = match alternate.map(|queue| self.find_target(queue)).transpose() {
            Ok(alternate) => alternate,
            Err(no_target) => return no_target.into(),
        };
        match self.topics.set_alternate(name, alternate, self.revision + 1) {
            Some(()) => {
                self.revision += 1;
                CatalogOutcome::TopicChanged
            }
            None => CatalogOutcome::TopicNotFound,
        }
    }

    pub(super) fn delete_topic(&mut self, name: &str) -> CatalogOutcome {
        if !self.topics.delete(name) {
            return CatalogOutcome::TopicNotFound;
        }
        self.revision += 1;
        CatalogOutcome::TopicDeleted
    }

    pub(super) fn bind(&mut self, topic: &str, queue: &str, filter: &[u8]) -> CatalogOutcome {
        let queue = match self.find_target(queue) {
            Ok(queue) => queue,
            Err(no_target) => return no_target.into(),
        };
        let binding = Binding { queue, filter: filter.to_vec() };
        let bound = self.topics.bind(topic, binding, self.revision + 1);
        self.on_bound(bound)
    }

    pub(super) fn unbind(&mut self, topic: &str, queue: &str, filter: &[u8]) -> CatalogOutcome {
        let queue = match self.find_target(queue) {
            Ok(queue) => queue,
            Err(no_target) => return no_target.into(),
        };
        let binding = Binding { queue, filter: filter.to_vec() };
        let bound = self.topics.unbind(topic, &binding, self.revision + 1);
        self.on_bound(bound)
    }

    const fn on_bound(&mut self, bound: Option<Bound>) -> CatalogOutcome {
        match bound {
            Some(Bound::Changed) => {
                self.revision += 1;
                CatalogOutcome::TopicChanged
            }
            Some(Bound::AlreadySo) => CatalogOutcome::TopicUnchanged,
            Some(Bound::TooMany) => CatalogOutcome::TooManyBindings,
            None => CatalogOutcome::TopicNotFound,
        }
    }

    /// The name of a queue that a topic names.
    #[must_use]
    pub fn target_name(&self, queue: QueueId) -> Option<&str> {
        let name = self.queue_name(queue)?;
        Some(self.partitioned_queue_of(name).unwrap_or(name))
    }

    /// What a topic keeps of a queue that it is to name: of one with partitions, the first of them stands for all.
    fn find_target(&self, name: &str) -> Result<QueueId, NoTarget> {
        if let Some(whole) = self.partitioned_queue_of(name) {
            return Err(NoTarget::Partition { of: whole.to_owned() });
        }
        self.queue_or_first_partition(name).map(|queue| queue.queue).ok_or(NoTarget::NotFound)
    }
}
