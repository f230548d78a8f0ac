//! One outcome that many futures wait for: a batch is confirmed once, however many messages it has.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
};

/// A value that is set once, and those who wait for it.
#[derive(Debug)]
pub(crate) struct Outcome<T> {
    value: OnceLock<T>,
    waiting: Mutex<Vec<Waker>>,
}

/// Where one future keeps its waker in an outcome, so that polling it again replaces that one.
#[derive(Debug, Default)]
pub(crate) struct WaiterSlot(Option<usize>);

impl<T> Outcome<T> {
    pub(crate) fn pending() -> Self {
        Self { value: OnceLock::new(), waiting: Mutex::new(Vec::new()) }
    }

    pub(crate) fn ready(value: T) -> Self {
        Self { value: OnceLock::from(value), waiting: Mutex::new(Vec::new()) }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// Sets the value and wakes everybody. The first value stays.
    pub(crate) fn set(&self, value: T) {
        // A second value would come from a bug; the waiting have been told the first one, so that one must stay.
        let _ = self.value.set(value);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn poll(&self, slot: &mut WaiterSlot, cx: &Context<'_>) -> Poll<&T> {
        if let Some(value) = self.value.get() {
            return Poll::Ready(value);
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // `set` fills the value before it takes this lock: whoever is not ready here will be woken.
        if let Some(value) = self.value.get() {
            return Poll::Ready(value);
        }
        match slot.0 {
            Some(index) => waiting[index].clone_from(cx.waker()),
            None => {
                slot.0 = Some(waiting.len());
                waiting.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    /// Waits for the value.
    pub(crate) async fn wait(&self) -> &T {
        let mut slot = WaiterSlot::default();
        std::future::poll_fn(|cx| self.poll(&mut slot, cx)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn everybody_gets_the_first_value() {
        let outcome = Arc::new(Outcome::pending());
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let outcome = Arc::clone(&outcome);
                tokio::spawn(async move { *outcome.wait().await })
            })
            .collect();
        outcome.set(7);
        outcome.set(8);
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), 7);
        }
    }

    #[test]
    fn polling_again_replaces_the_waker() {
        let outcome = Outcome::<()>::pending();
        let mut slot = WaiterSlot::default();
        let cx = Context::from_waker(Waker::noop());
        assert!(outcome.poll(&mut slot, &cx).is_pending());
        assert!(outcome.poll(&mut slot, &cx).is_pending());
        assert_eq!(outcome.waiting.lock().unwrap().len(), 1);
    }
}
