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
    broker::Outcome,
    offsets::OffsetRange,
    raft::Replica,
    shard::{BodyError, BodyReader},
    tasks,
};

/// Responses that wait for the client to read them.
const RESPONSES_MAX: usize = 2;

/// Bytes of bodies after which a response is sent off.
const RESPONSE_BYTES: usize = 512 << 10;

impl Api {
    /// Reads a queue whose shard this node leads: up to its end as it is now, or what comes after that as well.
    pub(super) async fn browse(
        self: Arc<Self>,
        queue: QueueRef,
        request: BrowseRequest,
    ) -> Result<BoxStream<'static, Result<BrowseResponse, Status>>, Status> {
        self.ensure_open(&queue).await?;
        let replica = Arc::clone(self.group(queue.shard)?.replica());
        let place = replica.with_messages(|shard| {
            let stored = shard.queue(queue.id)?;
            Some((stored.published_from(request.from_time_ms), stored.next_offset()))
        });
        let (published_from, end) = place.ok_or_else(|| status::queue_not_found(&queue.name))?;
        let from = Offset::new(request.from_offset).max(published_from);
        if from > end {
            return Err(status::from_outcome(&Outcome::PositionAfterEnd { next_offset: end }, &queue.name));
        }
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let reading = Reading {
            bodies: self.server(queue.shard)?.bodies().reader(),
            api: self,
            queue,
            replica,
            from_time_ms: request.from_time_ms,
            left: if request.messages_max == 0 { u64::MAX } else { request.messages_max },
            responses,
        };
        tasks::spawn(reading.run(from, end, request.follow));
        Ok(ReceiverStream::new(stream).boxed())
    }
}

/// One call that reads.
struct Reading {
    api: Arc<Api>,
    queue: QueueRef,
    replica: Arc<Replica>,
    bodies: BodyReader,
    /// What was published before is passed by. May be in the future, for whoever follows.
    from_time_ms: u64,
    /// How many messages it may still read.
    left: u64,
    responses: mpsc::Sender<Result<BrowseResponse, Status>>,
}

impl Reading {
    async fn run(mut self, from: Offset, end: Offset, follow: bool) {
        let responses = self.responses.clone();
        let must_end = self.must_end();
        let read = tokio::select! {
            read = self.read(from, end, follow) => read,
            ended = must_end, if follow => Err(ended),
            () = responses.closed() => return,
        };
        if let Err(status) = read {
            // Fails when the client is gone.
            let _ = responses.send(Err(status)).await;
        }
    }

    async fn read(&mut self, from: Offset, end: Offset, follow: bool) -> Result<(), Status> {
        let mut applied = self.replica.applied_index();
        let (mut from, mut end) = (from, end);
        loop {
            self.read_range(OffsetRange::between(from, end)).await?;
            if !follow || self.left == 0 {
                return Ok(());
            }
            from = end;
            while end <= from {
                // Fails when the node stops.
                applied.changed().await.map_err(|_| status::shutting_down())?;
                let place = self.replica.with_messages(|shard| {
                    let stored = shard.queue(self.queue.id)?;
                    Some((stored.published_from(self.from_time_ms), stored.next_offset()))
                });
                let (published_from, next) =
                    place.ok_or_else(|| status::queue_not_found(&self.queue.name))?;
                (from, end) = (from.max(published_from), next);
            }
        }
    }

    /// Whoever follows is told when another node has to be asked.
    fn must_end(&self) -> impl Future<Output = Status> + use<> {
        let node = self.api.node;
        let mut stopping = self.api.stopping.clone();
        let leadership = self.api.group(self.queue.shard).map(|group| group.leadership());
        async move {
            let mut leadership = match leadership {
                Ok(leadership) => leadership,
                Err(status) => return status,
            };
            tokio::select! {
                _ = leadership.wait_for(|now| now.leader != Some(node)) => status::leader_moved(),
                _ = stopping.wait_for(|stopping| *stopping) => status::shutting_down(),
            }
        }
    }

    /// Reads the messages of the range that are kept, up to as many as are left.
    async fn read_range(&mut self, range: OffsetRange) -> Result<(), Status> {
        let mut response = BrowseResponse::default();
        let mut bytes = 0;
        let mut from = range.first;
        while self.left > 0 {
            let located = self.replica.with_messages(|shard| {
                let stored = shard.queue(self.queue.id)?;
                let first = stored.next_kept(from)?;
                let wanted = OffsetRange::between(first, range.end()).count.min(self.left);
                Some((first, stored.locate(first, u32::try_from(wanted).unwrap_or(u32::MAX))?))
            });
            // Nothing is left when what was to come has been consumed, purged or deleted meanwhile.
            let Some((first, slice)) = located else { break };
            from = first.plus(u64::from(slice.take));
            let batch = match self.bodies.read(self.queue.id, &slice).await {
                Ok(batch) => batch,
                Err(BodyError::Gone { .. }) => continue,
                Err(error) => return Err(status::from_body(&error)),
            };
            bytes += batch.len();
            self.left -= u64::from(slice.take);
            response.batches.push(BrowsedBatch {
                first_offset: first.get(),
                count: slice.take,
                published_at_ms: slice.published_at_ms,
                batch,
            });
            if bytes >= RESPONSE_BYTES {
                bytes = 0;
                if self.responses.send(Ok(std::mem::take(&mut response))).await.is_err() {
                    return Ok(());
                }
            }
        }
        if !response.batches.is_empty() {
            // Fails when the client is gone.
            let _ = self.responses.send(Ok(response)).await;
        }
        Ok(())
    }
}
