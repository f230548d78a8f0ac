//! Prometheus text format.

use std::fmt::{Display, Write as _};

use crate::telemetry::Counted;

/// What a figure is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows, until the node is started again or another one leads.
    Counter,
}

/// Figures as text, family after family.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// A family of figures, each with labels that tell it from the others. Without figures nothing is said of it.
    pub(super) fn family<'a, V: Display>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'a str, String)>, V)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        // Writing to a `String` cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels: Vec<_> =
                labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
            let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.0, "{name}{braces} {value}");
        }
    }

    /// A single figure.
    pub(super) fn single(&mut self, name: &str, kind: Kind, help: &str, value: u64) {
        self.family(name, kind, help, [(Vec::new(), value)]);
    }

    /// How long something took, in seconds.
    pub(super) fn histogram(&mut self, name: &str, help: &str, counted: &Counted) {
        let Counted { up_to, count, sum_s } = counted;
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound_s, count) in up_to {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound_s}\"}} {count}");
        }
        let _ = writeln!(
            self.0,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum_s}\n{name}_count {count}"
        );
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// Names of queues and groups have none of these; the format does not rely on it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_with_their_family_and_labels() {
        let mut exposition = Exposition::default();
        exposition.single("skein_a", Kind::Gauge, "Some.", 7);
        let labels = |text: &str| vec![("queue", "a".to_owned()), ("group", text.to_owned())];
        exposition.family("skein_b", Kind::Counter, "More.", [(labels("m"), 1.5), (labels("\"\\"), 2.0)]);
        exposition.family::<u64>("skein_c", Kind::Gauge, "None.", []);
        let counted = Counted { up_to: vec![(0.001, 2), (1.0, 3)], count: 4, sum_s: 7.25 };
        exposition.histogram("skein_d_seconds", "Long.", &counted);
        let expected = "# HELP skein_a Some.\n# TYPE skein_a gauge\nskein_a 7\n\
                        # HELP skein_b More.\n# TYPE skein_b counter\n\
                        skein_b{queue=\"a\",group=\"m\"} 1.5\nskein_b{queue=\"a\",group=\"\\\"\\\\\"} 2\n\
                        # HELP skein_d_seconds Long.\n# TYPE skein_d_seconds histogram\n\
                        skein_d_seconds_bucket{le=\"0.001\"} 2\nskein_d_seconds_bucket{le=\"1\"} 3\n\
                        skein_d_seconds_bucket{le=\"+Inf\"} 4\nskein_d_seconds_sum 7.25\nskein_d_seconds_count 4\n";
        assert_eq!(exposition.into_text(), expected);
    }
}
