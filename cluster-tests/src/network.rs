//! Hosts of their own for nodes: network namespaces on one switch, each with an address, where the kernel drops packets
//! as it is told to. What is lost is really lost, and TCP has to find out.
//!
//! It takes root, `ip` and `nft`. The switch has a namespace as well, so that no rule of this machine is in the way.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context as _, Result, ensure};

/// The networks of RFC 2544, which are for measurements and nothing else.
const NETWORK: [u8; 2] = [198, 18];

/// This process on each of them; nodes come after it.
const OWN_HOST: u8 = 1;
const FIRST_NODE: u8 = 10;

/// Of packets between a node and the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passing {
    /// All arrive.
    All,
    /// So many of a hundred are lost.
    Lossy {
        /// So many.
        percent: u8,
    },
    /// None arrives.
    Nothing,
}

/// A switch with hosts on it. Dropping it takes everything away; the processes there must have ended.
#[derive(Debug)]
pub struct Network {
    switch: String,
    hosts: BTreeMap<u64, Host>,
}

/// Where a node runs.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    address: Ipv4Addr,
}

impl Network {
    /// Why there can be no such network here. `None` when there can.
    #[must_use]
    pub fn unavailable() -> Option<String> {
        let lossy = Passing::Lossy { percent: 1 };
        let trial = Self::new(&[1, 2]).and_then(|network| network.set(1, lossy, Passing::Nothing));
        trial.err().map(|error| format!("{error:#}"))
    }

    /// Hosts for these nodes.
    ///
    /// # Errors
    /// For want of a program, or of the right to.
    pub fn new(node_ids: &[u64]) -> Result<Self> {
        static STARTED: AtomicU8 = AtomicU8::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let [.., low] = process.to_be_bytes();
        // Two processes that test at a time may have the same, one time in 256; then this fails, and says so.
        let subnet = low.wrapping_add(number);
        let address = |host| Ipv4Addr::new(NETWORK[0], NETWORK[1], subnet, host);
        let name = |what: &str| format!("skein-{process}-{number}-{what}");
        // Dropped when something fails, which takes away what was made until then.
        let mut network = Self { switch: name("switch"), hosts: BTreeMap::new() };
        let switch = network.switch.clone();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        let own = format!("sk{process:x}n{number}");
        ip(&["link", "add", &own, "type", "veth", "peer", "name", "own", "netns", &switch])?;
        ip(&["-n", &switch, "link", "set", "own", "master", "bridge", "up"])?;
        ip(&["addr", "add", &format!("{}/24", address(OWN_HOST)), "dev", &own])?;
        ip(&["link", "set", &own, "up"])?;
        for &node_id in node_ids {
            let namespace = name(&node_id.to_string());
            let host = FIRST_NODE + u8::try_from(node_id).context("there are not so many hosts")?;
            let host = Host { namespace: namespace.clone(), address: address(host) };
            ip(&["netns", "add", &namespace])?;
            network.hosts.insert(node_id, host);
            let port = format!("node-{node_id}");
            let veth = ["link", "add", "eth", "type", "veth", "peer", "name", &port, "netns", &switch];
            ip(&[["-n", &namespace].as_slice(), &veth].concat())?;
            ip(&["-n", &switch, "link", "set", &port, "master", "bridge", "up"])?;
            let with_length = format!("{}/24", network.hosts[&node_id].address);
            ip(&["-n", &namespace, "addr", "add", &with_length, "dev", "eth"])?;
            for device in ["lo", "eth"] {
                ip(&["-n", &namespace, "link", "set", device, "up"])?;
            }
        }
        Ok(network)
    }

    /// Where a node runs.
    #[must_use]
    pub fn host(&self, node_id: u64) -> Option<&Host> {
        self.hosts.get(&node_id)
    }

    /// Says which packets between a node and the others arrive: those that come to it, and those that go from it. This
    /// process reaches it all the same.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses.
    pub fn set(&self, node_id: u64, to_node: Passing, from_node: Passing) -> Result<()> {
        let host = self.hosts.get(&node_id).context("there is no such node")?;
        let others = self.hosts.iter().filter(|(other, _)| **other != node_id);
        let others: Vec<_> = others.map(|(_, host)| host.address.to_string()).collect();
        let rule = |field: &str, passing| match passing {
            _ if others.is_empty() => String::new(),
            Passing::All => String::new(),
            Passing::Lossy { percent } => {
                format!("ip {field} {{ {} }} numgen random mod 100 < {percent} drop", others.join(", "))
            }
            Passing::Nothing => format!("ip {field} {{ {} }} drop", others.join(", ")),
        };
        let rules = format!(
            "add table ip skein\nflush table ip skein\ntable ip skein {{\n\
             chain to {{\ntype filter hook input priority 0;\n{}\n}}\n\
             chain from {{\ntype filter hook output priority 0;\n{}\n}}\n}}\n",
            rule("saddr", to_node),
            rule("daddr", from_node)
        );
        let mut nft = host.command("nft");
        run(nft.args(["-f", "-"]), &rules)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let namespaces = self.hosts.values().map(|host| &host.namespace).chain([&self.switch]);
        for namespace in namespaces {
            // What is left is found by its name: `ip netns list`.
            let _ = ip(&["netns", "delete", namespace]);
        }
    }
}

impl Host {
    /// Its address.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that runs there. It is the program's own process: what ends it ends the program.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments), "")
}

/// Runs a program that reads `input`.
fn run(command: &mut Command, input: &str) -> Result<()> {
    use std::io::Write as _;

    let name = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let mut stdin = child.stdin.take().context("it was to read")?;
    // One that does not read has failed, and says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {}", said.trim());
    Ok(())
}
