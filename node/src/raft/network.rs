//! How raft groups reach their peers: the transport that `peer` implements, and openraft's network on top of it.

mod appends;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream::BoxStream};
use openraft::{
    OptionalSend, alias,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{
        Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
        RaftNetworkFactory,
    },
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest as RaftVoteRequest, VoteResponse as RaftVoteResponse,
    },
};
use skein_proto::ids::{NodeId, ShardId};
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_stream::wrappers::ReceiverStream;

pub use self::appends::AppendRequests;
use crate::log::KeptEntry;
#[cfg(feature = "planted-bugs")]
use crate::{
    log::EntryId,
    planted::{Bug, is_planted},
    tasks,
};

use super::{
    snapshot::SnapshotData,
    types::TypeConfig,
    wire::{
        AppendRequest, AppendResult, SnapshotAnswer, SnapshotPiece, Standing, TransferRequest, VoteRequest,
        VoteResponse,
    },
};

/// How long a leader that keeps quiet lets openraft wait that wants to send something; it would ask again at once.
const QUIET_PAUSE: Duration = Duration::from_millis(100);

/// How long replication to a peer pauses after a failed call: first, and at most. Short at first because a peer that
/// restarts is back within milliseconds; one that is back and says so is not waited for any longer.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Why a call to a peer failed.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer cannot be reached: no use in trying again at once.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// What the connection said.
        reason: String,
    },
    /// The call broke on its way.
    #[error("the call to node {node} failed: {reason}")]
    Broken {
        /// The peer.
        node: NodeId,
        /// What the connection said.
        reason: String,
    },
}

/// The answers to a stream of appends, in the order of the requests.
pub type AppendResults = BoxStream<'static, Result<AppendResult, TransportError>>;

/// A snapshot on its way to a replica.
pub struct SnapshotPieces(ReceiverStream<SnapshotPiece>);

impl SnapshotPieces {
    pub(super) fn new(pieces: mpsc::Receiver<SnapshotPiece>) -> Self {
        Self(ReceiverStream::new(pieces))
    }
}

impl Stream for SnapshotPieces {
    type Item = SnapshotPiece;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SnapshotPiece>> {
        self.0.poll_next_unpin(context)
    }
}

/// The answers to a snapshot's pieces.
pub type SnapshotAnswers = BoxStream<'static, Result<SnapshotAnswer, TransportError>>;

/// Calls to peers.
///
/// 1. `append` sends requests in order on one stream and yields answers in the same order. Any number may be in flight.
/// 2. `append` ends the answers after an error.
/// 3. Calls that get no answer end by themselves, with an error, within the transport's own time limit.
pub trait Transport: Send + Sync + 'static {
    /// The nodes of the cluster, of which this one may be one.
    fn peers(&self) -> Vec<NodeId>;

    /// When a peer was last heard to say that it is there, by the monotonic clock. It does so every half second.
    fn heard_at(&self, node: NodeId) -> Option<Duration>;

    /// Waits until a peer is heard to say that it is there.
    fn hear(&self, node: NodeId) -> BoxFuture<'static, ()>;

    /// Opens a stream of appends to a peer.
    fn append(
        &self,
        to: NodeId,
        requests: AppendRequests,
    ) -> BoxFuture<'static, Result<AppendResults, TransportError>>;

    /// Sends one append, usually a heartbeat, and waits for its answer.
    fn append_one(
        &self,
        to: NodeId,
        request: AppendRequest,
    ) -> BoxFuture<'static, Result<AppendResult, TransportError>>;

    /// Asks a peer for its vote.
    fn vote(
        &self,
        to: NodeId,
        request: VoteRequest,
    ) -> BoxFuture<'static, Result<VoteResponse, TransportError>>;

    /// Asks a peer where its replicas of these shards stand. Those that may not lead are left out.
    fn standings(
        &self,
        to: NodeId,
        shards: Vec<ShardId>,
    ) -> BoxFuture<'static, Result<Vec<(ShardId, Standing)>, TransportError>>;

    /// Sends a snapshot to a peer, on a connection that nothing else waits for.
    fn snapshot(
        &self,
        to: NodeId,
        pieces: SnapshotPieces,
    ) -> BoxFuture<'static, Result<SnapshotAnswers, TransportError>>;

    /// Asks a peer for what it still has of a committed entry; nothing when it has none of it, or not intact.
    fn fetch_entry(
        &self,
        to: NodeId,
        shard: ShardId,
        index: u64,
    ) -> BoxFuture<'static, Result<Option<KeptEntry>, TransportError>>;

    /// Asks a peer to take over as leader.
    fn transfer_leader(
        &self,
        to: NodeId,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<(), TransportError>>;

    /// Asks a shard's leader for an index that a reader must have applied.
    fn read_index(&self, to: NodeId, shard: ShardId) -> BoxFuture<'static, Result<u64, TransportError>>;

    /// Waits until a peer's replica of a shard has applied an entry.
    fn wait_applied(
        &self,
        to: NodeId,
        shard: ShardId,
        index: u64,
    ) -> BoxFuture<'static, Result<(), TransportError>>;
}

