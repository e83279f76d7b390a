//! Load tool: many independent WHEP viewers against one gateway, with the floor of the same machine and the same run
//! beside each figure.
//!
//! `millstream-bench` measures; `millstream-bench chaos hostile` fires mutated datagrams at a gateway that somebody
//! watches; `millstream-bench publish` plays an H.264 file to a gateway as an encoder would that ignores key frame
//! requests. What is measured and how is said in `load` (the run), `floor` (the reference), `viewer` (what counts as
//! arrived, late, changed) and `report` (the targets).

#![expect(
    clippy::disallowed_methods,
    reason = "a load tool measures real time and sleeps in it"
)]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

mod cameras;
mod chaos;
mod chaos_addresses;
mod clip;
mod encoder;
mod endpoint;
mod floor;
mod gateway;
mod guessing;
mod hls;
mod hostile_streams;
mod hostile_tls;
mod http;
mod load;
mod mutate;
mod paced;
mod peer;
mod procfs;
mod publisher;
mod receiver;
#[cfg(test)]
mod reference;
mod report;
mod sdp;
mod soak;
mod stats;
mod stream;
mod sys;
mod timeline;
mod tls;
mod viewer;
mod watched;

#[derive(Parser)]
#[command(about, version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    load: Load,
}

#[derive(Subcommand)]
enum Command {
    /// Attacks a gateway while a viewer watches.
    #[command(subcommand)]
    Chaos(Chaos),
    /// Cameras that speak RTSP, and viewers of them: what each further camera costs, what is lost, and the delay.
    Cameras(cameras::Cameras),
    /// LL-HLS viewers beside WHEP viewers: what packaging costs, who plays, and the delay.
    Hls(hls::Hls),
    /// Publishers, cameras and viewers that come and go for minutes or days; what the gateway occupies meanwhile.
    Soak(soak::Soak),
    /// Publishes an H.264 file in real time and ignores all requests for key frames.
    Publish(encoder::Publish),
    /// Measures the floor of this machine alone, without any gateway.
    Floor {
        /// Numbers of destinations, one measurement each
        #[arg(long, value_delimiter = ',', default_value = "1,10,100,200", value_parser = parse_viewers)]
        viewers: Vec<usize>,
        /// Length of the stream that is sent, in seconds
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=90))]
        seconds: u64,
    },
}

#[derive(Subcommand)]
enum Chaos {
    /// Mutated STUN, DTLS, RTP and RTCP, from strangers and from peers that have a session; hostile requests and media
    /// connections over TCP.
    Hostile(chaos::Hostile),
    /// Hostile connections from many addresses, while honest publishers and viewers come.
    Addresses(chaos_addresses::Addresses),
    /// Wrong tokens, as fast as they go.
    Tokens(guessing::Tokens),
}

#[derive(Args)]
struct Load {
    /// The gateway's binary
    #[arg(long, default_value = "target/release/millstream")]
    gateway: PathBuf,
    /// Numbers of viewers, one run each
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,200", value_parser = parse_viewers)]
    viewers: Vec<usize>,
    /// Length of the measured window in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=90))]
    seconds: u64,
    /// The form for CI: 1 and 10 viewers, 3 s, judged by loss and soundness only
    #[arg(long, conflicts_with_all = ["viewers", "seconds", "strict"])]
    short: bool,
    /// After each window, let viewers come and go for as long
    #[arg(long)]
    churn: bool,
    /// Fail when a target is missed
    #[arg(long)]
    strict: bool,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results as a Markdown table
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

fn main() -> ExitCode {
    sys::raise_descriptor_limit();
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Command::Chaos(Chaos::Hostile(options))) => chaos::hostile(options),
        Some(Command::Chaos(Chaos::Addresses(options))) => chaos_addresses::attack(options),
        Some(Command::Chaos(Chaos::Tokens(options))) => guessing::guess(options),
        Some(Command::Cameras(options)) => cameras::measure(options),
        Some(Command::Hls(options)) => hls::measure(options),
        Some(Command::Soak(options)) => soak::run(options),
        Some(Command::Publish(options)) => encoder::publish(options),
        Some(Command::Floor { viewers, seconds }) => measure_floor(viewers, Duration::from_secs(*seconds)),
        None => measure(&cli.load),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("millstream-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all sizes; false when a run failed or, if asked for, a target was missed.
fn measure(options: &Load) -> std::io::Result<bool> {
    let (viewers, seconds) = if options.short {
        (vec![1, 10], 3)
    } else {
        (options.viewers.clone(), options.seconds)
    };
    println!("{}", procfs::machine());
    let mut runs = Vec::new();
    for viewers in viewers {
        let plan = load::Plan {
            gateway: &options.gateway,
            viewers,
            window: Duration::from_secs(seconds),
            floor: Duration::from_secs(seconds.div_ceil(3)),
            churn: options.churn,
        };
        let run = load::run(&plan)?;
        println!("\n{viewers} viewers, {seconds} s");
        print!("{}", report::text(&run));
        runs.push(run);
    }
    println!("\n{}", report::markdown(&runs));
    if let Some(path) = &options.markdown {
        std::fs::write(path, report::markdown(&runs))?;
    }
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", report::json(&runs)))?;
    }
    let is_passed = runs.iter().all(report_failure);
    Ok(is_passed && (!options.strict || report::targets_met(&runs)))
}

fn measure_floor(viewers: &[usize], length: Duration) -> std::io::Result<bool> {
    println!("{}", procfs::machine());
    let bursts = stream::bursts(length);
    for &viewers in viewers {
        let floor = floor::measure(&bursts, viewers, length)?;
        println!("\n{viewers} destinations");
        print!("{}", report::floor_text(&floor));
    }
    Ok(true)
}

fn report_failure(run: &load::Run) -> bool {
    if !run.is_valid() {
        eprintln!(
            "millstream-bench: with {} viewers, what arrived is not what was sent",
            run.viewers
        );
    }
    run.is_valid()
}

fn parse_viewers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(viewers @ 1..=2000) => Ok(viewers),
        _ => Err("between 1 and 2000".into()),
    }
}
