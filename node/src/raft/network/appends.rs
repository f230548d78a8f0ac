//! Appends on their way to a follower.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::{Stream, StreamExt as _, stream::BoxStream};

use crate::raft::wire::AppendRequest;

/// Appends on their way to a follower, for as long as somebody waits for the answers. A type of its own, since the
/// compiler cannot see that a future holding a boxed stream of any lifetime is `Send`.
pub struct AppendRequests(Shared);

/// Who waits for the answers. Dropping it ends the requests, and lets go of what openraft gives them out of, wherever
/// they are: a connection to a node that stands still keeps them for as long as it lives, and openraft opens no other
/// stream of requests meanwhile.
pub(super) struct Awaited(Shared);

type Shared = Arc<Mutex<Requests>>;

#[derive(Default)]
struct Requests {
    /// None once nobody waits for answers.
    stream: Option<BoxStream<'static, AppendRequest>>,
    waker: Option<Waker>,
}

impl AppendRequests {
    pub(super) fn new(stream: impl Stream<Item = AppendRequest> + Send + 'static) -> (Self, Awaited) {
        let shared = Shared::new(Mutex::new(Requests { stream: Some(stream.boxed()), waker: None }));
        (Self(Arc::clone(&shared)), Awaited(shared))
    }
}

impl Stream for AppendRequests {
    type Item = AppendRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<AppendRequest>> {
        let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !requests.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            requests.waker = Some(context.waker().clone());
        }
        match &mut requests.stream {
            Some(stream) => stream.poll_next_unpin(context),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let Requests { stream, waker } =
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        drop(stream);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use skein_proto::ids::{NodeId, ShardId};

    use super::*;
    use crate::raft::wire::Vote;

    #[tokio::test]
    async fn requests_end_when_nobody_waits_for_answers_and_let_go_of_their_source() {
        let vote = Vote { term: 1, node: NodeId::new(1), committed: true };
        let request = AppendRequest {
            shard: ShardId::new(1),
            vote,
            previous: None,
            leader_commit: None,
            entries: Vec::new(),
        };
        // As openraft does it: whoever is about to give the next one holds what they come from.
        let source = Arc::new(tokio::sync::Mutex::new(Some(request)));
        let stream = futures::stream::unfold(Arc::clone(&source), |source| async {
            let mut held = Arc::clone(&source).lock_owned().await;
            match held.take() {
                Some(request) => Some((request, source)),
                None => std::future::pending().await,
            }
        });
        let (mut requests, awaited) = AppendRequests::new(stream);
        assert!(requests.next().await.is_some());
        let waiting = crate::tasks::spawn(async move { requests.next().await.is_none() });
        while source.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        drop(awaited);
        assert!(source.try_lock().is_ok());
        assert!(waiting.await.unwrap());
    }
}
