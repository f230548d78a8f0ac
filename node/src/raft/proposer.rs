//! Gathers a shard's commands into raft entries: whatever queued up while earlier entries were being written.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use openraft::{errors::ClientWriteError, impls::OneshotResponder, raft::ClientWriteResult};
use skein_proto::ids::NodeId;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::{
    codec::{self, EntryHead, Proposed},
    leadership::Leadership,
    pause::PauseWatch,
    state_machine::Outcomes,
    types::{Body, Raft, TypeConfig},
};
use crate::{
    broker::{CatalogOutcome, Outcome},
    clock::Clock,
    telemetry::{Histogram, TRACES, TraceId},
};

/// Commands that wait to be proposed. Their bytes are bounded by admission; this bounds their number.
pub(super) const MAILBOX_MAX: usize = 4_096;

/// The most bytes of commands in one entry, except that one command always goes.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// The most commands in one entry, so that many tiny ones do not make an entry that takes long to apply.
const ENTRY_COMMANDS_MAX: usize = 4_096;

/// Entries in flight up to which whatever is there is proposed at once. Two, so that the disk is never idle between
/// one entry's sync and the next one's arrival.
const EAGER_IN_FLIGHT: usize = 2;

/// A full batch of this many bytes need not wait for earlier entries, up to `IN_FLIGHT_MAX` of them.
const WORTHWHILE_BYTES: usize = 256 << 10;
const IN_FLIGHT_MAX: usize = 16;

/// How long a command that nobody is in a hurry for waits for others to share its entry. An ack that rides along with
/// the next publish costs no sync of its own.
const PATIENCE: Duration = Duration::from_millis(1);

/// How long an outcome is waited for once this node does not lead any more: its successor may be about to tell it.
const OUTCOME_WAIT_MAX: Duration = Duration::from_millis(300);

/// What became of one command.
#[derive(Debug, Clone, PartialEq)]
pub enum CommandOutcome {
    /// Of a message shard's command.
    Shard(Outcome),
    /// Of a catalog's command.
    Catalog(CatalogOutcome),
}

/// Why a command has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead the shard: the command was not proposed.
    #[error("this node does not lead the shard")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// Leadership moved while the command was in flight: it may take effect, or not.
    #[error("leadership moved while the command was in flight; whether it takes effect is unknown")]
    OutcomeUnknown,
    /// The group is stopping: the command was not proposed.
    #[error("the shard is shutting down")]
    Stopped,
}

pub(super) struct Proposal {
    pub proposed: Proposed,
    pub reply: oneshot::Sender<Result<CommandOutcome, ProposeError>>,
    /// Held until the outcome is known, so that admission counts bytes in flight.
    pub permit: Option<OwnedSemaphorePermit>,
    /// Nobody is in a hurry for it.
    pub patient: bool,
    /// It is followed.
    pub trace: Option<TraceId>,
}

/// Whoever waits for what becomes of a command.
struct Waiting {
    reply: oneshot::Sender<Result<CommandOutcome, ProposeError>>,
    _permit: Option<OwnedSemaphorePermit>,
    trace: Option<TraceId>,
}

type Finished = (Vec<Waiting>, Result<ClientWriteResult<TypeConfig>, ProposeError>);

pub(super) struct Proposer {
    node: NodeId,
    raft: Raft,
    leadership: watch::Receiver<Leadership>,
    clock: Clock,
    confirm_times: Arc<Histogram>,
    /// The newest index known to be on every replica's disk, kept by the group.
    replicated_index: Arc<AtomicU64>,
    queued: VecDeque<Proposal>,
    queued_bytes: usize,
    /// When what is queued is proposed at the latest.
    due: Duration,
    in_flight: FuturesOrdered<BoxFuture<'static, Finished>>,
    pause: PauseWatch,
}

impl Proposer {
    pub(super) fn new(
        (node, raft): (NodeId, Raft),
        leadership: watch::Receiver<Leadership>,
        (clock, confirm_times): (Clock, Arc<Histogram>),
        replicated_index: Arc<AtomicU64>,
        pause: PauseWatch,
    ) -> Self {
        Self {
            node,
            raft,
            leadership,
            clock,
            confirm_times,
            replicated_index,
            queued: VecDeque::new(),
            queued_bytes: 0,
            due: Duration::MAX,
            in_flight: FuturesOrdered::new(),
            pause,
        }
    }

