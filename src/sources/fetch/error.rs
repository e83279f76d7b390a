//! Why a source failed.

use thiserror::Error;

use super::address::AddressError;
use crate::pipeline::worker_process::WorkerProcessError;
use crate::sources::hls::error::HlsError;
use crate::sources::rtsp::camera::CameraError;

/// Why a source failed.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error(transparent)]
    Camera(#[from] CameraError),
    #[error(transparent)]
    Worker(#[from] WorkerProcessError),
    #[error(transparent)]
    Hls(#[from] HlsError),
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The source is read in another way from now on.
    #[error(
        "the RTSP session was ended because the camera is now read through a relay inside the gateway or by a GStreamer pipeline"
    )]
    ReaderSwitched,
    /// Another variant of the source has other renditions.
    #[error("the HLS source has to be reopened, because its variant or its renditions changed")]
    Reopened,
    #[error("the stream already has a publisher or another source of media")]
    StreamOccupied,
}
