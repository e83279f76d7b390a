//! `chaos hostile`: a million mutated datagrams at a live gateway, and hostile HTTP requests and media connections over TCP
//! at the same time, while some watch.
//!
//! They come from strangers, on ever new ports, and from two peers with sessions of their own, a viewer and a publisher,
//! who send their wreckage through the authenticated socket, in part correctly sealed so that it reaches the code behind
//! the SRTP authentication. The gateway has to stay up, take a new viewer afterwards, not grow, and the one who watches
//! must not miss a bit.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    endpoint::{Endpoint, Role},
    gateway::Gateway,
    hostile_streams::{self, Outcomes},
    http,
    mutate::{Chance, mutate},
    report::met_or_missed,
    sdp, sys,
    viewer::Tally,
    watched::{WATCHED, WatchedStream},
};

/// Where the hostile publisher publishes.
const HOSTILE: &str = "bench/hostile";

/// Strangers' sockets in use at a time, and datagrams after which they are replaced.
const STRANGERS: usize = 8;
const STRANGER_LIFE: u64 = 10_000;

/// The hostile peers join anew this many times: their sessions may well have ended.
const INSIDER_LIVES: u64 = 10;

/// Pause between volleys; a volley has to fit the server's socket buffer.
const VOLLEY_STEP: Duration = Duration::from_millis(1);
const VOLLEY_LIMIT: Duration = Duration::from_millis(4);

const MIB: f64 = 1_048_576.0;

#[derive(Args)]
pub(crate) struct Hostile {
    /// The gateway's binary
    #[arg(long, default_value = "target/release/millstream")]
    gateway: PathBuf,
    /// Datagrams to fire
    #[arg(long, default_value_t = 1_000_000)]
    datagrams: u64,
    /// Datagrams per second: few enough that the server's socket does not simply overflow
    #[arg(long, default_value_t = 25_000, value_parser = clap::value_parser!(u64).range(100..))]
    rate: u64,
    /// Seed of the mutations; by default a new one, which is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Hostile HTTP requests meanwhile
    #[arg(long, default_value_t = 10_000)]
    requests: u64,
    /// Hostile media connections over TCP meanwhile
    #[arg(long, default_value_t = 2_000)]
    connections: u64,
    /// Viewers who must miss nothing; the first one compares every packet bit by bit
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=200))]
    watchers: u64,
    /// Growth of the server's resident set that is allowed afterwards, in MiB
    #[arg(long, default_value_t = 5)]
    growth: u64,
}

/// Sessions of hostile offers end after 15 s without a check, those of vanished peers after 30 s, and a minute later the
/// gateway forgets why. Memory has this long to be back.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(120);

/// Hostile requests and connections that the gateway gets before its memory is measured, so that what a process allocates
/// once is part of that.
const WARM_UP_REQUESTS: u64 = 500;

