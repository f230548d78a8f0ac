//! The figures at the end of a measurement.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{load::Counts, processes::Usage, replay::Replayed, tally::Verdict};

/// Latencies above this are recorded as this: an hour says enough.
const LATENCY_NS_MAX: u64 = 3_600 * 1_000_000_000;

/// Latencies of many messages, to three significant digits.
#[derive(Debug)]
pub(super) struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are in order"))
    }
}

impl Latency {
    pub(super) fn record_ns(&mut self, latency_ns: u64) {
        self.0.saturating_record(latency_ns);
    }

    fn to_json(&self) -> Value {
        let ms = |ns: u64| rounded(ns as f64 / 1e6, 3);
        json!({
            "min": ms(self.0.min()),
            "p50": ms(self.0.value_at_quantile(0.5)),
            "p95": ms(self.0.value_at_quantile(0.95)),
            "p99": ms(self.0.value_at_quantile(0.99)),
            "p999": ms(self.0.value_at_quantile(0.999)),
            "max": ms(self.0.max()),
        })
    }
}

impl FromIterator<Latency> for Latency {
    fn from_iter<I: IntoIterator<Item = Latency>>(parts: I) -> Self {
        let mut whole = Self::default();
        for part in parts {
            whole.0.add(part.0).expect("all have the same bounds");
        }
        whole
    }
}

/// Everything a measurement found out.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) measured_for: Duration,
    /// What happened within that time.
    pub(super) counts: Counts,
    pub(super) confirm: Latency,
    pub(super) end_to_end: Latency,
    pub(super) gap_max: Duration,
    /// None when nothing was consumed.
    pub(super) verdict: Option<Verdict>,
    /// None when no processes were given.
    pub(super) usage: Option<Usage>,
    pub(super) body_bytes: usize,
    /// None when nothing was read again.
    pub(super) replayed: Option<Replayed>,
}

impl Report {
    pub(super) fn lost_count(&self) -> u64 {
        self.verdict.as_ref().map_or(0, |verdict| verdict.lost_count)
    }

    pub(super) fn to_json(&self) -> Value {
        let per_s = |count: u64| rounded(count as f64 / self.measured_for.as_secs_f64(), 0);
        let mut value = json!({
            "sent_per_s": per_s(self.counts.sent_count),
            "confirmed_per_s": per_s(self.counts.confirmed_count),
            "received_per_s": per_s(self.counts.received_count),
            "acked_per_s": per_s(self.counts.acked_count),
            "confirm_ms": self.confirm.to_json(),
            "end_to_end_ms": self.end_to_end.to_json(),
            "gap_ms_max": rounded(self.gap_max.as_secs_f64() * 1e3, 3),
            "lost": self.verdict.as_ref().map(|verdict| verdict.lost_count),
            "duplicated": self.verdict.as_ref().map(|verdict| verdict.duplicated_count),
        });
        if let Some(usage) = &self.usage {
            let confirmed_count = self.counts.confirmed_count.max(1) as f64;
            let payload_bytes = confirmed_count * self.body_bytes as f64;
            value["broker_cpu_us_per_msg"] =
                json!(rounded(usage.cpu.as_secs_f64() * 1e6 / confirmed_count, 3));
            value["broker_rss_mib"] = json!(rounded(usage.rss_bytes_max as f64 / (1 << 20) as f64, 1));
            value["written_per_payload"] = json!(rounded(usage.written_bytes as f64 / payload_bytes, 3));
        }
        if let Some(Replayed { messages, body_bytes, took }) = self.replayed {
            let seconds = took.as_secs_f64();
            value["replayed"] = json!(messages);
            value["replayed_per_s"] = json!(rounded(messages as f64 / seconds, 0));
            value["replayed_mb_per_s"] = json!(rounded(body_bytes as f64 / 1e6 / seconds, 1));
        }
        value
    }
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut confirm = Latency::default();
        (1..=1_000).for_each(|us| confirm.record_ns(us * 1_000));
        Report {
            measured_for: Duration::from_secs(2),
            counts: Counts {
                sent_count: 1_000,
                confirmed_count: 1_000,
                received_count: 900,
                acked_count: 800,
            },
            confirm,
            end_to_end: Latency::default(),
            gap_max: Duration::from_millis(7),
            verdict: Some(Verdict { lost_count: 1, duplicated_count: 2 }),
            usage: Some(Usage {
                cpu: Duration::from_millis(4),
                rss_bytes_max: 3 << 20,
                written_bytes: 310_000,
            }),
            body_bytes: 100,
            replayed: Some(Replayed {
                messages: 500,
                body_bytes: 50_000_000,
                took: Duration::from_millis(250),
            }),
        }
    }

    #[test]
    fn rates_are_per_second_and_latencies_in_milliseconds() {
        let value = report().to_json();
        assert_eq!(value["confirmed_per_s"], 500.0);
        assert_eq!(value["gap_ms_max"], 7.0);
        assert_eq!((&value["lost"], &value["duplicated"]), (&json!(1), &json!(2)));
        let p50 = value["confirm_ms"]["p50"].as_f64().unwrap();
        assert!((0.499..=0.501).contains(&p50), "{p50}");
    }

    #[test]
    fn what_was_read_again_has_its_own_rates() {
        let value = report().to_json();
        assert_eq!((&value["replayed_per_s"], &value["replayed_mb_per_s"]), (&json!(2_000.0), &json!(200.0)));
        assert!(Report { replayed: None, ..report() }.to_json().get("replayed").is_none());
    }

    #[test]
    fn broker_figures_are_per_confirmed_message() {
        let value = report().to_json();
        assert_eq!(value["broker_cpu_us_per_msg"], 4.0);
        assert_eq!(value["broker_rss_mib"], 3.0);
        assert_eq!(value["written_per_payload"], 3.1);
        assert!(Report { usage: None, ..report() }.to_json().get("broker_rss_mib").is_none());
    }
}
