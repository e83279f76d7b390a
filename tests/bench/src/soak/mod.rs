//! `millstream-bench soak`: publishers, cameras, viewers, reloads, snapshots and new stream names, all coming and going,
//! against one gateway for minutes or for days. Memory, descriptors, threads, sessions and streams are sampled
//! throughout. In the end everything but memory has to be back at exactly what it was before the load.

mod clients;
mod samples;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Args;

use self::{
    clients::{ClientCounts, Load, PATTERN_STREAM, Target},
    samples::{Sample, slope_per_hour},
};
use crate::{cameras, gateway::Gateway, procfs, report::met_or_missed};

#[derive(Args)]
pub(crate) struct Soak {
    /// The gateway's binary
    #[arg(long, default_value = "target/release/millstream")]
    gateway: PathBuf,
    /// Length of the load in minutes: 2 to try it, 30 by default, 1440 for a day
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=20_160))]
    minutes: u64,
    /// Viewers at any time, seven in ten by WebRTC and three in ten by HLS
    #[arg(long, default_value_t = 100)]
    viewers: usize,
    /// Stream names that are published once over the whole run; by default 7 per minute, 10,000 in a day
    #[arg(long)]
    names: Option<u64>,
    /// Write all samples as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// WHIP publishers and cameras: ten publishers together.
const WHIP_PUBLISHERS: usize = 8;
const CAMERAS: usize = 2;

const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

/// Memory may grow for this long: rings and allocator pools fill. A shorter run uses its first third.
const MAX_SETTLING: Duration = Duration::from_secs(3_600);
const MIN_SETTLING: Duration = Duration::from_secs(600);

/// How long the gateway may take to be idle again: vanished peers have their sessions for 30 s, HLS packaging goes on for
/// 30 s after the last request.
const IDLE_DEADLINE: Duration = Duration::from_secs(150);

/// Consecutive equal samples, one second apart, that count as idle.
const IDLE_SAMPLES: usize = 12;

/// Largest growth of the resident set after settling: of a run below two hours, and per hour of a longer one.
const MAX_GROWTH_MIB: f64 = 5.0;
const MAX_GROWTH_MIB_PER_HOUR: f64 = 0.5;

const MIB: f64 = 1_048_576.0;

/// Runs the soak; false when something did not return to its start, or memory grew.
///
/// # Errors
///
/// When the gateway does not start, or ends.
pub(crate) fn run(options: &Soak) -> io::Result<bool> {
    println!("{}", procfs::machine());
    let camera_server = Arc::new(cameras::Server::start()?);
    let config = ConfigFile::create(&camera_server)?;
    let mut gateway = Gateway::start_with(&options.gateway, Some(&config.path))?;
    camera_server.wait_for(CAMERAS)?;
    let target = Target {
        http: gateway.http(),
        api_token: API_TOKEN,
    };
    warm_up(target, &config)?;
    let start = wait_until_idle(&mut gateway, target, None)?;
    println!("start: {start}");

    let length = Duration::from_secs(options.minutes * 60);
    let names = options.names.unwrap_or(options.minutes * 7);
    println!(
        "{} min, {WHIP_PUBLISHERS} WHIP publishers, {CAMERAS} cameras, {} viewers, {names} further stream names",
        options.minutes, options.viewers
    );
    let stop = Arc::new(AtomicBool::new(false));
    let counts = Arc::new(ClientCounts::default());
    let load = Load {
        target,
        stop: stop.clone(),
        counts: counts.clone(),
    };
    let clients = start_clients(
        &load,
        options.viewers,
        length / names.max(1) as u32,
        &config,
        camera_server.clone(),
    )?;
    let samples = take_samples(&mut gateway, target, length, options.csv.as_deref());
    stop.store(true, Ordering::Release);
    for client in clients {
        client
            .join()
            .map_err(|_| io::Error::other("a client of the soak panicked"))?;
    }
    let samples = samples?;
    println!("{counts}");
    let end = wait_until_idle(&mut gateway, target, Some(&start))?;
    println!("end:   {end}");
    Ok(judge(&start, &end, &samples, length))
}

