//! Turns an error into one sentence, with what to do about it.

use skein_client::{ConfirmError, ConsumeError, Error, Reason, RedriveError};

/// What went wrong, and what to do.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    match reason(error).and_then(hint) {
        Some(hint) => format!("{error:#}; {hint}"),
        None => format!("{error:#}"),
    }
}

fn reason(error: &anyhow::Error) -> Option<Reason> {
    error.chain().find_map(|cause| {
        let call = cause.downcast_ref::<Error>().map(Error::reason);
        let confirm = || cause.downcast_ref::<ConfirmError>().map(ConfirmError::reason);
        let consume = || cause.downcast_ref::<ConsumeError>().map(ConsumeError::reason);
        let redrive = || cause.downcast_ref::<RedriveError>().map(RedriveError::reason);
        call.or_else(confirm).or_else(consume).or_else(redrive)
    })
}

fn hint(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::QueueNotFound => Some("see `skein queue list`"),
        Reason::TopicNotFound => Some("see `skein topic list`"),
        Reason::QueueExists => Some("`skein queue show` has its settings"),
        Reason::GroupNotFound => Some("`skein queue show` has the groups of a queue"),
        Reason::NoLeader | Reason::NotLeader => Some("see `skein cluster status`, and try again"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_without_reason_stay_as_they_are() {
        let error = anyhow::anyhow!("the file is gone").context("cannot publish");
        assert_eq!(explain(&error), "cannot publish: the file is gone");
    }
}
