//! The programs that the gateway starts as workers.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::worker_slots::WorkerSlots;

/// Name of the program that runs pipelines.
pub const PIPELINE_WORKER_PROGRAM: &str = "millstream-worker";

/// Folder of the worker in an installation, beside the `bin` of the gateway.
const LIBEXEC_FOLDER: &str = "../libexec/millstream";

/// The programs that the gateway starts as workers, and how many may run. Paths to them keep referring to the same programs when an upgrade
/// replaces the files, so that both sides of the protocol stay of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerProgramsAndSlots {
    /// Runs pipelines. Only this program links GStreamer. It may not exist.
    pub pipeline_worker: PathBuf,
    /// Demuxes HLS segments: the program of the gateway itself.
    pub demuxer: PathBuf,
    /// How many processes of these programs may run at the same time.
    pub slots: WorkerSlots,
}

impl WorkerProgramsAndSlots {
    /// Returns the programs of this installation. The pipeline worker is searched next to the program of the gateway,
    /// then in `../libexec/millstream`.
    pub fn installed() -> Self {
        Self {
            pipeline_worker: find_and_keep_pipeline_worker_open(),
            demuxer: PathBuf::from("/proc/self/exe"),
            slots: WorkerSlots::default(),
        }
    }
}

/// The worker is kept open while the gateway runs: see [`WorkerProgramsAndSlots`].
static OPEN_PIPELINE_WORKER_FILE: OnceLock<File> = OnceLock::new();

fn find_and_keep_pipeline_worker_open() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("."));
    let found = [folder.to_owned(), folder.join(LIBEXEC_FOLDER)]
        .into_iter()
        .find_map(|folder| File::open(folder.join(PIPELINE_WORKER_PROGRAM)).ok());
    let file = match (OPEN_PIPELINE_WORKER_FILE.get(), found) {
        (Some(file), _) => file,
        (None, Some(found)) => OPEN_PIPELINE_WORKER_FILE.get_or_init(|| found),
        (None, None) => return folder.join(PIPELINE_WORKER_PROGRAM),
    };
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