/// Makes openraft's clients for one shard.
pub(super) struct Network {
    transport: Arc<dyn Transport>,
    shard: ShardId,
    quiet: watch::Receiver<bool>,
}

impl Network {
    /// Sends no entries and no heartbeats while `quiet`.
    pub(super) fn new(transport: Arc<dyn Transport>, shard: ShardId, quiet: watch::Receiver<bool>) -> Self {
        Self { transport, shard, quiet }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, _: &openraft::BasicNode) -> PeerClient {
        self.client(target, AppendMode::Stream)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _: &openraft::BasicNode) -> PeerClient {
        self.client(target, AppendMode::OneByOne)
    }
}

impl Network {
    fn client(&self, target: u64, append_mode: AppendMode) -> PeerClient {
        PeerClient {
            transport: Arc::clone(&self.transport),
            shard: self.shard,
            target: NodeId::new(target),
            append_mode,
            quiet: self.quiet.clone(),
            calls_failed: 0,
        }
    }
}

/// Whether appends go through a long-lived stream, or each as a call of its own: openraft opens a stream for every
/// single heartbeat, which a call does at a fraction of the cost.
#[derive(Debug, Clone, Copy)]
enum AppendMode {
    Stream,
    OneByOne,
}

/// One shard's client to one peer.
pub(super) struct PeerClient {
    transport: Arc<dyn Transport>,
    shard: ShardId,
    target: NodeId,
    append_mode: AppendMode,
    quiet: watch::Receiver<bool>,
    /// Calls for a stream of appends that failed, one after the other.
    calls_failed: u32,
}

type RpcResult<T> = Result<T, RPCError<TypeConfig>>;

impl NetStreamAppend<TypeConfig> for PeerClient {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, RpcResult<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let shard = self.shard;
        let (requests, awaited) =
            AppendRequests::new(input.map(move |request| AppendRequest::from_raft(shard, request)));
        let transport = Arc::clone(&self.transport);
        let target = self.target;
        let mode = self.append_mode;
        let mut quiet = self.quiet.clone();
        let calls_failed = &mut self.calls_failed;
        Box::pin(async move {
            // An error means that the group is stopping.
            let speaks = quiet.wait_for(|quiet| !quiet);
            if time::timeout(QUIET_PAUSE, speaks).await.is_err() {
                return Err(rpc_error(quiet_error(target)));
            }
            let answers = match mode {
                #[cfg(feature = "planted-bugs")]
                AppendMode::Stream if is_planted(Bug::FollowersNotWaitedFor) => {
                    answer_for(transport, target, requests)
                }
                AppendMode::Stream => match transport.append(target, requests).await {
                    Ok(answers) => {
                        *calls_failed = 0;
                        answers
                    }
                    Err(error) => {
                        // openraft itself pauses before requests, of which none was asked for.
                        let _ = time::timeout(pause(*calls_failed), transport.hear(target)).await;
                        *calls_failed = calls_failed.saturating_add(1);
                        return Err(rpc_error(error));
                    }
                },
                AppendMode::OneByOne => {
                    requests.then(move |request| transport.append_one(target, request)).boxed()
                }
            };
            let answers = answers.map(move |answer| {
                // Dropped with the answers, or with this call.
                let _awaited = &awaited;
                answer.map(AppendResult::into_raft).map_err(rpc_error)
            });
            // An error means that the group is stopping. The stream ends, and the next one is refused above.
            let falls_quiet = async move { drop(quiet.wait_for(|quiet| *quiet).await) };
            Ok(answers.take_until(falls_quiet.boxed()).boxed())
        })
    }
}