    /// Runs until every handle to the mailbox is gone and everything in flight has its outcome.
    pub(super) async fn run(mut self, mut mailbox: mpsc::Receiver<Proposal>) {
        let mut open = true;
        // Decides both whether to propose and whether to wait: were the time asked twice, what becomes due in between
        // would be neither proposed nor waited for.
        let mut patience_left = self.patience_left();
        while open || !self.queued.is_empty() || !self.in_flight.is_empty() {
            tokio::select! {
                biased;
                Some((waiting, result)) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    on_finished(waiting, result);
                }
                received = mailbox.recv(), if open && self.wants_more() => match received {
                    Some(proposal) => self.on_proposal(proposal),
                    None => open = false,
                },
                () = tokio::time::sleep(patience_left), if !self.queued.is_empty() && !patience_left.is_zero() => {}
                // An error means that the group is going, and with it whoever wanted a pause.
                Ok(()) = self.pause.changed() => {}
            }
            while self.wants_more()
                && let Ok(proposal) = mailbox.try_recv()
            {
                self.on_proposal(proposal);
            }
            patience_left = self.patience_left();
            while self.is_worthwhile(patience_left) && !self.pause.is_wanted() {
                self.propose().await;
                patience_left = self.patience_left();
            }
            self.pause.tell(self.in_flight.is_empty());
        }
    }

    fn patience_left(&self) -> Duration {
        self.due.saturating_sub(self.clock.monotonic())
    }

    /// One entry's worth is gathered at a time; the rest waits in the mailbox, and its senders with it.
    fn wants_more(&self) -> bool {
        self.queued_bytes < ENTRY_BYTES_MAX && self.queued.len() < ENTRY_COMMANDS_MAX
    }

    fn is_worthwhile(&self, patience_left: Duration) -> bool {
        let eager = self.in_flight.len() < EAGER_IN_FLIGHT && patience_left.is_zero();
        let full = !self.wants_more() || self.queued_bytes >= WORTHWHILE_BYTES;
        !self.queued.is_empty() && (eager || (full && self.in_flight.len() < IN_FLIGHT_MAX))
    }

    fn on_proposal(&mut self, proposal: Proposal) {
        let now = self.clock.monotonic();
        self.due = self.due.min(if proposal.patient { now + PATIENCE } else { now });
        self.queued_bytes += proposal.proposed.encoded_len();
        self.queued.push_back(proposal);
    }

    async fn propose(&mut self) {
        let mut commands = Vec::with_capacity(self.queued.len());
        let mut waiting = Vec::with_capacity(self.queued.len());
        for Proposal { proposed, reply, permit, trace, .. } in self.queued.drain(..) {
            commands.push(proposed);
            waiting.push(Waiting { reply, _permit: permit, trace });
        }
        self.queued_bytes = 0;
        self.due = Duration::MAX;
        let replicated_index = self.replicated_index.load(Ordering::Relaxed);
        let head = EntryHead { leader_time_ms: self.clock.wall_ms(), replicated_index };
        let body = codec::encode_entry(head, &commands);
        waiting.iter().filter_map(|waiting| waiting.trace).for_each(|trace| TRACES.propose(trace, &body));
        let (responder, outcome) = OneshotResponder::new_pair();
        let (clock, confirm_times) = (self.clock.clone(), Arc::clone(&self.confirm_times));
        let begun = clock.monotonic();
        let given_up = given_up(self.leadership.clone(), self.node);
        let sent = self.raft.client_write_ff(Body(body), Some(responder)).await;
        self.in_flight.push_back(
            async move {
                let result = match sent {
                    Ok(()) => tokio::select! {
                        outcome = outcome => outcome.map_err(|_| ProposeError::OutcomeUnknown),
                        () = given_up => Err(ProposeError::OutcomeUnknown),
                    },
                    Err(_) => Err(ProposeError::Stopped),
                };
                if matches!(result, Ok(Ok(_))) {
                    confirm_times.record(clock.monotonic().saturating_sub(begun));
                }
                (waiting, result)
            }
            .boxed(),
        );
    }
}

/// Ends when this node leads no more, and there is still no outcome a while after that. A leader that is cut off would
/// otherwise wait until it is not, while others lead.
async fn given_up(mut leadership: watch::Receiver<Leadership>, node: NodeId) {
    let leads = |now: &Leadership| now.leader == Some(node);
    // It may not have heard yet that it leads. An error means that the group is stopping, and openraft says so to
    // whoever waits.
    let begun = tokio::time::timeout(OUTCOME_WAIT_MAX, leadership.wait_for(leads)).await;
    let Ok(is_going_on) = begun.map(|leads| leads.is_ok()) else { return };
    if !is_going_on || leadership.wait_for(|now| !leads(now)).await.is_err() {
        return std::future::pending().await;
    }
    tokio::time::sleep(OUTCOME_WAIT_MAX).await;
}

fn on_finished(waiting: Vec<Waiting>, result: Result<ClientWriteResult<TypeConfig>, ProposeError>) {
    let outcomes = result.and_then(|written| match written {
        Ok(response) => Ok(response.data),
        Err(ClientWriteError::ForwardToLeader(forward)) => {
            Err(ProposeError::NotLeader { leader: forward.leader_id.map(NodeId::new) })
        }
        Err(_) => Err(ProposeError::OutcomeUnknown),
    });
    let outcomes: Vec<_> = match outcomes {
        Ok(Outcomes::Shard(outcomes)) => {
            outcomes.into_iter().map(|outcome| Ok(CommandOutcome::Shard(outcome))).collect()
        }
        Ok(Outcomes::Catalog(outcomes)) => {
            outcomes.into_iter().map(|outcome| Ok(CommandOutcome::Catalog(outcome))).collect()
        }
        Ok(Outcomes::None) => unreachable!("an entry with commands was applied as one without"),
        Err(error) => waiting.iter().map(|_| Err(error)).collect(),
    };
    assert_eq!(outcomes.len(), waiting.len(), "each command has one outcome");
    for (Waiting { reply, trace, .. }, outcome) in waiting.into_iter().zip(outcomes) {
        if let Some(trace) = trace {
            follow(trace, &outcome);
        }
        // Whoever asked may have gone; the command took effect all the same.
        let _ = reply.send(outcome);
    }
}

/// Goes on following a batch that was stored, and no other.
fn follow(trace: TraceId, outcome: &Result<CommandOutcome, ProposeError>) {
    match outcome {
        Ok(CommandOutcome::Shard(Outcome::Published { first_offset, count, duplicate: false })) => {
            TRACES.store(trace, *first_offset, *count);
        }
        _ => TRACES.give_up(trace),
    }
}
