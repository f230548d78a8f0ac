//! Waiting for a condition, never for a time: ends as soon as it holds, and says what was missing when it does not.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::time::{self, Instant};

/// Between two looks. Short against everything that is waited for, long enough to leave the CPU to the nodes.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Calls `look` until it gives a value. What it gives instead says what is still missing.
///
/// # Errors
/// When `limit` has passed, with what was missing last.
pub async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut missing = anyhow!("the first look at it did not end");
    while let Ok(looked) = time::timeout_at(deadline, look()).await {
        match looked {
            Ok(value) => return Ok(value),
            Err(still_missing) => missing = still_missing,
        }
        if Instant::now() + LOOK_EVERY >= deadline {
            break;
        }
        time::sleep(LOOK_EVERY).await;
    }
    Err(missing).with_context(|| format!("{what}: not within {limit:?}"))
}

#[cfg(test)]
mod tests {
    use anyhow::{bail, ensure};

    use super::*;

    #[tokio::test]
    async fn ends_when_the_condition_holds() {
        let mut looks = 0;
        let value = until("three looks", Duration::from_secs(1), async || {
            looks += 1;
            ensure!(looks == 3, "only {looks}");
            Ok(looks)
        });
        assert_eq!(value.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn says_what_is_missing_when_it_never_holds() {
        let value: Result<()> =
            until("the moon", Duration::from_millis(90), async || bail!("not risen")).await;
        assert_eq!(format!("{:#}", value.unwrap_err()), "the moon: not within 90ms: not risen");
        let value = until("a look", Duration::from_millis(90), async || {
            std::future::pending::<()>().await;
            Ok(())
        })
        .await;
        assert!(value.is_err());
    }
}
