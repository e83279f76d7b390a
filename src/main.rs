//! The command line: reads the configuration, starts the gateway, waits for a signal.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use millstream::{Config, Gateway, telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// WHIP/WHEP live-streaming gateway.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file (default: millstream.toml, if there is one)
    #[arg(long, global = true, value_name = "FILE", env = "MILLSTREAM_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Serve,
    /// Check the configuration and exit
    Check,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "millstream: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref(), std::env::vars_os())?;
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Check => {
            show("the configuration is valid\n");
            Ok(())
        }
        Command::Serve => {
            telemetry::init(&config.log);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("cannot start the runtime")?;
            let result = runtime.block_on(serve(config));
            // Dropping the runtime would wait for a shard that hangs, which `Gateway::stop` has given up on.
            runtime.shutdown_background();
            result
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Before the ports are bound, so that no signal ends the process halfway.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let has_play_token = config.auth.play_token.is_some();
    let gateway = Gateway::start(config).await?;
    show(&banner(&gateway, has_play_token));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    gateway.stop().await;
    Ok(())
}

/// Tells whoever started us. When nobody reads it any more, that is no reason to end: `print!` would panic.
fn show(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// What to do next. The only place that shows a token, and only one that we made.
fn banner(gateway: &Gateway, has_play_token: bool) -> String {
    let http = gateway.http_addr();
    let reachable = gateway.media().candidates().first().map(SocketAddr::ip);
    let ip = Some(http.ip())
        .filter(|ip| !ip.is_unspecified())
        .or(reachable)
        .unwrap_or(http.ip());
    let host = SocketAddr::new(ip, http.port());
    // Browsers hand out cameras on localhost, but not on another address without TLS.
    let studio = match http.ip() {
        ip if ip.is_unspecified() || ip.is_loopback() => format!("localhost:{}", http.port()),
        _ => host.to_string(),
    };
    let token = gateway
        .made_token()
        .map_or("the configured publish token", |token| token.reveal());
    let watching = if has_play_token { " (needs the play token)" } else { "" };
    format!(
        "\n  Millstream is running.\n\n  \
         Watch            http://{host}/watch/live{watching}\n  \
         Publish          http://{studio}/publish/live\n\n  \
         OBS Studio, Settings > Stream\n    \
         Service        WHIP\n    \
         Server         http://{host}/whip/live\n    \
         Bearer Token   {token}\n\n  \
         Any name may stand in place of `live`.\n\n"
    )
}
