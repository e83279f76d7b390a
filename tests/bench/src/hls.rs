//! `millstream-bench hls`: LL-HLS viewers with blocking reloads of one camera of 720p30, beside WHEP viewers of the same
//! stream whose delay is measured, and what packaging alone costs.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    cameras, http, procfs,
    stats::{Quantiles, ms},
    sys,
};

#[derive(Args)]
pub(crate) struct Hls {
    /// The gateway's binary
    #[arg(long, default_value = "target/release/millstream")]
    gateway: PathBuf,
    /// LL-HLS viewers
    #[arg(long, default_value_t = 1_000)]
    viewers: usize,
    /// WHEP viewers beside them
    #[arg(long, default_value_t = 100)]
    beside: usize,
    /// Length of each measured window in seconds
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Judge only that all play
    #[arg(long)]
    short: bool,
    /// Players and viewers need a token, which players have in their URLs
    #[arg(long)]
    token: bool,
    /// Measure the WHEP viewers without players first, and judge by the difference
    #[arg(long)]
    compare: bool,
}

/// The token of `--token`.
const PLAY_TOKEN: &str = "bench-play-token";

/// Most that the delay p99 of the WHEP viewers may be longer with players than without.
const ADDED_DELAY_LIMIT: Duration = Duration::from_millis(5);

/// Most that packaging may cost, in percent of a core.
const CPU_LIMIT: f64 = 0.5;
/// Most of the delay of the WHEP viewers beside, p99.
const DELAY_LIMIT: Duration = Duration::from_millis(20);

/// Counts of all players.
#[derive(Default)]
pub(crate) struct Counts {
    pub parts: AtomicU64,
    pub bytes: AtomicU64,
    pub failures: AtomicU64,
}

/// Starts LL-HLS players that play until `stop` is set.
fn start_players(
    http: SocketAddr,
    query: &'static str,
    number: usize,
    counts: &Arc<Counts>,
    stop: &Arc<AtomicBool>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let player = |_| {
        let (counts, stop) = (counts.clone(), stop.clone());
        thread::Builder::new().stack_size(128 << 10).spawn(move || {
            // They are the load, and take what is left; the viewers whose delay is measured wait for none of them.
            sys::yield_to_others();
            let has_ended = || stop.load(Ordering::Acquire);
            while !has_ended() {
                if play((http, query), "cam0", &counts, &has_ended).is_err() {
                    counts.failures.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(200));
                }
            }
        })
    };
    (0..number).map(player).collect()
}