/// Prints what was found; false when it is not what it should be.
fn judge(start: &Sample, end: &Sample, samples: &[Sample], length: Duration) -> bool {
    let returned = start.has_same_counts(end);
    println!(
        "sessions, streams, descriptors, threads, workers as before the load: {}",
        met_or_missed(returned)
    );
    let settling = (length / 24).max(MIN_SETTLING).min(MAX_SETTLING).min(length / 3);
    let settled: Vec<&Sample> = samples.iter().filter(|sample| sample.at >= settling).collect();
    let slope = slope_per_hour(&settled) / MIB;
    let hours = length.saturating_sub(settling).as_secs_f64() / 3_600.0;
    let (growth, limit, unit) = if length < Duration::from_secs(2 * 3_600) {
        (slope * hours, MAX_GROWTH_MIB, "MiB")
    } else {
        (slope, MAX_GROWTH_MIB_PER_HOUR, "MiB/h")
    };
    let flat = growth <= limit;
    println!(
        "RSS after {:.0} min of settling: slope {slope:+.2} MiB/h over {hours:.2} h, that is {growth:+.2} {unit} (<= {limit}): {}",
        settling.as_secs_f64() / 60.0,
        met_or_missed(flat)
    );
    println!(
        "RSS at the start {:.1} MiB, most {:.1} MiB, at the end {:.1} MiB",
        start.rss as f64 / MIB,
        samples.iter().map(|sample| sample.rss).max().unwrap_or(0) as f64 / MIB,
        end.rss as f64 / MIB
    );
    returned && flat
}

/// Does each thing once, so that what a process allocates once is part of the start.
fn warm_up(target: Target, config: &ConfigFile) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let load = Load {
        target,
        stop: stop.clone(),
        counts: Arc::new(ClientCounts::default()),
    };
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(load.spawn_whep_viewers(CAMERA_STREAMS)?);
        clients.push(load.spawn_hls_viewers(CAMERA_STREAMS)?);
    }
    thread::sleep(Duration::from_secs(3));
    load.fetch_snapshot();
    config.write_next(1)?;
    load.reload(200);
    stop.store(true, Ordering::Release);
    for client in clients {
        client
            .join()
            .map_err(|_| io::Error::other("a client of the warm-up panicked"))?;
    }
    Ok(())
}

const CAMERA_STREAMS: &[&str] = &["soak/camera0", "soak/camera1"];

/// The streams that viewers choose from.
const WATCHED_STREAMS: &[&str] = &[
    "soak/camera0",
    "soak/camera1",
    "soak/publisher0",
    "soak/publisher1",
    "soak/publisher2",
    "soak/publisher3",
    "soak/publisher4",
    "soak/publisher5",
    "soak/publisher6",
    "soak/publisher7",
];

fn start_clients(
    load: &Load,
    viewers: usize,
    name_interval: Duration,
    config: &Arc<ConfigFile>,
    cameras: Arc<cameras::Server>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut clients = Vec::new();
    for stream in &WATCHED_STREAMS[CAMERAS..] {
        clients.push(load.spawn_publishers(stream)?);
    }
    let by_hls = viewers * 3 / 10;
    for _ in 0..by_hls {
        clients.push(load.spawn_hls_viewers(WATCHED_STREAMS)?);
    }
    for _ in by_hls..viewers {
        clients.push(load.spawn_whep_viewers(WATCHED_STREAMS)?);
    }
    clients.push(load.spawn_new_names(name_interval)?);
    clients.push(load.spawn_snapshots()?);
    clients.push(load.spawn_camera_failures(cameras, CAMERAS)?);
    let config = config.clone();
    clients.push(load.spawn_reloads(move |round| config.write_next(round))?);
    Ok(clients)
}

