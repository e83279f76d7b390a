//! `millstream-bench cameras`: RTSP cameras of 720p30 at 2.6 Mbit/s, all on one server of ours that sends stamped frames,
//! so that nothing is encoded and every frame can be recognised. Measured is what each further camera costs the gateway in
//! processor time and memory, whether a viewer of each sees every frame, and how long a frame takes from the camera's
//! socket to a viewer's.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    endpoint::{Endpoint, Header},
    gateway::Gateway,
    procfs,
    stats::{Quantiles, ms},
    sys,
    timeline::Track,
};

#[derive(Args)]
pub(crate) struct Cameras {
    /// The gateway's binary
    #[arg(long, default_value = "target/release/millstream")]
    gateway: PathBuf,
    /// Cameras of the two runs; their difference gives the cost of one
    #[arg(long, value_delimiter = ',', default_value = "10,50")]
    cameras: Vec<usize>,
    /// Length of each measured window in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Judge only that nothing is lost
    #[arg(long)]
    short: bool,
}

/// Most that a further camera may cost: in percent of a core, and in MB.
const CPU_LIMIT: f64 = 1.0;
const MEMORY_LIMIT: f64 = 8.0;
/// Most of the median delay that the gateway adds.
const DELAY_LIMIT: Duration = Duration::from_millis(5);

const FPS: u64 = 30;
const GOP: u64 = 60;
/// Mean bytes of a frame: 2.6 Mbit/s. A key frame is five times as long as the others.
const FRAME: usize = 10_833;
/// RTP payloads of cameras are longer than what fits into WebRTC.
const CAMERA_PAYLOAD: usize = 1_400;

const SPS: [u8; 9] = [0x67, 0x42, 0xc0, 0x1f, 0xda, 0x01, 0x40, 0x16, 0xe4];
const PPS: [u8; 4] = [0x68, 0xce, 0x3c, 0x80];

/// What stands at the beginning of a slice, behind its header: number and time of sending, in digits that never look like
/// a start code.
const STAMP: usize = 24;

/// What one run found.
struct Run {
    cameras: usize,
    cpu: f64,
    memory: f64,
    lost: u64,
    frames: u64,
    delay: Quantiles,
}

/// Runs with each number of cameras; false when something was lost or, in the long form, a limit was missed.
///
/// # Errors
///
/// Those of the gateway and of sockets.
pub(crate) fn measure(options: &Cameras) -> io::Result<bool> {
    println!("{}", procfs::machine());
    let mut runs = Vec::new();
    for &cameras in &options.cameras {
        let run = run(options, cameras)?;
        println!(
            "{} cameras: {:.2} % of a core, {:.1} MB; {} of {} frames lost; delay p50 {:.2} ms, p99 {:.2} ms",
            run.cameras,
            run.cpu * 100.0,
            run.memory,
            run.lost,
            run.frames,
            ms(run.delay.p50),
            ms(run.delay.p99),
        );
        runs.push(run);
    }
    let mut good = runs.iter().all(|run| run.lost == 0 && run.frames > 0);
    if let [few, .., many] = &runs[..] {
        let more = (many.cameras - few.cameras).max(1) as f64;
        let (cpu, memory) = ((many.cpu - few.cpu) / more * 100.0, (many.memory - few.memory) / more);
        println!(
            "each further camera: {cpu:.2} % of a core (at most {CPU_LIMIT}), {memory:.2} MB (at most {MEMORY_LIMIT})"
        );
        println!(
            "added delay p50: {:.2} ms (at most {})",
            ms(few.delay.p50),
            DELAY_LIMIT.as_millis()
        );
        good &= options.short || (cpu <= CPU_LIMIT && memory <= MEMORY_LIMIT && few.delay.p50 <= DELAY_LIMIT);
    }
    Ok(good)
}

/// A server of cameras, and a gateway that fetches so many of them, as `cam0` and so on.
///
/// # Errors
///
/// Those of the gateway and of sockets.
pub(crate) fn start(
    gateway: &std::path::Path,
    cameras: usize,
    play_token: Option<&str>,
) -> io::Result<(Server, Gateway)> {
    let server = Server::start()?;
    let file = std::env::temp_dir().join(format!("millstream-bench-cameras-{}.toml", std::process::id()));
    let mut text = String::new();
    if let Some(token) = play_token {
        let _ = write!(text, "[auth]\nplay_token = \"{token}\"\n");
    }
    for number in 0..cameras {
        let _ = write!(text, "[streams.\"cam{number}\"]\nrtsp = \"{}\"\n", server.url());
    }
    fs::write(&file, text)?;
    let gateway = Gateway::start_with(gateway, Some(&file));
    fs::remove_file(&file)?;
    let gateway = gateway?;
    server.wait_for(cameras)?;
    Ok((server, gateway))
}

