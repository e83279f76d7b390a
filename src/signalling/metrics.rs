//! `/metrics`: Prometheus text format 0.0.4. Labels come from enums, but for the names of streams, which are bounded.

use std::fmt::{Display, Write as _};
use std::sync::atomic::Ordering;

use super::Signalling;

/// Streams that are listed by name, those with most viewers first.
const MAX_STREAMS: usize = 1_000;

/// Everything that is counted, as text.
pub fn render(signalling: &Signalling) -> String {
    let mut page = Page::default();
    page.family(
        "millstream_http_responses_total",
        "counter",
        "HTTP responses by class of status.",
    );
    for (class, count) in signalling.counters.by_class() {
        page.labelled("class", class, count);
    }
    page.single(
        "millstream_sessions",
        "gauge",
        "Sessions that have not ended.",
        signalling.media.sessions(),
    );
    streams(&mut page, signalling);
    media(&mut page, signalling);
    page.text
}

fn streams(page: &mut Page, signalling: &Signalling) {
    let mut streams = Vec::new();
    for stream in signalling.media.hub().streams() {
        let state = stream.lock();
        streams.push((state.viewers(), state.source().is_some(), stream.name.clone()));
    }
    let live = streams.iter().filter(|(_, is_live, _)| *is_live).count();
    page.single(
        "millstream_streams_live",
        "gauge",
        "Streams that somebody publishes.",
        live,
    );
    let viewers: usize = streams.iter().map(|(viewers, ..)| viewers).sum();
    page.single("millstream_viewers", "gauge", "Viewers of all streams.", viewers);
    streams.sort_by(|a, b| (b.0, &a.2).cmp(&(a.0, &b.2)));
    page.family(
        "millstream_stream_viewers",
        "gauge",
        "Viewers of the stream; at most 1000 streams are listed.",
    );
    for (viewers, _, name) in streams.iter().take(MAX_STREAMS) {
        // No character of a name needs escapes.
        page.labelled("stream", name, viewers);
    }
}

fn media(page: &mut Page, signalling: &Signalling) {
    let counters = signalling.media.counters();
    let sent = &counters.sent;
    for (name, help, counter) in [
        (
            "millstream_received_datagrams_total",
            "Datagrams received.",
            &counters.received_datagrams,
        ),
        (
            "millstream_received_bytes_total",
            "Bytes received, without UDP and IP headers.",
            &counters.received_bytes,
        ),
        ("millstream_sent_datagrams_total", "Datagrams sent.", &sent.datagrams),
        (
            "millstream_send_calls_total",
            "System calls that sent them.",
            &sent.calls,
        ),
    ] {
        page.single(name, "counter", help, counter.load(Ordering::Relaxed));
    }
    page.family(
        "millstream_dropped_total",
        "counter",
        "Datagrams and messages dropped, by reason.",
    );
    for (reason, count) in counters.drops() {
        page.labelled("reason", reason.label(), count);
    }
    page.labelled("reason", "send_buffer_full", sent.dropped_full.load(Ordering::Relaxed));
    page.labelled("reason", "send_refused", sent.dropped_refused.load(Ordering::Relaxed));
    page.family(
        "millstream_session_dropped_total",
        "counter",
        "What sessions did not believe, by reason; counted when they end.",
    );
    for (reason, count) in counters.session_drops() {
        page.labelled("reason", reason.label(), count);
    }
    page.family(
        "millstream_sessions_closed_total",
        "counter",
        "Sessions that ended, by reason.",
    );
    for (reason, count) in counters.closes() {
        page.labelled("reason", reason.label(), count);
    }
}

/// The text so far, and the family that samples are added to.
#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn labelled(&mut self, label: &str, value: impl Display, sample: impl Display) {
        let _ = writeln!(self.text, "{}{{{label}=\"{value}\"}} {sample}", self.name);
    }

    fn single(&mut self, name: &'static str, kind: &str, help: &str, sample: impl Display) {
        self.family(name, kind, help);
        let _ = writeln!(self.text, "{name} {sample}");
    }
}
