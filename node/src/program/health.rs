//! `skein-node health`: one question to a running node, for where there is no other HTTP client, as in a container.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

/// A node on the same machine answers in a thousandth of this. Probes give up later.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// More than a node has to say about 256 shards.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What `skein-node health` takes.
#[derive(clap::Args)]
pub struct HealthOptions {
    /// What to ask: /readyz (every shard has a leader, and the node is not stopping) or /livez (the node answers), at
    /// listen.http.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7201/readyz", value_parser = Question::parse)]
    url: Question,
}

/// A URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    host_and_port: String,
    path: String,
}

impl Question {
    fn parse(url: &str) -> Result<Self, String> {
        let expected = "write http://host:port/readyz";
        let rest = url.strip_prefix("http://").ok_or(expected)?;
        let (host_and_port, path) = rest.split_once('/').ok_or(expected)?;
        let (host, port) = host_and_port.rsplit_once(':').ok_or(expected)?;
        if host.is_empty() || port.parse::<u16>().is_err() || path.chars().any(char::is_whitespace) {
            return Err(expected.to_owned());
        }
        Ok(Self { host_and_port: host_and_port.to_owned(), path: format!("/{path}") })
    }
}

/// Asks a node and prints what it says.
///
/// # Errors
/// When the node does not answer in time, or says that it is not well.
#[expect(clippy::print_stdout, reason = "this is what the program is asked to show")]
pub fn health(options: &HealthOptions) -> anyhow::Result<()> {
    println!("{}", ask(&options.url)?);
    Ok(())
}

fn ask(Question { host_and_port, path }: &Question) -> anyhow::Result<String> {
    let answer = get(host_and_port, path).with_context(|| {
        format!(
            "no node answers at {host_and_port}; it is down, still starting, or has another listen.http than --url \
             says"
        )
    })?;
    let not_http = || format!("what answers at {host_and_port} is no node; write its listen.http into --url");
    let (head, body) = answer.split_once("\r\n\r\n").with_context(not_http)?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).with_context(not_http)?;
    let body = body.trim();
    match status {
        "200" => Ok(body.to_owned()),
        "503" => bail!("the node is not ready: {body}"),
        "404" => bail!("the node knows no {path}; ask for /readyz or /livez"),
        _ => bail!("the node answers {status} to {path}: {body}"),
    }
}

fn get(host_and_port: &str, path: &str) -> anyhow::Result<String> {
    let addresses: Vec<_> = host_and_port.to_socket_addrs()?.collect();
    let mut stream = connect(&addresses)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host_and_port}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    ensure!(!answer.is_empty(), "it closed the connection");
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Connects to the first address that takes connections: `localhost` has two.
fn connect(addresses: &[SocketAddr]) -> anyhow::Result<TcpStream> {
    let mut refused = None;
    for address in addresses {
        match TcpStream::connect_timeout(address, ANSWER_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.map_or_else(|| anyhow::anyhow!("the name has no address"), Into::into))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::tasks;

    /// Asks somebody who answers with these bytes.
    fn asked(answer: &'static str) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        let answering = tasks::spawn_thread("answering", move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        })
        .unwrap();
        let said = ask(&Question::parse(&url).unwrap()).map_err(|error| format!("{error:#}"));
        answering.join().unwrap();
        said
    }

    #[test]
    fn says_what_the_node_says() {
        assert_eq!(asked("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n").unwrap(), "ready");
        let unready = asked("HTTP/1.1 503 Service Unavailable\r\n\r\nno leader in shard 3, 4\n").unwrap_err();
        assert_eq!(unready, "the node is not ready: no leader in shard 3, 4");
        assert!(asked("HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err().contains("ask for /readyz or /livez"));
        assert!(asked("220 mail.example.org\r\n").unwrap_err().contains("is no node"));
        assert!(asked("").unwrap_err().contains("it closed the connection"));
    }

    #[test]
    fn a_node_that_is_down_is_not_well() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let said = ask(&Question::parse(&format!("http://{address}/livez")).unwrap()).unwrap_err();
        assert!(said.to_string().starts_with(&format!("no node answers at {address}; it is down")), "{said}");
    }

    #[test]
    fn a_url_has_a_host_a_port_and_a_path() {
        let question = Question { host_and_port: "[::1]:7201".to_owned(), path: "/livez".to_owned() };
        assert_eq!(Question::parse("http://[::1]:7201/livez").unwrap(), question);
        for url in
            ["", "127.0.0.1:7201/readyz", "https://a:1/readyz", "http://a/readyz", "http://a:1", "http://:1/"]
        {
            assert_eq!(Question::parse(url).unwrap_err(), "write http://host:port/readyz", "{url}");
        }
    }
}
