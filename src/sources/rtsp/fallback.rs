//! Cameras that retina refuses and other clients accept are read by the pipeline `rtsp` (GStreamer's `rtspsrc` in a
//! worker process), which passes the compressed media on. The choice is kept while the configuration of the camera
//! stays the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::incompatibility::CameraIncompatibility;
use crate::pipeline::description::PipelineDescription;
use crate::pipeline::library::PipelineLibrary;
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;

/// Names of the pipelines. The second one also converts audio that browsers do not play.
pub const FALLBACK_PIPELINE: &str = "rtsp";
pub const AUDIO_CONVERTING_PIPELINE: &str = "rtsp-audio";

/// How a camera is read that the client refuses: through the relay, or by a pipeline.
#[derive(Clone)]
pub struct CameraFallback {
    description: Arc<PipelineDescription>,
    /// `None` if there is no such pipeline.
    audio: Option<Arc<PipelineDescription>>,
    pub(super) worker_programs: WorkerExecutablesAndProcessSlots,
    state: Arc<Mutex<FallbackState>>,
}

#[derive(Debug, Default)]
struct FallbackState {
    /// Why the pipeline or the relay is used; `None` while neither is.
    reason: Option<CameraIncompatibility>,
    /// The pipeline is used for it, not the relay.
    uses_pipeline: bool,
    /// It received frames.
    has_received_frames: bool,
    /// Failures in a row of the pipeline that converts audio.
    audio_failure_count: u32,
    /// When it may be tried again; `None` if it did not fail.
    audio_retry_at: Option<Instant>,
    /// Sessions in a row that the camera ended early.
    short_session_count: u32,
    /// How long the last of them was.
    last_session_duration: Option<Duration>,
    /// Sessions in a row through the relay that brought no frame.
    failed_relay_session_count: u32,
    /// The camera ends each session after this time.
    camera_session_duration: Option<Duration>,
}

/// A session that the camera ends before this time is short: most session timeouts are 60 s.
const MAX_SHORT_SESSION_DURATION: Duration = Duration::from_secs(125);

/// Two sessions in a row that the camera ended are of one last_session_length if they differ by no more than these factors. Long ones
/// end by chance, too, unless they are much alike.
const MAX_SIMILAR_SESSION_DURATION_RATIO: f64 = 2.0;
const MAX_SIMILAR_LONG_SESSION_DURATION_RATIO: f64 = 1.1;

/// Sessions that end earlier are not replaced in advance.
const MIN_SESSION_DURATION_TO_RENEW: Duration = Duration::from_secs(2);

/// Part of a session after which the next one is opened.
const SESSION_RENEWAL_FRACTION: f64 = 0.7;

/// Delay before the pipeline that converts audio is tried again after it failed. It doubles with each failure.
const FIRST_AUDIO_RETRY_DELAY: Duration = Duration::from_secs(60);
const MAX_AUDIO_RETRY_DELAY: Duration = Duration::from_secs(3_600);

/// Retries for which a session that plays video only is ended. Later ones wait for the next session: each may cost viewers
/// some seconds of video.
const MAX_INTERRUPTING_AUDIO_RETRIES: u32 = 3;

/// Short sessions in a row after which the pipeline is tried.
const MAX_SHORT_SESSIONS: u32 = 5;

/// Sessions in a row through the relay without a frame after which the pipeline is tried.
const MAX_FAILED_RELAY_SESSIONS: u32 = 3;

impl CameraFallback {
    /// Returns `None` if the library has no such pipeline.
    pub fn new(library: &PipelineLibrary, programs: &WorkerExecutablesAndProcessSlots) -> Option<Self> {
        Some(Self {
            description: library.get(FALLBACK_PIPELINE)?.clone(),
            audio: library.get(AUDIO_CONVERTING_PIPELINE).cloned(),
            worker_programs: programs.clone(),
            state: Arc::default(),
        })
    }

    /// Returns why the pipeline or the relay is used; `None` while neither is.
    pub(super) fn reason(&self) -> Option<CameraIncompatibility> {
        self.lock().reason
    }

    /// Returns whether the pipeline is used.
    pub(super) fn uses_pipeline(&self) -> bool {
        let state = self.lock();
        state.reason.is_some() && state.uses_pipeline
    }

    /// Returns whether the relay is used.
    pub(super) fn uses_relay(&self) -> bool {
        let state = self.lock();
        state.reason.is_some() && !state.uses_pipeline
    }

    /// Uses the pipeline or the relay from now on.
    pub(super) fn activate_fallback(&self, refusal: CameraIncompatibility, by_relay: bool) {
        let mut state = self.lock();
        (state.uses_pipeline, state.failed_relay_session_count) = (!by_relay, 0);
        (state.reason, state.has_received_frames, state.short_session_count) = (Some(refusal), false, 0);
        (state.last_session_duration, state.camera_session_duration) = (None, None);
    }

