//! The shop of the client's examples: all its services do their work while the leader of its orders dies.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use skein_cluster_tests::{
    faults::kill::{KILL_LEADER, kill_leader},
    process::{self, Process},
    scenario, wait,
};

/// A whole test.
const LIMIT: Duration = Duration::from_secs(120);

/// The shop is open, and then sold out, within this.
const SHOP_LIMIT: Duration = Duration::from_secs(60);

/// What it says when each of its services has done its work.
const ENDINGS: [&str; 4] = [
    "loyalty has seen each order once",
    "mail was down, and has caught up: it has seen each order once",
    "search knows all the books, and nothing else",
    "pricing has asked tax about each product, and got its answers",
];

#[tokio::test]
async fn a_shop_goes_on_when_a_leader_dies() {
    let shop = process::example_binary("shop").unwrap_or_else(|error| panic!("{error:#}"));
    scenario::run("a_shop_goes_on_when_a_leader_dies", LIMIT, async |scenario| {
        scenario.require(KILL_LEADER);
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("shop.log");
        let mut command = Command::new(&shop);
        command.args(scenario.cluster.addresses());
        let mut shop = Process::start(command, &log)?;
        wait_for(&log, "100 orders were accepted").await?;
        let dead = kill_leader(&mut scenario.cluster, &scenario.recorder, "shop.orders").await?;
        wait_for(&log, "300 orders were accepted").await?;
        scenario.cluster.restart(dead)?;
        let status = wait::until("the shop to close", SHOP_LIMIT, async || {
            shop.ended()?.with_context(|| format!("it said {}", process::log_tail(&log)))
        })
        .await?;
        let said = process::log_tail(&log);
        ensure!(status.success(), "it ended with {status}: {said}");
        ensure!(ENDINGS.iter().all(|ending| said.contains(ending)), "it said {said}");
        Ok(())
    })
    .await;
}

async fn wait_for(log: &std::path::Path, text: &str) -> Result<()> {
    wait::until(&format!("the shop to say {text:?}"), SHOP_LIMIT, async || {
        let said = process::log_tail(log);
        ensure!(said.contains(text), "it said {said}");
        Ok(())
    })
    .await
}
