//! Single appends to one peer, mostly heartbeats of all its shards, on one stream that stays open: a call of its own
//! for each would cost several times as much, and an idle cluster does little else.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt as _};
use skein_proto::{ids::NodeId, peer};
use tokio::sync::{mpsc, oneshot};
use tonic::Streaming;

use super::{Connections, convert};
use crate::{
    raft::{
        TransportError,
        wire::{AppendRequest, AppendResult},
    },
    tasks,
};

/// Appends that wait to be sent to one peer. Each shard has one on its way at a time.
const WAITING_MAX: usize = 1_024;

type Answer = oneshot::Sender<Result<AppendResult, TransportError>>;

/// The way to one peer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Heartbeats {
    requests: mpsc::Sender<(AppendRequest, Answer)>,
}

impl Heartbeats {
    /// Starts the task that owns the stream; it ends with the last handle.
    pub(super) fn start(node: NodeId, connections: Arc<Connections>) -> Self {
        let (requests, waiting) = mpsc::channel(WAITING_MAX);
        tasks::spawn(Link { node, connections }.run(waiting));
        Self { requests }
    }

    /// Sends one append and waits for its answer, however long that takes.
    pub(super) async fn send(
        &self,
        node: NodeId,
        request: AppendRequest,
    ) -> Result<AppendResult, TransportError> {
        let (answer, answered) = oneshot::channel();
        let broken = || TransportError::Broken { node, reason: "the stream of appends ended".to_owned() };
        self.requests.send((request, answer)).await.map_err(|_| broken())?;
        answered.await.unwrap_or_else(|_| Err(broken()))
    }
}

struct Link {
    node: NodeId,
    connections: Arc<Connections>,
}

impl Link {
    /// Opens a stream when there is something to send, and keeps it until it breaks.
    async fn run(self, mut waiting: mpsc::Receiver<(AppendRequest, Answer)>) {
        while let Some((request, answer)) = waiting.recv().await {
            let (requests, outgoing) = mpsc::channel(WAITING_MAX);
            // Cannot fail: the channel is empty and its receiver is here.
            let _ = requests.try_send(convert::append_to_proto(request));
            match self.open(outgoing).await {
                Ok(answers) => self.exchange(&mut waiting, requests, answers, answer).await,
                Err(error) => drop(answer.send(Err(error))),
            }
        }
    }

    async fn open(
        &self,
        outgoing: mpsc::Receiver<peer::AppendRequest>,
    ) -> Result<Streaming<peer::AppendResponse>, TransportError> {
        let node = self.node;
        let unreachable = |reason: String| TransportError::Unreachable { node, reason };
        let peer = self.connections.peer(node);
        let mut client = peer.ok_or_else(|| unreachable("it is not a member".to_owned()))?;
        let opened = client.append_each(Outgoing(outgoing)).await;
        Ok(opened.map_err(|status| unreachable(status.message().to_owned()))?.into_inner())
    }

    /// Returns when the stream breaks. Whoever waits for an answer then sees its channel close.
    async fn exchange(
        &self,
        waiting: &mut mpsc::Receiver<(AppendRequest, Answer)>,
        requests: mpsc::Sender<peer::AppendRequest>,
        mut answers: Streaming<peer::AppendResponse>,
        first: Answer,
    ) {
        let mut unanswered = VecDeque::from([first]);
        loop {
            tokio::select! {
                answer = answers.next() => {
                    let Some(Ok(answer)) = answer else { return };
                    let (Ok(result), Some(waiting)) =
                        (convert::append_result_from_proto(answer), unanswered.pop_front()) else { return };
                    // Whoever asked may have given up.
                    let _ = waiting.send(Ok(result));
                }
                request = waiting.recv(), if unanswered.len() < WAITING_MAX => {
                    let Some((request, answer)) = request else { return };
                    if requests.send(convert::append_to_proto(request)).await.is_err() {
                        return;
                    }
                    unanswered.push_back(answer);
                }
            }
        }
    }
}

/// A stream of a type that has no lifetime in it; see [`AppendRequests`](crate::raft::AppendRequests).
struct Outgoing(mpsc::Receiver<peer::AppendRequest>);

impl Stream for Outgoing {
    type Item = peer::AppendRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}
