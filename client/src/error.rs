//! What can go wrong, one type per operation. Each tells what certainly did not happen from what may have.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use skein_proto::{REASON_TRAILER, broker::Reason, ids::Offset};
use tonic::{Code, ConnectError as TransportConnectError, Status};

use crate::message::Message;

/// Why a call failed: the gRPC code, the reason for programs, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The gRPC code.
    pub code: Code,
    /// What programs decide by; [`Reason::Unspecified`] when the failure did not come from a node.
    pub reason: Reason,
    /// A sentence that says what happened and what to do.
    pub message: Arc<str>,
    never_sent: bool,
}

impl Cause {
    pub(crate) fn new(code: Code, reason: Reason, message: impl Into<Arc<str>>) -> Self {
        Self { code, reason, message: message.into(), never_sent: false }
    }

    /// Reads what a node, or the connection to it, said.
    pub(crate) fn from_status(status: &Status) -> Self {
        let reason = status
            .metadata()
            .get(REASON_TRAILER)
            .and_then(|name| name.to_str().ok())
            .and_then(Reason::from_str_name)
            .unwrap_or(Reason::Unspecified);
        let message = match status.message() {
            "" => Arc::from(status.code().description()),
            message => Arc::from(message),
        };
        Self { code: status.code(), reason, message, never_sent: failed_to_connect(status) }
    }

    /// The request left no trace: it did not leave this machine, or a node refused it.
    pub(crate) fn is_certainly_not_done(&self) -> bool {
        let refused = match self.reason {
            Reason::OutcomeUnknown => false,
            Reason::Unspecified => matches!(
                self.code,
                Code::InvalidArgument
                    | Code::NotFound
                    | Code::AlreadyExists
                    | Code::PermissionDenied
                    | Code::FailedPrecondition
                    | Code::Unauthenticated
                    | Code::Unimplemented
            ),
            _ => true,
        };
        self.never_sent || refused
    }

    /// The same call may succeed a moment later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.reason {
            Reason::OverBudget
            | Reason::DiskFull
            | Reason::NoLeader
            | Reason::OutcomeUnknown
            | Reason::ShuttingDown
            | Reason::NotLeader
            | Reason::ConsumerStalled
            | Reason::Busy => true,
            Reason::Unspecified => matches!(
                self.code,
                Code::Unavailable
                    | Code::ResourceExhausted
                    | Code::Aborted
                    | Code::DeadlineExceeded
                    | Code::Cancelled
                    | Code::Unknown
                    | Code::Internal
            ),
            _ => false,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::Unspecified => write!(f, "{} ({:?})", self.message, self.code),
            reason => write!(f, "{} ({})", self.message, reason.as_str_name()),
        }
    }
}

/// A reason inside a response; one that a newer node knows and this library does not is unspecified.
pub(crate) fn reason_of(wire: i32) -> Reason {
    Reason::try_from(wire).unwrap_or_default()
}

fn failed_to_connect(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<TransportConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// No node could be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// No server was given.
    #[error("no server was given; name at least one as host:port")]
    NoServers,
    /// A server is not given as `host:port`.
    #[error("\"{address}\" is not an address; write host:port")]
    InvalidAddress {
        /// What was given.
        address: String,
    },
    /// None of the servers answered.
    #[error("none of {} answered; is the cluster running? The last one said: {cause}", servers.join(", "))]
    NoneAnswered {
        /// The addresses that were tried.
        servers: Vec<String>,
        /// What the last one said.
        cause: Cause,
    },
}

/// Declares an error that knows two outcomes, so that no operation can forget one of them.
macro_rules! two_outcomes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        pub enum $name {
            /// It certainly did not happen.
            #[error("{0}")]
            NotAccepted(Cause),
            /// It may have happened, or may still happen.
            #[error("it is unknown whether it happened: {0}")]
            OutcomeUnknown(Cause),
        }

        impl $name {
            /// What the node or the connection said.
            #[must_use]
            pub fn cause(&self) -> &Cause {
                match self {
                    Self::NotAccepted(cause) | Self::OutcomeUnknown(cause) => cause,
                }
            }

            /// What programs decide by.
            #[must_use]
            pub fn reason(&self) -> Reason {
                self.cause().reason
            }

            /// The same call may succeed a moment later. After [`Self::OutcomeUnknown`] it may then happen twice,
            /// unless the operation is one that can be repeated.
            #[must_use]
            pub fn is_retryable(&self) -> bool {
                self.cause().is_retryable()
            }
        }
    };
}

