//! Plants one bug after the other in the nodes of a cluster test, and expects that the test fails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

/// A bug of `node/src/planted.rs` and the cluster test that is to notice it.
struct Plant {
    bug: &'static str,
    test: &'static str,
}

const PLANTS: [Plant; 28] = [
    plant("never-synced", "power_loss::all_nodes_lose_their_power_at_once"),
    plant("vote-forgotten", "failover::all_three_die_at_once_and_return"),
    plant("followers-not-waited-for", "failover::nodes_die_again_and_again"),
    plant("cut-off-leader-stays", "partitions::a_leader_that_is_cut_off_gives_up_and_is_followed"),
    plant("damage-ends-log", "damage::damage_in_the_newest_segment_is_repaired_from_the_others"),
    plant("rewrite-loses", "space::one_old_message_does_not_hold_the_log_back"),
    plant("checkpoint-lacks", "catch_up::a_follower_that_was_away_for_too_long_gets_a_snapshot"),
    plant("snapshot-lacks", "catch_up::the_only_node_is_replaced_and_nothing_is_left_behind_with_it"),
    plant("removed-node-heard", "membership::a_node_that_was_removed_while_it_was_away_stays_out"),
    plant("empty-directory-taken", "damage::a_node_whose_directory_was_emptied_refuses_to_start"),
    plant("sequence-ignored", "failover::the_leader_dies"),
    plant("ack-answered-early", "failover::nodes_die_again_and_again"),
    plant("lease-cut-short", "delivery::a_lease_that_runs_out_gives_the_message_to_the_next"),
    plant("neighbour-delivered", "failover::the_leader_dies"),
    plant("expired-delivered", "rules::messages_come_in_their_time_while_leaders_die"),
    plant("delivered-early", "rules::messages_come_in_their_time_while_leaders_die"),
    plant("dead-letter-doubled", "rules::what_fails_too_often_is_given_up_once_while_leaders_die"),
    plant("key-not-held", "rules::keys_are_handled_in_order_while_leaders_die"),
    plant("id-forgotten", "rules::what_two_publish_is_stored_once_while_leaders_die"),
    plant("priority-ignored", "rules::the_most_urgent_comes_first_while_leaders_die"),
    plant("seek-ignored", "rules::a_group_is_moved_again_and_again_while_leaders_die"),
    plant("all-active", "turns::only_one_consumer_is_active_and_another_takes_over"),
    plant("filter-ignored", "turns::a_group_gets_only_what_it_wants"),
    plant("limit-ignored", "limits::a_full_queue_refuses_or_lets_the_oldest_go"),
    plant(
        "old-partition-takes",
        "queue_partitions::keys_keep_their_order_while_partitions_become_more_and_leaders_die",
    ),
    plant(
        "new-partition-hurries",
        "queue_partitions::keys_keep_their_order_while_partitions_become_more_and_leaders_die",
    ),
    plant("new-partition-forgets", "queue_partitions::a_group_that_is_away_misses_nothing_of_new_partitions"),
    plant("older-not-asked", "growing::new_groups_get_keys_in_order_from_a_node_that_has_not_heard_of_them"),
];

const fn plant(bug: &'static str, test: &'static str) -> Plant {
    Plant { bug, test }
}

/// Runs all of them, or the one that is named; says what each test said.
pub(crate) fn run(root: &Path, only: Option<&str>) -> Result<ExitCode> {
    let chosen: Vec<_> = PLANTS.iter().filter(|plant| only.is_none_or(|only| only == plant.bug)).collect();
    ensure!(!chosen.is_empty(), "there is no such bug; node/src/planted.rs has their names");
    let node = build(root)?;
    let mut missed = Vec::new();
    for Plant { bug, test } in chosen {
        let begun = Instant::now();
        let output = Command::new("cargo")
            .args([
                "test",
                "--locked",
                "-p",
                "skein-cluster-tests",
                "--test",
                "cluster",
                "--",
                "--exact",
                test,
            ])
            .envs([("SKEIN_NODE_BIN", node.as_os_str()), ("SKEIN_PLANTED_BUG", (*bug).as_ref())])
            .current_dir(root)
            .output()
            .context("cargo cannot be run")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(said.contains("running 1 test"), "there is no test {test}:\n{said}");
        let seconds = begun.elapsed().as_secs();
        if output.status.success() {
            println!("{bug}: NOT caught by {test} ({seconds} s)");
            missed.push(bug);
        } else {
            println!("{bug}: caught by {test} ({seconds} s): {}", reason(&said));
        }
    }
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds a node in which bugs can be planted, where it takes nobody else's place.
fn build(root: &Path) -> Result<PathBuf> {
    let cargo = |arguments: &[&str]| -> Result<()> {
        let status = Command::new("cargo").args(arguments).current_dir(root).status()?;
        ensure!(status.success(), "cargo {} failed", arguments.join(" "));
        Ok(())
    };
    cargo(&["build", "--locked", "-p", "skein-node", "--features", "planted-bugs"])?;
    let target = root.join("target");
    let node = target.join("planted/skein-node");
    fs::create_dir_all(target.join("planted"))?;
    fs::copy(target.join("debug/skein-node"), &node).context("the node that was built is not there")?;
    Ok(node)
}

/// What the test said first of what is wrong.
fn reason(said: &str) -> &str {
    let after = said.split_once("panicked at").map_or(said, |(_, after)| after);
    after.lines().nth(1).unwrap_or("nothing").trim()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_bug_is_planted_and_in_the_table_of_the_documentation() {
        let node = include_str!("../../node/src/planted.rs");
        let variants = node.lines().filter_map(|line| line.strip_prefix("    ")?.strip_suffix(','));
        let is_name = |name: &&str| name.chars().all(char::is_alphanumeric);
        let mut planted: BTreeSet<_> = variants.filter(is_name).collect();
        let documentation = include_str!("../../docs/testing.md");
        for Plant { bug, test } in PLANTS {
            let variant =
                bug.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect::<String>();
            assert!(planted.remove(variant.as_str()), "{bug} is none of the node's");
            let (_, name) = test.split_once("::").unwrap();
            let row = documentation.lines().find(|line| line.starts_with(&format!("| `{bug}` |")));
            assert!(row.is_some_and(|row| row.contains(name)), "{bug} is not in docs/testing.md with {name}");
        }
        assert!(planted.is_empty(), "{planted:?} are never planted");
    }
}
