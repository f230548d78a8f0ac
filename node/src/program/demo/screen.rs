//! The picture on the terminal: a line for each node, the counts, and what happened last.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use super::{Totals, Verdict};
use crate::program::cluster::LocalNode;

/// Events that stay in sight.
const NOTES_SHOWN: usize = 5;

/// Where the picture goes.
pub(super) struct Screen {
    json: bool,
    /// On a terminal each picture replaces the one before.
    redraw: bool,
    lines_drawn: usize,
    notes: VecDeque<String>,
    last: Option<(Duration, Totals)>,
}

#[expect(clippy::print_stdout, reason = "this is what the program is asked to show")]
impl Screen {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            redraw: std::io::stdout().is_terminal(),
            lines_drawn: 0,
            notes: VecDeque::new(),
            last: None,
        }
    }

    /// Whether there is a picture to draw.
    pub(super) fn is_shown(&self) -> bool {
        !self.json && self.redraw
    }

    pub(super) fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    pub(super) fn note(&mut self, text: String) {
        if !self.json && !self.redraw {
            println!("{text}");
        }
        if self.notes.len() == NOTES_SHOWN {
            self.notes.pop_front();
        }
        self.notes.push_back(text);
    }

    pub(super) fn draw(&mut self, nodes: &[LocalNode], leader: Option<u64>, totals: &Totals, now: Duration) {
        let picture = self.picture(nodes, leader, totals, now);
        // Back to where the last picture began, and clear from there.
        if self.lines_drawn > 0 {
            print!("\x1b[{}A\x1b[J", self.lines_drawn);
        }
        print!("{picture}");
        let _ = std::io::stdout().flush();
        self.lines_drawn = picture.matches('\n').count();
    }

    pub(super) fn verdict(&self, verdict: &Verdict) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(verdict)?);
            return Ok(());
        }
        let Verdict { confirmed, consumed, lost, duplicated, redelivered, kills, gap_ms_p50, gap_ms_max } =
            verdict;
        println!("\n{kills} leaders killed, {confirmed} messages confirmed, {consumed} consumed.");
        println!("lost {lost}   stored twice {duplicated}   delivered again {redelivered}");
        println!(
            "longest pause between two confirms after a kill: median {gap_ms_p50} ms, worst {gap_ms_max} ms"
        );
        println!(
            "{}",
            if *lost == 0 { "Nothing that was confirmed was lost." } else { "CONFIRMED MESSAGES WERE LOST." }
        );
        Ok(())
    }

    fn picture(
        &mut self,
        nodes: &[LocalNode],
        leader: Option<u64>,
        totals: &Totals,
        now: Duration,
    ) -> String {
        let mut text = String::from("\n");
        for node in nodes {
            let state = match node.pid() {
                None => "\x1b[31m✗ killed\x1b[0m".to_owned(),
                Some(pid) if leader == Some(node.id) => format!("\x1b[32m★ leads\x1b[0m    pid {pid}"),
                Some(pid) => format!("● follows  pid {pid}"),
            };
            let _ = writeln!(text, "  node {}  {state}", node.id);
        }
        let rates = self.rates(totals, now);
        let gap = totals
            .last_gap
            .map_or_else(|| "-".to_owned(), |gap| format!("{:.1} ms", gap.as_secs_f64() * 1e3));
        let _ = writeln!(text, "\n  confirmed {:>10}   {:>8}/s", totals.confirmed, rates.0);
        let _ = writeln!(text, "  consumed  {:>10}   {:>8}/s", totals.consumed, rates.1);
        let _ = writeln!(text, "  pause after the last kill  {gap}\n");
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }

    fn rates(&mut self, totals: &Totals, now: Duration) -> (u64, u64) {
        let (then, before) = self.last.replace((now, *totals)).unwrap_or((now, *totals));
        let seconds = now.saturating_sub(then).as_secs_f64().max(1e-3);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rate for the eye"
        )]
        let rate = |now: u64, before: u64| ((now - before) as f64 / seconds) as u64;
        (rate(totals.confirmed, before.confirmed), rate(totals.consumed, before.consumed))
    }
}
