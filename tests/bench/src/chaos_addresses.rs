//! `chaos addresses`: hostile connections from up to a hundred addresses at a gateway with the limits that it is shipped
//! with, while some watch and honest publishers and viewers come.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};

use crate::{
    chaos::{growth_after_recovery, verdict},
    endpoint::{Endpoint, Role},
    gateway::Gateway,
    hostile_tls::TlsAttacker,
    http,
    mutate::{Chance, mutate},
    paced::{ConnectionOutcomes, Pace},
    report::met_or_missed,
    sdp, sys,
    tls::{self, TlsFolder},
    watched::{WATCHED, WatchedStream},
};

const HONEST: &str = "bench/honest";

const MIB: f64 = 1_048_576.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Broken TLS, and hostile HTTP/2 after a handshake
    Tls,
    /// Offers that no check follows, one in four of them damaged
    Offers,
    /// Connections to the media port that say nothing, lie, or pretend to be a peer
    MediaTcp,
}

#[derive(Args)]
pub(crate) struct Addresses {
    /// What the connections do
    #[arg(value_enum)]
    attack: Kind,
    /// The gateway's binary
    #[arg(long, default_value = "target/release/millstream")]
    gateway: PathBuf,
    /// Hostile connections
    #[arg(long, default_value_t = 10_000)]
    connections: u64,
    /// Hostile connections per second
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Addresses that they come from
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=200))]
    addresses: u8,
    /// Viewers who must miss nothing
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=200))]
    watchers: u64,
    /// Growth of the server's resident set that is allowed afterwards, in MiB
    #[arg(long, default_value_t = 5)]
    growth: u64,
    /// Seed of the attack; by default a new one, which is printed
    #[arg(long)]
    seed: Option<u64>,
}

/// Pause between two honest clients.
const HONEST_PAUSE: Duration = Duration::from_millis(50);

/// Honest clients that get through, at least, in percent.
const HONEST_PERCENT: usize = 99;

/// Bytes of log that a hostile connection may leave, at most: a line for each would be hundreds. Honest clients leave two or
/// three lines each.
const LOG_BYTES_PER_CONNECTION: u64 = 20;
const LOG_BYTES_PER_HONEST_CLIENT: u64 = 500;

/// Runs the attack; false when the gateway did not stand it.
///
/// # Errors
///
/// When the gateway does not start, or ends.
pub(crate) fn attack(options: &Addresses) -> io::Result<bool> {
    let seed = options.seed.unwrap_or_else(sys::realtime_ns);
    println!(
        "{:?}, seed {seed}: {} connections at {}/s from {} addresses",
        options.attack, options.connections, options.rate, options.addresses
    );
    let folder = TlsFolder::new()?;
    let config = (options.attack == Kind::Tls).then(|| folder.config());
    if config.is_some() {
        tls::use_https()?;
    }
    let mut gateway = Gateway::start_with_shipped_limits(&options.gateway, config.as_deref())?;
    let watched = WatchedStream::start(gateway.http(), options.watchers, HONEST_PAUSE)?;
    let attacker = Attacker::new(options.attack, gateway.http())?;
    let pace = Pace {
        connections: options.connections,
        rate: options.rate,
        addresses: options.addresses,
        seed,
    };
    // What a process allocates once is part of the memory before.
    let warm_up = Pace {
        connections: options.connections / 10,
        seed: !seed,
        ..pace
    };
    attacker.run(&warm_up, &ConnectionOutcomes::default());
    watched.synchronise()?;
    let (memory, log) = (gateway.memory()?, gateway.log_bytes());
    watched.open()?;
    let (outcomes, is_over, began) = (ConnectionOutcomes::default(), AtomicBool::new(false), Instant::now());
    let honest = thread::scope(|scope| {
        let honest = scope.spawn(|| come_and_go(&gateway, &is_over));
        attacker.run(&pace, &outcomes);
        is_over.store(true, Ordering::Release);
        honest
            .join()
            .map_err(|_| io::Error::other("the honest clients panicked"))
    })?;
    let (took, log) = (began.elapsed(), gateway.log_bytes().saturating_sub(log));
    gateway.ensure_alive()?;
    let tally = watched.close()?;
    let growth = growth_after_recovery(&gateway, memory.rss, options.growth << 20)?;
    gateway.ensure_alive()?;
    watched.stop()?;
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "  {} connections in {:.0} s: {} accepted, {} refused, {} not connected",
        of(&outcomes.sent),
        took.as_secs_f64(),
        of(&outcomes.accepted),
        of(&outcomes.refused),
        of(&outcomes.not_connected)
    );
    let log_limit = options.connections * LOG_BYTES_PER_CONNECTION + honest.tried as u64 * LOG_BYTES_PER_HONEST_CLIENT;
    let is_log_short = log <= log_limit;
    println!(
        "  log: {log} bytes (<= {log_limit}, nearly all of it for honest clients): {}",
        met_or_missed(is_log_short)
    );
    let is_served = honest.report() && is_log_short;
    Ok(verdict(&tally, growth / MIB, options.growth as f64) && is_served)
}

/// Attacks by connections of one kind.
enum Attacker {
    Tls(SocketAddr, TlsAttacker),
    Offers(SocketAddr, String),
    /// What a peer sent, and the address that it sent it to.
    MediaTcp(SocketAddr, Vec<Vec<u8>>),
}

