//! `chaos tokens`: wrong tokens, as fast as they go, while somebody watches.
//!
//! Whoever guesses has to wait after some of them, and the one who watches must not notice: nothing lost, and no
//! delay beyond that of the same stream before.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    gateway::Gateway,
    http::Request,
    report::met_or_missed,
    stats::{Quantiles, ms},
    viewer::Tally,
    watched::WatchedStream,
};

/// Guessers at the same time.
const GUESSERS: u64 = 8;

#[derive(Args)]
pub(crate) struct Tokens {
    /// The gateway's binary
    #[arg(long, default_value = "target/release/millstream")]
    gateway: PathBuf,
    /// Wrong tokens to try
    #[arg(long, default_value_t = 100_000)]
    tokens: u64,
}

/// Runs the guessing; false when somebody got in or the viewer missed something.
///
/// # Errors
///
/// When the gateway does not start, or ends.
pub(crate) fn guess(options: &Tokens) -> io::Result<bool> {
    let mut gateway = Gateway::start(&options.gateway)?;
    let watched = WatchedStream::start(gateway.http(), 1, Duration::ZERO)?;
    watched.synchronise()?;

    let window = |work: &dyn Fn()| -> io::Result<Tally> {
        watched.open()?;
        work();
        watched.close()
    };
    let quiet = window(&|| thread::sleep(Duration::from_secs(3)))?;
    let answers: Mutex<BTreeMap<u16, u64>> = Mutex::default();
    let began = Instant::now();
    let (to, cpu) = (gateway.http(), gateway.cpu()?);
    let guessing = || send_guesses(to, options.tokens, &answers);
    let flood = window(&guessing)?;
    let took = began.elapsed();
    gateway.ensure_alive()?;
    let cpu = gateway.cpu()?.saturating_sub(cpu);
    let answers = answers.into_inner().unwrap_or_default();
    watched.stop()?;

    println!(
        "{} wrong tokens in {:.1} s: {answers:?} (0: no answer); the gateway took {:.1} us of CPU for each",
        options.tokens,
        took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / options.tokens.max(1) as f64,
    );
    let mut is_met = !answers.contains_key(&201);
    for (name, mut tally) in [("before", quiet), ("meanwhile", flood)] {
        let whole = tally.is_whole();
        is_met &= whole;
        let delay = Quantiles::of(&mut tally.delays);
        println!(
            "  {name}: the viewer got {} of {} packets; delay p50 {:.2} ms, p99 {:.2} ms: {}",
            tally.received,
            tally.expected,
            ms(delay.p50),
            ms(delay.p99),
            met_or_missed(whole),
        );
    }
    Ok(is_met)
}

/// Sends `count` wrong tokens from several connections at a time, and counts the answers by status (0: no answer).
fn send_guesses(to: SocketAddr, count: u64, answers: &Mutex<BTreeMap<u16, u64>>) {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..GUESSERS {
            scope.spawn(|| {
                let mut seen = BTreeMap::<u16, u64>::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let token = match number % 3 {
                        0 => format!("guess-{number}"),
                        1 => format!("eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjk5OTk5OTk5OTl9.{number:043}"),
                        _ => "x".repeat(500),
                    };
                    let request = Request {
                        method: "POST",
                        path: "/whip/bench/guessed",
                        bearer: Some(&token),
                        sdp: Some("v=0"),
                    };
                    let status = request.send(to).map_or(0, |response| response.status);
                    *seen.entry(status).or_default() += 1;
                }
                let mut all = answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                for (status, count) in seen {
                    *all.entry(status).or_default() += count;
                }
            });
        }
    });
}
