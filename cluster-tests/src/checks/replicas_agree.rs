//! After healing, every node says the same: the same counts, and as leader the same messages at the same offsets.

use std::collections::{BTreeMap, BTreeSet};

use super::{Property, Violation};
use crate::history::{History, View};

/// Violations: two nodes that count differently, or two leaders that show different messages.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (queue, counts) in by_queue(&history.counts, |counts| &counts.queue) {
        for pair in counts.windows(2) {
            if pair[0].figures != pair[1].figures {
                let nodes = [pair[0].node_id, pair[1].node_id];
                let sentence = format!("the nodes {nodes:?} count {queue} differently");
                let evidence = pair.iter().map(|counts| format!("{}: {:?}", counts.node_id, counts.figures));
                violations.push(Violation::new(Property::ReplicasAgree, sentence, evidence));
            }
        }
    }
    for (queue, views) in by_queue(&history.views, |view| &view.queue) {
        for pair in views.windows(2) {
            if let Some(evidence) = difference(pair[0], pair[1]) {
                let nodes = [pair[0].node_id, pair[1].node_id];
                let sentence = format!("the nodes {nodes:?} show different messages in {queue}");
                violations.push(Violation::new(Property::ReplicasAgree, sentence, evidence));
            }
        }
    }
    violations
}

/// One node's word compares with nothing.
pub(super) fn reasons_to_doubt(history: &History) -> Vec<String> {
    let mut reasons = Vec::new();
    for (queue, counts) in by_queue(&history.counts, |counts| &counts.queue) {
        if counts.iter().map(|counts| counts.node_id).collect::<BTreeSet<_>>().len() < 2 {
            reasons.push(format!("only one node was asked what it counts in {queue}"));
        }
    }
    for (queue, views) in by_queue(&history.views, |view| &view.queue) {
        if views.iter().map(|view| view.node_id).collect::<BTreeSet<_>>().len() < 2 {
            reasons.push(format!("only one leader was asked what {queue} holds"));
        }
    }
    reasons
}

fn by_queue<'a, T>(items: &'a [T], queue: impl Fn(&'a T) -> &'a String) -> BTreeMap<&'a str, Vec<&'a T>> {
    let mut by_queue: BTreeMap<&str, Vec<&T>> = BTreeMap::new();
    for item in items {
        by_queue.entry(queue(item)).or_default().push(item);
    }
    by_queue
}

/// What two leaders disagree about. `None` when they agree.
fn difference(one: &View, other: &View) -> Option<Vec<String>> {
    if one.contents == other.contents {
        return None;
    }
    let at = |view: &View, offset: u64| {
        let found = view.contents.iter().find(|(candidate, _)| *candidate == offset);
        let what = match found {
            None => "nothing".to_owned(),
            Some((_, Ok(identity))) => identity.to_string(),
            Some((_, Err(garbled))) => garbled.why.to_owned(),
        };
        format!("node {} @{offset}: {what}", view.node_id)
    };
    let missing_or_other = |a: &View, b: &View| {
        let b: BTreeSet<_> =
            b.contents.iter().map(|(offset, identity)| (*offset, identity.as_ref().ok())).collect();
        let mut offsets = a.contents.iter().map(|(offset, identity)| (*offset, identity.as_ref().ok()));
        offsets.find(|item| !b.contains(item)).map(|(offset, _)| offset)
    };
    let offset = missing_or_other(one, other).or_else(|| missing_or_other(other, one))?;
    let lengths = format!("{} against {} messages", one.contents.len(), other.contents.len());
    Some(vec![lengths, at(one, offset), at(other, offset)])
}
