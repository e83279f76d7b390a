//! The command line.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use millstream::config::{ConfigError, ConfigMistake};
use millstream::doctor::{self, FindingLevel};
use millstream::gateway::banner::banner;
use millstream::gateway::discover::{CameraDiscoveryOptions, discover};
use millstream::gateway::reload::ConfigLoader;
use millstream::gateway::run::{self, ProcessSignals};
use millstream::gateway::{config_check, health};
use millstream::pipeline::worker_command::DEMUXER_COMMAND;
use millstream::{Config, Gateway, telemetry};

/// WHIP/WHEP live-streaming gateway.
#[derive(Parser)]
#[command(version, after_long_help = millstream::config::config_keys_help_text())]
struct Arguments {
    /// Configuration file (default: millstream.toml, if there is one)
    #[arg(long, global = true, value_name = "FILE", env = "MILLSTREAM_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, PartialEq, Eq, Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Serve {
        /// Add the stream `demo`: a moving test pattern with a tone
        #[arg(long)]
        demo: bool,
    },
    /// List all mistakes in the configuration, and which pipelines can run
    Check,
    /// Diagnose this host and suggest fixes
    Doctor,
    /// Check the health of the gateway that runs on this host with this configuration
    Health,
    /// List the cameras of the network that support ONVIF, and their URLs
    Discover(DiscoverArguments),
    /// Internal worker that the gateway starts for each HLS origin
    #[command(hide = true, name = DEMUXER_COMMAND)]
    Demuxer,
}

/// Arguments of `discover`.
#[derive(Clone, PartialEq, Eq, Args)]
struct DiscoverArguments {
    /// Ask the camera at this address only, which may be in another network. May be repeated
    #[arg(long, value_name = "ADDRESS")]
    at: Vec<String>,
    /// ONVIF user of the cameras that `--at` names
    #[arg(long, value_name = "USER")]
    username: Option<String>,
    /// File that contains the password of the user
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Seconds to wait for answers
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    time: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Demuxer) = arguments.command {
        return match millstream::pipeline::demuxer::run_demuxer_worker() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => print_error(&error.into()),
        };
    }
    millstream::shard::system_calls::process::limit_malloc_arenas();
    match load_config_and_run_command(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => print_error(&error),
    }
}

fn print_error(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "millstream: {error:#}");
    ExitCode::FAILURE
}

/// How much higher the nice value of the threads of the control plane is than that of the process.
const CONTROL_PLANE_NICE_INCREASE: i32 = 5;

fn load_config_and_run_command(arguments: &Arguments) -> anyhow::Result<()> {
    let command = arguments.command.clone().unwrap_or(Command::Serve { demo: false });
    let (mut config, mistakes) = Config::load_with_mistakes(arguments.config.as_deref(), std::env::vars_os());
    match &command {
        // `check` reports mistakes itself. A gateway stays healthy when its file gets a mistake.
        Command::Check | Command::Health | Command::Discover(_) | Command::Demuxer => {}
        Command::Doctor => {
            ensure_no_config_mistakes(&mistakes, config_check::find_source_and_credential_mistakes(&config))?
        }
        Command::Serve { .. } => ensure_no_config_mistakes(
            &mistakes,
            config_check::find_source_credential_certificate_mistakes(&config, &mistakes),
        )?,
    }
    // A thread inherits the value of the one that starts it.
    let control_plane_nice = rustix::process::getpriority_process(None).unwrap_or(0) + CONTROL_PLANE_NICE_INCREASE;
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        // When processors are short, pages, playlists and workers wait, and shards do not. On Linux the call sets the
        // priority of the calling thread only. If it fails, everything still runs, with less regular media.
        builder.on_thread_start(move || {
            let _ = rustix::process::setpriority_process(None, control_plane_nice);
        });
        builder.enable_all().build().context("cannot start the Tokio runtime")
    };
    match command {
        Command::Check => {
            Ok(runtime()?.block_on(config_check::check_loaded_config(&config, mistakes, print_stdout))?)
        }
        Command::Doctor => runtime()?.block_on(run_doctor(&config)),
        Command::Health => {
            runtime()?.block_on(health::probe_health(&config))?;
            print_stdout("healthy\n");
            Ok(())
        }
        Command::Serve { demo } => {
            if demo {
                config.add_demo_stream_if_absent();
            }
            let exports = telemetry::init_telemetry(&config.log);
            let runtime = runtime()?;
            let source = ConfigLoader::new(arguments.config.clone(), demo);
            let result = runtime.block_on(run_gateway(config, source, demo));
            // Dropping the runtime would wait for a hanging shard, which `Gateway::stop` does not.
            runtime.shutdown_background();
            exports.flush_and_stop_with_logging();
            result
        }
        Command::Discover(arguments) => Ok(runtime()?.block_on(discover(&arguments.into(), print_stdout))?),
        Command::Demuxer => Ok(()),
    }
}

impl From<DiscoverArguments> for CameraDiscoveryOptions {
    fn from(arguments: DiscoverArguments) -> Self {
        Self {
            at: arguments.at,
            username: arguments.username,
            password_file: arguments.password_file,
            time: Duration::from_secs(arguments.time),
        }
    }
}

async fn run_doctor(config: &Config) -> anyhow::Result<()> {
    let findings = doctor::run_all_doctor_checks(config).await;
    for finding in &findings {
        print_stdout(&format!("{finding}\n"));
    }
    let broken = findings
        .iter()
        .filter(|finding| finding.level == FindingLevel::Failure)
        .count();
    anyhow::ensure!(broken == 0, "{broken} of {} doctor checks failed", findings.len());
    Ok(())
}

/// Fails if there are mistakes in the configuration, or in what it refers to.
fn ensure_no_config_mistakes(mistakes: &[ConfigMistake], more: Vec<ConfigMistake>) -> Result<(), ConfigError> {
    ConfigError::result_from_mistakes([mistakes, &more].concat())
}

async fn run_gateway(config: Config, source: ConfigLoader, has_demo: bool) -> anyhow::Result<()> {
    // Before the ports are bound, so that no signal kills a gateway that is starting.
    let signals = ProcessSignals::new().context("cannot install signal handlers")?;
    let gateway = Gateway::start(config).await?;
    print_stdout(&banner(&gateway, has_demo));
    run::run_gateway_until_signal(gateway, source, signals).await;
    Ok(())
}

/// Writes to standard output. A closed pipe is not an error: `print!` would panic.
fn print_stdout(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
