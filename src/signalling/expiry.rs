//! Sessions end when what they were granted ends: when a token expires, and when it is taken back.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::shard::{MediaPlane, SessionId};
use millstream_core::session::CloseReason;

/// Tells when sessions are to end.
pub type Expiries = mpsc::UnboundedSender<(SystemTime, SessionId)>;

/// Ends them, to the end of the gateway. There are only as many as sessions may be opened.
pub async fn run(media: MediaPlane, mut expiries: mpsc::UnboundedReceiver<(SystemTime, SessionId)>) {
    let mut due: BinaryHeap<Reverse<(Instant, SessionId)>> = BinaryHeap::new();
    loop {
        let next = due.peek().map(|Reverse((at, _))| *at);
        tokio::select! {
            told = expiries.recv() => match told {
                Some((at, session)) => due.push(Reverse((instant(at), session))),
                None => return,
            },
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                if let Some(Reverse((_, session))) = due.pop() {
                    media.end(session, CloseReason::TokenExpired);
                }
            }
        }
    }
}

/// When a time of the wall clock is, as far as can be said now; one that is decades away never comes.
fn instant(at: SystemTime) -> Instant {
    #[expect(clippy::disallowed_methods, reason = "tokens end at a time of the wall clock")]
    let wait = at.duration_since(SystemTime::now()).unwrap_or_default();
    let now = Instant::now();
    now.checked_add(wait.min(FAR)).unwrap_or(now + FAR)
}

/// Longer than any gateway runs, and short enough for every clock.
const FAR: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 24 * 60 * 60);
