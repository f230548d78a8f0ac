//! A queue that keeps every promise, in thirty lines of state: the histories it makes must never be flagged, and are
//! what faults are planted in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::SmallRng};
use skein_cluster_tests::{
    history::{
        Counts, Delivery, Disturbance, History, Moment, Outcome, Publish, Reader, Settlement, SettlementKind,
        View,
    },
    rules::Wishes,
    stamp::Identity,
};

pub(crate) const QUEUE: &str = "orders";
pub(crate) const GROUPS: [&str; 2] = ["mail", "stock"];
const PRODUCERS: u64 = 3;
const CONSUMERS_PER_GROUP: u64 = 2;
const NODES: u64 = 3;

pub(crate) fn reader(group: &str) -> Reader {
    Reader { queue: QUEUE.to_owned(), group: group.to_owned() }
}

/// A history of a correct queue: `steps` random steps, then everything is drained and every node asked.
pub(crate) fn history(seed: u64, steps: u32) -> History {
    let mut toy = Toy::new(seed);
    for _ in 0..steps {
        toy.step();
    }
    toy.finish()
}

struct Toy {
    random: SmallRng,
    now: Moment,
    log: Vec<Identity>,
    /// Stored some time after their publish was given up as unknown.
    late: Vec<Identity>,
    sequences: BTreeMap<u64, u64>,
    groups: BTreeMap<&'static str, Group>,
    history: History,
}

#[derive(Default)]
struct Group {
    next: u64,
    /// Offset to the attempt it has next.
    returned: BTreeMap<u64, u32>,
    /// Offset to who has it in which attempt.
    leases: BTreeMap<u64, (u64, u32)>,
    acked: BTreeSet<u64>,
}

impl Toy {
    fn new(seed: u64) -> Self {
        let history = History {
            readers: GROUPS.map(reader).into(),
            kept: [QUEUE.to_owned()].into(),
            lease: Duration::from_secs(30),
            ..History::default()
        };
        Self {
            random: SmallRng::seed_from_u64(seed),
            now: Moment::ZERO,
            log: Vec::new(),
            late: Vec::new(),
            sequences: BTreeMap::new(),
            groups: GROUPS.map(|name| (name, Group::default())).into(),
            history,
        }
    }

    fn step(&mut self) {
        let group = GROUPS[self.random.random_range(0..GROUPS.len())];
        match self.random.random_range(0..100) {
            0..30 => self.publish(),
            30..65 => self.deliver(group),
            65..95 => self.settle(group),
            95..98 => self.store_late(),
            _ => self.change_leader(),
        }
    }

    fn tick(&mut self) -> Moment {
        self.now += Duration::from_millis(self.random.random_range(1..300));
        self.now
    }

    fn publish(&mut self) {
        let producer = self.random.random_range(0..PRODUCERS);
        let sequence = self.sequences.entry(producer).or_default();
        *sequence += 1;
        let identity =
            Identity { queue: QUEUE.to_owned(), producer, sequence: *sequence, uuid: self.random.next_u64() };
        let invoked = self.tick();
        let outcome = match self.random.random_range(0..10) {
            0 => Outcome::Failed("no leader".to_owned()),
            1 => {
                self.late.push(identity.clone());
                Outcome::Unknown("reset".to_owned())
            }
            2 => {
                self.log.push(identity.clone());
                Outcome::Unknown("reset".to_owned())
            }
            _ => {
                self.log.push(identity.clone());
                Outcome::Ok(self.log.len() as u64 - 1)
            }
        };
        let returned = Some(self.tick());
        self.history.publishes.push(Publish {
            identity,
            wishes: Wishes::default(),
            invoked,
            returned,
            outcome,
        });
    }

    fn store_late(&mut self) {
        self.log.extend(self.late.pop());
    }

    fn deliver(&mut self, name: &'static str) {
        let received = self.tick();
        let group = self.groups.get_mut(name).expect("every group is made at the start");
        let (offset, attempt) = match group.returned.pop_first() {
            Some(returned) => returned,
            None if group.next < self.log.len() as u64 => (group.next, 1),
            None => return,
        };
        group.next = group.next.max(offset + 1);
        let consumer = self.random.random_range(0..CONSUMERS_PER_GROUP);
        group.leases.insert(offset, (consumer, attempt));
        let identity = Ok(self.log[offset as usize].clone());
        self.history.deliveries.push(Delivery {
            reader: reader(name),
            consumer,
            offset,
            attempt,
            identity,
            received,
        });
    }

    fn settle(&mut self, name: &'static str) {
        let fate = self.random.random_range(0..10);
        self.settle_as(name, fate);
    }

    fn settle_as(&mut self, name: &'static str, fate: u32) {
        let (invoked, returned) = (self.tick(), Some(self.tick()));
        let group = self.groups.get_mut(name).expect("every group is made at the start");
        let Some((offset, (consumer, attempt))) = group.leases.pop_first() else {
            return;
        };
        let (kind, outcome) = match fate {
            0 => {
                group.returned.insert(offset, attempt + 1);
                (SettlementKind::Nack, Outcome::Ok(()))
            }
            1 => {
                group.acked.insert(offset);
                (SettlementKind::Ack, Outcome::Unknown("reset".to_owned()))
            }
            2 => {
                group.leases.insert(offset, (consumer, attempt));
                (SettlementKind::Ack, Outcome::Unknown("reset".to_owned()))
            }
            _ => {
                group.acked.insert(offset);
                (SettlementKind::Ack, Outcome::Ok(()))
            }
        };
        let reader = reader(name);
        self.history.settlements.push(Settlement {
            reader,
            consumer,
            offset,
            kind,
            invoked,
            returned,
            outcome,
        });
    }

    /// Leases are gone with the leader, and nobody counted them.
    fn change_leader(&mut self) {
        let at = self.tick();
        self.history.disturbances.push(Disturbance { at, what: "leader changed".to_owned() });
        for group in self.groups.values_mut() {
            let leases = std::mem::take(&mut group.leases);
            group.returned.extend(leases.into_iter().map(|(offset, (_, attempt))| (offset, attempt)));
        }
    }

    fn finish(mut self) -> History {
        // At least one message, so that the history is fit to show something.
        while self.history.confirmed_count() == 0 {
            self.publish();
        }
        while !self.late.is_empty() {
            self.store_late();
        }
        for name in GROUPS {
            while self.groups[name].acked.len() < self.log.len() {
                self.deliver(name);
                self.settle_as(name, 9);
            }
        }
        let contents: Vec<_> = (0..).zip(self.log.iter().cloned().map(Ok)).collect();
        for node_id in 1..=NODES {
            let (queue, invoked) = (QUEUE.to_owned(), self.tick());
            let figures = [("next_offset".to_owned(), self.log.len() as u64)].into();
            self.history.counts.push(Counts { node_id, queue: queue.clone(), figures });
            self.history.views.push(View { node_id, queue, invoked, contents: contents.clone() });
        }
        self.history
    }
}
