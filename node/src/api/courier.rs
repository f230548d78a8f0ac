//! Publishes on this node's own behalf to a queue wherever its leader is.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use skein_proto::{
    ids::{ProducerId, QueueId, Sequence, ShardId},
    node::{DeleteQueueRequest, SendRequest, SendResponse},
};
use tonic::Status;

use super::{
    Api,
    filter::{self, Filter},
    forward,
    route::{self, Route},
};
use crate::{
    batch::Fields,
    shard::dead_letters::{Courier, CourierError, ORIGIN_BYTES_MAX},
};

/// Takes messages to other queues through the node's own API.
pub struct ApiCourier(pub Arc<Api>);

impl Courier for ApiCourier {
    fn publish(
        &self,
        queue: String,
        producer: ProducerId,
        batch: Bytes,
    ) -> BoxFuture<'static, Result<(), CourierError>> {
        let api = Arc::clone(&self.0);
        let request = SendRequest {
            queue,
            producer_id: producer.get(),
            sequence: Sequence::FIRST.get(),
            batch,
            // It was published once, and is only moved.
            ignore_message_ids: true,
            ..SendRequest::default()
        };
        async move {
            let sent = api.send_anywhere(request).await;
            sent.map(drop).map_err(|status| CourierError(status.message().to_owned()))
        }
        .boxed()
    }

    fn wants(&self, filter: &[u8], message: &[u8]) -> bool {
        // It was checked before it was replicated.
        let filter = filter::decode(filter).and_then(|filter| Filter::new(&filter).ok());
        filter.is_none_or(|filter| filter.wants(&Fields::of(message)))
    }

    fn delete(&self, name: String, queue: QueueId) -> BoxFuture<'static, Result<(), CourierError>> {
        let api = Arc::clone(&self.0);
        async move {
            let deleted = api.delete_anywhere(DeleteQueueRequest { name, queue_id: queue.get() }).await;
            deleted.map_err(|status| CourierError(status.message().to_owned()))
        }
        .boxed()
    }
}

impl Api {
    async fn delete_anywhere(&self, request: DeleteQueueRequest) -> Result<(), Status> {
        match self.route(ShardId::CATALOG, false).await? {
            Route::Local => self.delete_queue(request).await.map(drop),
            Route::Remote(channel) => {
                forward::queues(channel).delete_queue(route::forwarded(request)).await.map(drop)
            }
        }
    }

    async fn send_anywhere(&self, request: SendRequest) -> Result<SendResponse, Status> {
        if self.known_partitions(&request.queue).is_some() {
            return self.send_to_partition(request, &|request| self.send_to_queue(request).boxed()).await;
        }
        self.send_to_queue(request).await
    }

    async fn send_to_queue(&self, request: SendRequest) -> Result<SendResponse, Status> {
        let queue = self.find_queue(&request.queue).await?;
        match self.route(queue.shard, false).await? {
            Route::Local => {
                let message_bytes_max = self.message_bytes_max + ORIGIN_BYTES_MAX;
                self.send(&queue, request, message_bytes_max).await
            }
            Route::Remote(channel) => {
                let sent = forward::broker(channel).send(route::dead_letter(request)).await;
                sent.map(tonic::Response::into_inner).map_err(forward::failed)
            }
        }
    }
}
