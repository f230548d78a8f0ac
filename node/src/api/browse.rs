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
    broker,
    offsets::OffsetRange,
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
        let end = self
            .group(queue.shard)?
            .replica()
            .with_messages(|shard| shard.queue(queue.id).map(broker::Queue::next_offset));
        let range = OffsetRange::between(
            Offset::new(request.from_offset),
            end.ok_or_else(|| status::queue_not_found(&queue.name))?,
        );
        let messages_max = if request.messages_max == 0 { u64::MAX } else { request.messages_max };
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let mut bodies = self.server(queue.shard)?.bodies().reader();
        tasks::spawn(async move {
            if let Err(status) = self.read_range(&queue, &mut bodies, range, messages_max, &responses).await {
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(ReceiverStream::new(stream).boxed())
    }

    /// Reads the messages of the range that are kept, up to `messages_max` of them.
    async fn read_range(
        &self,
        queue: &QueueRef,
        bodies: &mut BodyReader,
        range: OffsetRange,
        messages_max: u64,
        responses: &mpsc::Sender<Result<BrowseResponse, Status>>,
    ) -> Result<(), Status> {
        let mut response = BrowseResponse::default();
        let mut bytes = 0;
        let (mut from, mut left) = (range.first, messages_max);
        while left > 0 {
            let located = self.group(queue.shard)?.replica().with_messages(|shard| {
                let stored = shard.queue(queue.id)?;
                let first = stored.next_kept(from)?;
                let wanted = OffsetRange::between(first, range.end()).count.min(left);
                Some((first, stored.locate(first, u32::try_from(wanted).unwrap_or(u32::MAX))?))
            });
            // Nothing is left when what was to come has been consumed, purged or deleted meanwhile.
            let Some((first, slice)) = located else { break };
            from = first.plus(u64::from(slice.take));
            let batch = match bodies.read(queue.id, &slice).await {
                Ok(batch) => batch,
                Err(BodyError::Gone { .. }) => continue,
                Err(error) => return Err(status::from_body(&error)),
            };
            bytes += batch.len();
            left -= u64::from(slice.take);
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