impl Attacker {
    fn new(kind: Kind, http: SocketAddr) -> io::Result<Self> {
        Ok(match kind {
            Kind::Tls => Self::Tls(http, TlsAttacker::new()?),
            Kind::Offers => Self::Offers(
                http,
                sdp::play_offer(&sdp::Local {
                    ufrag: "hostile1",
                    pwd: "hostilehostilehostile123",
                    fingerprint: HOSTILE_FINGERPRINT,
                }),
            ),
            Kind::MediaTcp => {
                let mut peer = Endpoint::join(http, Role::Viewer, WATCHED)?.endpoint;
                Self::MediaTcp(peer.socket().peer_addr()?, peer.take_sent())
            }
        })
    }

    fn run(&self, pace: &Pace, outcomes: &ConnectionOutcomes) {
        match self {
            Self::Tls(to, attacker) => pace.run(*to, outcomes, |stream, chance| {
                attacker.attack(stream, chance, outcomes)
            }),
            Self::Offers(to, offer) => pace.run(*to, outcomes, |stream, chance| {
                send_offer(stream, offer, chance, outcomes)
            }),
            Self::MediaTcp(to, wire) => pace.run(*to, outcomes, |stream, chance| {
                send_frames(stream, wire, chance).inspect(|_| ConnectionOutcomes::count(&outcomes.accepted))
            }),
        }
    }
}

const HOSTILE_FINGERPRINT: &str =
    "sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF";

/// Posts an offer, one in four of them damaged, and leaves it at that.
fn send_offer(
    mut stream: TcpStream,
    offer: &str,
    chance: &mut Chance,
    outcomes: &ConnectionOutcomes,
) -> io::Result<()> {
    let mut body = offer.as_bytes().to_vec();
    if chance.below(4) == 0 {
        let mut damaged = Vec::new();
        mutate(&[body], chance, &mut damaged);
        body = damaged;
    }
    let head = format!(
        "POST /whep/{WATCHED} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/sdp\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat())?;
    let mut status = [0; 12];
    let read = stream.read_exact(&mut status);
    let is_accepted = read.is_ok() && status.ends_with(b"201");
    ConnectionOutcomes::count(if is_accepted {
        &outcomes.accepted
    } else {
        &outcomes.refused
    });
    read
}

/// Sends nothing, an unsigned check and empty frames, or damaged frames of `wire`, each after its length (RFC 4571 §2).
fn send_frames(mut stream: TcpStream, wire: &[Vec<u8>], chance: &mut Chance) -> io::Result<TcpStream> {
    let mut bytes = Vec::new();
    match chance.below(3) {
        0 => {}
        1 => {
            // A binding request without a signature (RFC 8489 §5).
            bytes.extend([0, 20, 0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
            bytes.extend([7; 12]);
            bytes.extend([0, 0]);
        }
        _ => {
            for _ in 0..4 {
                let mut frame = Vec::new();
                mutate(wire, chance, &mut frame);
                bytes.extend((frame.len() as u16).to_be_bytes());
                bytes.extend(frame);
            }
        }
    }
    stream.write_all(&bytes)?;
    Ok(stream)
}

/// How honest clients fared.
#[derive(Default)]
struct Honest {
    tried: usize,
    connected: usize,
    /// Why the first of the others did not.
    first_error: Option<String>,
}

impl Honest {
    fn count(&mut self, result: io::Result<impl Sized>) {
        self.tried += 1;
        match result {
            Ok(_) => self.connected += 1,
            Err(error) => {
                self.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    /// Prints the result; returns whether enough got through.
    fn report(&self) -> bool {
        let is_met = self.tried > 0 && self.connected * 100 >= self.tried * HONEST_PERCENT;
        let verdict = met_or_missed(is_met);
        println!(
            "  honest publishers and viewers: {} of {} connected (>= {HONEST_PERCENT} %): {verdict}",
            self.connected, self.tried
        );
        if let Some(error) = &self.first_error {
            println!("    the first that did not: {error}");
        }
        is_met
    }
}

/// Has publishers and viewers come in turn, each with connections of its own, until the attack is over.
fn come_and_go(gateway: &Gateway, is_over: &AtomicBool) -> Honest {
    let mut honest = Honest::default();
    while !is_over.load(Ordering::Acquire) {
        for (role, stream) in [(Role::Viewer, WATCHED), (Role::Publisher, HONEST)] {
            let joined = Endpoint::join(gateway.http(), role, stream);
            if let Ok(joined) = &joined {
                // Leaves, so that the limits of sessions are not what is tried.
                let _ = http::delete(gateway.http(), &joined.session);
            }
            honest.count(joined);
            thread::sleep(HONEST_PAUSE);
        }
    }
    honest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_hundred_may_fail_and_none_that_came_is_no_success() {
        let mut honest = Honest::default();
        assert!(!honest.report());
        for number in 0..200 {
            honest.count(if number < 2 { Err(io::Error::other("x")) } else { Ok(()) });
        }
        assert!(honest.report());
        honest.count(Err::<(), _>(io::Error::other("y")));
        assert!(!honest.report());
        assert_eq!(honest.first_error.as_deref(), Some("x"));
    }
}
