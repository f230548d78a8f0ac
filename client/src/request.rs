//! Asking over queues: a request goes to one queue, and its answer comes through a private one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time};

use crate::{
    client::Client, consumer::Consumer, error::RequestError, message::Message, settings::QueueSettings,
};

/// Requests of one requester that wait for their answer.
const REQUESTS_WAITING_MAX: usize = 10_000;

/// A reply queue that nobody reads any more goes by itself after this long.
const REPLY_QUEUE_EXPIRES: Duration = Duration::from_secs(60);

/// The group in which a requester reads its reply queue.
const REPLY_GROUP: &str = "requester";

/// Sends requests and gets their answers. Owns a private reply queue, which goes with it: at once when it is closed,
/// and otherwise a minute after it was last read.
///
/// It survives the loss of nodes as producers and consumers do. What it cannot survive is its own end: an answer that
/// comes after that is thrown away.
///
/// ```no_run
/// # async fn run(client: skein_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use skein_client::Message;
///
/// let requester = client.requester().await?;
/// let answer = requester.request("tax", Message::new("two geese"), Duration::from_secs(5)).await?;
/// println!("{:?}", answer.body);
/// requester.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Requester {
    client: Client,
    reply_queue: String,
    waiting: Arc<Waiting>,
    /// Its end is the end of whoever reads the reply queue.
    _lives: oneshot::Sender<()>,
}

/// Who waits for which answer; nobody any more once answers cannot be read.
#[derive(Debug)]
struct Waiting(Mutex<Option<HashMap<String, oneshot::Sender<Message>>>>);

/// Stops waiting for an answer when it is dropped, whatever the reason.
struct Waits {
    waiting: Arc<Waiting>,
    correlation_id: String,
}

impl Client {
    /// Creates a private reply queue, and what is needed to ask with it.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn requester(&self) -> Result<Requester, RequestError> {
        let reply_queue = format!("reply.{:032x}", rand::random::<u128>());
        let settings = QueueSettings { expires: Some(REPLY_QUEUE_EXPIRES), ..QueueSettings::default() };
        self.create_queue(&reply_queue, settings).await?;
        let replies = self.consumer(&reply_queue, REPLY_GROUP).build().await?;
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let (lives, ended) = oneshot::channel();
        tokio::spawn(hand_out(replies, Arc::clone(&waiting), ended));
        Ok(Requester { client: self.clone(), reply_queue, waiting, _lives: lives })
    }
}

impl Requester {
    /// Sends a request to a queue, and waits for the answer for as long as `timeout`. The message is given a
    /// `reply_to`, and unless it has one, a `correlation_id`, which the answer has as well. A request that nobody has
    /// taken within `timeout` is not delivered any more, unless it has a time to live of its own.
    ///
    /// # Errors
    /// When the request was not stored, or no answer came in time: it may have been handled all the same.
    pub async fn request(
        &self,
        queue: &str,
        mut message: Message,
        timeout: Duration,
    ) -> Result<Message, RequestError> {
        if message.correlation_id.is_empty() {
            message.correlation_id = format!("{:032x}", rand::random::<u128>());
        }
        message.reply_to.clone_from(&self.reply_queue);
        message.ttl = message.ttl.or(Some(timeout));
        let (answer, answered) = oneshot::channel();
        let _waits = self.waiting.add(&message.correlation_id, answer)?;
        let ask = async {
            self.client.send(queue, vec![message]).await?;
            // The sender is dropped only with this call, or when nobody reads answers any more.
            answered.await.map_err(|_| RequestError::NotRead)
        };
        time::timeout(timeout, ask).await.unwrap_or(Err(RequestError::TimedOut { timeout }))
    }

    /// The queue that answers come through.
    #[must_use]
    pub fn reply_queue(&self) -> &str {
        &self.reply_queue
    }

    /// Deletes the reply queue. Whoever answers later finds that nobody waits.
    pub async fn close(self) {
        // Otherwise it goes by itself a little later.
        let _ = self.client.delete_queue(&self.reply_queue).await;
    }
}

impl Waiting {
    fn add(
        self: &Arc<Self>,
        correlation_id: &str,
        answer: oneshot::Sender<Message>,
    ) -> Result<Waits, RequestError> {
        let mut lock = self.lock();
        let waiting = lock.as_mut().ok_or(RequestError::NotRead)?;
        if waiting.len() >= REQUESTS_WAITING_MAX {
            return Err(RequestError::TooMany { max: REQUESTS_WAITING_MAX });
        }
        if waiting.contains_key(correlation_id) {
            return Err(RequestError::SameCorrelationId { correlation_id: correlation_id.to_owned() });
        }
        waiting.insert(correlation_id.to_owned(), answer);
        Ok(Waits { waiting: Arc::clone(self), correlation_id: correlation_id.to_owned() })
    }

    /// Gives an answer to whoever waits for it. One that nobody waits for came too late, or twice.
    fn answer(&self, message: Message) {
        let waits = self.lock().as_mut().and_then(|waiting| waiting.remove(&message.correlation_id));
        if let Some(waits) = waits {
            let _ = waits.send(message);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<String, oneshot::Sender<Message>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.lock().as_mut() {
            waiting.remove(&self.correlation_id);
        }
    }
}

/// Hands answers to those who wait, until the requester has ended or the queue cannot be read any more.
async fn hand_out(mut replies: Consumer, waiting: Arc<Waiting>, mut ended: oneshot::Receiver<()>) {
    loop {
        let next = tokio::select! {
            next = replies.next() => next,
            _ = &mut ended => break,
        };
        let Some(Ok(delivery)) = next else { break };
        // The answer is with whoever waits, or wanted by nobody: it need not come again.
        drop(delivery.ack());
        waiting.answer(delivery.message);
    }
    *waiting.lock() = None;
}