    /// A session through the relay ended. Returns why the relay is used if the pipeline is to be tried, because sessions in
    /// a row brought no frame.
    pub(super) fn record_relay_session(&self, had_frames: bool) -> Option<CameraIncompatibility> {
        let mut state = self.lock();
        state.failed_relay_session_count = if had_frames {
            0
        } else {
            state.failed_relay_session_count + 1
        };
        let is_failing = state.failed_relay_session_count >= MAX_FAILED_RELAY_SESSIONS;
        state.reason.filter(|_| is_failing)
    }

    /// The stream receives frames.
    pub(super) fn mark_frames_received(&self) {
        let mut state = self.lock();
        state.has_received_frames = true;
        if state.reason == Some(CameraIncompatibility::Audio) {
            (state.audio_failure_count, state.audio_retry_at) = (0, None);
        }
    }

    /// Returns the pipeline for a camera that is refused like this, and its name.
    pub(super) fn pipeline_for_incompatibility(
        &self,
        reason: CameraIncompatibility,
    ) -> (&Arc<PipelineDescription>, &'static str) {
        match (&self.audio, reason) {
            (Some(audio), CameraIncompatibility::Audio) => (audio, AUDIO_CONVERTING_PIPELINE),
            _ => (&self.description, FALLBACK_PIPELINE),
        }
    }

    /// Whether audio that browsers do not play can be converted, as far as that is known.
    pub(super) fn can_convert_audio(&self, now: Instant) -> bool {
        let is_due = self.lock().audio_retry_at.is_none_or(|retry_at| now >= retry_at);
        self.audio.is_some() && self.worker_programs.pipeline_worker.exists() && is_due
    }

    /// Returns after which time a session whose audio is not converted is ended to try it again; `None` if it goes on.
    pub(super) fn time_until_audio_retry(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        let retry_at = state
            .audio_retry_at
            .filter(|_| state.audio_failure_count <= MAX_INTERRUPTING_AUDIO_RETRIES)?;
        Some(retry_at.saturating_duration_since(now))
    }

    /// The pipeline failed: if it never received a frame, it is not tried again before the next refusal, and one that
    /// converts audio not before a delay, either.
    pub(super) fn deactivate_fallback_if_no_frames(&self, now: Instant) {
        let mut state = self.lock();
        if state.has_received_frames {
            return;
        }
        if state.reason == Some(CameraIncompatibility::Audio) {
            let factor = 2u32.saturating_pow(state.audio_failure_count.min(16));
            let delay = FIRST_AUDIO_RETRY_DELAY
                .saturating_mul(factor)
                .min(MAX_AUDIO_RETRY_DELAY);
            state.audio_failure_count = state.audio_failure_count.saturating_add(1);
            state.audio_retry_at = Some(now + delay);
        }
        state.reason = None;
    }

    /// Counts sessions of retina that end early. Returns whether there were too many in a row.
    ///
    /// `lasted` is how long frames were received before the camera ended the RTSP session; `None` if there were none, or if
    /// it was not the camera that ended it. A camera that restarts cannot be reached in between, and is not counted.
    pub(super) fn record_session_end_and_check_short_session_limit(&self, lasted: Option<Duration>) -> bool {
        let mut state = self.lock();
        let Some(lasted) = lasted else {
            (
                state.short_session_count,
                state.last_session_duration,
                state.camera_session_duration,
            ) = (0, None, None);
            return false;
        };
        let is_short = lasted < MAX_SHORT_SESSION_DURATION;
        state.short_session_count = if is_short { state.short_session_count + 1 } else { 0 };
        let last = state.last_session_duration.replace(lasted);
        let shorter = last
            .map(|last| last.min(lasted))
            .filter(|shorter| *shorter >= MIN_SESSION_DURATION_TO_RENEW);
        let factor = if is_short {
            MAX_SIMILAR_SESSION_DURATION_RATIO
        } else {
            MAX_SIMILAR_LONG_SESSION_DURATION_RATIO
        };
        let is_alike = |shorter: &Duration| last.is_some_and(|last| last.max(lasted) <= shorter.mul_f64(factor));
        // A long session disproves a short session_period.
        let kept = state
            .camera_session_duration
            .filter(|session_period| lasted <= session_period.mul_f64(MAX_SIMILAR_SESSION_DURATION_RATIO));
        state.camera_session_duration = shorter.filter(is_alike).or(kept);
        state.short_session_count >= MAX_SHORT_SESSIONS
    }

