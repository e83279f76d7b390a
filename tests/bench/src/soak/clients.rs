//! The clients of a soak. Each runs on a thread of its own until `stop` is set.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::Rng as _;

use crate::{
    cameras,
    endpoint::{Endpoint, Header, Joined, Role},
    hls,
    http::{self, Request},
    publisher::Publisher,
    sys,
    timeline::Timeline,
};

/// How long viewers watch, and publishers publish.
const VIEWING_SECONDS: std::ops::RangeInclusive<u64> = 2..=45;
const PUBLISHING_SECONDS: std::ops::RangeInclusive<u64> = 20..=180;

/// Time between two snapshots, reloads and failures of the cameras. A camera whose sessions all last less than two minutes
/// is read by a pipeline in the end, whose worker would stay.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(15);
const RELOAD_INTERVAL: Duration = Duration::from_secs(11);
const CAMERA_FAILURE_INTERVAL: Duration = Duration::from_secs(150);

/// The stream of the test pattern.
pub(super) const PATTERN_STREAM: &str = "soak/pattern";

/// Time until a client tries again after a refusal.
const RETRY_DELAY: Duration = Duration::from_millis(700);

/// Share of clients that leave without a word, whose sessions the gateway has to end by itself.
const VANISHING_SHARE: f64 = 0.3;

/// Threads of viewers need little: a datagram and the state of a session.
const STACK_BYTES: usize = 512 << 10;

/// Where the gateway answers, and the token of its API.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub http: SocketAddr,
    pub api_token: &'static str,
}

impl Target {
    /// The body of a page that needs the token.
    ///
    /// # Errors
    ///
    /// Those of the connection, and any status but 200.
    pub(super) fn get(&self, path: &str) -> io::Result<String> {
        let response = self.request("GET", path)?;
        match response.status {
            200 => Ok(response.body),
            status => Err(io::Error::other(format!("GET {path}: {status} {}", response.body))),
        }
    }

    fn request(&self, method: &str, path: &str) -> io::Result<http::Response> {
        let request = Request {
            method,
            path,
            bearer: Some(self.api_token),
            sdp: None,
        };
        request.send(self.http)
    }
}

/// What all clients did.
#[derive(Default)]
pub(super) struct ClientCounts {
    publications: AtomicU64,
    new_names: AtomicU64,
    whep_joins: AtomicU64,
    whep_packets: AtomicU64,
    hls: Arc<hls::Counts>,
    hls_joins: AtomicU64,
    /// Sessions that were deleted, and that were left without a word.
    deleted: AtomicU64,
    vanished: AtomicU64,
    /// Refusals because the publisher was away.
    not_live: AtomicU64,
    /// Everything else that went wrong.
    errors: AtomicU64,
    camera_failures: AtomicU64,
    reloads: AtomicU64,
    wrong_reloads: AtomicU64,
    snapshots: AtomicU64,
    missed_snapshots: AtomicU64,
}

impl fmt::Display for ClientCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "{} publications, {} further names, {} WHEP sessions with {} packets, {} HLS players with {} parts and {} \
             failures; {} sessions deleted, {} left without a word; {} answers that the publisher was away, {} other \
             errors; {} camera failures, {} reloads and {} with a wrong answer, {} snapshots and {} missed",
            of(&self.publications),
            of(&self.new_names),
            of(&self.whep_joins),
            of(&self.whep_packets),
            of(&self.hls_joins),
            of(&self.hls.parts),
            of(&self.hls.failures),
            of(&self.deleted),
            of(&self.vanished),
            of(&self.not_live),
            of(&self.errors),
            of(&self.camera_failures),
            of(&self.reloads),
            of(&self.wrong_reloads),
            of(&self.snapshots),
            of(&self.missed_snapshots),
        )
    }
}

/// Starts clients.
#[derive(Clone)]
pub(super) struct Load {
    pub target: Target,
    pub stop: Arc<AtomicBool>,
    pub counts: Arc<ClientCounts>,
}