fn run(options: &Cameras, cameras: usize) -> io::Result<Run> {
    let (_server, gateway) = start(&options.gateway, cameras, None)?;
    // Two key frame intervals: the rings hold what they will hold.
    thread::sleep(Duration::from_secs(5));
    let window = Duration::from_secs(options.seconds);
    let (before, began) = (gateway.cpu()?, Instant::now());
    thread::sleep(window);
    let (used, elapsed) = (gateway.cpu()? - before, began.elapsed());
    let memory = gateway.memory()?.rss as f64 / 1e6;

    let watching: Vec<_> = (0..cameras)
        .map(|number| {
            let http = gateway.http();
            thread::Builder::new()
                .stack_size(256 << 10)
                .spawn(move || watch(http, &format!("cam{number}"), window.min(Duration::from_secs(10)), None))
        })
        .collect::<io::Result<_>>()?;
    let (mut lost, mut frames, mut delays) = (0, 0, Vec::new());
    for viewer in watching {
        let seen = viewer.join().map_err(|_| io::Error::other("a viewer panicked"))??;
        lost += seen.lost;
        frames += seen.frames;
        delays.extend(seen.delays);
    }
    Ok(Run {
        cameras,
        cpu: used.as_secs_f64() / elapsed.as_secs_f64(),
        memory,
        lost,
        frames,
        delay: Quantiles::of(&mut delays),
    })
}

/// What one viewer saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub frames: u64,
    pub lost: u64,
    pub delays: Vec<Duration>,
}

/// Watches a stamped stream for a while.
///
/// # Errors
///
/// Those of the join and of sockets.
pub(crate) fn watch(
    http: std::net::SocketAddr,
    stream: &str,
    window: Duration,
    token: Option<&str>,
) -> io::Result<Seen> {
    let mut endpoint = Endpoint::join_with_token(http, stream, token)?.endpoint;
    let mut buffer = [0; 2048];
    let mut seen = Seen::default();
    let mut last: Option<u64> = None;
    // What comes in the burst of the start is old, and a key frame that comes meanwhile spares the viewer the rest of it.
    let (began, settled) = (Instant::now(), Duration::from_secs(2));
    while began.elapsed() < window + settled {
        let now = Instant::now();
        endpoint.handle_timeout(now)?;
        sys::wait_readable(endpoint.socket(), Duration::from_millis(20))?;
        let length = match endpoint.socket().recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let arrived = sys::realtime_ns();
        let datagram = buffer.get(..length).unwrap_or_default();
        let Some(header) = Header::read(datagram) else {
            endpoint.handle_control(datagram, now)?;
            continue;
        };
        endpoint.record(&header);
        if header.track != Some(Track::Video) {
            continue;
        }
        let Some((number, sent)) = endpoint.decrypt(datagram).and_then(|payload| stamp_of(&payload)) else {
            continue;
        };
        let last = last.replace(number);
        seen.frames += 1;
        if began.elapsed() > settled {
            seen.lost += last.map_or(0, |last| (number - last).saturating_sub(1));
            seen.delays.push(Duration::from_nanos(arrived.saturating_sub(sent)));
        }
    }
    Ok(seen)
}

/// Number and time of a frame, from the first packet of its slice (RFC 6184 §5.8).
fn stamp_of(payload: &[u8]) -> Option<(u64, u64)> {
    let body = match payload {
        [28, header, body @ ..] | [0x7c, header, body @ ..] | [0x5c, header, body @ ..] if header & 0x80 != 0 => body,
        _ => return None,
    };
    let digits = std::str::from_utf8(body.get(1..=STAMP)?).ok()?;
    let (number, sent) = digits.split_at_checked(8)?;
    Some((
        u64::from_str_radix(number, 16).ok()?,
        u64::from_str_radix(sent, 16).ok()?,
    ))
}