/// Runs the attack; false when the gateway did not stand it.
///
/// # Errors
///
/// When the gateway does not start, or ends.
pub(crate) fn hostile(options: &Hostile) -> io::Result<bool> {
    let seed = options.seed.unwrap_or_else(sys::realtime_ns);
    println!("seed {seed}: {} datagrams at {}/s", options.datagrams, options.rate);
    let mut gateway = Gateway::start(&options.gateway)?;
    let watched = WatchedStream::start(gateway.http(), options.watchers, Duration::ZERO)?;
    let mut attack = Attack::prepare(gateway.http(), seed)?;
    let streams = StreamAttack {
        http: gateway.http(),
        media: attack.media_address()?,
        wire: attack.wire.clone(),
        seed,
    };
    let (http_outcomes, media_outcomes) = streams.run(WARM_UP_REQUESTS, WARM_UP_REQUESTS);
    print_outcomes("warm-up: hostile requests", &http_outcomes);
    print_outcomes("warm-up: hostile media connections", &media_outcomes);
    attack.fire(WARM_UP_REQUESTS * 20, options.rate, &mut || gateway.ensure_alive())?;
    thread::sleep(Duration::from_secs(2));
    watched.synchronise()?;

    let (metrics, drops) = (counters(gateway.http()), gateway.socket_drops());
    let memory = gateway.memory()?;
    watched.open()?;
    let (requests, connections) = (options.requests, options.connections);
    let by_stream = thread::spawn(move || streams.run(requests, connections));
    let fired = attack.fire(options.datagrams, options.rate, &mut || gateway.ensure_alive());
    let (http_outcomes, media_outcomes) = by_stream
        .join()
        .map_err(|_| io::Error::other("the attack by streams panicked"))?;
    gateway.ensure_alive()?;
    fired?;
    thread::sleep(Duration::from_secs(1));
    let tally = watched.close()?;
    let growth = growth_after_recovery(&gateway, memory.rss, options.growth << 20)?;
    // A refusal of a newcomer is an error here: the attack has used something up.
    let newcomer = Endpoint::join(gateway.http(), Role::Viewer, WATCHED)?;
    gateway.ensure_alive()?;

    println!(
        "  sent: {} from strangers, {} through sessions",
        attack.by_strangers, attack.by_insiders
    );
    print_outcomes("hostile requests", &http_outcomes);
    print_outcomes("hostile media connections", &media_outcomes);
    println!(
        "  dropped at the server's full socket: {}",
        gateway.socket_drops() - drops
    );
    for (name, after) in counters(gateway.http()) {
        let before = metrics
            .iter()
            .find(|(other, _)| *other == name)
            .map_or(0.0, |(_, value)| *value);
        if after > before {
            println!("  {name} +{}", after - before);
        }
    }
    println!(
        "  a new viewer connected in {:.1} ms",
        newcomer.connected_after.as_secs_f64() * 1e3
    );
    watched.stop()?;
    let is_without_error = http_outcomes.server_errors.load(Ordering::Relaxed) == 0;
    Ok(verdict(&tally, growth / MIB, options.growth as f64) && is_without_error)
}

/// Attacks by HTTP and by media connections over TCP.
struct StreamAttack {
    http: SocketAddr,
    media: SocketAddr,
    wire: Vec<Vec<u8>>,
    seed: u64,
}

impl StreamAttack {
    /// Sends so many requests, and opens so many connections at the same time.
    fn run(&self, requests: u64, connections: u64) -> (Outcomes, Outcomes) {
        let (by_http, by_media) = (Outcomes::default(), Outcomes::default());
        thread::scope(|scope| {
            let offer = sdp::play_offer(&sdp::Local {
                ufrag: "hostile1",
                pwd: "hostilehostilehostile123",
                fingerprint: "sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF",
            });
            let by_http = &by_http;
            scope.spawn(move || hostile_streams::send_http(self.http, requests, self.seed, &offer, by_http));
            hostile_streams::attack_media_tcp(self.media, connections, self.seed, &self.wire, &by_media);
        });
        (by_http, by_media)
    }
}

fn print_outcomes(what: &str, outcomes: &Outcomes) {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "  {what}: {} sent, {} answered, {} with a server error, {} not connected",
        of(&outcomes.sent),
        of(&outcomes.answered),
        of(&outcomes.server_errors),
        of(&outcomes.not_connected)
    );
}

