//! One plain GET from a node, without a library for it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

/// One answer comes within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// More than a node has to say about 256 shards.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The status of a GET.
///
/// # Errors
/// When there is no answer.
pub async fn status(address: SocketAddr, path: &str) -> Result<u16> {
    Ok(get(address, path).await?.0)
}

/// All that a node's `/metrics` gives.
///
/// # Errors
/// When the node does not answer.
pub async fn metrics(address: SocketAddr) -> Result<String> {
    let (status, text) = get(address, "/metrics").await?;
    ensure!(status == 200, "/metrics answers {status}");
    Ok(text)
}

/// A figure that a node's `/metrics` gives without labels.
///
/// # Errors
/// When the node does not answer, or says nothing of the kind.
pub async fn metric(address: SocketAddr, name: &str) -> Result<u64> {
    let text = metrics(address).await?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) =
        lines.find(|(found, _)| *found == name).with_context(|| format!("there is no {name}"))?;
    value.trim().parse().with_context(|| format!("{name} is {value}"))
}

async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let get = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = time::timeout(ANSWER_LIMIT, get).await.context("no answer")??;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).context("not HTTP/1.1")?;
    Ok((status.parse()?, answer))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with these bytes.
    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn reads_the_status_of_an_answer() {
        let address = answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(status(address, "/readyz").await.unwrap(), 503);
    }

    #[tokio::test]
    async fn reads_a_figure_among_others() {
        const TEXT: &str = "HTTP/1.1 200 OK\r\n\r\n# HELP skein_a Some.\nskein_a_total 1\nskein_a 27\n";
        assert_eq!(metric(answering(TEXT).await, "skein_a").await.unwrap(), 27);
        assert!(metric(answering(TEXT).await, "skein_b").await.is_err());
    }
}
