//! The programs that the gateway starts as workers.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Name of the program that runs pipelines.
pub const PIPELINE_WORKER: &str = "millstream-worker";

/// Folder of the worker in an installation, beside the `bin` of the gateway.
const LIBEXEC: &str = "../libexec/millstream";

/// The programs that the gateway starts as workers. Paths to them keep referring to the same programs when an upgrade
/// replaces the files, so that both sides of the protocol stay of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPrograms {
    /// Runs pipelines. Only this program links GStreamer. It may not exist.
    pub pipeline: PathBuf,
    /// Demuxes HLS segments: the program of the gateway itself.
    pub demuxer: PathBuf,
}

impl WorkerPrograms {
    /// Returns the programs of this installation. The pipeline worker is searched next to the program of the gateway,
    /// then in `../libexec/millstream`.
    pub fn installed() -> Self {
        Self {
            pipeline: pipeline_worker(),
            demuxer: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// The worker is kept open while the gateway runs: see [`WorkerPrograms`].
static PIPELINE_WORKER_FILE: OnceLock<File> = OnceLock::new();

fn pipeline_worker() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("."));
    let found = [folder.to_owned(), folder.join(LIBEXEC)]
        .into_iter()
        .find_map(|folder| File::open(folder.join(PIPELINE_WORKER)).ok());
    let file = match (PIPELINE_WORKER_FILE.get(), found) {
        (Some(file), _) => file,
        (None, Some(found)) => PIPELINE_WORKER_FILE.get_or_init(|| found),
        (None, None) => return folder.join(PIPELINE_WORKER),
    };
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
