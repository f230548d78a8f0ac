//! One raft group on this node: its handle for proposing, reading, and answering peers.

mod purge;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use openraft::{
    BasicNode, Config, RaftMetrics, RaftState, ReadPolicy, SnapshotPolicy,
    async_runtime::watch::WatchReceiver as _,
    errors::{InitializeError, RaftError},
};
use skein_proto::ids::{NodeId, ShardId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::{
    codec::Proposed,
    leadership::{Leadership, LeadershipWatch},
    log_store::LogStore,
    network::{Network, Transport},
    pages::PageMemory,
    pause::{Pause, pause},
    proposer::{CommandOutcome, MAILBOX_MAX, Proposal, ProposeError, Proposer},
    repair::{self, Repairs},
    replica::Replica,
    snapshot::{ReceiveError, Receiver, Saved},
    state_machine::StateMachine,
    types::{Raft, TypeConfig},
    wire::{
        AppendRequest, AppendResult, SnapshotAnswer, SnapshotBegin, SnapshotPiece, Standing, TransferRequest,
        Vote, VoteRequest, VoteResponse, entry_id,
    },
};
use crate::{
    checkpoint::Checkpoint,
    clock::{Clock, millis},
    log::{KeptEntry, Log},
    tasks,
    telemetry::{Histogram, TraceId},
};

/// Timers of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// How often a leader tells idle followers that it is there.
    pub heartbeat: Duration,
    /// The shortest silence after which a follower stands for election.
    pub election_min: Duration,
    /// The longest.
    pub election_max: Duration,
}

impl Timers {
    /// How long a leader may count on those who answered it: they elect nobody else meanwhile.
    #[must_use]
    pub fn lease(self) -> Duration {
        self.election_max / 2
    }

    /// What a follower waits on top of the lease, at least. openraft takes the lease itself for the most that it waits.
    fn beyond_lease_min(self) -> Duration {
        self.election_min.saturating_sub(self.lease()).max(self.heartbeat + Duration::from_millis(1))
    }
}

/// A group failed for good: its storage broke or it met a bug. The node must stop.
#[derive(Debug, thiserror::Error)]
#[error("shard {shard} stopped: {reason}")]
pub struct GroupFailure {
    /// The shard.
    pub shard: ShardId,
    /// What openraft says.
    pub reason: String,
}

/// Why a group could not be made or asked.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// openraft refuses the timers.
    #[error("the raft timers are refused: {0}")]
    Config(String),
    /// The group stopped.
    #[error(transparent)]
    Failed(#[from] GroupFailure),
}

/// What a group is made of.
pub(super) struct GroupParts {
    pub node: NodeId,
    pub timers: Timers,
    pub log: Log,
    pub replica: Arc<Replica>,
    pub checkpoint: Checkpoint,
    pub memory: Arc<PageMemory>,
    pub transport: Arc<dyn Transport>,
    pub clock: Clock,
    pub confirm_times: Arc<Histogram>,
    pub repairs: Repairs,
    pub failures: mpsc::UnboundedSender<GroupFailure>,
}

/// Handle to one raft group.
pub struct Group {
    node: NodeId,
    shard: ShardId,
    raft: Raft,
    saved: Saved,
    proposals: mpsc::Sender<Proposal>,
    pause: Pause,
    leadership: watch::Receiver<Leadership>,
    replicated_index: Arc<AtomicU64>,
    /// How far raft was last asked to purge the log.
    purge_asked: AtomicU64,
    receiver: Arc<Receiver>,
    repairs: Repairs,
    /// How long a leader may count on those who answered it.
    pub(super) lease: Duration,
}