impl NetVote<TypeConfig> for PeerClient {
    async fn vote(
        &mut self,
        request: RaftVoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> RpcResult<RaftVoteResponse<TypeConfig>> {
        self.ask_vote(&request, false).await
    }

    async fn pre_vote(
        &mut self,
        request: RaftVoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> RpcResult<RaftVoteResponse<TypeConfig>> {
        self.ask_vote(&request, true).await
    }
}

impl PeerClient {
    async fn ask_vote(
        &self,
        request: &RaftVoteRequest<TypeConfig>,
        pre_vote: bool,
    ) -> RpcResult<RaftVoteResponse<TypeConfig>> {
        let request = VoteRequest::from_raft(self.shard, request, pre_vote);
        let response = self.transport.vote(self.target, request).await.map_err(rpc_error)?;
        Ok(response.into_raft())
    }
}

impl NetTransferLeader<TypeConfig> for PeerClient {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<TypeConfig>> {
        let request = TransferRequest::from_raft(self.shard, &request);
        self.transport.transfer_leader(self.target, request).await.map_err(rpc_error)?;
        Ok(Ok(()))
    }
}

impl NetSnapshot<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    /// Has no time limit of its own: how long it takes depends on how much there is. A receiver that stops answering
    /// ends it.
    async fn full_snapshot(
        &mut self,
        vote: alias::VoteOf<TypeConfig>,
        snapshot: alias::SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sent = snapshot.snapshot.send(self.transport.as_ref(), self.target, vote.into());
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sent => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote.into())),
                Err(error) => {
                    if error.is_unreachable() {
                        tracing::debug!(shard = %self.shard, to = %self.target, %error, "no snapshot can be sent");
                    } else {
                        tracing::warn!(shard = %self.shard, to = %self.target, %error, "a snapshot was not installed");
                    }
                    // Unreachable, whatever it was: only then does openraft pause before it tries again.
                    Err(StreamingError::Unreachable(Unreachable::new(&error)))
                }
            },
        }
    }
}

impl NetBackoff<TypeConfig> for PeerClient {
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new((0..).map(pause)))
    }
}

/// How long to pause after a call that failed, and so many before it.
fn pause(failed_before: u32) -> Duration {
    (BACKOFF_FIRST * 2_u32.saturating_pow(failed_before)).min(BACKOFF_MAX)
}

/// How much later than it is said to have it a follower gets what is sent to it.
#[cfg(feature = "planted-bugs")]
const SENT_LATER_BY: Duration = Duration::from_millis(2);

/// What is on its way to it meanwhile, in entries; more is lost, which is what a planted bug may do.
#[cfg(feature = "planted-bugs")]
const SENT_LATER_MAX: usize = 65_536;

/// Says that the follower has everything, which it gets a while later.
#[cfg(feature = "planted-bugs")]
fn answer_for(transport: Arc<dyn Transport>, target: NodeId, requests: AppendRequests) -> AppendResults {
    let (later, delayed) = mpsc::channel::<AppendRequest>(SENT_LATER_MAX);
    let delayed = ReceiverStream::new(delayed).then(|request| async {
        time::sleep(SENT_LATER_BY).await;
        request
    });
    tasks::spawn(async move {
        let (delayed, _awaited) = AppendRequests::new(delayed);
        let Ok(answers) = transport.append(target, delayed).await else { return };
        answers.for_each(|_| async {}).await;
    });
    let answers = requests.map(move |request| {
        let last = request.entries.last().map(|entry| EntryId { term: entry.term, index: entry.index });
        let matched = AppendResult::Matched(last.or(request.previous));
        let _ = later.try_send(request);
        Ok(matched)
    });
    answers.boxed()
}

fn quiet_error(node: NodeId) -> TransportError {
    let reason = "this node keeps quiet, so that others elect a leader whom they hear".to_owned();
    TransportError::Unreachable { node, reason }
}

fn rpc_error(error: TransportError) -> RPCError<TypeConfig> {
    match error {
        error @ TransportError::Unreachable { .. } => RPCError::Unreachable(Unreachable::new(&error)),
        error @ TransportError::Broken { .. } => RPCError::Network(NetworkError::new(&error)),
    }
}
