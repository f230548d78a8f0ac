//! Raft's calls to peers, over gRPC.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use skein_proto::{
    ids::{NodeId, ShardId},
    peer,
};
use tonic::{Code, Request, Status};

use super::{Connections, connections::Peer, convert, heartbeats::Heartbeats, snapshots};
use crate::{
    log::KeptEntry,
    raft::{
        AppendRequests, AppendResults, SnapshotAnswers, SnapshotPieces, Transport, TransportError,
        wire::{AppendRequest, AppendResult, Standing, TransferRequest, VoteRequest, VoteResponse},
    },
};

/// A call that takes longer is given up. About as long as followers wait before they elect somebody, by default: by
/// then somebody else has asked.
const CALL_TIMEOUT: Duration = Duration::from_millis(1_200);

/// Raft's way to the other nodes.
pub struct PeerTransport {
    connections: Arc<Connections>,
    /// The ways to those that were sent any.
    heartbeats: Mutex<BTreeMap<NodeId, Heartbeats>>,
}

impl PeerTransport {
    /// Calls peers over these connections. Must run within a tokio runtime.
    #[must_use]
    pub fn new(connections: Arc<Connections>) -> Self {
        Self { connections, heartbeats: Mutex::default() }
    }

    /// The way to a member's single appends; those to nodes that are none any more end.
    fn heartbeats(&self, node: NodeId) -> Option<Heartbeats> {
        let mut ways = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = ways.get(&node) {
            return Some(way.clone());
        }
        let members = self.connections.members();
        let members = members.borrow();
        ways.retain(|known, _| members.contains_key(known));
        let start = || Heartbeats::start(node, Arc::clone(&self.connections));
        members.contains_key(&node).then(|| ways.entry(node).or_insert_with(start).clone())
    }

    /// Makes a call to a peer with a deadline, and converts what comes back.
    fn call<T, F>(
        &self,
        node: NodeId,
        call: impl FnOnce(Peer) -> F,
    ) -> BoxFuture<'static, Result<T, TransportError>>
    where
        F: Future<Output = Result<T, Status>> + Send + 'static,
        T: Send + 'static,
    {
        self.call_on(self.connections.peer(node), node, call)
    }

    fn call_on<T, F>(
        &self,
        client: Option<Peer>,
        node: NodeId,
        call: impl FnOnce(Peer) -> F,
    ) -> BoxFuture<'static, Result<T, TransportError>>
    where
        F: Future<Output = Result<T, Status>> + Send + 'static,
        T: Send + 'static,
    {
        let Some(client) = client else {
            let reason = "it is not a member".to_owned();
            return std::future::ready(Err(TransportError::Unreachable { node, reason })).boxed();
        };
        let call = call(client);
        async move {
            match tokio::time::timeout(CALL_TIMEOUT, call).await {
                Ok(result) => result.map_err(|status| transport_error(node, &status)),
                Err(_) => {
                    Err(TransportError::Broken { node, reason: format!("no answer within {CALL_TIMEOUT:?}") })
                }
            }
        }
        .boxed()
    }
}

impl Transport for PeerTransport {
    fn peers(&self) -> Vec<NodeId> {
        self.connections.members().borrow().keys().copied().collect()
    }

    fn heard_at(&self, node: NodeId) -> Option<Duration> {
        self.connections.heard_at(node)
    }

