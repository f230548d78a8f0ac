//! Answers the other nodes.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use skein_proto::{
    ids::{NodeId, ShardId},
    peer::{
        self, AppendRequest, AppendResponse, AttendRequest, AttendResponse, HelloRequest, HelloResponse,
        ReadIndexRequest, ReadIndexResponse, StandingsRequest, StandingsResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse, WaitAppliedRequest, WaitAppliedResponse,
        peer_server::Peer,
    },
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::{Members, convert, credentials, presence::BEAT_EVERY, snapshots};
use crate::{
    free_space::DiskState,
    raft::{Group, Groups, wire::SnapshotPiece},
};

/// Single appends of one peer that are answered at the same time: one for each of as many shards.
const SINGLE_APPENDS_IN_FLIGHT_MAX: usize = 256;

/// Who this node is, as it tells its peers.
#[derive(Debug, Clone)]
pub struct Identity {
    /// This node.
    pub node: NodeId,
    /// Its cluster, once it belongs to one.
    pub cluster_id: Option<String>,
    /// Every node has joined the cluster: an empty data directory can no longer join by itself.
    pub formed: bool,
    /// Message shards of the cluster.
    pub shard_count: u32,
    /// The nodes that formed the cluster, as this node is configured.
    pub members: Members,
    /// The nodes of the cluster, once its catalog says so.
    pub roster: Option<Roster>,
}

/// The nodes that the cluster has or had, as its catalog says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    /// Those that it has or has invited.
    pub nodes: BTreeSet<NodeId>,
    /// The id that the next one gets: who has a lower one and is not among them was removed.
    pub next: NodeId,
}

impl Identity {
    /// Whether a node was removed from the cluster, as far as this one knows.
    #[must_use]
    pub fn has_removed(&self, node: NodeId) -> bool {
        self.roster.as_ref().is_some_and(|roster| node < roster.next && !roster.nodes.contains(&node))
    }
}

/// The peer service. It answers Hello from the start, and raft once the groups are open.
#[derive(Clone)]
pub struct PeerService {
    identity: watch::Receiver<Identity>,
    groups: Arc<OnceLock<Arc<Groups>>>,
    disk: watch::Receiver<DiskState>,
    closed: watch::Receiver<bool>,
}

impl PeerService {
    /// Answers as `identity` and `disk` say, and for `groups` once they are set; until the node has `closed`.
    #[must_use]
    pub fn new(
        identity: watch::Receiver<Identity>,
        groups: Arc<OnceLock<Arc<Groups>>>,
        disk: watch::Receiver<DiskState>,
        closed: watch::Receiver<bool>,
    ) -> Self {
        Self { identity, groups, disk, closed }
    }

