//! Bounds the bytes that clients have in flight on this node.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a publish waits for room before it is refused. Long enough to ride out a slow sync or two, short enough
/// that a client hears of trouble before it times out by itself.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// What a batch costs besides its bytes: bookkeeping on its way through the node.
const BATCH_OVERHEAD_BYTES: usize = 256;

/// The node's budget of bytes in flight. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    budget: Arc<Semaphore>,
    budget_bytes: u32,
    wait_max: Duration,
}

/// The budget was used up for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the node has held {budget_bytes} bytes in flight for {wait_max:?}, all that it may; slow down and \
    send the batch again"
)]
pub struct OverBudget {
    /// The budget, in bytes.
    pub budget_bytes: u32,
    /// How long it was.
    pub wait_max: Duration,
}

impl Admission {
    /// A budget of this many bytes.
    #[must_use]
    pub fn new(budget_bytes: u32) -> Self {
        Self { budget: Arc::new(Semaphore::new(budget_bytes as usize)), budget_bytes, wait_max: WAIT_MAX }
    }

    /// Takes the bytes of a batch from the budget until the permit is dropped, waiting for others to finish first.
    /// A batch larger than the whole budget is let through when nothing else is in flight.
    ///
    /// # Errors
    /// When there is no room within 5 s.
    pub async fn admit(&self, batch_bytes: usize) -> Result<OwnedSemaphorePermit, OverBudget> {
        let cost =
            u32::try_from(batch_bytes + BATCH_OVERHEAD_BYTES).unwrap_or(u32::MAX).min(self.budget_bytes);
        let admitted = Arc::clone(&self.budget).acquire_many_owned(cost);
        match tokio::time::timeout(self.wait_max, admitted).await {
            Ok(permit) => Ok(permit.expect("the budget is never closed")),
            Err(_) => Err(OverBudget { budget_bytes: self.budget_bytes, wait_max: self.wait_max }),
        }
    }

    /// Bytes in flight now.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.budget_bytes as usize - self.budget.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_budget_refuses_after_a_while_and_takes_again_when_bytes_leave() {
        let wait_max = Duration::from_millis(20);
        let admission = Admission { wait_max, ..Admission::new(1_000) };
        let held = admission.admit(700).await.unwrap();
        assert_eq!(admission.in_flight_bytes(), 700 + BATCH_OVERHEAD_BYTES);
        assert_eq!(admission.admit(100).await.unwrap_err(), OverBudget { budget_bytes: 1_000, wait_max });
        drop(held);
        drop(admission.admit(1 << 30).await.unwrap());
        assert_eq!(admission.in_flight_bytes(), 0);
    }
}
