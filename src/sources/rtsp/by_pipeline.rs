//! Reads a camera by a pipeline: see [`fallback`](super::fallback).

use std::sync::Arc;

use tokio::time::Instant;

use super::camera::{Camera, CameraError};
use super::fallback::CameraFallback;
use super::incompatibility::CameraIncompatibility;
use crate::config::RtspTransport;
use crate::pipeline::worker_process::WorkerProcessError;
use crate::pipeline::worker_slots::WorkerSlotReservation;
use crate::sources::fetch::error::FetchError;
use crate::sources::fetch::pipeline::{self, PipelineSpec};
use millstream_core::hub::name::StreamKey;
use millstream_core::sources::frame_source::FrameSink;

/// Timeouts of the worker in seconds: a camera may send a frame every few seconds only.
const MIN_START_TIMEOUT_SECS: f64 = 20.0;
const MIN_STALL_TIMEOUT_SECS: f64 = 60.0;

/// Runs the pipeline until it fails. `live` is called once the stream receives frames.
pub(super) async fn run_camera_pipeline<P: FrameSink>(
    camera: &Camera,
    fallback: &CameraFallback,
    incompatibility: CameraIncompatibility,
    (stream, plane): (&StreamKey, &P),
    reservation: &WorkerSlotReservation,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let (_, name) = fallback.pipeline_for_incompatibility(incompatibility);
    let spec = match camera_pipeline_spec(camera, fallback, incompatibility) {
        Ok(spec) => spec,
        Err(error) => {
            fallback.deactivate_fallback_if_no_frames(Instant::now().into_std());
            return error.into();
        }
    };
    let mut on_live = |tracks: &dyn std::fmt::Debug| {
        fallback.mark_frames_received();
        live(tracks);
    };
    let error = pipeline::run_pipeline_source(&spec, (stream, plane), reservation, &mut on_live).await;
    if let FetchError::StreamOccupied = error {
        return error;
    }
    fallback.deactivate_fallback_if_no_frames(Instant::now().into_std());
    match error {
        FetchError::Worker(WorkerProcessError::WorkerFailed(failure))
            if failure.to_string().contains("Unauthorized") =>
        {
            CameraError::CredentialsRejected.into()
        }
        FetchError::Worker(error) => {
            CameraError::PipelineFailed(format!("{}; pipeline `{name}`: {error}", incompatibility.text())).into()
        }
        error => error,
    }
}

/// Returns the pipeline with the parameters of the camera.
fn camera_pipeline_spec(
    camera: &Camera,
    fallback: &CameraFallback,
    incompatibility: CameraIncompatibility,
) -> Result<PipelineSpec, CameraError> {
    let (description, name) = fallback.pipeline_for_incompatibility(incompatibility);
    let mut values = toml::Table::new();
    values.insert("uri".to_owned(), camera.url.as_str().into());
    if let Some(credentials) = camera.read_credentials()? {
        values.insert("username".to_owned(), credentials.username.into());
        values.insert("password".to_owned(), credentials.password.into());
    }
    let transport = match camera.transport {
        RtspTransport::Tcp => "tcp",
        RtspTransport::Udp => "udp",
    };
    values.insert("transport".to_owned(), transport.into());
    let (job, targets) = description
        .build_job_and_target_urls(&values, Vec::new())
        .map_err(|wrong| {
            let wrong = wrong.iter().map(|(name, error)| format!("`{name}`: {error}"));
            CameraError::PipelineFailed(wrong.collect::<Vec<_>>().join(", "))
        })?;
    let mut limits = description.limits;
    limits.start_timeout = limits.start_timeout.max(MIN_START_TIMEOUT_SECS);
    limits.stall_timeout = match camera.silence_timeout {
        Some(timeout) => timeout.as_secs_f64(),
        None => limits.stall_timeout.max(MIN_STALL_TIMEOUT_SECS),
    };
    Ok(PipelineSpec {
        name: name.to_owned(),
        worker_programs: fallback.worker_programs.clone(),
        job,
        limits,
        targets,
        attempts: Arc::default(),
        allowed_networks: camera.allowed_networks.clone(),
    })
}