    fn hear(&self, node: NodeId) -> BoxFuture<'static, ()> {
        self.connections.hear(node).boxed()
    }

    fn append(
        &self,
        to: NodeId,
        requests: AppendRequests,
    ) -> BoxFuture<'static, Result<AppendResults, TransportError>> {
        self.call(to, move |mut client| async move {
            let answers = client.append(requests.map(convert::append_to_proto)).await?.into_inner();
            let answers = answers.map(move |answer| {
                answer
                    .and_then(|answer| convert::append_result_from_proto(answer).map_err(incomplete))
                    .map_err(|status| transport_error(to, &status))
            });
            Ok(answers.boxed())
        })
    }

    fn append_one(
        &self,
        to: NodeId,
        request: AppendRequest,
    ) -> BoxFuture<'static, Result<AppendResult, TransportError>> {
        let Some(heartbeats) = self.heartbeats(to) else {
            let reason = "it is not a member".to_owned();
            return std::future::ready(Err(TransportError::Unreachable { node: to, reason })).boxed();
        };
        async move {
            tokio::time::timeout(CALL_TIMEOUT, heartbeats.send(to, request)).await.unwrap_or_else(|_| {
                Err(TransportError::Broken { node: to, reason: format!("no answer within {CALL_TIMEOUT:?}") })
            })
        }
        .boxed()
    }

    fn vote(
        &self,
        to: NodeId,
        request: VoteRequest,
    ) -> BoxFuture<'static, Result<VoteResponse, TransportError>> {
        self.call(to, move |mut client| async move {
            let answer = client.vote(convert::vote_request_to_proto(request)).await?.into_inner();
            convert::vote_response_from_proto(answer).map_err(incomplete)
        })
    }

    fn standings(
        &self,
        to: NodeId,
        shards: Vec<ShardId>,
    ) -> BoxFuture<'static, Result<Vec<(ShardId, Standing)>, TransportError>> {
        self.call(to, move |mut client| async move {
            let shard_ids = shards.into_iter().map(ShardId::get).collect();
            let answer = client.standings(peer::StandingsRequest { shard_ids }).await?.into_inner();
            let standings = answer.standings.into_iter().map(convert::standing_from_proto);
            standings.collect::<Result<_, _>>().map_err(incomplete)
        })
    }

    fn snapshot(
        &self,
        to: NodeId,
        pieces: SnapshotPieces,
    ) -> BoxFuture<'static, Result<SnapshotAnswers, TransportError>> {
        self.call_on(self.connections.bulk(to), to, move |mut client| async move {
            let answers = client.install_snapshot(pieces.map(snapshots::piece_to_proto)).await?.into_inner();
            let answers = answers.map(move |answer| {
                answer
                    .and_then(|answer| snapshots::answer_from_proto(answer).map_err(incomplete))
                    .map_err(|status| transport_error(to, &status))
            });
            Ok(answers.boxed())
        })
    }

    fn fetch_entry(
        &self,
        to: NodeId,
        shard: ShardId,
        index: u64,
    ) -> BoxFuture<'static, Result<Option<KeptEntry>, TransportError>> {
        self.call_on(self.connections.bulk(to), to, move |mut client| async move {
            let request = Request::new(peer::FetchEntryRequest { shard_id: shard.get(), index });
            let entry = client.fetch_entry(request).await?.into_inner().entry;
            entry.map(snapshots::entry_from_proto).transpose().map_err(incomplete)
        })
    }

    fn transfer_leader(
        &self,
        to: NodeId,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        self.call(to, move |mut client| async move {
            client.transfer_leader(convert::transfer_to_proto(request)).await.map(drop)
        })
    }

    fn read_index(&self, to: NodeId, shard: ShardId) -> BoxFuture<'static, Result<u64, TransportError>> {
        self.call(to, move |mut client| async move {
            let request = Request::new(peer::ReadIndexRequest { shard_id: shard.get() });
            Ok(client.read_index(request).await?.into_inner().index)
        })
    }

    fn wait_applied(
        &self,
        to: NodeId,
        shard: ShardId,
        index: u64,
    ) -> BoxFuture<'static, Result<(), TransportError>> {
        self.call(to, move |mut client| async move {
            let request = Request::new(peer::WaitAppliedRequest { shard_id: shard.get(), index });
            client.wait_applied(request).await.map(drop)
        })
    }
}

fn incomplete(error: convert::Incomplete) -> Status {
    Status::internal(error.to_string())
}

/// A node that cannot be connected to answers nothing; everything else may have reached it.
fn transport_error(node: NodeId, status: &Status) -> TransportError {
    let reason = status.message().to_owned();
    match status.code() {
        Code::Unavailable => TransportError::Unreachable { node, reason },
        _ => TransportError::Broken { node, reason },
    }
}