impl Load {
    fn spawn(&self, name: &str, work: impl FnOnce(Self) + Send + 'static) -> io::Result<JoinHandle<()>> {
        let load = self.clone();
        thread::Builder::new()
            .name(name.into())
            .stack_size(STACK_BYTES)
            .spawn(move || work(load))
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sleeps, but not beyond the end of the load.
    fn pause(&self, length: Duration) {
        let began = Instant::now();
        while !self.is_stopped() && began.elapsed() < length {
            thread::sleep(Duration::from_millis(50).min(length));
        }
    }

    fn count_error(&self, error: &io::Error) {
        let text = error.to_string();
        let is_away = ["not_live", "source_away"]
            .iter()
            .any(|code| text.contains(&format!("\"code\":\"{code}\"")));
        let counter = if is_away {
            &self.counts.not_live
        } else {
            eprintln!("soak: {error}");
            &self.counts.errors
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.pause(RETRY_DELAY);
    }

    /// Deletes a session, or leaves it to the gateway. Everybody leaves properly at the end, which spares a wait.
    fn leave(&self, session: &str) {
        if !self.is_stopped() && rand::rng().random_bool(VANISHING_SHARE) {
            self.counts.vanished.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match http::delete(self.target.http, session) {
            Ok(response) if matches!(response.status, 200..=299 | 404) => {
                self.counts.deleted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(response) => self.count_error(&io::Error::other(format!("DELETE: {}", response.status))),
            Err(error) => self.count_error(&error),
        }
    }

    /// Publishers of one stream, one after the other, each with a pause before the next one or none.
    pub(super) fn spawn_publishers(&self, stream: &'static str) -> io::Result<JoinHandle<()>> {
        self.spawn("publishers", move |load| {
            while !load.is_stopped() {
                let timeline = Arc::new(Timeline::new());
                let publisher = match Publisher::start(load.target.http, stream, timeline) {
                    Ok(publisher) => publisher,
                    Err(error) => {
                        load.count_error(&error);
                        continue;
                    }
                };
                load.counts.publications.fetch_add(1, Ordering::Relaxed);
                load.pause(random_seconds(PUBLISHING_SECONDS));
                let session = publisher.session().to_owned();
                if let Err(error) = publisher.stop() {
                    load.count_error(&error);
                }
                load.leave(&session);
                load.pause(Duration::from_secs(rand::rng().random_range(0..=6)));
            }
        })
    }

    /// WHEP viewers of random streams, one after the other.
    pub(super) fn spawn_whep_viewers(&self, streams: &'static [&'static str]) -> io::Result<JoinHandle<()>> {
        self.spawn("whep viewers", move |load| {
            while !load.is_stopped() {
                let joined = Endpoint::join(load.target.http, Role::Viewer, random_stream(streams));
                let watched = joined.and_then(|joined| load.watch(joined, random_seconds(VIEWING_SECONDS)));
                match watched {
                    Ok(session) => load.leave(&session),
                    Err(error) => load.count_error(&error),
                }
            }
        })
    }

    /// Receives for a while. Returns the session's URL.
    fn watch(&self, joined: Joined, length: Duration) -> io::Result<String> {
        self.counts.whep_joins.fetch_add(1, Ordering::Relaxed);
        let Joined {
            mut endpoint, session, ..
        } = joined;
        let began = Instant::now();
        let mut buffer = [0; 2048];
        while !self.is_stopped() && began.elapsed() < length {
            let now = Instant::now();
            endpoint.handle_timeout(now)?;
            sys::wait_readable(endpoint.socket(), Duration::from_millis(50))?;
            loop {
                let received = match endpoint.socket().recv(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                let datagram = buffer.get(..received).unwrap_or_default();
                if let Some(header) = Header::read(datagram) {
                    endpoint.record(&header);
                    self.counts.whep_packets.fetch_add(1, Ordering::Relaxed);
                } else {
                    endpoint.handle_control(datagram, now)?;
                }
            }
        }
        Ok(session)
    }

    /// LL-HLS players of random streams, one after the other.
    pub(super) fn spawn_hls_viewers(&self, streams: &'static [&'static str]) -> io::Result<JoinHandle<()>> {
        self.spawn("hls viewers", move |load| {
            while !load.is_stopped() {
                load.counts.hls_joins.fetch_add(1, Ordering::Relaxed);
                let until = Instant::now() + random_seconds(VIEWING_SECONDS);
                let has_ended = || load.is_stopped() || Instant::now() >= until;
                let played = hls::play(
                    (load.target.http, ""),
                    random_stream(streams),
                    &load.counts.hls,
                    &has_ended,
                );
                if played.is_err() {
                    // Its publisher may be away or has just left.
                    load.counts.hls.failures.fetch_add(1, Ordering::Relaxed);
                    load.pause(RETRY_DELAY);
                }
            }
        })
    }

    /// Publishes a stream under a name that was never used before, at this interval.
    pub(super) fn spawn_new_names(&self, interval: Duration) -> io::Result<JoinHandle<()>> {
        self.spawn("new names", move |load| {
            for number in 0_u64.. {
                load.pause(interval);
                if load.is_stopped() {
                    return;
                }
                match Endpoint::join(load.target.http, Role::Publisher, &format!("soak/name/{number}")) {
                    Ok(joined) => {
                        load.counts.new_names.fetch_add(1, Ordering::Relaxed);
                        load.leave(&joined.session);
                    }
                    Err(error) => load.count_error(&error),
                }
            }
        })
    }

    /// Cameras that lose all their connections.
    pub(super) fn spawn_camera_failures(
        &self,
        server: Arc<cameras::Server>,
        cameras: usize,
    ) -> io::Result<JoinHandle<()>> {
        self.spawn("camera failures", move |load| {
            while !load.is_stopped() {
                load.pause(CAMERA_FAILURE_INTERVAL);
                server.disconnect_all();
                load.counts.camera_failures.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = server.wait_for(cameras) {
                    load.count_error(&error);
                }
            }
        })
    }

    /// Snapshots of a test pattern that a worker produces on demand: each time that worker is started, and another one
    /// for the snapshot.
    pub(super) fn spawn_snapshots(&self) -> io::Result<JoinHandle<()>> {
        self.spawn("snapshots", move |load| {
            while !load.is_stopped() {
                load.fetch_snapshot();
                load.pause(SNAPSHOT_INTERVAL);
            }
        })
    }

    /// Joins the test pattern, fetches a snapshot of it, and leaves.
    pub(super) fn fetch_snapshot(&self) {
        let joined = Endpoint::join(self.target.http, Role::Viewer, PATTERN_STREAM);
        let session = match joined.and_then(|joined| self.watch(joined, Duration::from_secs(2))) {
            Ok(session) => session,
            Err(error) => return self.count_error(&error),
        };
        let request = Request {
            method: "GET",
            path: &format!("/api/v1/streams/{PATTERN_STREAM}/snapshot.jpg"),
            bearer: Some(self.target.api_token),
            sdp: None,
        };
        let counter = match request.send_for_status(self.target.http) {
            Ok(200) => &self.counts.snapshots,
            _ => &self.counts.missed_snapshots,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.leave(&session);
    }

    /// Reloads of a file that `write_file` changes; it returns the status that the gateway has to answer.
    pub(super) fn spawn_reloads(
        &self,
        write_file: impl Fn(u64) -> io::Result<u16> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        self.spawn("reloads", move |load| {
            for round in 0.. {
                if load.is_stopped() {
                    break;
                }
                match write_file(round) {
                    Ok(expected) => load.reload(expected),
                    Err(error) => load.count_error(&error),
                }
                load.pause(RELOAD_INTERVAL);
            }
            // The file as it was at the start.
            match write_file(1) {
                Ok(expected) => load.reload(expected),
                Err(error) => load.count_error(&error),
            }
        })
    }

    /// Reloads once.
    pub(super) fn reload(&self, expected: u16) {
        self.counts.reloads.fetch_add(1, Ordering::Relaxed);
        match self.target.request("POST", "/api/v1/reload") {
            Ok(response) if response.status == expected => {}
            Ok(response) => {
                eprintln!("soak: reload: {} {}", response.status, response.body);
                self.counts.wrong_reloads.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.count_error(&error),
        }
    }
}

fn random_seconds(range: std::ops::RangeInclusive<u64>) -> Duration {
    Duration::from_secs(rand::rng().random_range(range))
}

fn random_stream(streams: &[&'static str]) -> &'static str {
    let index = rand::rng().random_range(0..streams.len().max(1));
    streams.get(index).copied().unwrap_or_default()
}