    /// Returns when a session is to be replaced by another one before the camera ends it. Its authentication may expire
    /// for keepalive requests, which retina does not repeat (RFC 7616 §3.3).
    pub(super) fn camera_session_renewal_age(&self) -> Option<Duration> {
        self.lock()
            .camera_session_duration
            .map(|period| period.mul_f64(SESSION_RENEWAL_FRACTION))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FallbackState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn fallback() -> CameraFallback {
        let programs = WorkerExecutablesAndProcessSlots {
            pipeline_worker: "/nonexistent/millstream-worker".into(),
            demuxer: "/nonexistent/millstream".into(),
            ..WorkerExecutablesAndProcessSlots::find_installed()
        };
        CameraFallback::new(&PipelineLibrary::with_shipped_pipelines(), &programs).expect("it is shipped")
    }

    /// Returns after how many seconds sessions are replaced, after some that the camera ended.
    fn open_replacement_session(lengths: &[Option<u32>]) -> Option<u64> {
        let fallback = fallback();
        for last_session_length in lengths {
            fallback.record_session_end_and_check_short_session_limit(
                last_session_length.map(|last_session_length| S * last_session_length),
            );
        }
        fallback.camera_session_renewal_age().map(|after| after.as_secs())
    }

    #[test]
    fn sessions_that_end_alike_are_replaced_before_their_end() {
        for (lengths, wanted) in [
            (&[Some(60)][..], None),
            (&[Some(60), Some(70)], Some(42)),
            // A nonce that is good for an hour.
            (&[Some(3_600), Some(3_660)], Some(2_520)),
            (&[Some(3_600), Some(5_000)], None),
            (&[Some(60), Some(3_600)], None),
            (&[Some(60), Some(60), Some(3_600)], None),
            (&[Some(60), Some(60), Some(10)], Some(42)),
            (&[Some(60), Some(60), None], None),
            (&[Some(1), Some(1)], None),
        ] {
            assert_eq!(open_replacement_session(lengths), wanted, "{lengths:?}");
        }
    }

    #[test]
    fn only_short_sessions_lead_to_the_pipeline() {
        let short = fallback();
        let ended: Vec<bool> = (0..5)
            .map(|_| short.record_session_end_and_check_short_session_limit(Some(60 * S)))
            .collect();
        assert_eq!(ended, [false, false, false, false, true]);
        let long = fallback();
        assert!(!(0..9).any(|_| long.record_session_end_and_check_short_session_limit(Some(600 * S))));
    }

    /// Fails at the time at which it is tried again. Returns the delay before the next try in seconds.
    fn fail_audio(fallback: &CameraFallback, now: &mut Instant) -> u64 {
        fallback.activate_fallback(CameraIncompatibility::Audio, false);
        assert_eq!(
            fallback.pipeline_for_incompatibility(CameraIncompatibility::Audio).1,
            AUDIO_CONVERTING_PIPELINE
        );
        fallback.deactivate_fallback_if_no_frames(*now);
        assert_eq!(fallback.reason(), None);
        let retry_at = fallback.lock().audio_retry_at.expect("it failed");
        let delay = retry_at - *now;
        assert!(!fallback.can_convert_audio(retry_at - S) && fallback.can_convert_audio(retry_at));
        *now = retry_at;
        delay.as_secs()
    }

    #[test]
    fn audio_that_could_not_be_converted_is_tried_again_ever_more_rarely() {
        let mut fallback = fallback();
        // Whether the program exists is part of the question.
        fallback.worker_programs.pipeline_worker = std::env::current_exe().expect("this program has a path");
        let mut now = tokio::time::Instant::now().into_std();
        assert!(fallback.can_convert_audio(now));
        assert_eq!(fallback.time_until_audio_retry(now), None);
        let delays: Vec<u64> = (0..8).map(|_| fail_audio(&fallback, &mut now)).collect();
        assert_eq!(delays, [60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
        // Viewers who have video are not disturbed any more.
        assert_eq!(fallback.time_until_audio_retry(now), None);
        // Once it worked, it is tried soon again.
        fallback.activate_fallback(CameraIncompatibility::Audio, false);
        fallback.mark_frames_received();
        fallback.deactivate_fallback_if_no_frames(now);
        assert_eq!(fallback.reason(), Some(CameraIncompatibility::Audio));
        assert_eq!(fail_audio(&fallback, &mut now), 60);
        assert_eq!(fallback.time_until_audio_retry(now - S), Some(S));
    }

    #[test]
    fn a_relay_that_brings_no_frame_leads_to_the_pipeline() {
        let fallback = fallback();
        assert_eq!(
            (0..9).find_map(|_| fallback.record_relay_session(false)),
            None,
            "it is not used"
        );
        let reason = CameraIncompatibility::NonstandardResponse;
        fallback.activate_fallback(reason, true);
        let failed: Vec<_> = [false, false, true, false, false, false]
            .map(|had_frames| fallback.record_relay_session(had_frames))
            .into();
        assert_eq!(failed, [None, None, None, None, None, Some(reason)]);
        fallback.activate_fallback(reason, false);
        assert!(fallback.uses_pipeline() && !fallback.uses_relay());
    }

    #[test]
    fn other_pipelines_are_not_kept_from_converting_audio() {
        let fallback = fallback();
        fallback.activate_fallback(CameraIncompatibility::SsrcChanges, false);
        assert_eq!(
            fallback
                .pipeline_for_incompatibility(CameraIncompatibility::SsrcChanges)
                .1,
            FALLBACK_PIPELINE
        );
        fallback.deactivate_fallback_if_no_frames(tokio::time::Instant::now().into_std());
        assert_eq!(fallback.lock().audio_retry_at, None);
    }
}
