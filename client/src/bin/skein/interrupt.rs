//! What ends a command before it is done.

use std::{process, sync::OnceLock};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// What a shell makes of a process that Ctrl-C has ended.
const INTERRUPTED_CODE: i32 = 130;

/// Waits for Ctrl-C, or for whoever looks after this process to end it; ends at once when that has been so before. A
/// second signal ends the process.
pub(crate) async fn interrupted() {
    static HEARD: OnceLock<watch::Receiver<bool>> = OnceLock::new();
    let mut heard = HEARD.get_or_init(listen).clone();
    if heard.wait_for(|heard| *heard).await.is_err() {
        // Nobody listens: signals end the process by themselves.
        std::future::pending::<()>().await;
    }
}

fn listen() -> watch::Receiver<bool> {
    let (heard, receiver) = watch::channel(false);
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    if let [Ok(mut interrupt), Ok(mut terminate)] = signals {
        tokio::spawn(async move {
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if heard.send_replace(true) {
                    process::exit(INTERRUPTED_CODE);
                }
            }
        });
    }
    receiver
}
