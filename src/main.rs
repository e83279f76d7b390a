//! The command line: reads the configuration, starts the gateway, waits for a signal.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use millstream::config::{ConfigError, Mistake, StreamConfig};
use millstream::doctor::Level;
use millstream::gateway::{check, parts};
use millstream::pipeline::process::{self, DEMUXER_COMMAND};
use millstream::pipeline::programs::WorkerPrograms;
use millstream::{Config, Gateway, telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// WHIP/WHEP live-streaming gateway.
#[derive(Parser)]
#[command(version, after_long_help = millstream::config::help())]
struct Arguments {
    /// Configuration file (default: millstream.toml, if there is one)
    #[arg(long, global = true, value_name = "FILE", env = "MILLSTREAM_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, PartialEq, Eq, Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Serve {
        /// Add the stream `demo`: a moving test picture with sound
        #[arg(long)]
        demo: bool,
    },
    /// Tell all mistakes of the configuration, and which pipelines can run
    Check,
    /// Diagnose this host and suggest fixes
    Doctor,
    /// Health check: ask the gateway that runs here with this configuration
    Health,
    /// What the gateway starts for each HLS origin
    #[command(hide = true, name = DEMUXER_COMMAND)]
    Demuxer,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Demuxer) = arguments.command {
        return match millstream::pipeline::demuxer::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.into()),
        };
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "millstream: {error:#}");
    ExitCode::FAILURE
}

/// Of the threads of the control plane; those of the media plane have 0.
const CONTROL_NICE: i32 = 5;

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let command = arguments.command.unwrap_or(Command::Serve { demo: false });
    let (mut config, mistakes) = Config::read(arguments.config.as_deref(), std::env::vars_os());
    match command {
        // A gateway that runs goes on with what it has when its file is spoilt, and is well.
        Command::Check | Command::Health | Command::Demuxer => {}
        Command::Doctor => accept(&mistakes, check::parts(&config))?,
        Command::Serve { .. } => accept(&mistakes, check::mistakes(&config, &mistakes))?,
    }
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        // Media goes first: when processors are short, pages, playlists and workers wait, and shards do not. On Linux
        // this is for the calling thread; where it is refused everything runs as well, if less evenly.
        builder.on_thread_start(|| {
            let _ = rustix::process::setpriority_process(None, CONTROL_NICE);
        });
        builder.enable_all().build().context("cannot start the runtime")
    };
    match command {
        Command::Check => runtime()?.block_on(check(&config, mistakes)),
        Command::Doctor => runtime()?.block_on(doctor(&config)),
        Command::Health => runtime()?.block_on(health(&config)),
        Command::Serve { demo } => {
            if demo {
                config.add_demo();
            }
            let exports = telemetry::init(&config.log);
            let runtime = runtime()?;
            let result = runtime.block_on(serve(config, arguments.config.clone(), demo));
            // Dropping the runtime would wait for a shard that hangs, which `Gateway::stop` has given up on.
            runtime.shutdown_background();
            exports.finish();
            result
        }
        Command::Demuxer => Ok(()),
    }
}

/// Prints everything that `serve` would refuse. Otherwise prints for each pipeline whether this machine can run it, and fails
/// if a configured stream needs one that it cannot.
async fn check(config: &Config, mut mistakes: Vec<Mistake>) -> anyhow::Result<()> {
    for warning in &config.warnings {
        show(&format!("warning: {warning}\n"));
    }
    mistakes.extend(check::mistakes(config, &mistakes));
    for failure in check::ports(config, &mistakes) {
        // A changed configuration is checked while the gateway runs with the old one.
        let runs = match &failure.owner {
            Some(owner) => owner.is_gateway(),
            None => failure.is_in_use && ask_health(config).await.is_ok(),
        };
        match runs {
            true => show(&format!(
                "`{}`: {} {}: a gateway is already running\n",
                failure.key, failure.protocol, failure.address
            )),
            false => mistakes.push(check::mistake(&failure, config)),
        }
    }
    ConfigError::unless_empty(mistakes)?;
    show("the configuration is valid\n");
    let used: Vec<&str> = config.streams.iter().filter_map(StreamConfig::pipeline).collect();
    let library = parts::library(config, &mut Vec::new());
    let findings = match process::check(&WorkerPrograms::installed(), library.trials()).await {
        Ok(findings) => findings,
        Err(error) => {
            show(&format!("pipelines: none can run: {error}\n"));
            anyhow::ensure!(used.is_empty(), "configured streams need {}", used.join(", "));
            return Ok(());
        }
    };
    let mut broken = Vec::new();
    for finding in findings {
        let Some(failure) = finding.failure else {
            show(&format!("pipeline {}: ready\n", finding.name));
            continue;
        };
        show(&format!("pipeline {}: {}\n", finding.name, process::explain(&failure)));
        if used.contains(&finding.name.as_str()) {
            broken.push(finding.name);
        }
    }
    anyhow::ensure!(broken.is_empty(), "configured streams need {}", broken.join(", "));
    Ok(())
}

async fn doctor(config: &Config) -> anyhow::Result<()> {
    let findings = millstream::doctor::examine(config).await;
    for finding in &findings {
        show(&format!("{finding}\n"));
    }
    let broken = findings.iter().filter(|finding| finding.level == Level::Broken).count();
    anyhow::ensure!(broken == 0, "{broken} of {} checks failed", findings.len());
    Ok(())
}

