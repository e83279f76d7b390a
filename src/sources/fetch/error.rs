//! Why a source failed.

use thiserror::Error;

use super::address::AddressError;
use crate::pipeline::process::ProcessError;
use crate::sources::hls::error::HlsError;
use crate::sources::rtsp::camera::CameraError;

/// Why a source failed.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error(transparent)]
    Camera(#[from] CameraError),
    #[error(transparent)]
    Worker(#[from] ProcessError),
    #[error(transparent)]
    Hls(#[from] HlsError),
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The source is read in another way from now on.
    #[error("the camera is read by a pipeline from now on")]
    Rerouted,
    #[error("another source has the stream")]
    Displaced,
}
