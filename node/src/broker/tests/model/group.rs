//! A consumer group of the model: the state of every message ever published.

use skein_proto::ids::{Offset, Sequence};

use crate::{
    broker::{DeadLetter, GiveUpReason, GivenUp, Group, Return, Settings},
    offsets::OffsetRange,
};

pub(super) struct ModelGroup {
    pub(super) name: String,
    /// For each message ever published.
    pub(super) states: Vec<State>,
    pub(super) dead_lettered_total: u64,
    pub(super) dropped_total: u64,
    pub(super) seek_count: u32,
    pub(super) filter: Vec<u8>,
    next_dead_letter: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum State {
    Open { attempts: u32, not_before_ms: u64 },
    GivenUp(DeadLetter),
    Acked,
}

pub(super) const UNTOUCHED: State = State::Open { attempts: 0, not_before_ms: 0 };

impl ModelGroup {
    pub(super) fn new(name: &str, filter: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            states: Vec::new(),
            dead_lettered_total: 0,
            dropped_total: 0,
            seek_count: 0,
            filter: filter.to_vec(),
            next_dead_letter: 1,
        }
    }

    pub(super) fn floor(&self) -> usize {
        self.states.iter().position(|state| *state != State::Acked).unwrap_or(self.states.len())
    }

    /// Begins at a message; what is not kept it will never see.
    pub(super) fn begin(&mut self, at: usize, kept: &[bool]) {
        self.states = kept.iter().map(|kept| if *kept { UNTOUCHED } else { State::Acked }).collect();
        self.states[..at].fill(State::Acked);
    }

    pub(super) fn ack(&mut self, range: OffsetRange) {
        for place in self.in_range(range) {
            self.states[place] = State::Acked;
        }
    }

    pub(super) fn take_back(&mut self, back: Return, settings: &Settings, now_ms: u64) {
        for place in self.in_range(back.range) {
            let State::Open { attempts: known, .. } = self.states[place] else {
                continue;
            };
            if known <= back.attempt {
                self.states[place] =
                    State::Open { attempts: back.attempt, not_before_ms: back.not_before_ms };
            }
            if back.rejected {
                self.give_up_one(place, GiveUpReason::Rejected, settings, now_ms);
            } else if known.max(back.attempt) >= settings.max_deliveries {
                self.give_up_one(place, GiveUpReason::MaxDeliveries, settings, now_ms);
            }
        }
    }

    pub(super) fn give_up(
        &mut self,
        range: OffsetRange,
        reason: GiveUpReason,
        settings: &Settings,
        now_ms: u64,
    ) {
        for place in self.in_range(range) {
            self.give_up_one(place, reason, settings, now_ms);
        }
    }

    pub(super) fn dead_letters_moved(&mut self, up_to: Sequence) {
        for state in &mut self.states {
            if matches!(state, State::GivenUp(letter) if letter.sequence <= up_to) {
                *state = State::Acked;
                self.dead_lettered_total += 1;
            }
        }
    }

    pub(super) fn drop_dead_letters(&mut self) {
        for state in self.states.iter_mut().filter(|state| matches!(state, State::GivenUp(_))) {
            *state = State::Acked;
            self.dropped_total += 1;
        }
    }

    pub(super) fn has_dead_letters(&self) -> bool {
        self.states.iter().any(|state| matches!(state, State::GivenUp(_)))
    }

    fn in_range(&self, range: OffsetRange) -> Vec<usize> {
        (0..self.states.len()).filter(|&place| range.contains(Offset::new(place as u64))).collect()
    }

    fn give_up_one(&mut self, place: usize, reason: GiveUpReason, settings: &Settings, at_ms: u64) {
        let State::Open { attempts, .. } = self.states[place] else {
            return;
        };
        if settings.dead_letter_queue.is_none() {
            self.states[place] = State::Acked;
            self.dropped_total += 1;
            return;
        }
        let sequence = Sequence::new(self.next_dead_letter);
        self.next_dead_letter += 1;
        let (offset, given_up) = (Offset::new(place as u64), GivenUp { attempts, reason, at_ms });
        self.states[place] = State::GivenUp(DeadLetter { sequence, offset, given_up });
    }

    pub(super) fn check(&self, group: &Group) {
        let end = self.states.len();
        let count =
            |wanted: fn(&State) -> bool| self.states.iter().filter(|state| wanted(state)).count() as u64;
        assert_eq!(group.acked_floor().get(), self.floor() as u64);
        assert_eq!(group.seek_count(), self.seek_count);
        assert_eq!(group.filter().map_or(&[][..], |filter| filter), self.filter);
        assert_eq!(group.unacked_count(Offset::new(end as u64)), count(|state| *state != State::Acked));
        assert_eq!(
            group.returned_count(),
            count(|state| matches!(state, State::Open { attempts, .. } if *attempts > 0))
        );
        assert_eq!(group.dead_letter_count(), count(|state| matches!(state, State::GivenUp(_))));
        assert_eq!(
            (group.dead_lettered_total(), group.dropped_total()),
            (self.dead_lettered_total, self.dropped_total)
        );
        let mut letters: Vec<_> = self
            .states
            .iter()
            .filter_map(|state| if let State::GivenUp(letter) = state { Some(*letter) } else { None })
            .collect();
        letters.sort_by_key(|letter| letter.sequence);
        assert_eq!(group.dead_letters().collect::<Vec<_>>(), letters);
        let deliverable = group.deliverable();
        for (offset, &state) in (0..).map(Offset::new).zip(&self.states) {
            let found = deliverable.get(offset).map(|(_, returned)| State::Open {
                attempts: returned.attempts,
                not_before_ms: returned.not_before_ms,
            });
            let expected = matches!(state, State::Open { .. }).then_some(state);
            if offset >= group.untouched_from() {
                assert_eq!((found, expected), (None, Some(UNTOUCHED)));
            } else {
                assert_eq!(found, expected, "at {offset}");
            }
        }
    }
}