/// Fails if there are mistakes in the configuration, or in what it refers to.
fn accept(mistakes: &[Mistake], more: Vec<Mistake>) -> Result<(), ConfigError> {
    ConfigError::unless_empty([mistakes, &more].concat())
}

/// How long the gateway may take to say that it is well.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);

/// For health checks of containers, which have no other program to ask with.
async fn health(config: &Config) -> anyhow::Result<()> {
    ask_health(config).await?;
    show("well\n");
    Ok(())
}

async fn ask_health(config: &Config) -> anyhow::Result<()> {
    let listen = config.http.listen;
    let addresses: Vec<IpAddr> = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into()],
        // Where there is no IPv6, the socket takes IPv4 alone.
        IpAddr::V6(ip) if ip.is_unspecified() => vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()],
        ip => vec![ip],
    };
    let scheme = config.http.scheme();
    let client = reqwest::Client::builder()
        .timeout(HEALTH_WITHIN)
        .no_proxy()
        // The certificate is for the name that viewers know.
        .tls_danger_accept_invalid_certs(true)
        .build()?;
    let mut refused = Vec::new();
    for ip in addresses {
        let url = format!("{scheme}://{}/healthz", SocketAddr::new(ip, listen.port()));
        match client.get(&url).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => refused.push(format!("{url} answered with {}", answer.status())),
            Err(error) => refused.push(format!("{:#}", anyhow::Error::from(error))),
        }
    }
    anyhow::bail!("{}", refused.join("; "))
}

async fn serve(config: Config, file: Option<PathBuf>, demo: bool) -> anyhow::Result<()> {
    // Before the ports are bound, so that no signal ends the process halfway.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut hang_up = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let has_play_token = config.auth.has_play_token();
    let scheme = config.http.scheme();
    let drain = config.limits.drain;
    let mut gateway = Gateway::start(config).await?;
    show(&banner(&gateway, scheme, has_play_token, demo));
    let mut requests = gateway.reload_requests().context("given once")?;
    let mut watched = Watched::new(file.clone());
    let load = || {
        let (mut config, mistakes) = Config::read(file.as_deref(), std::env::vars_os());
        accept(&mistakes, check::parts(&config))?;
        if demo {
            config.add_demo();
        }
        Ok::<Config, ConfigError>(config)
    };
    let drains = loop {
        let answer = tokio::select! {
            _ = terminate.recv() => break true,
            _ = interrupt.recv() => break false,
            _ = hang_up.recv() => None,
            () = watched.changed() => None,
            Some(answer) = requests.recv() => Some(answer),
        };
        let reloaded = match load() {
            Ok(config) => gateway.reload(config).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &reloaded {
            for mistake in &error.mistakes {
                tracing::error!(%mistake, "the configuration was not read again: nothing has changed");
            }
        }
        if let Some(answer) = answer {
            let _ = answer.send(reloaded.map_err(|error| error.to_string()));
        }
    };
    if drains {
        gateway.drain();
        let emptied = async {
            while gateway.media().sessions() > 0 {
                tokio::time::sleep(POLL_INTERVAL / 20).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(drain, emptied) => {}
            // Whoever asks again does not want to wait.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    gateway.stop().await;
    Ok(())
}

/// Between looks at the configuration file.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// A file that is looked at again and again.
struct Watched {
    path: PathBuf,
    known: Option<(SystemTime, u64)>,
}

impl Watched {
    fn new(file: Option<PathBuf>) -> Self {
        let path = file.unwrap_or_else(|| millstream::config::DEFAULT_FILE.into());
        let known = stamp(&path);
        Self { path, known }
    }

    /// Waits until it has changed, and then stays as it is for a moment: an editor may still be writing.
    async fn changed(&mut self) {
        let mut last = stamp(&self.path);
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = stamp(&self.path);
            if now.is_some() && now != self.known && now == last {
                self.known = now;
                return;
            }
            last = now;
        }
    }
}

fn stamp(path: &std::path::Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Tells whoever started us. When nobody reads it any more, that is no reason to end: `print!` would panic.
fn show(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// What to do next. The only place that shows a token, and only one that we made.
fn banner(gateway: &Gateway, scheme: &str, has_play_token: bool, demo: bool) -> String {
    let http = gateway.http_addr();
    let reachable = gateway.media().candidates().first().map(SocketAddr::ip);
    let ip = Some(http.ip())
        .filter(|ip| !ip.is_unspecified())
        .or(reachable)
        .unwrap_or(http.ip());
    let host = SocketAddr::new(ip, http.port());
    // Browsers hand out cameras on localhost, but not on another address without TLS.
    let studio = match http.ip() {
        _ if scheme == "https" => host.to_string(),
        ip if ip.is_unspecified() || ip.is_loopback() => format!("localhost:{}", http.port()),
        _ => host.to_string(),
    };
    let token = gateway
        .made_token()
        .map_or("the configured publish token", |token| token.reveal());
    let watching = if has_play_token { " (needs the play token)" } else { "" };
    let demo = if demo {
        format!("Test picture     {scheme}://{host}/watch/demo{watching}\n  ")
    } else {
        String::new()
    };
    format!(
        "\n  Millstream is running.\n\n  {demo}\
         Watch            {scheme}://{host}/watch/live{watching}\n  \
         Publish          {scheme}://{studio}/publish/live\n\n  \
         OBS Studio, Settings > Stream\n    \
         Service        WHIP\n    \
         Server         {scheme}://{host}/whip/live\n    \
         Bearer Token   {token}\n\n  \
         Any name may stand in place of `live`.\n\n"
    )
}