/// An RTSP server that plays to everybody who asks (RFC 2326), by TCP alone.
pub(crate) struct Server {
    port: u16,
    playing: Arc<Mutex<Vec<TcpStream>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Starts on a free port of loopback.
    ///
    /// # Errors
    ///
    /// Those of sockets.
    pub(crate) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let playing: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (accepted, stopping) = (playing.clone(), stop.clone());
        thread::spawn(move || {
            for connection in listener.incoming() {
                if stopping.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(connection), accepted) = (connection, accepted.clone()) else {
                    continue;
                };
                thread::spawn(move || {
                    // Whoever only tries the connection, or leaves, is none of our business.
                    let _ = serve(connection, port, &accepted);
                });
            }
        });
        let (sending, stopping) = (playing.clone(), stop.clone());
        thread::spawn(move || send(&sending, &stopping));
        Ok(Self { port, playing, stop })
    }

    /// The URL of its camera.
    pub(crate) fn url(&self) -> String {
        format!("rtsp://127.0.0.1:{}/cam", self.port)
    }

    /// Closes all connections, as cameras do that lose power.
    pub(crate) fn disconnect_all(&self) {
        let mut playing = self.playing.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in playing.drain(..) {
            // A connection that the gateway has closed is closed already.
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Waits until so many clients play.
    ///
    /// # Errors
    ///
    /// When they do not within 30 s.
    pub(crate) fn wait_for(&self, cameras: usize) -> io::Result<()> {
        let began = Instant::now();
        while self.playing.lock().unwrap_or_else(PoisonError::into_inner).len() < cameras {
            if began.elapsed() > Duration::from_secs(30) {
                return Err(io::Error::other("the gateway does not fetch all cameras"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn serve(connection: TcpStream, port: u16, playing: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut writer = connection.try_clone()?;
    let (mut method, mut cseq) = (String::new(), String::new());
    for line in BufReader::new(connection).lines() {
        let line = line?;
        if method.is_empty() {
            method = line.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some(number) = line.strip_prefix("CSeq: ") {
            number.clone_into(&mut cseq);
        } else if line.is_empty() {
            let base = format!("rtsp://127.0.0.1:{port}/cam");
            let (headers, body) = match method.as_str() {
                "DESCRIBE" => (
                    format!("Content-Base: {base}/\r\nContent-Type: application/sdp\r\n"),
                    format!(
                        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n\
                         a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:{base}/video\r\n"
                    ),
                ),
                "SETUP" => (
                    "Transport: RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=0000002a\r\n".to_owned(),
                    String::new(),
                ),
                _ => (String::new(), String::new()),
            };
            let length = body.len();
            let answer = format!(
                "RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\nSession: 1;timeout=60\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
            );
            // Media goes out under this lock, one frame at a time, so that no answer gets into a frame.
            let mut connections = playing.lock().unwrap_or_else(PoisonError::into_inner);
            writer.write_all(answer.as_bytes())?;
            if method == "PLAY" {
                connections.push(writer.try_clone()?);
            }
            drop(connections);
            method.clear();
        }
    }
    Ok(())
}

/// Sends a frame to everybody, on time.
fn send(playing: &Mutex<Vec<TcpStream>>, stop: &AtomicBool) {
    sys::sharpen_timers();
    let began = Instant::now();
    let mut seq = 0u16;
    for number in 0.. {
        let due = began + Duration::from_nanos(number * 1_000_000_000 / FPS);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Acquire) {
            return;
        }
        let mut connections = playing.lock().unwrap_or_else(PoisonError::into_inner);
        let first = seq;
        connections.retain_mut(|connection| {
            seq = first;
            // Each gets the time at which it is sent to it.
            let bytes = frame(number, &mut seq);
            connection.write_all(&bytes).is_ok()
        });
        if connections.is_empty() {
            frame(number, &mut seq);
        }
    }
}

/// A frame as interleaved RTP packets (RFC 2326 §10.12).
fn frame(number: u64, seq: &mut u16) -> Vec<u8> {
    let is_key = number.is_multiple_of(GOP);
    // One of five lengths in each interval, and 59 of one: their mean is FRAME.
    let unit = FRAME * GOP as usize / (GOP as usize + 4);
    let length = if is_key { 5 * unit } else { unit };
    let stamp = format!("{:08x}{:016x}", number & 0xffff_ffff, sys::realtime_ns());
    let mut slice = vec![if is_key { 0x65 } else { 0x41 }, 0x88];
    slice.extend(stamp.as_bytes());
    slice.resize(length, 0x55);
    let mut out = Vec::with_capacity(length + 2_000);
    let time = (number * 90_000 / FPS) as u32;
    let mut packet = |payload: &[&[u8]], marker: bool| {
        let length = 12 + payload.iter().map(|part| part.len()).sum::<usize>();
        out.extend([b'$', 0]);
        out.extend((length as u16).to_be_bytes());
        out.extend([0x80, 96 | u8::from(marker) << 7]);
        out.extend(seq.to_be_bytes());
        out.extend(time.to_be_bytes());
        out.extend(42u32.to_be_bytes());
        payload.iter().for_each(|part| out.extend(*part));
        *seq = seq.wrapping_add(1);
    };
    if is_key {
        packet(&[&SPS], false);
        packet(&[&PPS], false);
    }
    let header = slice[0];
    let chunks: Vec<&[u8]> = slice[1..].chunks(CAMERA_PAYLOAD - 2).collect();
    for (index, chunk) in chunks.iter().enumerate() {
        let (first, last) = (index == 0, index + 1 == chunks.len());
        let fu = [
            header & 0xe0 | 28,
            u8::from(first) << 7 | u8::from(last) << 6 | header & 0x1f,
        ];
        packet(&[&fu, chunk], last);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_their_stamp_and_have_the_rate_that_is_said() {
        let mut seq = 0;
        let bytes: usize = (0..GOP).map(|number| frame(number, &mut seq).len()).sum();
        let bitrate = bytes as f64 * 8.0 * FPS as f64 / GOP as f64;
        assert!((2.5e6..2.8e6).contains(&bitrate), "{bitrate}");
        let mut seq = 0;
        let packets = frame(61, &mut seq);
        let (number, sent) = stamp_of(&packets[4 + 12..]).expect("the first packet of a slice");
        assert_eq!(number, 61);
        assert!(sys::realtime_ns() - sent < 60_000_000_000);
    }
}
