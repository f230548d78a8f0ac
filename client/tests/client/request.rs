//! Asking and answering over queues.

use std::time::Duration;

use skein_client::{Client, Message, QueueSettings, Reason, RequestError, ServeError};
use tokio::task::JoinHandle;

use super::{cluster::Cluster, soon};

const TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster with a queue of requests, and whoever answers them: with what they say, twice; but what says "no" fails.
async fn start() -> (Cluster, Client, JoinHandle<Result<(), ServeError>>) {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.create_queue("tax", QueueSettings::default()).await.unwrap();
    let server = client.clone();
    let serving = tokio::spawn(async move {
        server
            .serve("tax", |request| async move {
                let text = String::from_utf8(request.body.to_vec())?;
                if text == "no" { Err("not this one".into()) } else { Ok(Message::new(text.repeat(2))) }
            })
            .await
    });
    (cluster, client, serving)
}

#[tokio::test]
async fn answers_come_to_whoever_asked() {
    let (cluster, client, serving) = start().await;
    let requester = client.requester().await.unwrap();
    let other = client.requester().await.unwrap();
    let questions = ["a", "b", "c", "d"];
    let asked = questions.iter().zip([&requester, &other].into_iter().cycle());
    let asking = asked.map(|(text, requester)| requester.request("tax", Message::new(*text), TIMEOUT));
    let answers = soon("answers", futures::future::join_all(asking)).await;
    for (question, answer) in questions.iter().zip(answers) {
        assert_eq!(answer.unwrap().body, question.repeat(2));
    }
    let own_id = Message::new("x").correlation_id("seven");
    let answer = soon("an answer", requester.request("tax", own_id, TIMEOUT)).await.unwrap();
    assert_eq!((answer.correlation_id.as_str(), &answer.body[..]), ("seven", &b"xx"[..]));

    let reply_queue = requester.reply_queue().to_owned();
    assert!(cluster.shared.state().queues.contains_key(&reply_queue));
    requester.close().await;
    assert!(!cluster.shared.state().queues.contains_key(&reply_queue));
    serving.abort();
}

#[tokio::test]
async fn without_an_answer_asking_ends_in_time() {
    let (_cluster, client, serving) = start().await;
    let requester = client.requester().await.unwrap();
    let timeout = Duration::from_millis(100);
    let asked = soon("a timeout", requester.request("tax", Message::new("no"), timeout)).await;
    assert_eq!(asked, Err(RequestError::TimedOut { timeout }));
    let asked = soon("a refusal", requester.request("nothing", Message::new("a"), TIMEOUT)).await;
    assert_eq!(asked.unwrap_err().reason(), Reason::QueueNotFound);

    let slow = requester.request("orders", Message::new("a").correlation_id("seven"), TIMEOUT);
    let same = requester.request("orders", Message::new("b").correlation_id("seven"), TIMEOUT);
    tokio::select! {
        biased;
        answered = slow => panic!("nobody answers: {answered:?}"),
        refused = same => assert!(matches!(refused, Err(RequestError::SameCorrelationId { .. })), "{refused:?}"),
    }
    // The first one waits no more; its id is free again.
    let again = requester.request("orders", Message::new("b").correlation_id("seven"), timeout).await;
    assert_eq!(again, Err(RequestError::TimedOut { timeout }));

    client.delete_queue(requester.reply_queue()).await.unwrap();
    serving.abort();
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_holds_up_no_server() {
    let (_cluster, client, serving) = start().await;
    let lost = Message::new("a").reply_to("gone");
    client.send("tax", vec![lost, Message::new("b")]).await.unwrap();
    let requester = client.requester().await.unwrap();
    let answer = soon("an answer", requester.request("tax", Message::new("c"), TIMEOUT)).await;
    assert_eq!(answer.unwrap().body, "cc");
    serving.abort();
    let server = client.serve("nothing", |request| async move { Ok(request) });
    let ended = soon("an end", server).await.unwrap_err();
    assert_eq!(ended.reason(), Reason::QueueNotFound);
}
