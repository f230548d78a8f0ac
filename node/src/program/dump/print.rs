//! What `skein-node dump` shows, for people and for programs.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::Report;
use crate::log::{RecordReport, SegmentReport, ShardReport, Stage};

const MIB: u64 = 1 << 20;

pub(super) fn record_header(out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{:>20} {:>12} {:9} {:>5} {:>12} {:>8} {:>10}",
        "SEGMENT", "OFFSET", "KIND", "SHARD", "INDEX", "TERM", "BYTES"
    )
}

pub(super) fn record(out: &mut dyn Write, record: &RecordReport) -> io::Result<()> {
    let RecordReport { segment, offset, kind, shard, index, term, payload_bytes, is_damaged } = record;
    let damaged = if *is_damaged { "  DAMAGED" } else { "" };
    writeln!(
        out,
        "{segment} {offset:>12} {kind:9} {:>5} {index:>12} {term:>8} {payload_bytes:>10}{damaged}",
        shard.get()
    )
}

pub(super) fn text(out: &mut dyn Write, report: &Report<'_>) -> io::Result<()> {
    writeln!(
        out,
        "{:>20} {:9} {:>9} {:>9} {:>6} {:>8} {:>9} {:>9}  FAULTS",
        "SEGMENT", "STAGE", "FILE", "USED", "LIVE", "BATCHES", "ENTRIES", "KEPT"
    )?;
    for segment in &report.inspection.segments {
        writeln!(out, "{}", segment_line(report, segment))?;
    }
    writeln!(out, "{} files are kept for new segments\n", report.inspection.spare_count)?;
    if let Ok(shards) = &report.inspection.shards {
        writeln!(
            out,
            "{:>5} {:>24} {:>12} {:>12} {:>12}  DAMAGED",
            "SHARD", "RAFT ENTRIES", "PURGED TO", "LAST TERM", "SAVED TO"
        )?;
        for shard in shards {
            writeln!(out, "{}", shard_line(report, shard))?;
        }
    }
    if let Err(error) = report.states {
        let so = "and so nothing is said of what is live";
        writeln!(out, "\nthe checkpoints cannot be read, {so}: {error:#}")?;
    }
    for segment in &report.inspection.segments {
        for fault in &segment.faults {
            writeln!(out, "\nsegment {}, {fault}", segment.id)?;
        }
    }
    Ok(())
}

fn segment_line(report: &Report<'_>, segment: &SegmentReport) -> String {
    let mib = |bytes: u64| format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB);
    let live = match report.live_bytes(segment) {
        Some(live_bytes) => format!("{} %", live_bytes * 100 / segment.file_bytes.max(1)),
        None => "?".to_owned(),
    };
    let faults = match segment.faults.len() {
        0 => "none".to_owned(),
        count => count.to_string(),
    };
    let (file, used) = (mib(segment.file_bytes), mib(segment.used_bytes));
    let SegmentReport { id, batch_count, entry_count, kept_count, .. } = segment;
    let stage = stage_name(segment.stage);
    format!(
        "{id} {stage:9} {file:>9} {used:>9} {live:>6} {batch_count:>8} {entry_count:>9} {kept_count:>9}  {faults}"
    )
}

fn shard_line(report: &Report<'_>, shard: &ShardReport) -> String {
    let ShardReport { shard, state, damaged } = shard;
    let number = |index: Option<u64>| index.map_or_else(|| "-".to_owned(), |index| index.to_string());
    let entries = match state.live.is_empty() {
        true => "none".to_owned(),
        false => format!("{} to {}", state.live.start, state.live.end - 1),
    };
    let saved = report.states.ok().and_then(|states| states.applied_index(*shard));
    format!(
        "{:>5} {entries:>24} {:>12} {:>12} {:>12}  {}",
        shard.get(),
        number(state.purged.map(|id| id.index)),
        number(state.last.map(|id| id.term)),
        number(saved),
        if damaged.is_empty() { "none".to_owned() } else { format!("{damaged:?}") },
    )
}

pub(super) fn json(out: &mut dyn Write, report: &Report<'_>) -> io::Result<()> {
    let segments: Vec<Value> =
        report.inspection.segments.iter().map(|segment| segment_value(report, segment)).collect();
    let shards = match &report.inspection.shards {
        Ok(shards) => shards.iter().map(|shard| shard_value(report, shard)).collect(),
        Err(error) => json!({ "refused": error.to_string() }),
    };
    let value = json!({
        "segments": segments,
        "spare_count": report.inspection.spare_count,
        "shards": shards,
        "checkpoints": report.states.err().map(|error| format!("{error:#}")),
    });
    writeln!(out, "{value:#}")
}

fn segment_value(report: &Report<'_>, segment: &SegmentReport) -> Value {
    let faults = segment.faults.iter().map(|fault| json!({ "offset": fault.offset, "what": fault.what }));
    json!({
        "segment": segment.id.get(),
        "stage": stage_name(segment.stage),
        "file_bytes": segment.file_bytes,
        "used_bytes": segment.used_bytes,
        "live_bytes": report.live_bytes(segment),
        "batch_count": segment.batch_count,
        "entry_count": segment.entry_count,
        "kept_count": segment.kept_count,
        "faults": faults.collect::<Vec<_>>(),
    })
}

fn shard_value(report: &Report<'_>, shard: &ShardReport) -> Value {
    let ShardReport { shard, state, damaged } = shard;
    json!({
        "shard_id": shard.get(),
        "first_index": (!state.live.is_empty()).then_some(state.live.start),
        "end_index": (!state.live.is_empty()).then_some(state.live.end),
        "purged_index": state.purged.map(|id| id.index),
        "last_term": state.last.map(|id| id.term),
        "saved_index": report.states.ok().and_then(|states| states.applied_index(*shard)),
        "damaged_indexes": damaged,
    })
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Prepared => "prepared",
        Stage::Open => "open",
        Stage::Sealed => "sealed",
    }
}