fn take_samples(
    gateway: &mut Gateway,
    target: Target,
    length: Duration,
    csv: Option<&Path>,
) -> io::Result<Vec<Sample>> {
    let mut file = csv.map(fs::File::create).transpose()?;
    let mut samples: Vec<Sample> = Vec::new();
    let began = Instant::now();
    while began.elapsed() < length {
        thread::sleep(SAMPLE_INTERVAL.min(length.saturating_sub(began.elapsed())));
        gateway.ensure_alive()?;
        let sample = Sample::take(gateway, target, began.elapsed())?;
        println!("{:>6.0} s  {sample}", sample.at.as_secs_f64());
        if let Some(file) = &mut file {
            if samples.is_empty() {
                writeln!(file, "{}", Sample::CSV_HEADER)?;
            }
            writeln!(file, "{}", sample.csv())?;
        }
        samples.push(sample);
    }
    Ok(samples)
}

/// Waits until nothing changes any more; with an expected state, until that is reached or the deadline has passed.
fn wait_until_idle(gateway: &mut Gateway, target: Target, expected: Option<&Sample>) -> io::Result<Sample> {
    let began = Instant::now();
    let mut equal = 0;
    let mut last = Sample::take(gateway, target, Duration::ZERO)?;
    while equal < IDLE_SAMPLES && began.elapsed() < IDLE_DEADLINE {
        thread::sleep(Duration::from_secs(1));
        gateway.ensure_alive()?;
        let sample = Sample::take(gateway, target, Duration::ZERO)?;
        let idle = sample.is_idle() && expected.is_none_or(|expected| expected.has_same_counts(&sample));
        equal = if idle && sample.has_same_counts(&last) {
            equal + 1
        } else {
            0
        };
        last = sample;
    }
    Ok(last)
}

const API_TOKEN: &str = "soak-api-token";

/// The configuration of the gateway, which changes while it runs.
struct ConfigFile {
    path: PathBuf,
    text: String,
}

impl ConfigFile {
    fn create(cameras: &cameras::Server) -> io::Result<Arc<Self>> {
        let url = cameras.url();
        let mut text = format!("[auth]\napi_token = \"{API_TOKEN}\"\n");
        for stream in CAMERA_STREAMS {
            text += &format!("[streams.\"{stream}\"]\nrtsp = \"{url}\"\n");
        }
        text += &format!("[streams.\"{PATTERN_STREAM}\"]\npipeline = \"test\"\non_demand = true\nstop_after = 2\n");
        let path = std::env::temp_dir().join(format!("millstream-soak-{}.toml", std::process::id()));
        fs::write(&path, &text)?;
        Ok(Arc::new(Self { path, text }))
    }

    /// Writes the file of this round: with one stream more, with a mistake, or as it was. Returns the status with which
    /// the gateway has to answer the reload.
    fn write_next(&self, round: u64) -> io::Result<u16> {
        let (more, status) = match round % 4 {
            0 => (
                "[streams.\"soak/idle\"]\nrtsp = \"rtsp://127.0.0.1:9/cam\"\non_demand = true\n",
                200,
            ),
            2 => ("[streams.\"soak/wrong\"]\nrtsp = 7\n", 422),
            _ => ("", 200),
        };
        fs::write(&self.path, format!("{}{more}", self.text))?;
        Ok(status)
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        // A file that is left over in the temporary folder harms nobody.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_passes_if_everything_returns_and_memory_stays() {
        let sample = |seconds: u64, mib: u64, descriptors| Sample {
            at: Duration::from_secs(seconds),
            rss: mib << 20,
            descriptors,
            ..Sample::default()
        };
        let flat: Vec<Sample> = (0..180)
            .map(|n| sample(n * 10, 50 + u64::from(n > 3) * 40, 20))
            .collect();
        let growing: Vec<Sample> = (0..180).map(|n| sample(n * 10, 50 + n / 2, 20)).collect();
        let length = Duration::from_secs(1_800);
        assert!(judge(&sample(0, 50, 20), &sample(0, 90, 20), &flat, length));
        assert!(!judge(&sample(0, 50, 20), &sample(0, 90, 21), &flat, length));
        assert!(!judge(&sample(0, 50, 20), &sample(0, 90, 20), &growing, length));
    }
}
