//! A way from every node to every other one that can be cut, in either direction, and slowed down. What nodes say to
//! each other passes through this process; no privileges are needed.
//!
//! A cut way is as silent as a cable that was pulled out: bytes and ends of connections are held back, and come when it
//! is healed, as TCP would send them again. A node whose process has died refuses connections, also through here.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::{self, Instant},
};

/// A node that takes no connections is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Bytes that pass at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Chunks of a connection that are under way in one direction; whoever sends more waits.
const CHUNKS_MAX: usize = 256;

/// How bytes go from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// They do at all.
    pub passes: bool,
    /// How long they take.
    pub delay: Duration,
}

impl Flow {
    /// At once.
    pub const OPEN: Self = Self { passes: true, delay: Duration::ZERO };
    /// Not at all.
    pub const CUT: Self = Self { passes: false, delay: Duration::ZERO };

    /// After a while.
    #[must_use]
    pub const fn slow(delay: Duration) -> Self {
        Self { passes: true, delay }
    }
}

/// The ways between nodes. Dropping it ends all that passes there.
#[derive(Debug)]
pub struct Links {
    flows: Flows,
    /// Where a node finds another one.
    addresses: BTreeMap<(u64, u64), SocketAddr>,
    _tasks: JoinSet<()>,
}

/// How bytes go from one node to another, by both.
type Flows = Arc<BTreeMap<(u64, u64), watch::Sender<Flow>>>;

/// The connections that one node makes to another one.
struct Way {
    address: SocketAddr,
    callee: SocketAddr,
    /// From the caller to the callee, and back.
    there: watch::Receiver<Flow>,
    back: watch::Receiver<Flow>,
}

impl Links {
    /// Opens the ways between nodes that listen at `nodes`, at the addresses that are given for them.
    ///
    /// # Errors
    /// When an address is not free.
    pub fn start(
        nodes: &BTreeMap<u64, SocketAddr>,
        addresses: BTreeMap<(u64, u64), SocketAddr>,
    ) -> Result<Self> {
        let flows = addresses.keys().map(|pair| (*pair, watch::Sender::new(Flow::OPEN)));
        let flows: Flows = Arc::new(flows.collect());
        let mut tasks = JoinSet::new();
        for (&(from, to), &address) in &addresses {
            let callee = *nodes.get(&to).context("a way to nowhere")?;
            let flow =
                |from, to| flows.get(&(from, to)).map(watch::Sender::subscribe).context("a way of one");
            let way = Way { address, callee, there: flow(from, to)?, back: flow(to, from)? };
            tasks.spawn(way.run());
        }
        Ok(Self { flows, addresses, _tasks: tasks })
    }

    /// Where `from` finds `to`.
    #[must_use]
    pub fn address(&self, from: u64, to: u64) -> Option<SocketAddr> {
        self.addresses.get(&(from, to)).copied()
    }

    /// Says how bytes go from one node to another, whoever has made the connection.
    pub fn set(&self, from: u64, to: u64, flow: Flow) {
        if let Some(known) = self.flows.get(&(from, to)) {
            known.send_replace(flow);
        }
    }

    /// Says so for both directions.
    pub fn set_both(&self, one: u64, other: u64, flow: Flow) {
        self.set(one, other, flow);
        self.set(other, one, flow);
    }

    /// Says so for all that goes to a node.
    pub fn set_to(&self, node: u64, flow: Flow) {
        self.set_where(|(_, to)| to == node, flow);
    }

    /// Says so for all that comes from a node.
    pub fn set_from(&self, node: u64, flow: Flow) {
        self.set_where(|(from, _)| from == node, flow);
    }

    /// Opens every way.
    pub fn heal(&self) {
        self.set_where(|_| true, Flow::OPEN);
    }

    fn set_where(&self, is_meant: impl Fn((u64, u64)) -> bool, flow: Flow) {
        for (_, known) in self.flows.iter().filter(|(pair, _)| is_meant(**pair)) {
            known.send_replace(flow);
        }
    }
}

impl Way {
    async fn run(self) {
        loop {
            if TcpStream::connect(self.callee).await.is_err() {
                time::sleep(LOOK_EVERY).await;
                continue;
            }
            // In use only while the last one is being closed.
            let Ok(listener) = TcpListener::bind(self.address).await else {
                time::sleep(LOOK_EVERY).await;
                continue;
            };
            self.serve(listener).await;
        }
    }

    /// Returns when nobody is there to connect to: whoever tries it now must be refused.
    async fn serve(&self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        let (gone, mut is_gone) = mpsc::channel(1);
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((caller, _)) = accepted else { continue };
                    let (callee, gone) = (self.callee, gone.clone());
                    let (there, back) = (self.there.clone(), self.back.clone());
                    connections.spawn(async move {
                        if join(caller, callee, there, back).await.is_err() {
                            // One is enough to know.
                            let _ = gone.try_send(());
                        }
                    });
                }
                _ = is_gone.recv() => break,
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        // Others may be under way: what has been said is yet to arrive.
        connections.detach_all();
    }
}

