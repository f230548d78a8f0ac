//! Reading a queue without consuming from it, to its end or for as long as one likes.

use std::{collections::VecDeque, time::SystemTime};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use skein_proto::{
    ids::{Offset, ShardId},
    node,
};
use tokio::{sync::watch, time};
use tonic::{Status, Streaming};

use crate::{
    calls::{broker, malformed},
    client::{Client, Repeat},
    error::Error,
    message::{BatchReader, Message},
    position::Position,
    retry::Backoff,
    topology::Topology,
    wire_time::{unix_ms, wall_time},
};

/// A message read with [`Client::browse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Browsed {
    /// The message.
    pub message: Message,
    /// Its position in the queue.
    pub offset: Offset,
    /// When it was published, by the clock of the node that led then.
    pub published_at: SystemTime,
}

/// What to read with [`Client::browse_with`]: everything there is, unless set otherwise.
///
/// ```
/// # use skein_client::{BrowseOptions, Position};
/// let newest = BrowseOptions::new().from(Position::Next).follow();
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrowseOptions {
    from: Position,
    messages_max: Option<u64>,
    follow: bool,
}

impl BrowseOptions {
    /// Everything there is.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins at this position.
    #[must_use]
    pub fn from(mut self, position: Position) -> Self {
        self.from = position;
        self
    }

    /// Ends after so many messages.
    #[must_use]
    pub fn messages_max(mut self, messages: u64) -> Self {
        self.messages_max = Some(messages);
        self
    }

    /// Goes on with what is published meanwhile, instead of ending at the end of the queue.
    #[must_use]
    pub fn follow(mut self) -> Self {
        self.follow = true;
        self
    }
}

impl Client {
    /// Reads messages from `from` on without consuming them, up to the end of the queue as it is now; at most
    /// `messages_max` if given.
    ///
    /// # Errors
    /// When the queue does not exist, or the cluster does not answer. An error inside the stream ends it.
    pub async fn browse(
        &self,
        queue: &str,
        from: Offset,
        messages_max: Option<u64>,
    ) -> Result<impl Stream<Item = Result<Browsed, Error>> + Send + Unpin + use<>, Error> {
        let options = BrowseOptions { from: Position::Offset(from), messages_max, follow: false };
        self.browse_with(queue, options).await
    }

    /// Reads messages without consuming them. With [`BrowseOptions::follow`] the stream waits for more at the end of
    /// the queue, and survives the loss of nodes by itself: it goes on where it was, without gap or repetition.
    ///
    /// ```no_run
    /// # async fn run(client: skein_client::Client) -> Result<(), skein_client::Error> {
    /// use futures::TryStreamExt;
    /// use skein_client::{BrowseOptions, Position};
    ///
    /// let options = BrowseOptions::new().from(Position::Next).follow();
    /// let mut orders = client.browse_with("orders", options).await?;
    /// while let Some(order) = orders.try_next().await? {
    ///     println!("{}: {:?}", order.offset, order.message.body);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the queue does not exist, or the cluster does not answer. An error inside the stream ends it.
    pub async fn browse_with(
        &self,
        queue: &str,
        options: BrowseOptions,
    ) -> Result<impl Stream<Item = Result<Browsed, Error>> + Send + Unpin + use<>, Error> {
        let from_offset = match options.from {
            Position::First | Position::Time(_) => Offset::ZERO,
            Position::Offset(offset) => offset,
            Position::Next => self.get_queue(queue).await?.next_offset,
        };
        let from_time_ms = if let Position::Time(time) = options.from { unix_ms(time) } else { 0 };
        let messages_max = options.messages_max.unwrap_or(u64::MAX);
        let mut browsing = Browsing {
            client: self.clone(),
            queue: queue.to_owned(),
            shard: self.shard_of(queue).await?,
            from_offset,
            from_time_ms,
            messages_left: messages_max,
            follow: options.follow,
            opened: None,
            batches: VecDeque::new(),
            topology: self.router().subscribe(),
            backoff: Backoff::default(),
        };
        browsing.open().await?;
        let batches = stream::unfold(browsing, |mut browsing| async move {
            browsing.next_batch().await.map(|batch| (batch, browsing))
        });
        let messages = batches.map_ok(|batch| stream::iter(browsed(batch))).try_flatten();
        Ok(messages.take(usize::try_from(messages_max).unwrap_or(usize::MAX)).boxed())
    }
}

