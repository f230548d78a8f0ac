//! What goes to the terminal or to another program.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use skein_client::{Message, Offset};

/// Writes results to stdout and everything else to stderr.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// A result: `value` for programs, `text` for people.
    pub(crate) fn result(&self, value: &Value, text: impl FnOnce() -> String) -> io::Result<()> {
        if self.json { self.line(&value.to_string()) } else { self.line(&text()) }
    }

    /// One line on stdout.
    pub(crate) fn line(&self, line: &str) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{line}")
    }

    /// One line about how it is going: not a result, so on stderr when results are read by a program.
    pub(crate) fn progress_line(&self, line: &str) -> io::Result<()> {
        if self.json { writeln!(io::stderr().lock(), "{line}") } else { self.line(line) }
    }

    /// A message that was taken or read.
    pub(crate) fn message(&self, message: &Message, seen: &Seen) -> io::Result<()> {
        if self.json {
            return self.line(&message_value(message, seen).to_string());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&message.body)?;
        stdout.write_all(b"\n")
    }

    /// What went wrong. Nothing can be done when stderr is gone as well.
    pub(crate) fn error(&self, sentence: &str) {
        let _ = writeln!(io::stderr().lock(), "skein: {sentence}");
    }
}

/// Where and how a message was seen.
pub(crate) struct Seen {
    pub(crate) offset: Offset,
    pub(crate) published_at: SystemTime,
    pub(crate) attempt: Option<u32>,
}

/// A bar on stderr when that is a terminal, otherwise nothing. Without a length it counts.
pub(crate) fn progress_bar(length: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden());
    }
    let template = match length {
        Some(_) => "{bar:40} {human_pos}/{human_len} messages, {per_sec}, {eta} left",
        None => "{spinner} {human_pos} messages, {per_sec}",
    };
    let style = ProgressStyle::with_template(template).expect("the template is one");
    ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr_with_hz(5)).with_style(style)
}

/// A bar over shards, with what is being done about one of them; on stderr when that is a terminal, otherwise nothing.
pub(crate) fn shards_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} shards; {wide_msg}")
        .expect("the template is one");
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5)).with_style(style)
}

/// Columns padded to their widest cell. The first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How long ago. Clocks differ: what seems to be yet to come is now.
pub(crate) fn age(time: SystemTime) -> String {
    HumanDuration(time.elapsed().unwrap_or_default()).to_string()
}

/// A duration as it is written in arguments.
pub(crate) fn span(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let unit = units.into_iter().find(|(unit_ms, _)| ms > 0 && ms.is_multiple_of(*unit_ms));
    let (unit_ms, unit) = unit.unwrap_or((1, "ms"));
    format!("{}{unit}", ms / unit_ms)
}

fn message_value(message: &Message, seen: &Seen) -> Value {
    let headers: BTreeMap<&str, Value> =
        message.headers.iter().map(|(name, value)| (name.as_str(), bytes_value(value))).collect();
    let mut value = json!({
        "offset": seen.offset.get(),
        "published_at_ms": unix_ms(seen.published_at),
        "body": bytes_value(&message.body),
    });
    let texts = [
        ("message_id", &message.message_id),
        ("correlation_id", &message.correlation_id),
        ("reply_to", &message.reply_to),
        ("content_type", &message.content_type),
    ];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        value[name] = json!(text);
    }
    if !message.key.is_empty() {
        value["key"] = bytes_value(&message.key);
    }
    if !headers.is_empty() {
        value["headers"] = json!(headers);
    }
    let times_ms = [
        ("ttl_ms", message.ttl.map(|ttl| ttl.as_millis())),
        ("delay_ms", message.delay.map(|delay| delay.as_millis())),
        ("deliver_at_ms", message.deliver_at.map(|time| unix_ms(time).into())),
    ];
    for (name, ms) in times_ms {
        if let Some(ms) = ms {
            value[name] = json!(u64::try_from(ms).unwrap_or(u64::MAX));
        }
    }
    if message.priority > 0 {
        value["priority"] = json!(message.priority);
    }
    if let Some(attempt) = seen.attempt {
        value["attempt"] = json!(attempt);
    }
    value
}

/// Text where it is text, otherwise `{"hex": "..."}`.
fn bytes_value(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["NAME".to_owned(), "COUNT".to_owned()], vec!["a".to_owned(), "1".to_owned()]];
        assert_eq!(table(&rows), "NAME  COUNT\na     1");
    }

    #[test]
    fn messages_become_json_without_empty_fields() {
        let seen = Seen { offset: Offset::new(7), published_at: UNIX_EPOCH, attempt: Some(1) };
        let message = Message::new("hi").key(vec![0xff]);
        let expected = json!({
            "offset": 7, "published_at_ms": 0, "body": "hi", "key": { "hex": "ff" }, "attempt": 1
        });
        assert_eq!(message_value(&message, &seen), expected);

        let seen = Seen { offset: Offset::new(7), published_at: UNIX_EPOCH, attempt: None };
        let message =
            Message::new("hi").ttl(Duration::from_secs(1)).delay(Duration::from_secs(2)).priority(9);
        let message = message.deliver_at(UNIX_EPOCH + Duration::from_secs(3));
        let expected = json!({
            "offset": 7,
            "published_at_ms": 0,
            "body": "hi",
            "ttl_ms": 1_000,
            "delay_ms": 2_000,
            "deliver_at_ms": 3_000,
            "priority": 9
        });
        assert_eq!(message_value(&message, &seen), expected);
    }

    #[test]
    fn spans_are_written_in_their_largest_unit() {
        let spans = [(0, "0ms"), (1_500, "1500ms"), (90_000, "90s"), (3_600_000, "1h"), (172_800_000, "2d")];
        for (ms, text) in spans {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }
}