/// The growth of the resident set once it is within the limit, or at the deadline.
pub(crate) fn growth_after_recovery(gateway: &Gateway, before: u64, limit: u64) -> io::Result<f64> {
    let began = Instant::now();
    loop {
        let growth = gateway.memory()?.rss as f64 - before as f64;
        if growth <= limit as f64 || began.elapsed() >= RECOVERY_DEADLINE {
            println!("  memory after {:.0} s", began.elapsed().as_secs_f64());
            return Ok(growth);
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Prints the results for viewers and memory; returns whether both are as they have to be.
pub(crate) fn verdict(tally: &Tally, growth: f64, limit: f64) -> bool {
    let is_whole = tally.is_whole();
    println!(
        "  the viewers got {} of {} packets, {} compared bit by bit, {} wrong: {}",
        tally.received,
        tally.expected,
        tally.audited,
        tally.corrupt,
        met_or_missed(is_whole),
    );
    let small = growth <= limit;
    println!("  RSS {growth:+.1} MiB (<= {limit} MiB): {}", met_or_missed(small));
    is_whole && small
}

/// Counters on the metrics page that say what became of datagrams; none when there is no such page.
fn counters(address: SocketAddr) -> Vec<(String, f64)> {
    let page = http::get(address, "/metrics")
        .ok()
        .filter(|page| page.status == 200)
        .map(|page| page.body);
    let page = page.unwrap_or_default();
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.filter_map(|line| line.rsplit_once(' '));
    samples
        .filter(|(name, _)| {
            ["datagram", "drop", "discard", "reject"]
                .iter()
                .any(|word| name.contains(word))
        })
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}

struct Attack {
    http: SocketAddr,
    chance: Chance,
    /// What a peer really sent: checks, handshake, sealed media and feedback.
    wire: Vec<Vec<u8>>,
    strangers: Vec<UdpSocket>,
    insiders: Vec<Endpoint>,
    by_strangers: u64,
    by_insiders: u64,
}

impl Attack {
    fn prepare(http: SocketAddr, seed: u64) -> io::Result<Self> {
        let mut attack = Self {
            http,
            chance: Chance::new(seed),
            wire: Vec::new(),
            strangers: Vec::new(),
            insiders: Vec::new(),
            by_strangers: 0,
            by_insiders: 0,
        };
        attack.join()?;
        attack.renew_strangers()?;
        Ok(attack)
    }

    /// New sessions for the insiders; what they sent on the way is the material.
    fn join(&mut self) -> io::Result<()> {
        self.insiders.clear();
        self.wire.clear();
        for (role, stream) in [(Role::Viewer, WATCHED), (Role::Publisher, HOSTILE)] {
            let mut endpoint = join_patiently(self.http, role, stream)?;
            for plain in plain_rtp() {
                endpoint.send_plain_rtp(&plain)?;
            }
            for plain in plain_rtcp() {
                endpoint.send_plain_rtcp(&plain)?;
            }
            self.wire.extend(endpoint.take_sent());
            self.insiders.push(endpoint);
        }
        Ok(())
    }

    /// Where the gateway takes media, by UDP and by TCP.
    fn media_address(&self) -> io::Result<SocketAddr> {
        let insider = self.insiders.first().map(|insider| insider.socket().peer_addr());
        insider.unwrap_or_else(|| Err(io::Error::other("no insider has joined")))
    }

    fn renew_strangers(&mut self) -> io::Result<()> {
        let to = self
            .insiders
            .first()
            .map(|insider| insider.socket().peer_addr())
            .transpose()?;
        self.strangers.clear();
        for _ in 0..STRANGERS {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            if let Some(to) = to {
                socket.connect(to)?;
            }
            socket.set_nonblocking(true)?;
            self.strangers.push(socket);
        }
        Ok(())
    }

    fn fire(&mut self, datagrams: u64, rate: u64, alive: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let life = datagrams.div_ceil(INSIDER_LIVES);
        let mut datagram = Vec::with_capacity(2048);
        let (mut fired, mut last) = (0, Instant::now());
        while fired < datagrams {
            // What a pause of our own has missed is not caught up with: that would be the overflow to be avoided.
            let elapsed = last.elapsed().min(VOLLEY_LIMIT);
            last = Instant::now();
            let volley = (elapsed.as_secs_f64() * rate as f64).ceil() as u64;
            for _ in 0..volley.min(datagrams - fired) {
                fired += 1;
                self.shoot(&mut datagram)?;
                if fired.is_multiple_of(STRANGER_LIFE) {
                    self.renew_strangers()?;
                }
                if fired.is_multiple_of(life) {
                    alive()?;
                    self.join()?;
                }
            }
            thread::sleep(VOLLEY_STEP);
        }
        Ok(())
    }

    /// One datagram: two in four from a stranger, one raw and one sealed through a session.
    fn shoot(&mut self, datagram: &mut Vec<u8>) -> io::Result<()> {
        let way = self.chance.below(4);
        if way < 2 {
            mutate(&self.wire, &mut self.chance, datagram);
            let stranger = self.chance.below(self.strangers.len());
            self.by_strangers += 1;
            return self
                .strangers
                .get(stranger)
                .map_or(Ok(()), |socket| endpoint_send(socket, datagram));
        }
        let insider = self.chance.below(self.insiders.len());
        let Some(insider) = self.insiders.get_mut(insider) else {
            return Ok(());
        };
        self.by_insiders += 1;
        if way == 2 {
            mutate(&self.wire, &mut self.chance, datagram);
            return endpoint_send(insider.socket(), datagram);
        }
        let sealed = if self.chance.below(2) == 0 {
            mutate(&plain_rtp(), &mut self.chance, datagram);
            insider.send_plain_rtp(datagram)
        } else {
            mutate(&plain_rtcp(), &mut self.chance, datagram);
            insider.send_plain_rtcp(datagram)
        };
        match sealed {
            // What cannot be sealed any more goes as it is.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => endpoint_send(insider.socket(), datagram),
            other => other,
        }
    }
}

/// Sends; a server that is gone or a full buffer is noticed elsewhere.
fn endpoint_send(socket: &UdpSocket, datagram: &[u8]) -> io::Result<()> {
    match socket.send(datagram) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// RTP with what depacketizers and extension parsers look at: STAP-A, FU-A, extensions, padding, CSRCs.
fn plain_rtp() -> Vec<Vec<u8>> {
    let packet = |first: u8, pt: u8, rest: &[u8]| {
        let mut packet = vec![first, pt, 0x12, 0x34, 0, 0, 0x10, 0, 0, 0, 0, 1];
        packet.extend_from_slice(rest);
        packet
    };
    vec![
        packet(
            0x80,
            96,
            &[
                0x78, 0, 9, 0x67, 0x42, 0xc0, 0x1f, 0xda, 0x01, 0x40, 0x16, 0xe4, 0, 4, 0x68, 0xce, 0x3c, 0x80,
            ],
        ),
        packet(0x80, 96, &[0x7c, 0x85, 0x88, 0x84, 0x21, 0xa0, 0x11, 0x22, 0x33]),
        packet(0x80, 96 | 0x80, &[0x7c, 0x45, 0x11, 0x22, 0x33, 0x44]),
        packet(
            0x90,
            96,
            &[
                0xbe, 0xde, 0, 2, 0x10, b'0', 0x22, 1, 2, 3, 0, 0, 0x41, 0x9a, 0x55, 0x66,
            ],
        ),
        packet(
            0x90,
            96,
            &[0x10, 0x00, 0, 2, 1, 1, b'0', 2, 3, 1, 2, 3, 0x41, 0x9a, 0x55, 0x66],
        ),
        packet(0xa2, 96, &[0, 0, 0, 9, 0, 0, 0, 8, 0x41, 0x9a, 0x55, 0, 0, 0, 4]),
        packet(0x80, 97, &[0x12, 0x33, 0x41, 0x9a, 0x55, 0x66]),
        packet(0x80, 111, &[0xfc, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ]
}

/// RTCP of each kind that a server reads: SR, RR, SDES, BYE, NACK, transport-cc, PLI, FIR, REMB, XR, and a compound.
fn plain_rtcp() -> Vec<Vec<u8>> {
    let packet = |count: u8, kind: u8, body: &[u8]| {
        let mut packet = vec![0x80 | count, kind, 0, (body.len() / 4) as u8];
        packet.extend_from_slice(body);
        packet
    };
    let ssrcs = [0, 0, 0, 1, 0, 0, 0, 2];
    let with = |tail: &[u8]| [&ssrcs[..], tail].concat();
    let report = packet(
        1,
        201,
        &[
            &ssrcs[..],
            &[0, 0, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat(),
    );
    let nack = packet(1, 205, &with(&[0x12, 0x34, 0xff, 0xff, 0x20, 0x00, 0x80, 0x01]));
    vec![
        packet(0, 200, &with(&[0; 16])),
        report.clone(),
        packet(1, 202, &[0, 0, 0, 1, 1, 5, b'b', b'e', b'n', b'c', b'h', 0]),
        packet(1, 203, &[0, 0, 0, 1]),
        nack.clone(),
        packet(15, 205, &with(&[0, 1, 0, 4, 0, 0, 1, 0, 0x20, 0x04, 4, 4, 4, 4, 0, 0])),
        packet(1, 206, &ssrcs),
        packet(4, 206, &with(&[0, 0, 0, 2, 1, 0, 0, 0])),
        packet(
            15,
            206,
            &with(&[b'R', b'E', b'M', b'B', 1, 0x0a, 0xff, 0xff, 0, 0, 0, 2]),
        ),
        packet(0, 207, &[0, 0, 0, 1, 4, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]),
        [report, nack].concat(),
    ]
}

/// Joins in the middle of an attack. The peer's own DTLS stack gives up when a flight that the gateway repeats meets it
/// in the wrong state, so an insider tries again; that the gateway serves newcomers is what the newcomer at the end shows.
fn join_patiently(http: SocketAddr, role: Role, stream: &str) -> io::Result<Endpoint> {
    let mut tries = (0..INSIDER_TRIES).map(|_| Endpoint::join(http, role, stream));
    let last = || Endpoint::join(http, role, stream);
    let joined = tries.find(Result::is_ok).unwrap_or_else(last)?;
    Ok(joined.endpoint)
}

/// Tries of an insider to join, but for the last.
const INSIDER_TRIES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Fault, Reference};

    #[test]
    fn the_samples_are_well_formed_before_they_are_bent() {
        for packet in plain_rtcp() {
            let mut rest = &packet[..];
            while !rest.is_empty() {
                let length = 4 + 4 * usize::from(u16::from_be_bytes([rest[2], rest[3]]));
                assert_eq!(rest[0] >> 6, 2);
                assert!((200..=207).contains(&rest[1]));
                rest = &rest[length..];
            }
        }
        assert!(
            plain_rtp()
                .iter()
                .all(|packet| packet[0] >> 6 == 2 && packet.len() > 12)
        );
    }

    #[test]
    fn the_attack_reaches_a_gateway_and_who_watches_misses_nothing() {
        let gateway = Reference::start(Fault::None);
        let watched = WatchedStream::start(gateway.http, 1, Duration::ZERO).unwrap();
        watched.synchronise().unwrap();
        let mut attack = Attack::prepare(gateway.http, 7).unwrap();
        watched.open().unwrap();
        let mut looked = 0;
        let mut alive = || {
            looked += 1;
            Ok(())
        };
        attack.fire(20_000, 20_000, &mut alive).unwrap();
        let tally = watched.close().unwrap();
        watched.stop().unwrap();
        assert_eq!(looked, INSIDER_LIVES);
        assert_eq!(attack.by_strangers + attack.by_insiders, 20_000);
        assert!(attack.by_strangers.abs_diff(attack.by_insiders) < 1_000);
        assert!(verdict(&tally, 0.0, 0.0));
    }

    #[test]
    fn a_lost_or_changed_packet_or_growth_fails_the_run() {
        let tally = |expected, corrupt| Tally {
            expected,
            received: 9,
            audited: 9,
            corrupt,
            ..Tally::default()
        };
        assert!(verdict(&tally(9, 0), 1.0, 16.0));
        assert!(!verdict(&tally(10, 0), 1.0, 16.0));
        assert!(!verdict(&tally(9, 1), 1.0, 16.0));
        assert!(!verdict(&tally(9, 0), 17.0, 16.0));
    }
}
