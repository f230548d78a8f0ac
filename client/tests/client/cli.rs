//! The command line, as a process.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use super::{cluster::Cluster, soon};

async fn skein_with_input(cluster: &Cluster, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
    command.args(args).env("SKEIN_SERVERS", cluster.addresses.join(","));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that does not read its input may be gone before it is written.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    soon("the end of the command", child.wait_with_output()).await.unwrap()
}

async fn skein(cluster: &Cluster, args: &[&str]) -> String {
    let output = skein_with_input(cluster, args, "").await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn skein_json(cluster: &Cluster, args: &[&str]) -> Vec<Value> {
    let stdout = skein(cluster, &[args, &["--json"]].concat()).await;
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn queues_and_groups() {
    let cluster = Cluster::start().await;
    assert_eq!(skein(&cluster, &["queue", "create", "mail", "--lease", "5s"]).await, "created mail\n");
    let queues = skein_json(&cluster, &["queue", "list"]).await;
    assert_eq!(
        (queues.len(), &queues[0]["queue"], &queues[0]["lease_ms"]),
        (2, &json!("mail"), &json!(5_000))
    );
    skein(&cluster, &["group", "create", "mail", "readers", "--start", "next"]).await;
    assert!(skein(&cluster, &["queue", "show", "mail"]).await.contains("readers"));
    assert_eq!(
        skein_json(&cluster, &["queue", "purge", "mail"]).await,
        [json!({ "queue": "mail", "purged": 0 })]
    );
    skein(&cluster, &["group", "delete", "mail", "readers"]).await;
    skein(&cluster, &["queue", "delete", "mail"]).await;
    assert!(skein(&cluster, &["cluster", "status"]).await.contains("NODE"));
}

#[tokio::test]
async fn nodes_come_and_go_and_lead_nothing() {
    let cluster = Cluster::start().await;
    let leader = skein_json(&cluster, &["cluster", "status"]).await[0]["shards"][0]["leader_node_id"].clone();
    let drained = skein(&cluster, &["cluster", "drain", &leader.to_string()]).await;
    assert_eq!(
        drained,
        format!("node {leader} leads no shards, until skein cluster drain {leader} --undo\n")
    );
    assert!(skein(&cluster, &["cluster", "status"]).await.contains("up, drained"));
    assert!(
        skein(&cluster, &["cluster", "drain", &leader.to_string(), "--undo"])
            .await
            .contains("may lead again")
    );
    assert!(skein(&cluster, &["cluster", "wait"]).await.contains("each of the nodes 1, 2\n"));
    assert!(skein(&cluster, &["cluster", "rebalance"]).await.contains("spread evenly already"));

    let checked = skein_with_input(&cluster, &["cluster", "rolling-check", "--wait", "100ms"], "").await;
    let why = String::from_utf8(checked.stderr).unwrap();
    assert!(
        !checked.status.success() && why.contains("taken down now: shard 1 has fewer than three replicas"),
        "{why}"
    );

    let invited = skein(&cluster, &["cluster", "replace", "2"]).await;
    assert!(invited.contains("node 7 may join, to take the place of node 2"), "{invited}");
    assert!(invited.contains("--join-token secret"), "{invited}");
    let status = skein(&cluster, &["cluster", "status"]).await;
    assert!(status.contains("invited, takes the place of 2"), "{status}");
    let removed = skein_json(&cluster, &["cluster", "remove", "7"]).await;
    assert_eq!(removed, [json!({ "node_id": 7, "removed": true })]);

    // A member that is gone while a shard has a replica there: the wait ends, and says what is left.
    skein(&cluster, &["cluster", "remove", "2"]).await;
    let waited = skein_with_input(&cluster, &["cluster", "wait", "--timeout", "100ms"], "").await;
    let why = String::from_utf8(waited.stderr).unwrap();
    assert!(!waited.status.success() && why.contains("after 100ms 1 of 1 shards are left"), "{why}");
}

#[tokio::test]
async fn settings_are_changed_and_shown() {
    let cluster = Cluster::start().await;
    let create =
        ["queue", "create", "log", "--retention", "limits", "--max-age", "7d", "--max-bytes", "1GiB"];
    assert_eq!(skein(&cluster, &create).await, "created log\n");
    let update = ["queue", "update", "log", "--clear", "max-age", "--max-messages", "1000"];
    assert_eq!(skein(&cluster, &update).await, "updated log\n");
    let shown = skein_json(&cluster, &["queue", "show", "log"]).await.pop().unwrap();
    let settings = ["retention", "max_age_ms", "max_bytes", "max_messages", "overflow"];
    let values = [json!("limits"), Value::Null, json!(1 << 30), json!(1_000), Value::Null];
    assert_eq!(settings.map(|setting| shown[setting].clone()), values);

    let text = skein(&cluster, &["queue", "show", "log"]).await;
    assert!(text.contains("retention") && text.contains("limits"), "{text}");
    let nothing = skein_with_input(&cluster, &["queue", "update", "log"], "").await;
    assert!(!nothing.status.success());
    assert!(String::from_utf8(nothing.stderr).unwrap().contains("name a setting"));
}

#[tokio::test]
async fn dead_letters_are_moved_back() {
    let cluster = Cluster::start().await;
    skein(&cluster, &["queue", "create", "dead"]).await;
    for reason in ["expired", "overflow", "expired"] {
        let reason = format!("skein-dead-letter-reason={reason}");
        let publish = ["publish", "dead", "hello", "--header", "skein-dead-letter-queue=orders"];
        skein(&cluster, &[&publish[..], &["--header", &reason]].concat()).await;
    }
    let redrive = ["queue", "redrive", "dead", "--reason", "expired", "--count", "1"];
    assert!(skein(&cluster, &redrive).await.starts_with("moved 1, left "));
    let redrive = ["queue", "redrive", "dead", "--reason", "expired"];
    let expected = json!({ "queue": "dead", "moved_count": 1, "left_count": 1, "stopped_early": false });
    assert_eq!(skein_json(&cluster, &redrive).await, [expected]);
    assert_eq!(skein(&cluster, &["browse", "orders"]).await, "hello\nhello\n");
    let to_nothing = skein_with_input(&cluster, &["queue", "redrive", "dead", "--to", "nothing"], "").await;
    let sentence = String::from_utf8(to_nothing.stderr).unwrap();
    assert!(sentence.contains("there is no queue nothing") && sentence.contains("skein queue list"));
}

#[tokio::test]
async fn groups_begin_and_go_on_anywhere() {
    let cluster = Cluster::start().await;
    skein_with_input(&cluster, &["publish", "orders"], "one\ntwo\nthree\n").await;
    // The nodes count a millisecond for each message.
    let second = ["--time", "1970-01-01T00:00:00.002Z"];
    skein(&cluster, &[&["group", "create", "orders", "mail"][..], &second].concat()).await;
    let shown = skein_json(&cluster, &["group", "show", "orders", "mail"]).await.pop().unwrap();
    let expected = [json!(2), json!(200), json!(2)];
    assert_eq!(
        ["unacked_count", "unacked_bytes", "oldest_unacked_at_ms"].map(|name| shown[name].clone()),
        expected
    );

    let seek = ["group", "seek", "orders", "mail"];
    for (to, offset) in [
        (&["--to", "next"], 3),
        (&["--to", "first"], 0),
        (&["--offset", "2"], 2),
        (&second, 1),
        (&["--time", "10m"], 3),
    ] {
        let sought = skein_json(&cluster, &[&seek[..], to].concat()).await;
        assert_eq!(sought, [json!({ "queue": "orders", "group": "mail", "offset": offset })], "{to:?}");
    }
    for wrong in [&[][..], &["--to", "first", "--offset", "1"], &["--offset", "1", "--time", "10m"]] {
        let refused = skein_with_input(&cluster, &[&seek[..], wrong].concat(), "").await;
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn messages_say_when_they_are_due_and_how_urgent_they_are() {
    let cluster = Cluster::start().await;
    let publish = ["publish", "orders", "hello", "--ttl", "10m", "--delay", "1s", "--priority", "9"];
    let at = ["--at", "2026-11-26T12:00:00Z", "--message-id", "first"];
    skein(&cluster, &[&publish[..], &at].concat()).await;
    let expected = json!({
        "offset": 0,
        "published_at_ms": 1,
        "attempt": 1,
        "body": "hello",
        "message_id": "first",
        "ttl_ms": 600_000,
        "delay_ms": 1_000,
        "deliver_at_ms": 1_795_694_400_000_u64,
        "priority": 9
    });
    let consume = ["consume", "orders", "--priority", "-3"];
    assert_eq!(skein_json(&cluster, &consume).await, [expected]);
    assert_eq!(cluster.shared.state().subscribed[0].priority, -3);
    let refused = skein_with_input(&cluster, &["publish", "orders", "hello", "--priority", "10"], "").await;
    assert_eq!(refused.status.code(), Some(2));
}

#[tokio::test]
async fn browsing_begins_at_a_time_and_follows() {
    let cluster = Cluster::start().await;
    skein_with_input(&cluster, &["publish", "orders"], "one\ntwo\n").await;
    let browse = ["browse", "orders", "--from-time", "1970-01-01T00:00:00.002Z"];
    assert_eq!(skein(&cluster, &browse).await, "two\n");
    let follow = [&browse[..], &["--follow", "--count", "2"]].concat();
    let mut news = cluster.shared.news.subscribe();
    let (followed, ()) = tokio::join!(skein(&cluster, &follow), async {
        while cluster.shared.state().browsed.len() < 2 {
            news.changed().await.unwrap();
        }
        skein(&cluster, &["publish", "orders", "three"]).await;
    });
    assert_eq!(followed, "two\nthree\n");
}

#[tokio::test]
async fn published_messages_are_browsed_and_consumed() {
    let cluster = Cluster::start().await;
    let published = skein(&cluster, &["publish", "orders", "hello", "--key", "k", "--header", "a=b"]).await;
    assert_eq!(published, "published at offset 0\n");
    let lines = skein_with_input(&cluster, &["publish", "orders"], "one\ntwo\n").await;
    assert_eq!(String::from_utf8(lines.stdout).unwrap(), "published 2 messages at offsets 1 to 2\n");

    assert_eq!(skein(&cluster, &["browse", "orders", "--from", "1"]).await, "one\ntwo\n");
    let first = skein_json(&cluster, &["consume", "orders", "--count", "1"]).await;
    let expected = json!({
        "offset": 0, "published_at_ms": 1, "attempt": 1, "body": "hello", "key": "k", "headers": { "a": "b" }
    });
    assert_eq!(first, [expected]);
    assert_eq!(skein(&cluster, &["consume", "orders"]).await, "one\ntwo\n");
    assert_eq!(skein(&cluster, &["consume", "orders"]).await, "");
}

#[tokio::test]
async fn failures_are_a_sentence_and_an_exit_code() {
    let cluster = Cluster::start().await;
    let output = skein_with_input(&cluster, &["publish", "nothing", "hello"], "").await;
    assert_eq!(output.status.code(), Some(1));
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert_eq!(sentence.lines().count(), 1);
    assert!(
        sentence.contains("there is no queue nothing") && sentence.contains("skein queue list"),
        "{sentence}"
    );
}

#[tokio::test]
async fn a_measurement_ends_with_its_figures() {
    let cluster = Cluster::start().await;
    let pid = std::process::id().to_string();
    let args =
        ["bench", "--seconds", "1", "--producers", "2", "--consumers", "2", "--size", "100", "--pids", &pid];
    let figures = skein_json(&cluster, &args).await.pop().unwrap();
    assert_eq!((&figures["lost"], &figures["duplicated"]), (&json!(0), &json!(0)), "{figures}");
    for positive in [
        "sent_per_s",
        "confirmed_per_s",
        "received_per_s",
        "acked_per_s",
        "broker_cpu_us_per_msg",
        "broker_rss_mib",
    ] {
        assert!(figures[positive].as_f64().unwrap() > 0.0, "{positive}: {figures}");
    }
    assert!(figures["confirm_ms"]["p50"].as_f64().unwrap() > 0.0, "{figures}");
    assert_eq!(cluster.shared.state().queues.len(), 1, "the queues of a measurement are deleted");
}
