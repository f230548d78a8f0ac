//! Passes calls on to the node that leads the shard, as they came.

use std::{
    error::Error as _,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use skein_proto::{
    REASON_TRAILER,
    limits::GRPC_MESSAGE_BYTES_MAX,
    node::{
        broker_client::BrokerClient, cluster_client::ClusterClient, queues_client::QueuesClient,
        topics_client::TopicsClient,
    },
};
use tonic::{ConnectError, Request, Response, Status, Streaming, transport::Channel};

use super::{route, status};

pub(super) fn broker(channel: Channel) -> BrokerClient<Channel> {
    BrokerClient::new(channel)
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX)
}

pub(super) fn queues(channel: Channel) -> QueuesClient<Channel> {
    QueuesClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
}

pub(super) fn topics(channel: Channel) -> TopicsClient<Channel> {
    TopicsClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
}

pub(super) fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel)
}

/// A client's stream: the message that was read to see where it goes, and the rest. A client's error ends the stream
/// towards the leader, which treats it as a client that left.
pub(super) struct Requests<T> {
    first: Option<T>,
    rest: Streaming<T>,
}

pub(super) fn requests<T>(first: T, rest: Streaming<T>) -> Request<Requests<T>> {
    route::forwarded(Requests { first: Some(first), rest })
}

impl<T: Unpin> Stream for Requests<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.rest.poll_next_unpin(context).map(|next| next.and_then(Result::ok)),
        }
    }
}

/// A failure as the leader told it; as one that did nothing when the leader takes no connections; or, when the
/// connection to it broke, as one whose outcome nobody knows.
pub(super) fn failed(status: Status) -> Status {
    if status.metadata().contains_key(REASON_TRAILER) {
        return status;
    }
    if was_never_sent(&status) {
        return status::leader_gone();
    }
    status::connection_broke(&status)
}

fn was_never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The leader's answers, as they come.
pub(super) fn responses<T: Send + 'static>(
    response: Response<Streaming<T>>,
) -> Response<BoxStream<'static, Result<T, Status>>> {
    Response::new(response.into_inner().map(|answer| answer.map_err(failed)).boxed())
}
