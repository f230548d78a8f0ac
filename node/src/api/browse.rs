//! Reading a queue without consuming from it.

use std::sync::Arc;

use futures::{StreamExt as _, stream::BoxStream};
use skein_proto::{
    ids::Offset,
    node::{BrowseRequest, BrowseResponse, BrowsedBatch},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, names::QueueRef, status};
use crate::{
    shard::{BodyError, BodyReader},
    tasks,
};

/// Responses that wait for the client to read them.
const RESPONSES_MAX: usize = 2;

/// Bytes of bodies after which a response is sent off.
const RESPONSE_BYTES: usize = 512 << 10;

impl Api {
    /// Reads a queue whose shard this node leads, up to its end as it is now.
    pub(super) async fn browse(
        self: Arc<Self>,
        queue: QueueRef,
        request: BrowseRequest,
    ) -> Result<BoxStream<'static, Result<BrowseResponse, Status>>, Status> {
        self.ensure_open(&queue).await?;
        let kept = self.group(queue.shard)?.replica().with_messages(|shard| {
            shard.queue(queue.id).map(|queue| (queue.first_offset(), queue.next_offset()))
        });
        let (first, end) = kept.ok_or_else(|| status::queue_not_found(&queue.name))?;
        let from = Offset::new(request.from_offset).max(first);
        let asked = if request.messages_max == 0 { u64::MAX } else { request.messages_max };
        let end = Offset::new(from.get().saturating_add(asked)).min(end);
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let mut bodies = self.server(queue.shard)?.bodies().reader();
        tasks::spawn(async move {
            if let Err(status) = self.read_range(&queue, &mut bodies, from, end, &responses).await {
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(ReceiverStream::new(stream).boxed())
    }

    async fn read_range(
        &self,
        queue: &QueueRef,
        bodies: &mut BodyReader,
        mut from: Offset,
        end: Offset,
        responses: &mpsc::Sender<Result<BrowseResponse, Status>>,
    ) -> Result<(), Status> {
        let mut response = BrowseResponse::default();
        let mut bytes = 0;
        while from < end {
            let wanted = u32::try_from(end.since(from)).unwrap_or(u32::MAX);
            let located = self.group(queue.shard)?.replica().with_messages(|shard| {
                let oldest = shard.queue(queue.id)?.first_offset().max(from);
                Some((oldest, shard.locate(queue.id, oldest, wanted)?))
            });
            // Nothing is left when what was to come has been consumed, purged or deleted meanwhile.
            let Some((first, slice)) = located else { break };
            if first >= end {
                break;
            }
            from = first.plus(u64::from(slice.take));
            let batch = match bodies.read(queue.id, &slice).await {
                Ok(batch) => batch,
                Err(BodyError::Gone { .. }) => continue,
                Err(error) => return Err(status::from_body(&error)),
            };
            bytes += batch.len();
            response.batches.push(BrowsedBatch {
                first_offset: first.get(),
                count: slice.take,
                published_at_ms: slice.published_at_ms,
                batch,
            });
            if bytes >= RESPONSE_BYTES {
                bytes = 0;
                if responses.send(Ok(std::mem::take(&mut response))).await.is_err() {
                    return Ok(());
                }
            }
        }
        if !response.batches.is_empty() {
            // Fails when the client is gone.
            let _ = responses.send(Ok(response)).await;
        }
        Ok(())
    }
}