two_outcomes! {
    /// A call to the cluster failed.
    Error
}

two_outcomes! {
    /// A message was not confirmed.
    ConfirmError
}

impl Error {
    pub(crate) fn from_cause(cause: Cause) -> Self {
        if cause.is_certainly_not_done() { Self::NotAccepted(cause) } else { Self::OutcomeUnknown(cause) }
    }

    pub(crate) fn from_status(status: &Status) -> Self {
        Self::from_cause(Cause::from_status(status))
    }
}

/// The producer did not take a message. It was certainly not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The message is larger than the cluster takes.
    #[error(
        "the message has {bytes} bytes, and {bytes_max} are allowed; send a smaller body or a reference to it"
    )]
    TooLarge {
        /// The message, encoded.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// The producer was closed.
    #[error("the producer is closed; build another one")]
    Closed,
}

impl SendError {
    /// Whether the same message may be taken a moment later: never.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// The producer did not take a message right now. It was certainly not published.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrySendError {
    /// The window is full of unconfirmed messages.
    #[error("the producer's window is full; wait for confirms")]
    Full(Box<Message>),
    /// The message will never be taken.
    #[error(transparent)]
    Refused(#[from] SendError),
}

impl TrySendError {
    /// Whether the same message may be taken a moment later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

/// An ack, nack or extension did not take effect, or may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettleError {
    /// It certainly did not take effect: the lease ended, or the stream it came on did. The message is delivered
    /// again.
    #[error("the lease is lost, the message is delivered again: {0}")]
    LeaseLost(Cause),
    /// It certainly did not take effect: the node refused it.
    #[error("{0}")]
    NotAccepted(Cause),
    /// The stream ended before the answer came, and no other told. It took effect, or the message is delivered again.
    #[error("it is unknown whether it took effect: {0}")]
    OutcomeUnknown(Cause),
}

impl SettleError {
    /// What the node or the connection said.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        match self {
            Self::LeaseLost(cause) | Self::NotAccepted(cause) | Self::OutcomeUnknown(cause) => cause,
        }
    }

    /// What programs decide by.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.cause().reason
    }

    /// Whether settling again may help. It does not: the message is delivered again where it has to be.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// A consumer cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsumeError {
    /// The node refused the subscription, for example because the queue was deleted.
    #[error("{0}")]
    NotAccepted(Cause),
    /// A message arrived that cannot be read.
    #[error(transparent)]
    Malformed(#[from] MalformedMessage),
}

impl ConsumeError {
    /// What programs decide by.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotAccepted(cause) => cause.reason,
            Self::Malformed(_) => Reason::MalformedMessage,
        }
    }

    /// Whether subscribing again may help at once. The consumer retries by itself whatever can be retried.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Dead letters were not all moved. What was not is still in the dead-letter queue, and moving them again is safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedriveError {
    /// The messages would come back to where they are taken from.
    #[error("{queue} cannot be redriven to itself; name another queue")]
    ToItself {
        /// The dead-letter queue.
        queue: String,
    },
    /// A queue could not be looked at.
    #[error(transparent)]
    NotSeen(#[from] Error),
    /// The dead-letter queue could not be consumed.
    #[error(transparent)]
    NotConsumed(#[from] ConsumeError),
    /// A message was not confirmed by the queue that it was to be moved to.
    #[error("the message at offset {offset} could not be moved to {to}: {error}")]
    NotMoved {
        /// Its position in the dead-letter queue.
        offset: Offset,
        /// The queue that it was to be moved to.
        to: String,
        /// What publishing it came to.
        error: Error,
    },
}

impl RedriveError {
    /// What programs decide by.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::ToItself { .. } => Reason::Unspecified,
            Self::NotSeen(error) | Self::NotMoved { error, .. } => error.reason(),
            Self::NotConsumed(error) => error.reason(),
        }
    }

    /// Redriving again may succeed a moment later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::ToItself { .. } => false,
            Self::NotSeen(error) | Self::NotMoved { error, .. } => error.is_retryable(),
            Self::NotConsumed(error) => error.is_retryable(),
        }
    }
}

