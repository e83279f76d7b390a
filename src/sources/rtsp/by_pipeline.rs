//! Reads a camera by the pipeline `rtsp`: see [`fallback`](super::fallback).

use super::camera::{Camera, CameraError};
use super::fallback::{Fallback, PIPELINE};
use super::refusal::Refusal;
use crate::config::Transport;
use crate::pipeline::process::ProcessError;
use crate::sources::fetch::error::FetchError;
use crate::sources::fetch::pipeline::{self, PipelineSpec};
use millstream_core::hub::name::StreamName;
use millstream_core::sources::frame_source::FanOut;

/// Timeouts of the worker in seconds: a camera may send a frame every few seconds only.
const START_TIMEOUT: f64 = 20.0;
const STALL_TIMEOUT: f64 = 60.0;

/// Runs the pipeline until it fails. `live` is called once the stream receives frames.
pub(super) async fn play<P: FanOut>(
    camera: &Camera,
    fallback: &Fallback,
    refusal: Refusal,
    (stream, plane): (&StreamName, &P),
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let spec = match spec(camera, fallback) {
        Ok(spec) => spec,
        Err(error) => {
            fallback.failed();
            return error.into();
        }
    };
    let mut on_live = |tracks: &dyn std::fmt::Debug| {
        fallback.worked();
        live(tracks);
    };
    let error = pipeline::play(&spec, stream, plane, &mut on_live).await;
    if let FetchError::Displaced = error {
        return error;
    }
    fallback.failed();
    match error {
        FetchError::Worker(ProcessError::Failed(failure)) if failure.to_string().contains("Unauthorized") => {
            CameraError::Credentials.into()
        }
        FetchError::Worker(error) => {
            CameraError::Pipeline(format!("{}; pipeline `{PIPELINE}`: {error}", refusal.text())).into()
        }
        error => error,
    }
}

/// Returns the pipeline with the parameters of the camera.
fn spec(camera: &Camera, fallback: &Fallback) -> Result<PipelineSpec, CameraError> {
    let mut values = toml::Table::new();
    values.insert("uri".to_owned(), camera.url.as_str().into());
    if let Some(credentials) = camera.credentials()? {
        values.insert("username".to_owned(), credentials.username.into());
        values.insert("password".to_owned(), credentials.password.into());
    }
    let transport = match camera.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    values.insert("transport".to_owned(), transport.into());
    let (job, hosts) = fallback.description.job(&values, Vec::new()).map_err(|wrong| {
        let wrong = wrong.iter().map(|(name, error)| format!("`{name}` {error}"));
        CameraError::Pipeline(wrong.collect::<Vec<_>>().join(", "))
    })?;
    let mut limits = fallback.description.limits;
    limits.start_timeout = limits.start_timeout.max(START_TIMEOUT);
    limits.stall_timeout = match camera.silence_timeout {
        Some(timeout) => timeout.as_secs_f64(),
        None => limits.stall_timeout.max(STALL_TIMEOUT),
    };
    Ok(PipelineSpec {
        name: PIPELINE.to_owned(),
        programs: fallback.programs.clone(),
        job,
        limits,
        hosts,
        allowed: camera.allowed.clone(),
    })
}