/// Joins a caller with whom it calls. An error means that nobody takes the call.
async fn join(
    caller: TcpStream,
    callee: SocketAddr,
    mut there: watch::Receiver<Flow>,
    back: watch::Receiver<Flow>,
) -> std::io::Result<()> {
    // Nobody hears of a call that does not get through.
    if there.wait_for(|flow| flow.passes).await.is_err() {
        return Ok(());
    }
    let callee = match TcpStream::connect(callee).await {
        Ok(callee) => callee,
        Err(error) => {
            // Closed with a reset, as the system does for a port that nobody listens on.
            caller.set_zero_linger()?;
            return Err(error);
        }
    };
    caller.set_nodelay(true)?;
    callee.set_nodelay(true)?;
    let (caller_reads, caller_writes) = caller.into_split();
    let (callee_reads, callee_writes) = callee.into_split();
    tokio::join!(pass(caller_reads, callee_writes, there), pass(callee_reads, caller_writes, back));
    Ok(())
}

/// Passes bytes on in one direction, and at last that there are no more.
async fn pass(reads: OwnedReadHalf, mut writes: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let (chunks, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let reader = read(reads, chunks, flow.clone());
    let writer = async {
        while let Some((due, chunk)) = under_way.recv().await {
            time::sleep_until(due).await;
            if flow.wait_for(|flow| flow.passes).await.is_err() || writes.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // An error means that all is over; an end passes like anything else.
        if flow.wait_for(|flow| flow.passes).await.is_ok() {
            let _ = writes.shutdown().await;
        }
    };
    tokio::join!(reader, writer);
}

async fn read(
    mut reads: OwnedReadHalf,
    chunks: mpsc::Sender<(Instant, Vec<u8>)>,
    flow: watch::Receiver<Flow>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = reads.read(&mut buffer).await {
        let due = Instant::now() + flow.borrow().delay;
        if chunks.send((due, buffer[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const MOMENT: Duration = Duration::from_millis(100);

    /// A way from node 1 to node 2, which says back what it is told.
    async fn echo() -> (Links, SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let callee = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut reads, mut writes) = connection.into_split();
                    tokio::io::copy(&mut reads, &mut writes).await.ok()
                });
            }
        });
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let addresses = BTreeMap::from([((1, 2), free()), ((2, 1), free())]);
        let links = Links::start(&BTreeMap::from([(1, free()), (2, callee)]), addresses).unwrap();
        let address = links.address(1, 2).unwrap();
        (links, address, serving)
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        let connected = async {
            loop {
                match TcpStream::connect(address).await {
                    Ok(connection) => return connection,
                    Err(_) => time::sleep(LOOK_EVERY).await,
                }
            }
        };
        time::timeout(LIMIT, connected).await.unwrap()
    }

    async fn says(connection: &mut TcpStream) {
        connection.write_all(b"goose").await.unwrap();
    }

    async fn hears(connection: &mut TcpStream, limit: Duration) -> bool {
        let mut heard = [0; 5];
        time::timeout(limit, connection.read_exact(&mut heard)).await.is_ok_and(|read| read.is_ok())
    }

    #[tokio::test]
    async fn what_is_held_back_comes_when_the_way_is_healed() {
        let (links, address, _serving) = echo().await;
        let mut connection = connect(address).await;
        says(&mut connection).await;
        assert!(hears(&mut connection, LIMIT).await);
        for (from, to) in [(1, 2), (2, 1)] {
            links.set(from, to, Flow::CUT);
            says(&mut connection).await;
            assert!(!hears(&mut connection, MOMENT).await, "from {from} to {to}");
            links.heal();
            assert!(hears(&mut connection, LIMIT).await);
        }
        links.set_both(1, 2, Flow::slow(MOMENT));
        let before = Instant::now();
        says(&mut connection).await;
        assert!(hears(&mut connection, LIMIT).await && before.elapsed() >= 2 * MOMENT);
    }

    #[tokio::test]
    async fn who_is_gone_refuses_connections() {
        let (_links, address, serving) = echo().await;
        let mut connection = connect(address).await;
        says(&mut connection).await;
        assert!(hears(&mut connection, LIMIT).await);
        serving.abort();
        let _ = serving.await;
        let refused = async {
            while TcpStream::connect(address).await.is_ok() {
                time::sleep(LOOK_EVERY).await;
            }
        };
        time::timeout(LIMIT, refused).await.unwrap();
        assert!(!hears(&mut connection, LIMIT).await, "the connection has ended as well");
    }
}
