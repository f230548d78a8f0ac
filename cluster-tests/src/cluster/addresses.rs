//! Addresses for nodes and for the ways between them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;

use super::Node;
use crate::links::Links;

/// Ports nobody has, on a loopback address that only this cluster uses where the system has many: a port of a node
/// that is down for a while must not be taken as the local end of somebody's connection.
pub(super) fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let number = STARTED.fetch_add(1, Ordering::Relaxed).to_be_bytes()[3];
    let own = Ipv4Addr::new(127, 1 + (high ^ middle) % 250, low, 1 + number % 250);
    let address = if TcpListener::bind((own, 0)).is_ok() { own } else { Ipv4Addr::LOCALHOST };
    // All are held until all are known, so that none is given twice.
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind((IpAddr::V4(address), 0))).collect::<Result<_, _>>()?;
    Ok(listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

/// Ways from every node to every other one.
pub(super) fn links(nodes: &BTreeMap<u64, Node>) -> Result<Links> {
    let pairs: Vec<_> = nodes
        .keys()
        .flat_map(|from| nodes.keys().map(move |to| (*from, *to)))
        .filter(|(from, to)| from != to)
        .collect();
    let addresses = free_addresses(pairs.len())?;
    let nodes = nodes.iter().map(|(id, node)| (*id, node.grpc)).collect();
    Links::start(&nodes, pairs.into_iter().zip(addresses).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn addresses_are_free_and_differ() {
        let mut addresses = free_addresses(6).unwrap();
        addresses.extend(free_addresses(6).unwrap());
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 12);
        for address in addresses {
            TcpListener::bind(address).unwrap();
        }
    }
}
