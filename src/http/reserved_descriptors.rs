//! File descriptors that are kept for health checks while all others are in use.
//!
//! A connection that cannot be accepted because the process is out of descriptors takes the place of a reserved one: health
//! checks are answered, and every other request gets 503 at once, instead of waiting in the backlog.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

/// How many connections are served at a time while the process is out of descriptors.
const RESERVED_DESCRIPTOR_COUNT: usize = 8;

/// The reserved descriptors.
#[derive(Clone, Debug, Default)]
pub(super) struct ReservedDescriptors(Arc<Mutex<Vec<File>>>);

impl ReservedDescriptors {
    /// Reserves [`RESERVED_DESCRIPTOR_COUNT`], or as many as there are.
    pub(super) fn new() -> Self {
        let reserved = Self::default();
        reserved.refill();
        reserved
    }

    /// Reserves descriptors again that were released, as far as there are free ones.
    pub(super) fn refill(&self) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while files.len() < RESERVED_DESCRIPTOR_COUNT {
            let Ok(file) = File::open("/dev/null") else { return };
            files.push(file);
        }
    }

    /// Releases one descriptor for the next connection. Returns `false` if none is left.
    pub(super) fn release_one_descriptor(&self) -> bool {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.pop().is_some()
    }
}

/// Whether an operation failed because the process or the host is out of descriptors.
pub(super) fn is_out_of_descriptors_error(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}