    /// Resolves when the node closes, or is gone: leaders end their streams no sooner.
    fn until_closed(&self) -> BoxFuture<'static, ()> {
        let mut closed = self.closed.clone();
        async move { drop(closed.wait_for(|closed| *closed).await) }.boxed()
    }

    async fn append_one(self, request: Result<AppendRequest, Status>) -> Result<AppendResponse, Status> {
        let request = convert::append_from_proto(request?).map_err(invalid)?;
        let group = self.group(request.shard.get())?;
        let mut answers = group.handle_append(stream::once(std::future::ready(request)));
        let answer = answers.next().await.ok_or_else(failed)?;
        Ok(convert::append_result_to_proto(answer))
    }

    fn group(&self, shard_id: u32) -> Result<&Arc<Group>, Status> {
        let groups = self.groups.get().ok_or_else(|| Status::unavailable("the node is starting"))?;
        groups
            .get(ShardId::new(shard_id))
            .ok_or_else(|| Status::not_found(format!("shard {shard_id} is not on this node")))
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type AttendStream = BoxStream<'static, Result<AttendResponse, Status>>;
    type AppendStream = BoxStream<'static, Result<AppendResponse, Status>>;
    type AppendEachStream = BoxStream<'static, Result<AppendResponse, Status>>;
    type InstallSnapshotStream = BoxStream<'static, Result<peer::SnapshotAnswer, Status>>;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let identity = self.identity.borrow().clone();
        let theirs = request.into_inner().cluster_id;
        if let Some(ours) = &identity.cluster_id
            && !theirs.is_empty()
            && *ours != theirs
        {
            return Err(Status::failed_precondition(format!(
                "node {} belongs to cluster {ours}, not to {theirs}; check cluster.members and data_dir",
                identity.node
            )));
        }
        let members = identity
            .members
            .iter()
            .map(|(id, member)| peer::Member { node_id: id.get(), grpc_address: member.grpc.clone() })
            .collect();
        Ok(Response::new(HelloResponse {
            node_id: identity.node.get(),
            cluster_id: identity.cluster_id.unwrap_or_default(),
            formed: identity.formed,
            shard_count: identity.shard_count,
            members,
        }))
    }

    async fn attend(&self, request: Request<AttendRequest>) -> Result<Response<Self::AttendStream>, Status> {
        // Whoever cannot answer for its replicas is not counted on.
        if self.groups.get().is_none() {
            return Err(Status::unavailable("the node is starting"));
        }
        let source = credentials::source(&request);
        let mut ticks = tokio::time::interval(BEAT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let beats = stream::unfold((ticks, self.disk.clone()), |(mut ticks, mut disk)| async {
            tokio::select! {
                _ = ticks.tick() => {}
                // An error means that nobody watches the disk any more: the node is stopping.
                changed = disk.changed() => changed.ok()?,
            }
            let low_on_disk = disk.borrow_and_update().is_low;
            Some((Ok(AttendResponse { low_on_disk, leaving: false }), (ticks, disk)))
        });
        let (closed, until_closed) = (self.closed.clone(), self.until_closed());
        let mut identity = self.identity.clone();
        // An error means that the node is gone, which is as good. Whoever was removed learns so when it asks again.
        let ended = async move {
            tokio::select! {
                () = until_closed => {}
                _ = identity.wait_for(|identity| source.is_some_and(|node| identity.has_removed(node))) => {}
            }
        };
        let last_word = stream::once(async move {
            closed.borrow().then_some(Ok(AttendResponse { low_on_disk: false, leaving: true }))
        });
        let last_word = last_word.filter_map(std::future::ready);
        Ok(Response::new(beats.take_until(ended.boxed()).chain(last_word).boxed()))
    }

    async fn standings(
        &self,
        request: Request<StandingsRequest>,
    ) -> Result<Response<StandingsResponse>, Status> {
        let mut standings = Vec::new();
        for shard_id in request.into_inner().shard_ids {
            let group = self.group(shard_id)?;
            if let Some(standing) = group.standing().await {
                standings.push(convert::standing_to_proto(group.shard(), standing));
            }
        }
        Ok(Response::new(StandingsResponse { standings }))
    }

    async fn append(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut requests = request.into_inner();
        let Some(first) = requests.message().await? else {
            return Ok(Response::new(stream::empty().boxed()));
        };
        let group = self.group(first.shard_id)?;
        // The leader sees the end of the answers when its requests break off or do not convert, and starts again.
        let requests = stream::once(std::future::ready(Ok(first)))
            .chain(requests)
            .map(|request| convert::append_from_proto(request.ok()?).ok())
            .take_while(|request| std::future::ready(request.is_some()))
            .filter_map(std::future::ready);
        let answers = group.handle_append(requests).map(|result| Ok(convert::append_result_to_proto(result)));
        Ok(Response::new(answers.take_until(self.until_closed()).boxed()))
    }

    async fn append_each(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Result<Response<Self::AppendEachStream>, Status> {
        let service = self.clone();
        let answers = request
            .into_inner()
            .map(move |request| service.clone().append_one(request))
            .buffered(SINGLE_APPENDS_IN_FLIGHT_MAX);
        Ok(Response::new(answers.take_until(self.until_closed()).boxed()))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<peer::SnapshotPiece>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        let mut pieces = request.into_inner().map(|piece| snapshots::piece_from_proto(piece?));
        let Some(SnapshotPiece::Begin(begin)) = pieces.next().await.transpose()? else {
            return Err(Status::invalid_argument("a snapshot begins with a begin"));
        };
        let group = self.group(begin.shard.get())?;
        let pieces = pieces.map(|piece| piece.map_err(|status| status.message().to_owned()));
        let answers = group.receive_snapshot(begin, pieces.boxed()).map(|answer| match answer {
            Ok(answer) => Ok(snapshots::answer_to_proto(answer)),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn fetch_entry(
        &self,
        request: Request<peer::FetchEntryRequest>,
    ) -> Result<Response<peer::FetchEntryResponse>, Status> {
        let peer::FetchEntryRequest { shard_id, index } = request.into_inner();
        let entry = self.group(shard_id)?.give_entry(index).await.as_ref().map(snapshots::entry_to_proto);
        Ok(Response::new(peer::FetchEntryResponse { entry }))
    }

    async fn vote(&self, request: Request<VoteRequest>) -> Result<Response<VoteResponse>, Status> {
        let request = convert::vote_request_from_proto(request.into_inner()).map_err(invalid)?;
        let response = self.group(request.shard.get())?.handle_vote(request).await.ok_or_else(failed)?;
        Ok(Response::new(convert::vote_response_to_proto(response)))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let request = convert::transfer_from_proto(request.into_inner()).map_err(invalid)?;
        if self.group(request.shard.get())?.handle_transfer(request).await {
            Ok(Response::new(TransferLeaderResponse {}))
        } else {
            Err(Status::failed_precondition("the leader's vote or log is not what this replica has"))
        }
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        let group = self.group(request.into_inner().shard_id)?;
        let index = group
            .read_index()
            .await
            .ok_or_else(|| Status::failed_precondition("this node does not lead the shard"))?;
        Ok(Response::new(ReadIndexResponse { index }))
    }

    async fn wait_applied(
        &self,
        request: Request<WaitAppliedRequest>,
    ) -> Result<Response<WaitAppliedResponse>, Status> {
        let WaitAppliedRequest { shard_id, index } = request.into_inner();
        self.group(shard_id)?.replica().wait_applied(index).await;
        Ok(Response::new(WaitAppliedResponse {}))
    }
}

fn invalid(error: convert::Incomplete) -> Status {
    Status::invalid_argument(error.to_string())
}

fn failed() -> Status {
    Status::unavailable("the shard has stopped on this node")
}