/// Measures packaging, then viewers; false when somebody does not play or, in the long form, a limit was missed.
///
/// # Errors
///
/// Those of the gateway and of sockets.
pub(crate) fn measure(options: &Hls) -> io::Result<bool> {
    println!("{}", procfs::machine());
    let window = Duration::from_secs(options.seconds);
    let token = options.token.then_some(PLAY_TOKEN);
    let query = if options.token { "?token=bench-play-token" } else { "" };
    let (server, gateway) = cameras::start(&options.gateway, 1, token)?;
    let http = gateway.http();
    thread::sleep(Duration::from_secs(5));
    let alone = match options.compare {
        true => Some(finish_watching(start_watching(http, options.beside, window, token)?)?.0),
        false => None,
    };
    let cpu = |length: Duration| -> io::Result<f64> {
        let (before, began) = (gateway.cpu()?, Instant::now());
        thread::sleep(length);
        Ok((gateway.cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0)
    };
    let (without, rss) = (cpu(window)?, gateway.memory()?.rss);
    http::get(http, &format!("/hls/cam0/index.m3u8{query}"))?;
    // Asked for once, it goes on for half a minute; the rings of segments fill meanwhile.
    let with = cpu(window.min(Duration::from_secs(20)))?;
    let grown = gateway.memory()?.rss.saturating_sub(rss);
    let packaging = with - without;
    println!(
        "packaging: {packaging:.2} % of a core (at most {CPU_LIMIT}), {:.1} MB more",
        grown as f64 / 1e6
    );

    let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let players = start_players(http, query, options.viewers, &counts, &stop)?;
    thread::sleep(Duration::from_secs(3));
    let beside = start_watching(http, options.beside, window, token)?;
    thread::sleep(Duration::from_secs(2));
    let (parts, bytes) = (
        counts.parts.load(Ordering::Relaxed),
        counts.bytes.load(Ordering::Relaxed),
    );
    let before = forwarding(http)?;
    let busy = cpu(window)?;
    let in_gateway = forwarding(http)?.since(&before);
    let parts = counts.parts.load(Ordering::Relaxed) - parts;
    let bytes = counts.bytes.load(Ordering::Relaxed) - bytes;
    let (delay, lost) = finish_watching(beside)?;
    stop.store(true, Ordering::Release);
    for player in players {
        player.join().map_err(|_| io::Error::other("a player panicked"))?;
    }
    drop(server);
    let share = parts as f64 / (options.viewers as f64 * window.as_secs_f64() * 5.0) * 100.0;
    let failures = counts.failures.load(Ordering::Relaxed);
    println!(
        "{} LL-HLS viewers: {share:.1} % of all parts fetched in time, {:.0} Mbit/s, {failures} failures, gateway {busy:.0} % of a core",
        options.viewers,
        bytes as f64 * 8.0 / window.as_secs_f64() / 1e6,
    );
    println!(
        "{} WHEP viewers beside: delay p50 {:.2} ms, p99 {:.2} ms (at most {}), {lost} frames lost",
        options.beside,
        ms(delay.p50),
        ms(delay.p99),
        DELAY_LIMIT.as_millis()
    );
    println!("time of a tick's oldest packet in the gateway meanwhile: {in_gateway}");
    let plays = share > 95.0 && failures == 0;
    if let Some(alone) = alone {
        let added = delay.p99.saturating_sub(alone.p99);
        println!(
            "without players: delay p50 {:.2} ms, p99 {:.2} ms; with them p99 +{:.2} ms (at most {})",
            ms(alone.p50),
            ms(alone.p99),
            ms(added),
            ADDED_DELAY_LIMIT.as_millis()
        );
        return Ok(plays && lost == 0 && added <= ADDED_DELAY_LIMIT);
    }
    Ok(plays && (options.short || (packaging <= CPU_LIMIT && delay.p99 <= DELAY_LIMIT)))
}

type Watching = Vec<JoinHandle<io::Result<cameras::Seen>>>;

/// Starts WHEP viewers, each of which watches for this long.
fn start_watching(
    http: SocketAddr,
    number: usize,
    window: Duration,
    token: Option<&'static str>,
) -> io::Result<Watching> {
    let viewer = |_| {
        thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || cameras::watch(http, "cam0", window, token))
    };
    (0..number).map(viewer).collect()
}

/// Waits for viewers; returns the delay of all frames, and how many were lost.
fn finish_watching(viewers: Watching) -> io::Result<(Quantiles, u64)> {
    let (mut delays, mut lost) = (Vec::new(), 0);
    for viewer in viewers {
        let seen = viewer.join().map_err(|_| io::Error::other("a viewer panicked"))??;
        delays.extend(seen.delays);
        lost += seen.lost;
    }
    Ok((Quantiles::of(&mut delays), lost))
}

/// The histogram `millstream_forward_seconds`: how many ticks took no longer than each bound.
struct Forwarding(Vec<(String, u64)>);

fn forwarding(http: SocketAddr) -> io::Result<Forwarding> {
    let page = http::get(http, "/metrics")?.body;
    let samples = page.lines().filter_map(|line| {
        let rest = line.strip_prefix("millstream_forward_seconds_bucket{le=\"")?;
        let (bound, count) = rest.split_once("\"} ")?;
        Some((bound.to_owned(), count.parse().ok()?))
    });
    Ok(Forwarding(samples.collect()))
}

