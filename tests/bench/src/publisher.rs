//! The publisher: a peer of its own that sends the synthetic stream on its schedule.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    endpoint::{Endpoint, Role},
    stream::{self, Burst},
    sys,
    timeline::{Timeline, digest},
};

/// Longest time between two looks at the peer's timers.
const STEP: Duration = Duration::from_millis(20);

/// Handle of the sending thread.
pub(crate) struct Publisher {
    session: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

impl Publisher {
    /// Joins as the publisher of `stream` and starts to send.
    ///
    /// # Errors
    ///
    /// When the gateway refuses or does not connect.
    pub(crate) fn start(http: SocketAddr, stream: &str, timeline: Arc<Timeline>) -> io::Result<Self> {
        let joined = Endpoint::join(http, Role::Publisher, stream)?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let work = Work {
            endpoint: joined.endpoint,
            timeline,
            datagram: vec![0; 2048],
            seq: [0; 2],
        };
        let thread = thread::Builder::new()
            .name("publisher".into())
            .spawn(move || work.run(&flag))?;
        Ok(Self {
            session: joined.session,
            stop,
            thread,
        })
    }

    /// Path of the session's URL.
    pub(crate) fn session(&self) -> &str {
        &self.session
    }

    /// Stops sending. The session stays open until the gateway finds that nothing comes.
    ///
    /// # Errors
    ///
    /// What made the thread end before its time.
    pub(crate) fn stop(self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the publisher panicked")))
    }
}

struct Work {
    endpoint: Endpoint,
    timeline: Arc<Timeline>,
    datagram: Vec<u8>,
    seq: [u64; 2],
}

impl Work {
    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        sys::sharpen_timers();
        let started = Instant::now();
        for burst in stream::endless() {
            self.wait(started + burst.at)?;
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.send(&burst)?;
        }
        Ok(())
    }

    /// Answers the gateway and keeps the timers until `due`.
    fn wait(&mut self, due: Instant) -> io::Result<()> {
        loop {
            let now = Instant::now();
            self.endpoint.handle_timeout(now)?;
            self.endpoint.receive(&mut self.datagram, now)?;
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            sys::wait_readable(self.endpoint.socket(), left.min(STEP))?;
        }
    }

    /// Sends a burst; each packet is stamped immediately before its own send call, sealing included in the delay.
    fn send(&mut self, burst: &Burst) -> io::Result<()> {
        let count = burst.lengths.len();
        for index in 0..count {
            let seq = &mut self.seq[burst.track.index()];
            let payload = burst.payload(index, *seq);
            self.timeline.record(burst.track, digest(&payload), sys::realtime_ns());
            self.endpoint
                .send_rtp(burst.track, *seq, burst.rtp_time(), index + 1 == count, &payload)?;
            *seq += 1;
        }
        Ok(())
    }
}