/// A stream of batches, which another one continues where it breaks.
struct Browsing {
    client: Client,
    queue: String,
    shard: ShardId,
    /// What comes next.
    from_offset: Offset,
    /// Counts until the first message is there.
    from_time_ms: u64,
    /// How many messages are still to come. 0 at the end.
    messages_left: u64,
    follow: bool,
    /// None when another stream has to be opened.
    opened: Option<Opened>,
    /// Read, and not given out.
    batches: VecDeque<node::BrowsedBatch>,
    topology: watch::Receiver<Topology>,
    backoff: Backoff,
}

struct Opened {
    responses: Streaming<node::BrowseResponse>,
    /// Who led when it was opened.
    leader_address: Option<String>,
}

impl Browsing {
    async fn open(&mut self) -> Result<(), Error> {
        self.topology.mark_unchanged();
        let leader_address = self.client.router().leader_address(self.shard);
        let request = node::BrowseRequest {
            queue: self.queue.clone(),
            from_offset: self.from_offset.get(),
            // 0 means all on the wire.
            messages_max: if self.messages_left == u64::MAX { 0 } else { self.messages_left },
            from_time_ms: self.from_time_ms,
            follow: self.follow,
        };
        let responses = self
            .client
            .call(Repeat::Always, Some(self.shard), |channel| {
                let request = request.clone();
                async move { broker(channel).browse(request).await }
            })
            .await?;
        self.opened = Some(Opened { responses, leader_address });
        Ok(())
    }

    async fn next_batch(&mut self) -> Option<Result<node::BrowsedBatch, Error>> {
        loop {
            if let Some(batch) = self.batches.pop_front() {
                return Some(Ok(batch));
            }
            if self.messages_left == 0 {
                return None;
            }
            match self.read().await {
                Ok(Some(response)) => self.take(response),
                Ok(None) => self.messages_left = 0,
                Err(error) if self.follow && error.is_retryable() => {
                    tracing::debug!(queue = self.queue, %error, "the browse stream ended");
                    self.opened = None;
                    time::sleep(self.backoff.next_delay(rand::random())).await;
                }
                Err(error) => {
                    self.messages_left = 0;
                    return Some(Err(error));
                }
            }
        }
    }

    /// The next response; None at the end of the queue.
    async fn read(&mut self) -> Result<Option<node::BrowseResponse>, Error> {
        loop {
            let Some(opened) = &mut self.opened else {
                self.open().await?;
                continue;
            };
            tokio::select! {
                response = opened.responses.message() => match response {
                    Ok(None) if self.follow => return Err(unavailable("the node ended the stream")),
                    response => return response.map_err(|status| Error::from_status(&status)),
                },
                // Who does not lead any more may not hear of what is published.
                _ = self.topology.changed(), if self.follow => {
                    let leader = self.client.router().leader_address(self.shard);
                    if leader.is_some() && leader != opened.leader_address {
                        return Err(unavailable("another node leads the queue now"));
                    }
                }
            }
        }
    }

    fn take(&mut self, response: node::BrowseResponse) {
        self.backoff.reset();
        for batch in response.batches {
            self.from_offset = Offset::new(batch.first_offset).plus(batch.count.into());
            self.from_time_ms = 0;
            self.messages_left = self.messages_left.saturating_sub(batch.count.into());
            self.batches.push_back(batch);
        }
    }
}

fn browsed(batch: node::BrowsedBatch) -> impl Iterator<Item = Result<Browsed, Error>> {
    let first = Offset::new(batch.first_offset);
    let published_at = wall_time(batch.published_at_ms);
    BatchReader::new(batch.batch).zip(0..).map(move |(message, index)| {
        Ok(Browsed { message: message.map_err(malformed)?, offset: first.plus(index), published_at })
    })
}

fn unavailable(sentence: &str) -> Error {
    Error::from_status(&Status::unavailable(sentence))
}
