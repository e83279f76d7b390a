//! The programs that the gateway starts as workers.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::worker_slots::WorkerSlots;

/// Name of the program that runs pipelines.
pub const PIPELINE_WORKER_EXECUTABLE_NAME: &str = "millstream-worker";

/// Folder of the worker in an installation, beside the `bin` of the gateway.
const LIBEXEC_FOLDER: &str = "../libexec/millstream";

/// The programs that the gateway starts as workers, and how many may run. Paths to them keep referring to the same programs when an upgrade
/// replaces the files, so that both sides of the protocol stay of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerExecutablesAndProcessSlots {
    /// Runs pipelines. Only this program links GStreamer. It may not exist.
    pub pipeline_worker: PathBuf,
    /// Demuxes HLS segments: the program of the gateway itself.
    pub demuxer: PathBuf,
    /// How many processes of these programs may run at the same time.
    pub slots: WorkerSlots,
}

impl WorkerExecutablesAndProcessSlots {
    /// Returns the programs of this installation. The pipeline worker is searched next to the program of the gateway,
    /// then in `../libexec/millstream`.
    pub fn find_installed() -> Self {
        Self {
            pipeline_worker: open_pipeline_worker_executable(),
            demuxer: PathBuf::from("/proc/self/exe"),
            slots: WorkerSlots::default(),
        }
    }
}

/// The worker is kept open while the gateway runs: see [`WorkerExecutablesAndProcessSlots`].
static PIPELINE_WORKER_EXECUTABLE_FILE: OnceLock<File> = OnceLock::new();

fn open_pipeline_worker_executable() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("."));
    let found = [folder.to_owned(), folder.join(LIBEXEC_FOLDER)]
        .into_iter()
        .find_map(|folder| File::open(folder.join(PIPELINE_WORKER_EXECUTABLE_NAME)).ok());
    let file = match (PIPELINE_WORKER_EXECUTABLE_FILE.get(), found) {
        (Some(file), _) => file,
        (None, Some(found)) => PIPELINE_WORKER_EXECUTABLE_FILE.get_or_init(|| found),
        (None, None) => return folder.join(PIPELINE_WORKER_EXECUTABLE_NAME),
    };
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
