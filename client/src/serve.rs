//! Answering requests that come over a queue.

use std::error::Error as StdError;

use futures::{StreamExt as _, stream::FuturesUnordered};
use skein_proto::broker::Reason;

use crate::{
    client::Client,
    consumer::Delivery,
    error::{Error, ServeError},
    message::Message,
};

/// Requests that one server handles at a time.
const REQUESTS_AT_ONCE_MAX: u32 = 64;

/// The group that servers of one queue share.
pub const SERVER_GROUP: &str = "server";

/// Why a request cannot be answered now.
pub type HandlerError = Box<dyn StdError + Send + Sync>;

impl Client {
    /// Answers the requests in a queue, up to 64 at a time, until the queue cannot be read or an answer cannot be sent.
    /// Several servers of one queue share its requests. A message without `reply_to` is handled, and its answer thrown
    /// away.
    ///
    /// A request is acked once its answer is stored. When the handler fails, the request is given back, and comes again
    /// as the queue's settings say: to this server or another one. So a request may be handled more than once, and
    /// whoever asked gets the first answer.
    ///
    /// ```no_run
    /// # async fn run(client: skein_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use skein_client::Message;
    ///
    /// client.serve("tax", |request| async move { Ok(Message::new(format!("19 % of {:?}", request.body))) }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the queue does not exist or cannot be read any more, or an answer cannot be sent for a reason that does not
    /// go away by itself. A reply queue that is gone is no such reason: nobody waits for the answer.
    pub async fn serve<H, F>(&self, queue: &str, handler: H) -> Result<(), ServeError>
    where
        H: Fn(Message) -> F,
        F: Future<Output = Result<Message, HandlerError>>,
    {
        let mut requests =
            self.consumer(queue, SERVER_GROUP).credit_messages(REQUESTS_AT_ONCE_MAX).build().await?;
        let mut handling = FuturesUnordered::new();
        loop {
            tokio::select! {
                next = requests.next() => match next {
                    Some(Ok(request)) => {
                        let answer = handler(request.message.clone());
                        handling.push(self.handle(request, answer));
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => return Ok(()),
                },
                Some(handled) = handling.next(), if !handling.is_empty() => handled?,
            }
        }
    }

    /// Handles one request, and settles it.
    async fn handle(
        &self,
        request: Delivery,
        answer: impl Future<Output = Result<Message, HandlerError>>,
    ) -> Result<(), ServeError> {
        match answer.await {
            Ok(answer) => {
                let Message { reply_to, correlation_id, .. } = &request.message;
                self.reply(reply_to, Message { correlation_id: correlation_id.clone(), ..answer }).await?;
                drop(request.ack());
            }
            Err(error) => {
                tracing::warn!(offset = %request.offset, attempt = request.attempt, %error, "a request failed");
                drop(request.nack());
            }
        }
        Ok(())
    }

    async fn reply(&self, reply_to: &str, answer: Message) -> Result<(), Error> {
        if reply_to.is_empty() {
            return Ok(());
        }
        match self.send(reply_to, vec![answer]).await {
            Ok(_) => Ok(()),
            Err(error) if error.reason() == Reason::QueueNotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}