impl Group {
    pub(super) async fn start(parts: GroupParts) -> Result<Self, GroupError> {
        let GroupParts { node, timers, log, replica, checkpoint, memory, transport, clock, repairs, .. } =
            parts;
        let (confirm_times, failures) = (parts.confirm_times, parts.failures);
        let shard = replica.shard();
        let saved = Saved { checkpoint, replica: Arc::clone(&replica), log: log.clone(), memory };
        let (quiet, quiet_watch) = watch::channel(false);
        let raft = Raft::new(
            node.get(),
            Arc::new(raft_config(shard, timers)?),
            Network::new(Arc::clone(&transport), shard, quiet_watch),
            LogStore::new(log, shard, repairs.clone()),
            StateMachine::new(saved.clone()),
        )
        .await
        .map_err(|fatal| GroupFailure { shard, reason: fatal.to_string() })?;

        let replicated_index = Arc::new(AtomicU64::new(0));
        let (proposals, mailbox) = mpsc::channel(MAILBOX_MAX);
        let (pause, pause_watch) = pause();
        let (leadership_sender, leadership) = watch::channel(Leadership { term: 0, leader: None });
        let proposer = Proposer::new(
            (node, raft.clone()),
            leadership.clone(),
            (clock.clone(), confirm_times),
            Arc::clone(&replicated_index),
            pause_watch,
        );
        tasks::spawn(proposer.run(mailbox));
        let lease = timers.lease();
        let (raft_watched, clock_read) = (raft.clone(), clock.clone());
        let watch =
            LeadershipWatch { node, shard, raft: raft_watched, clock: clock_read, lease, quiet, transport };
        tasks::spawn(watch.run(leadership_sender, failures));
        let receiver = Receiver::new(saved.clone(), raft.clone(), clock);
        Ok(Self {
            node,
            shard,
            raft,
            saved,
            proposals,
            pause,
            leadership,
            replicated_index,
            purge_asked: AtomicU64::new(u64::MAX),
            receiver,
            repairs,
            lease,
        })
    }

    /// This node.
    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    /// openraft's handle.
    pub(super) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// Makes its proposer wait.
    pub(super) fn pause(&self) -> &Pause {
        &self.pause
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The shard's state on this node.
    #[must_use]
    pub fn replica(&self) -> &Arc<Replica> {
        &self.saved.replica
    }

    /// Who leads, now and whenever it changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Whether this node leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leadership.borrow().leader == Some(self.node)
    }

    /// Sends a command on its way, in the order of calls, and gives a channel for its outcome. Waits while the
    /// proposer's mailbox is full. `permit` is held until the outcome is known.
    pub async fn propose_later(
        &self,
        proposed: Proposed,
        permit: Option<OwnedSemaphorePermit>,
    ) -> oneshot::Receiver<Result<CommandOutcome, ProposeError>> {
        self.submit(proposed, permit, false, None).await
    }

    /// The same for a batch that is followed, if it is.
    pub async fn propose_followed(
        &self,
        proposed: Proposed,
        permit: OwnedSemaphorePermit,
        trace: Option<TraceId>,
    ) -> oneshot::Receiver<Result<CommandOutcome, ProposeError>> {
        self.submit(proposed, Some(permit), false, trace).await
    }

    /// The same for a command that nobody is in a hurry for: it may wait a moment for others to share an entry with.
    pub async fn propose_patiently(
        &self,
        proposed: Proposed,
    ) -> oneshot::Receiver<Result<CommandOutcome, ProposeError>> {
        self.submit(proposed, None, true, None).await
    }

    /// Proposes a command and waits for its outcome.
    ///
    /// # Errors
    /// See [`ProposeError`], which tells "was not proposed" from "unknown".
    pub async fn propose(&self, proposed: Proposed) -> Result<CommandOutcome, ProposeError> {
        let outcome = self.propose_later(proposed, None).await;
        outcome.await.unwrap_or(Err(ProposeError::OutcomeUnknown))
    }

    /// Confirms with a majority that this node leads, and waits until its state holds everything confirmed before
    /// the call. False when it does not lead.
    pub async fn confirm_leadership(&self) -> bool {
        self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok()
    }

    /// An index that a reader must have applied to see everything confirmed before the call. None when this node
    /// does not lead.
    pub async fn read_index(&self) -> Option<u64> {
        let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.ok()?;
        Some(linearizer.read_log_id().index())
    }

