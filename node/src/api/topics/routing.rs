//! Which queues get a message of a topic: its bindings, arranged so that most of them need not be looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use skein_proto::ids::{QueueId, TopicId};

use crate::{
    api::filter::{self, Filter, Word},
    batch::Fields,
    broker::{Catalog, Topic},
};

/// The tables of topics that were published to lately on this node.
#[derive(Debug, Default)]
pub struct RoutingTables(Mutex<BTreeMap<String, Arc<RoutingTable>>>);

/// How many are kept.
const TABLES_MAX: usize = 1_000;

/// The bindings of a topic at one revision.
#[derive(Debug)]
pub(super) struct RoutingTable {
    topic: TopicId,
    revision: u64,
    /// All that are bound.
    queues: BTreeSet<QueueId>,
    /// Get every message.
    all: Vec<QueueId>,
    /// Bindings that want one key, by it.
    by_key: BTreeMap<Vec<u8>, Vec<Bound>>,
    /// Bindings that want a pattern of words, by its words.
    by_words: Words,
    /// All other bindings.
    others: Vec<(Filter, QueueId)>,
    /// Gets what nobody else gets.
    alternate: Option<QueueId>,
}

/// A binding that is found by a key or a pattern, and what else it asks for.
#[derive(Debug)]
struct Bound {
    queue: QueueId,
    more: Option<Filter>,
}

/// Bindings by the words of their patterns, from one word on.
#[derive(Debug, Default)]
struct Words {
    here: Vec<Bound>,
    exactly: BTreeMap<Vec<u8>, Self>,
    any: Option<Box<Self>>,
    any_number: Option<Box<Self>>,
    /// It comes after a `#`, and stays whatever words come.
    stays: bool,
}

impl RoutingTables {
    /// The table of a topic as the catalog has it now. Nothing when there is no such topic.
    pub(super) fn get(&self, catalog: &Catalog, name: &str) -> Option<Arc<RoutingTable>> {
        let topic = catalog.topic(name)?;
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(name).filter(|table| table.revision == topic.revision) {
            return Some(Arc::clone(table));
        }
        if tables.len() >= TABLES_MAX {
            tables.clear();
        }
        let table = Arc::new(RoutingTable::new(topic));
        tables.insert(name.to_owned(), Arc::clone(&table));
        Some(table)
    }
}

impl RoutingTable {
    pub(super) fn new(topic: &Topic) -> Self {
        let mut table = Self {
            topic: topic.id,
            revision: topic.revision,
            all: Vec::new(),
            by_key: BTreeMap::new(),
            by_words: Words::default(),
            others: Vec::new(),
            alternate: topic.alternate,
            queues: topic.bindings.iter().map(|binding| binding.queue).collect(),
        };
        for binding in &topic.bindings {
            if binding.filter.is_empty() {
                table.all.push(binding.queue);
            } else if let Some(filter) = filter::decode(&binding.filter).and_then(|f| Filter::new(&f).ok()) {
                table.add(filter, binding.queue);
            }
        }
        table
    }

    fn add(&mut self, filter: Filter, queue: QueueId) {
        // A part that all messages of the binding must have is enough to find it by.
        let parts = match &filter {
            Filter::All(parts) => parts.as_slice(),
            other => std::slice::from_ref(other),
        };
        let key = parts.iter().find_map(|part| match part {
            Filter::KeyEquals(key) => Some(key.clone()),
            _ => None,
        });
        let pattern = parts.iter().find_map(|part| match part {
            Filter::KeyMatches(words) => Some(words.clone()),
            _ => None,
        });
        let more = matches!(filter, Filter::All(_)).then(|| filter.clone());
        match (key, pattern) {
            (Some(key), _) => self.by_key.entry(key).or_default().push(Bound { queue, more }),
            (None, Some(words)) => self.by_words.add(&words, Bound { queue, more }),
            (None, None) => self.others.push((filter, queue)),
        }
    }

    /// The topic.
    pub(super) const fn topic(&self) -> TopicId {
        self.topic
    }

    /// The catalog's revision when the topic changed last.
    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether a queue gets anything.
    pub(super) fn names(&self, queue: QueueId) -> bool {
        self.queues.contains(&queue) || self.alternate == Some(queue)
    }

    /// The queues that get a message; of several bindings of one, it is named once.
    pub(super) fn queues_of(&self, message: &Fields<'_>, queues: &mut Vec<QueueId>) {
        queues.clear();
        queues.extend(&self.all);
        let mut add = |bound: &Bound| {
            if bound.more.as_ref().is_none_or(|filter| filter.wants(message)) {
                queues.push(bound.queue);
            }
        };
        self.by_key.get(message.key()).into_iter().flatten().for_each(&mut add);
        if !self.by_words.is_empty() {
            let words: Vec<_> = message.key().split(|&byte| byte == b'.').collect();
            self.by_words.visit(&words, &mut add);
        }
        let others = self.others.iter().filter(|(filter, _)| filter.wants(message));
        queues.extend(others.map(|(_, queue)| *queue));
        queues.sort_unstable();
        queues.dedup();
        if queues.is_empty() {
            queues.extend(self.alternate);
        }
    }
}

impl Words {
    fn is_empty(&self) -> bool {
        self.here.is_empty() && self.exactly.is_empty() && self.any.is_none() && self.any_number.is_none()
    }

