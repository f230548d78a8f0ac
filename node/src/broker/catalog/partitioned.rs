//! Queues that consist of partitions: there is nothing of such a queue but its partitions, which are queues themselves
//! and have all the same settings.

use skein_proto::partitions;

use super::{Catalog, CatalogOutcome, CatalogQueue, Settings};

impl Catalog {
    /// How many partitions a queue has; nothing when it is not partitioned.
    #[must_use]
    pub fn partitions(&self, name: &str) -> Option<u32> {
        self.first_partition(name).map(|first| first.settings.partitions)
    }

    /// A queue of this name, or the first partition of one.
    pub(super) fn queue_or_first_partition(&self, name: &str) -> Option<&CatalogQueue> {
        self.queue(name).or_else(|| self.first_partition(name))
    }

    fn first_partition(&self, name: &str) -> Option<&CatalogQueue> {
        self.queue(&partitions::name(name, 0)).filter(|first| first.settings.partitions > 0)
    }

    /// The partitioned queue whose partition has this name, or would have it if there were more of them.
    pub(super) fn partitioned_queue_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        let (queue, _) = partitions::parse(name)?;
        self.partitions(queue).map(|_| queue)
    }

    pub(super) fn create_partitions(
        &mut self,
        name: &str,
        settings: &Settings,
        shard_count: u32,
    ) -> CatalogOutcome {
        if let Some(refused) = self.refuse_partitions(name, 0, settings) {
            return refused;
        }
        self.revision += 1;
        self.add_partitions(name, 0, settings, shard_count);
        match self.queue(&partitions::name(name, 0)) {
            Some(&CatalogQueue { queue, shard, .. }) => CatalogOutcome::Created { queue, shard },
            None => CatalogOutcome::NotFound,
        }
    }

    pub(super) fn update_partitions(
        &mut self,
        name: &str,
        existing: u32,
        settings: &Settings,
        shard_count: u32,
    ) -> CatalogOutcome {
        if let Some(refused) = self.refuse_partitions(name, existing, settings) {
            return refused;
        }
        self.revision += 1;
        for partition in 0..existing {
            self.change_settings(&partitions::name(name, partition), settings);
        }
        self.add_partitions(name, existing, settings, shard_count);
        match self.queue(&partitions::name(name, 0)) {
            Some(&CatalogQueue { queue, shard, settings_revision: revision, .. }) => {
                CatalogOutcome::Updated { queue, shard, revision }
            }
            None => CatalogOutcome::NotFound,
        }
    }

    /// Each goes where the fewest queues are, and so to another shard than the one before.
    fn add_partitions(&mut self, name: &str, existing: u32, settings: &Settings, shard_count: u32) {
        for partition in existing..settings.partitions {
            let shard = self.place(shard_count);
            self.add_queue(&partitions::name(name, partition), settings, shard);
        }
    }

    /// Why there cannot be as many partitions as these settings say, of which some exist.
    fn refuse_partitions(&self, name: &str, existing: u32, settings: &Settings) -> Option<CatalogOutcome> {
        let names = (0..settings.partitions).map(|partition| partitions::name(name, partition));
        for (partition, name) in (0..).zip(names) {
            let is_taken = self.queue_or_first_partition(&name).is_some() || self.topics.get(&name).is_some();
            if partition >= existing && is_taken {
                return Some(CatalogOutcome::PartitionNameTaken { name });
            }
            if let Some(refused) = self.refuse_dead_letter_queue(&name, settings) {
                return Some(refused);
            }
        }
        None
    }
}
