//! Watches who leads, and records every change: a leader that changes explains what is delivered again.

use std::{collections::BTreeMap, time::Duration};

use skein_proto::broker::{GetClusterRequest, Shard, cluster_client::ClusterClient};
use tokio::{
    task::JoinSet,
    time::{self, MissedTickBehavior},
};
use tonic::transport::Channel;

use crate::recorder::Recorder;

/// Often enough that a change is known before its effects have died down, rarely enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Observer {
    recorder: Recorder,
    tasks: JoinSet<()>,
}

impl Observer {
    /// Watches through these nodes.
    #[must_use]
    pub fn start(channels: Vec<Channel>, recorder: &Recorder) -> Self {
        let mut observer = Self { recorder: recorder.clone(), tasks: JoinSet::new() };
        channels.into_iter().for_each(|channel| observer.add(channel));
        observer
    }

    /// Watches through another node as well.
    pub fn add(&mut self, channel: Channel) {
        self.tasks.spawn(watch(channel, self.recorder.clone()));
    }
}

async fn watch(channel: Channel, recorder: Recorder) {
    let mut client = ClusterClient::new(channel);
    let mut leaders = BTreeMap::new();
    let mut looks = time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        // A node that is down says nothing; the others do.
        let Ok(answer) = client.get_cluster(GetClusterRequest {}).await else {
            continue;
        };
        let shards = answer.into_inner().topology.unwrap_or_default().shards;
        for Shard { shard_id, leader_node_id, term, .. } in shards {
            let known = leaders.insert(shard_id, (term, leader_node_id));
            if known.is_some_and(|known| known != (term, leader_node_id)) {
                recorder.disturbed(format!("shard {shard_id}: term {term}, leader {leader_node_id}"));
            }
        }
    }
}
