//! Cameras that retina refuses and other clients accept are read by the pipeline `rtsp` (GStreamer's `rtspsrc` in a
//! worker process), which passes the compressed media on. The choice is kept while the configuration of the camera
//! stays the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::refusal::Refusal;
use crate::pipeline::description::Description;
use crate::pipeline::library::Library;
use crate::pipeline::programs::WorkerPrograms;

/// Name of the pipeline.
pub const PIPELINE: &str = "rtsp";

/// Reads a camera by the pipeline, once that was found necessary.
#[derive(Clone)]
pub struct Fallback {
    pub(super) description: Arc<Description>,
    pub(super) programs: WorkerPrograms,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Why the pipeline is used; `None` while it is not.
    refusal: Option<Refusal>,
    /// It received frames.
    has_worked: bool,
    /// Sessions in a row that the camera ended early.
    short_sessions: u32,
    /// How long the last of them was.
    length: Option<Duration>,
    /// The camera ends each session after this time.
    period: Option<Duration>,
}

/// A session that the camera ends before this time is short: most session timeouts are 60 s.
const SHORT_SESSION: Duration = Duration::from_secs(125);

/// Sessions that end earlier are not replaced in advance.
const SHORTEST_PERIOD: Duration = Duration::from_secs(2);

/// Part of a session after which the next one is opened.
const RENEW_AT: f64 = 0.7;

/// Short sessions in a row after which the pipeline is tried.
const MAX_SHORT_SESSIONS: u32 = 5;

impl Fallback {
    /// Returns `None` if the library has no such pipeline.
    pub fn new(library: &Library, programs: &WorkerPrograms) -> Option<Self> {
        Some(Self {
            description: library.get(PIPELINE)?.clone(),
            programs: programs.clone(),
            state: Arc::default(),
        })
    }

    /// Returns why the pipeline is used; `None` while it is not.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.lock().refusal
    }

    /// Uses the pipeline from now on.
    pub(super) fn choose(&self, refusal: Refusal) {
        let mut state = self.lock();
        (state.refusal, state.has_worked, state.short_sessions) = (Some(refusal), false, 0);
    }

    /// The stream receives frames.
    pub(super) fn worked(&self) {
        self.lock().has_worked = true;
    }

    /// The pipeline failed: if it never received a frame, it is not tried again before the next refusal.
    pub(super) fn failed(&self) {
        let mut state = self.lock();
        if !state.has_worked {
            state.refusal = None;
        }
    }

    /// Counts sessions of retina that end early. Returns whether there were too many in a row.
    ///
    /// `lasted` is how long frames were received before the camera ended the session; `None` if there were none, or if
    /// it was not the camera that ended it. A camera that restarts cannot be reached in between, and is not counted.
    pub(super) fn session_ended(&self, lasted: Option<Duration>) -> bool {
        let mut state = self.lock();
        let Some(lasted) = lasted.filter(|lasted| *lasted < SHORT_SESSION) else {
            (state.short_sessions, state.length, state.period) = (0, None, None);
            return false;
        };
        state.short_sessions += 1;
        let last = state.length.replace(lasted);
        let shorter = last
            .map(|last| last.min(lasted))
            .filter(|shorter| *shorter >= SHORTEST_PERIOD);
        let is_alike = |shorter: &Duration| last.is_some_and(|last| last.max(lasted) <= *shorter * 2);
        state.period = shorter.filter(is_alike).or(state.period);
        state.short_sessions >= MAX_SHORT_SESSIONS
    }

    /// Returns when a session is to be replaced by another one before the camera ends it. Its authentication may expire
    /// for keepalive requests, which retina does not repeat (RFC 7616 §3.3).
    pub(super) fn renew_after(&self) -> Option<Duration> {
        self.lock().period.map(|period| period.mul_f64(RENEW_AT))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