impl Forwarding {
    fn since(self, before: &Self) -> Self {
        let pairs = self.0.into_iter().zip(&before.0);
        Self(
            pairs
                .map(|((bound, count), (_, earlier))| (bound, count - earlier))
                .collect(),
        )
    }

    /// The smallest bound that this share of the ticks kept.
    fn bound(&self, share: f64) -> &str {
        let all = self.0.last().map_or(0, |(_, count)| *count) as f64;
        let within = self.0.iter().find(|(_, count)| *count as f64 >= all * share);
        within.map_or("?", |(bound, _)| bound)
    }
}

impl std::fmt::Display for Forwarding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.0.last().map_or(0, |(_, count)| *count);
        let (half, most, longest) = (self.bound(0.5), self.bound(0.99), self.bound(1.0));
        write!(
            f,
            "{all} ticks, half within {half} s, 99 % within {most} s, all within {longest} s"
        )
    }
}

/// One player of a stream: requests the playlist that has the next part, then that part, until `has_ended`. `query` is that
/// of its URL, empty or with a question mark; the URLs in playlists have it, too.
///
/// # Errors
///
/// Those of the connection, and any answer but 200.
pub(crate) fn play(
    (http, query): (SocketAddr, &str),
    stream: &str,
    counts: &Counts,
    has_ended: &dyn Fn() -> bool,
) -> io::Result<()> {
    let mut connection = Connection {
        stream: TcpStream::connect(http)?,
        buffer: Vec::new(),
    };
    connection.stream.set_nodelay(true)?;
    connection.stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let text = connection.get(&format!("/hls/{stream}/video.m3u8{query}"))?;
    let (mut msn, mut part) = hint(&text).ok_or_else(|| io::Error::other("no preload hint"))?;
    let more = query
        .strip_prefix('?')
        .map(|query| format!("&{query}"))
        .unwrap_or_default();
    while !has_ended() {
        let text = connection.get(&format!(
            "/hls/{stream}/video.m3u8?_HLS_msn={msn}&_HLS_part={part}&_HLS_skip=YES{more}"
        ))?;
        let next = hint(&text).ok_or_else(|| io::Error::other("no preload hint"))?;
        // The last part that is listed is the one before the hint.
        let text = String::from_utf8_lossy(&text);
        let listed = text.lines().rfind(|line| line.starts_with("#EXT-X-PART:"));
        let address = listed.and_then(|line| line.split("URI=\"").nth(1)?.split('"').next());
        let address = address.ok_or_else(|| io::Error::other("no part"))?;
        let bytes = connection.get(&format!("/hls/{stream}/{address}"))?;
        counts.parts.fetch_add(1, Ordering::Relaxed);
        counts.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        (msn, part) = next;
    }
    Ok(())
}

/// Segment and part that the playlist says will come next.
fn hint(playlist: &[u8]) -> Option<(u64, usize)> {
    let text = String::from_utf8_lossy(playlist);
    let line = text.lines().rfind(|line| line.starts_with("#EXT-X-PRELOAD-HINT:"))?;
    let name = line.split("URI=\"video-").nth(1)?.split(".m4s").next()?;
    let (msn, part) = name.split_once('.')?;
    Some((msn.parse().ok()?, part.parse().ok()?))
}

/// HTTP/1.1 that keeps its connection.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn get(&mut self, path: &str) -> io::Result<Vec<u8>> {
        write!(self.stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.read()?;
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).into_owned();
        let length = text
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, length)| length.parse::<usize>().ok())
            .ok_or_else(|| io::Error::other("no length"))?;
        while self.buffer.len() < head + length {
            self.read()?;
        }
        let rest = self.buffer.split_off(head + length);
        let mut body = std::mem::replace(&mut self.buffer, rest);
        if !text.starts_with("HTTP/1.1 200") {
            let status = text.lines().next().unwrap_or_default().to_owned();
            return Err(io::Error::other(format!("{path}: {status}")));
        }
        Ok(body.split_off(head))
    }

    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16_384];
        let length = self.stream.read(&mut chunk)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..length]);
        Ok(())
    }
}
