//! What is done to topics, as far as it takes the queues that they name.

use skein_proto::ids::QueueId;

use super::{
    super::{Binding, topics::Bound},
    Catalog, CatalogOutcome,
};

impl Catalog {
    pub(super) fn create_topic(&mut self, name: &str, alternate: Option<&str>) -> CatalogOutcome {
        if let Some(topic) = self.topics.get(name) {
            let alternate = topic.alternate.and_then(|queue| self.queue_name(queue));
            return CatalogOutcome::TopicExists { alternate: alternate.map(str::to_owned) };
        }
        if self.queue_or_first_partition(name).is_some() || self.partitioned_queue_of(name).is_some() {
            return CatalogOutcome::NameTaken;
        }
        let Some(alternate) = self.find_alternate(alternate) else {
            return CatalogOutcome::NotFound;
        };
        self.revision += 1;
        self.topics.create(name, alternate, self.revision);
        CatalogOutcome::TopicCreated
    }

    pub(super) fn update_topic(&mut self, name: &str, alternate: Option<&str>) -> CatalogOutcome {
        let Some(alternate) = self.find_alternate(alternate) else {
            return CatalogOutcome::NotFound;
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
        let Some(queue) = self.queues.get(queue).map(|queue| queue.queue) else {
            return CatalogOutcome::NotFound;
        };
        let binding = Binding { queue, filter: filter.to_vec() };
        let bound = self.topics.bind(topic, binding, self.revision + 1);
        self.on_bound(bound)
    }

    pub(super) fn unbind(&mut self, topic: &str, queue: &str, filter: &[u8]) -> CatalogOutcome {
        let Some(queue) = self.queues.get(queue).map(|queue| queue.queue) else {
            return CatalogOutcome::NotFound;
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

    /// The queue of this name, if one is named. Nothing when that does not exist.
    fn find_alternate(&self, name: Option<&str>) -> Option<Option<QueueId>> {
        match name {
            Some(name) => self.queues.get(name).map(|queue| Some(queue.queue)),
            None => Some(None),
        }
    }
}