/// A request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The request was not stored, or may not have been; or there is no reply queue.
    #[error(transparent)]
    NotSent(#[from] Error),
    /// No answer came. The request may have been handled all the same, or may be yet if it lives longer.
    #[error("no answer came within {timeout:?}; see whether anybody serves the queue")]
    TimedOut {
        /// How long it was waited for.
        timeout: Duration,
    },
    /// As many requests wait for their answer as may.
    #[error("{max} requests wait for their answer, all that may; wait for some")]
    TooMany {
        /// How many may.
        max: usize,
    },
    /// Another request with the same correlation id waits for its answer.
    #[error("another request with the correlation id {correlation_id:?} waits for its answer; leave it out")]
    SameCorrelationId {
        /// The id.
        correlation_id: String,
    },
    /// Answers cannot be read any more, as when the reply queue was deleted.
    #[error("the reply queue cannot be read any more; make another requester")]
    NotRead,
}

impl RequestError {
    /// What programs decide by.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotSent(error) => error.reason(),
            _ => Reason::Unspecified,
        }
    }

    /// Asking again may succeed a moment later. The request may then be handled twice.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotSent(error) => error.is_retryable(),
            Self::TimedOut { .. } | Self::TooMany { .. } => true,
            Self::SameCorrelationId { .. } | Self::NotRead => false,
        }
    }
}

/// Requests are not answered any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// The requests cannot be read.
    #[error("requests cannot be read: {0}")]
    NotConsumed(#[from] ConsumeError),
    /// The queue cannot be looked at, or an answer cannot be sent.
    #[error(transparent)]
    NotReached(#[from] Error),
}

impl ServeError {
    /// What programs decide by.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotConsumed(error) => error.reason(),
            Self::NotReached(error) => error.reason(),
        }
    }

    /// Serving again may succeed a moment later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotConsumed(error) => error.is_retryable(),
            Self::NotReached(error) => error.is_retryable(),
        }
    }
}

/// Bytes that should be a message are not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored message cannot be read; it was written by something that does not speak this protocol")]
pub struct MalformedMessage;

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataMap;

    use super::*;

    fn status(code: Code, reason: Option<Reason>) -> Status {
        let mut trailers = MetadataMap::new();
        if let Some(reason) = reason {
            trailers.insert(REASON_TRAILER, reason.as_str_name().parse().unwrap());
        }
        Status::with_metadata(code, "a sentence", trailers)
    }

    #[test]
    fn statuses_tell_not_accepted_from_unknown() {
        let not_accepted = [
            (Code::NotFound, Some(Reason::QueueNotFound)),
            (Code::InvalidArgument, None),
            (Code::Unavailable, Some(Reason::NoLeader)),
            (Code::ResourceExhausted, Some(Reason::OverBudget)),
            (Code::ResourceExhausted, Some(Reason::DiskFull)),
        ];
        for (code, reason) in not_accepted {
            let error = Error::from_status(&status(code, reason));
            assert!(matches!(error, Error::NotAccepted(_)), "{code:?} {reason:?}");
            assert_eq!(error.reason(), reason.unwrap_or_default());
        }
        let unknown = [
            (Code::Unavailable, None),
            (Code::Unavailable, Some(Reason::OutcomeUnknown)),
            (Code::DeadlineExceeded, None),
            (Code::Internal, None),
            (Code::OutOfRange, None),
        ];
        for (code, reason) in unknown {
            let error = Error::from_status(&status(code, reason));
            assert!(matches!(error, Error::OutcomeUnknown(_)), "{code:?} {reason:?}");
        }
    }

    #[test]
    fn only_passing_troubles_are_retryable() {
        assert!(Error::from_status(&status(Code::Unavailable, Some(Reason::NoLeader))).is_retryable());
        assert!(Error::from_status(&status(Code::Unavailable, None)).is_retryable());
        assert!(Error::from_status(&status(Code::ResourceExhausted, Some(Reason::DiskFull))).is_retryable());
        assert!(Error::from_status(&status(Code::Aborted, Some(Reason::Busy))).is_retryable());
        for reason in
            [Reason::QueueNotFound, Reason::QueueFull, Reason::InvalidProperty, Reason::InvalidPosition]
        {
            let error = Error::from_status(&status(Code::ResourceExhausted, Some(reason)));
            assert!(!error.is_retryable(), "{reason:?}");
        }
        assert!(!Error::from_status(&status(Code::InvalidArgument, None)).is_retryable());
    }

    #[test]
    fn a_cause_shows_its_sentence_and_reason() {
        let cause = Cause::from_status(&status(Code::NotFound, Some(Reason::QueueNotFound)));
        assert_eq!(cause.to_string(), "a sentence (QUEUE_NOT_FOUND)");
    }
}
