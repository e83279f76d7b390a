//! How the process of a worker is started: its program, environment and socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::Stdio;

use tokio::net::UnixStream;
use tokio::process::Command;

use super::worker_executables::PIPELINE_WORKER_EXECUTABLE_NAME;

/// Command of the gateway's program that runs [`super::demuxer`].
pub const DEMUXER_COMMAND: &str = "demuxer";

/// Environment variables passed to a worker. All others, such as tokens and proxies, are withheld.
const PASSED_ENV_VARIABLES: [&str; 12] = [
    "PATH",
    "HOME",
    "LANG",
    "XDG_CACHE_HOME",
    "GST_REGISTRY",
    "GST_PLUGIN_PATH",
    "GST_PLUGIN_SYSTEM_PATH",
    // If these are set, GStreamer ignores their counterparts without a version.
    "GST_REGISTRY_1_0",
    "GST_PLUGIN_PATH_1_0",
    "GST_PLUGIN_SYSTEM_PATH_1_0",
    "GST_DEBUG",
    "LD_LIBRARY_PATH",
];

pub(super) fn pipeline_worker_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg0(PIPELINE_WORKER_EXECUTABLE_NAME);
    command
}

pub(super) fn demuxer_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg0("millstream").arg(DEMUXER_COMMAND);
    command
}

/// Returns the command and our end of the socket. Dropping the command closes the worker's end in this process.
pub(super) fn set_socket_and_environment(mut command: Command) -> io::Result<(Command, UnixStream)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    command
        .env_clear()
        .envs(
            PASSED_ENV_VARIABLES
                .iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        )
        // Per-thread malloc arenas would make up most of a worker's memory.
        .env("MALLOC_ARENA_MAX", "2")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok((command, UnixStream::from_std(ours)?))
}
