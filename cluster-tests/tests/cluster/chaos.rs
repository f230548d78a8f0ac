//! A minute of faults of every kind. For more:
//! `cargo run --release -p skein-cluster-tests --bin chaos -- --minutes 60`.

use std::time::Duration;

use skein_cluster_tests::{
    chaos::{self, Course, Fault, Order},
    scenario,
};

const LENGTH: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_for_a_minute_nothing_is_lost() {
    let course = Course {
        seed: scenario::seed(),
        length: LENGTH,
        rounds_max: usize::MAX,
        faults: Fault::ALL.into(),
        order: Order::Drawn,
        load_per_s: 0,
    };
    if let Err((report, why)) = chaos::run(&course).await {
        panic!("{report}\n{why}");
    }
}