    fn add(&mut self, pattern: &[Word], bound: Bound) {
        match pattern.split_first() {
            None => self.here.push(bound),
            Some((Word::Exactly(word), rest)) => {
                self.exactly.entry(word.clone()).or_default().add(rest, bound);
            }
            Some((Word::Any, rest)) => self.any.get_or_insert_default().add(rest, bound),
            Some((Word::AnyNumber, rest)) => {
                let after = self.any_number.get_or_insert_default();
                after.stays = true;
                after.add(rest, bound);
            }
        }
    }

    /// Visits the bindings whose patterns these words match, each once. Follows all patterns side by side, so that the
    /// work for a word is bounded by how many there are, however many `#` they have.
    fn visit(&self, words: &[&[u8]], visit: &mut impl FnMut(&Bound)) {
        let mut reached = Vec::new();
        self.reach(&mut reached);
        for word in words {
            let mut next = Vec::new();
            for place in reached {
                if place.stays {
                    place.reach(&mut next);
                }
                place.exactly.get(*word).into_iter().for_each(|after| after.reach(&mut next));
                place.any.iter().for_each(|after| after.reach(&mut next));
            }
            // A place that stays may be reached again from one before it.
            next.sort_unstable_by_key(|place| std::ptr::from_ref(*place));
            next.dedup_by_key(|place| std::ptr::from_ref(*place));
            reached = next;
        }
        reached.into_iter().flat_map(|place| &place.here).for_each(visit);
    }

    /// Adds the place, and those after a `#` that stands for no word.
    fn reach<'a>(&'a self, reached: &mut Vec<&'a Self>) {
        reached.push(self);
        if let Some(after) = &self.any_number {
            after.reach(reached);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use prost::Message as _;
    use skein_proto::{
        broker::Message,
        node::{self as wire, filter::Filter as Choice},
    };

    use super::*;
    use crate::broker::Binding;

    fn part() -> impl Strategy<Value = wire::Filter> {
        let choice = prop_oneof![
            vec(prop_oneof!["[ab]", Just("*".to_owned()), Just("#".to_owned())], 1..4)
                .prop_map(|words| Choice::KeyMatches(words.join("."))),
            "[ab]\\.[ab]".prop_map(|key| Choice::KeyEquals(key.into())),
            "[ab]".prop_map(|prefix| Choice::KeyPrefix(prefix.into())),
            "[ab]".prop_map(Choice::HeaderExists),
        ];
        choice.prop_map(|choice| wire::Filter { filter: Some(choice) })
    }

    fn filter() -> impl Strategy<Value = Option<wire::Filter>> {
        let list = |filters| wire::FilterList { filters };
        prop_oneof![
            1 => Just(None),
            4 => part().prop_map(Some),
            2 => vec(part(), 0..3)
                .prop_map(move |parts| Some(wire::Filter { filter: Some(Choice::All(list(parts))) })),
            1 => part().prop_map(|part| Some(wire::Filter { filter: Some(Choice::Not(Box::new(part))) })),
        ]
    }

    #[test]
    fn many_wildcards_take_no_longer_than_few() {
        let mut words = Words::default();
        let part = [Word::AnyNumber, Word::Exactly(b"a".to_vec())];
        let pattern: Vec<_> = part.iter().cycle().take(24).cloned().collect();
        words.add(&pattern, Bound { queue: QueueId::new(7), more: None });
        let mut found = Vec::new();
        words.visit(&vec![&b"a"[..]; 400], &mut |bound| found.push(bound.queue));
        assert_eq!(found, [QueueId::new(7)]);
    }

    proptest! {
        #[test]
        fn a_message_goes_where_a_binding_wants_it(
            bindings in vec((1..5_u64, filter()), 0..12),
            alternate in prop::option::of(9..10_u64),
            messages in vec((vec("[ab]", 0..4), prop::option::of("[ab]")), 1..20),
        ) {
            let topic = Topic {
                id: TopicId::new(1),
                name: "t".into(),
                bindings: bindings
                    .iter()
                    .map(|(queue, filter)| Binding {
                        queue: QueueId::new(*queue),
                        filter: filter.as_ref().map(|filter| filter.encode_to_vec()).unwrap_or_default(),
                    })
                    .collect(),
                alternate: alternate.map(QueueId::new),
                revision: 1,
            };
            let table = RoutingTable::new(&topic);
            let mut queues = Vec::new();
            for (words, header) in messages {
                let headers = header.into_iter().map(|name| (name, "".into())).collect();
                let message = Message { key: words.join(".").into(), headers, ..Message::default() };
                let encoded = message.encode_to_vec();
                let fields = Fields::of(&encoded);
                let wants = |filter: &Option<wire::Filter>| {
                    filter.as_ref().is_none_or(|filter| Filter::new(filter).unwrap().wants(&fields))
                };
                let wanted = bindings.iter().filter(|(_, filter)| wants(filter));
                let mut expected: BTreeSet<_> = wanted.map(|(queue, _)| QueueId::new(*queue)).collect();
                if expected.is_empty() {
                    expected.extend(topic.alternate);
                }
                table.queues_of(&fields, &mut queues);
                prop_assert_eq!(&queues, &expected.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