    /// Forms the group with these members, once in its life. On a group that was formed before it does nothing.
    ///
    /// # Errors
    /// When the group has failed.
    pub async fn initialize(&self, members: &BTreeMap<NodeId, String>) -> Result<(), GroupFailure> {
        let members: BTreeMap<u64, BasicNode> =
            members.iter().map(|(id, address)| (id.get(), BasicNode::new(address))).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(GroupFailure { shard: self.shard, reason: error.to_string() }),
        }
    }

    /// Takes a stream of appends from a leader and answers each in order. Ends after a refusal.
    pub fn handle_append<S>(&self, requests: S) -> BoxStream<'static, AppendResult>
    where
        S: Stream<Item = AppendRequest> + Send + 'static,
    {
        // A request that does not decode ends the stream: the leader sees a broken call and starts a new one.
        let requests = requests
            .map(AppendRequest::into_raft)
            .take_while(|request| std::future::ready(request.is_ok()))
            .filter_map(|request| std::future::ready(request.ok()));
        self.raft
            .stream_append(requests.boxed())
            .take_while(|result| std::future::ready(result.is_ok()))
            .filter_map(|result| std::future::ready(result.ok().as_ref().map(AppendResult::from_raft)))
            .boxed()
    }

    /// Takes a snapshot from the shard's leader, and answers its pieces.
    pub fn receive_snapshot(
        &self,
        begin: SnapshotBegin,
        pieces: BoxStream<'static, Result<SnapshotPiece, String>>,
    ) -> impl Stream<Item = Result<SnapshotAnswer, ReceiveError>> + Send + use<> {
        self.receiver.receive(begin, pieces)
    }

    /// Snapshots that this replica took over since the node started.
    #[must_use]
    pub fn snapshots_installed(&self) -> u64 {
        self.receiver.installed_count()
    }

    /// Whether the log holds entries of a snapshot that may yet be installed: they must not be given up.
    pub(super) fn has_staged_snapshot(&self) -> bool {
        self.receiver.has_staged()
    }

    /// What this replica has of an entry that it knows to be committed, for a peer whose copy is damaged.
    pub async fn give_entry(&self, index: u64) -> Option<KeptEntry> {
        if self.committed_index().is_none_or(|committed| committed < index) {
            return None;
        }
        repair::give(&self.saved.log, &self.repairs, self.shard, index).await
    }

    /// The damaged entries of this node.
    #[must_use]
    pub fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    /// Stops this replica from leading and from wanting to, because its log is damaged.
    pub(super) async fn step_back(&self) {
        self.raft.runtime_config().elect(false);
        if self.is_leader()
            && let Some(to) = self.hand_over_at_once().await
        {
            tracing::warn!(shard = %self.shard, %to, "handed leadership over: this node's log is damaged");
        }
    }

    /// Lets this replica take part again.
    pub(super) fn step_forward(&self) {
        self.raft.runtime_config().elect(true);
    }

    /// The newest entry that this replica knows to be committed.
    pub(super) fn committed_index(&self) -> Option<u64> {
        self.metrics().local_committed.map(|id| id.index())
    }

    /// Answers a candidate. None when the group has failed, or this replica's log is damaged.
    pub async fn handle_vote(&self, request: VoteRequest) -> Option<VoteResponse> {
        if self.repairs.is_unfit(self.shard) {
            return None;
        }
        let pre_vote = request.pre_vote;
        let request = request.into_raft();
        let response =
            if pre_vote { self.raft.pre_vote(request).await } else { self.raft.vote(request).await };
        response.ok().as_ref().map(VoteResponse::from_raft)
    }

    /// Where this replica stands. None when it may not lead, because its log is damaged, or the group has stopped.
    pub async fn standing(&self) -> Option<Standing> {
        if self.repairs.is_unfit(self.shard) {
            return None;
        }
        let read = |state: &RaftState<TypeConfig>| (*state.vote_ref(), state.log_ids.last().copied());
        let (vote, last) = self.raft.with_raft_state(read).await.ok()?;
        Some(Standing { vote: vote.into(), last: last.as_ref().map(entry_id) })
    }

    /// Stands for election at once, as if whoever has this replica's vote had handed over to it.
    pub(super) async fn stand(&self, vote: Vote) {
        let request = TransferRequest { shard: self.shard, from: vote, to: self.node, last: None };
        // A refusal means that somebody else was faster.
        self.handle_transfer(request).await;
    }

    /// A leader asks this node to take over, or to make way for who will. It does not take over with a damaged log.
    pub async fn handle_transfer(&self, request: TransferRequest) -> bool {
        if request.to == self.node && self.repairs.is_unfit(self.shard) {
            return false;
        }
        self.raft.handle_transfer_leader(request.into_raft()).await.is_ok_and(|answer| answer.is_ok())
    }

    /// Saves a checkpoint if anything was applied since the last one. False when the checkpoint is being sent to
    /// another node, and so must stay as it is.
    ///
    /// # Errors
    /// When the group has failed.
    pub async fn checkpoint(&self) -> Result<bool, GroupFailure> {
        let applied = self.metrics().last_applied;
        let is_saved = applied.is_none() || applied == self.metrics().snapshot;
        let Some(_changing) = self.saved.checkpoint.try_change() else { return Ok(is_saved) };
        if is_saved {
            // Of pages that somebody has looked at since.
            self.saved.spill();
            return Ok(true);
        }
        self.raft.trigger().snapshot().await.map_err(|fatal| self.failure(&fatal))?;
        let mut progress = self.raft.metrics();
        while progress.borrow_watched().snapshot < applied {
            progress.changed().await.map_err(|_| GroupFailure {
                shard: self.shard,
                reason: "it ended while a checkpoint was being saved".to_owned(),
            })?;
        }
        Ok(true)
    }

    /// Bytes of the shard's log after an entry, about.
    pub(super) fn log_bytes_after(&self, index: u64) -> u64 {
        self.saved.log.bytes_after(self.shard, index)
    }

    /// How many entries each other replica lacks, as far as this node knows; nothing when it does not lead.
    #[must_use]
    pub fn follower_lags(&self) -> Vec<(NodeId, u64)> {
        let metrics = self.metrics();
        let Some(followers) = &metrics.replication else { return Vec::new() };
        let end = metrics.last_log_index.map_or(0, |index| index + 1);
        let lag = |replica| {
            let reached = followers.get(&replica).and_then(Option::as_ref).map_or(0, |id| id.index() + 1);
            (NodeId::new(replica), end.saturating_sub(reached))
        };
        replica_ids(&metrics).filter(|replica| *replica != self.node.get()).map(lag).collect()
    }

    /// Ids of the shard's voters.
    #[must_use]
    pub fn voters(&self) -> Vec<NodeId> {
        self.raft.voter_ids().map(NodeId::new).collect()
    }

    /// Stops the group.
    pub async fn shutdown(&self) {
        // Fails only when it has stopped before.
        let _ = self.raft.shutdown().await;
    }

    async fn submit(
        &self,
        proposed: Proposed,
        permit: Option<OwnedSemaphorePermit>,
        patient: bool,
        trace: Option<TraceId>,
    ) -> oneshot::Receiver<Result<CommandOutcome, ProposeError>> {
        let (reply, outcome) = oneshot::channel();
        let proposal = Proposal { proposed, reply, permit, patient, trace };
        if let Err(refused) = self.proposals.send(proposal).await {
            // The receiver learns even when the proposer is gone.
            let _ = refused.0.reply.send(Err(ProposeError::Stopped));
        }
        outcome
    }

    fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    fn failure(&self, fatal: &openraft::errors::Fatal<TypeConfig>) -> GroupFailure {
        GroupFailure { shard: self.shard, reason: fatal.to_string() }
    }
}

/// All that have a replica, or are to have one.
fn replica_ids(metrics: &RaftMetrics<TypeConfig>) -> impl Iterator<Item = u64> {
    metrics.membership_config.nodes().map(|(id, _)| *id)
}

/// What we set, and why, is in `docs/decisions/0001-openraft.md`.
fn raft_config(shard: ShardId, timers: Timers) -> Result<Config, GroupError> {
    Config {
        cluster_name: format!("shard-{shard}"),
        heartbeat_interval: millis(timers.heartbeat),
        election_timeout_min: millis(timers.beyond_lease_min()),
        election_timeout_max: millis(timers.lease()),
        max_payload_entries: 256,
        max_append_entries: Some(256),
        api_channel_size: Some(1_024),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        // A replica whose last write was damaged on disk comes back without it, though it had answered for it. The
        // leader sends it again, rather than to end its process.
        allow_log_reversion: Some(true),
        ..Config::default()
    }
    .validate()
    .map_err(|error| GroupError::Config(error.to_string()))
}
