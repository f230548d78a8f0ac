//! A minute of faults of every kind. For more:
//! `cargo run --release -p skein-cluster-tests --bin chaos -- --minutes 60`.

use std::time::Duration;

use skein_cluster_tests::{
    chaos::{self, Fault},
    scenario,
};

const LENGTH: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_for_a_minute_nothing_is_lost() {
    if let Err((report, why)) = chaos::run(scenario::seed(), LENGTH, &Fault::ALL).await {
        panic!("{report}\n{why}");
    }
}
