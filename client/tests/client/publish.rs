//! How the nodes take messages.

use futures::{Stream, StreamExt};
use prost::Message as _;
use skein_proto::{
    broker::{self, Reason},
    node::{self, publish_request::Request as Publish},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use super::cluster::{Batch, Node, SHARD, Shared, State, queue_not_found, status};

/// Serves one publish stream.
pub(crate) fn serve(
    node: Node,
    mut requests: Streaming<node::PublishRequest>,
) -> impl Stream<Item = Result<node::PublishResponse, Status>> {
    let (responses, outgoing) = mpsc::unbounded_channel();
    let mut streams_end = node.shared.streams_end.subscribe();
    tokio::spawn(async move {
        let mut held = Vec::new();
        let mut open = None;
        loop {
            tokio::select! {
                request = requests.next() => {
                    let Some(Ok(request)) = request else { return };
                    let response = match request.request.unwrap() {
                        Publish::Open(request) => opened(&node, open.insert(request)),
                        Publish::Batch(batch) => take(&node.shared, open.as_ref().unwrap(), &batch).map(|confirm| {
                            held.push(confirm);
                            confirms(&node.shared, &mut held)
                        }),
                    };
                    let is_over = response.is_err();
                    if responses.send(response).is_err() || is_over {
                        return;
                    }
                }
                () = node.shared.confirms_released.notified() => {
                    let _ = responses.send(Ok(confirms(&node.shared, &mut held)));
                }
                _ = streams_end.changed() => {
                    let _ = responses.send(Err(Status::unavailable("the node is gone")));
                    return;
                }
            }
        }
    });
    UnboundedReceiverStream::new(outgoing)
}

fn opened(node: &Node, open: &node::PublishOpen) -> Result<node::PublishResponse, Status> {
    let mut state = node.shared.state();
    state.publish_streams.push(node.address.clone());
    if !state.queues.contains_key(&open.queue) {
        return Err(queue_not_found(&open.queue));
    }
    let opened = node::PublishOpened {
        routed: Vec::new(),
        shard_id: SHARD,
        message_bytes_max: 1 << 20,
        batch_bytes_max: 4 << 20,
        batch_messages_max: 16_384,
        is_topic: false,
    };
    Ok(node::PublishResponse { opened: Some(opened), confirms: Vec::new() })
}

fn confirms(shared: &Shared, held: &mut Vec<node::Confirm>) -> node::PublishResponse {
    let confirms = if shared.state().holds_confirms { Vec::new() } else { std::mem::take(held) };
    node::PublishResponse { opened: None, confirms }
}

fn take(
    shared: &Shared,
    open: &node::PublishOpen,
    batch: &node::PublishBatch,
) -> Result<node::Confirm, Status> {
    let mut state = shared.state();
    state.arrived.push((open.producer_id, batch.sequence));
    if let Some(refusal) = state.refusals.pop() {
        return Err(refusal);
    }
    let confirm = store(&mut state, &open.queue, open.producer_id, batch.sequence, &batch.batch)?;
    drop(state);
    shared.announce();
    Ok(confirm)
}

/// Stores a batch once, whatever number of times it comes.
pub(crate) fn store(
    state: &mut State,
    queue: &str,
    producer_id: u64,
    sequence: u64,
    batch: &[u8],
) -> Result<node::Confirm, Status> {
    let queue = state.queues.get_mut(queue).ok_or_else(|| queue_not_found(queue))?;
    let first_offset = queue.next_offset();
    let stored = queue.producers.entry(producer_id).or_default();
    let next = stored.len() as u64 + 1;
    if sequence > next {
        return Err(status(Code::FailedPrecondition, Reason::SequenceGap, "a batch is missing"));
    }
    if sequence < next {
        return Ok(node::Confirm { duplicate: true, ..stored[sequence as usize - 1] });
    }
    let messages = broker::MessageBatch::decode(batch).unwrap().messages;
    let count = u32::try_from(messages.len()).unwrap();
    let confirm = node::Confirm { sequence, first_offset, count, duplicate: false, ..Default::default() };
    stored.push(confirm);
    queue.batches.push(Batch { first_offset, messages });
    Ok(confirm)
}
