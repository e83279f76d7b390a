//! Why audio cannot be sent to a camera.

use thiserror::Error;

use crate::sources::rtsp::camera::CameraError;

/// Why audio cannot be sent to a camera.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BackChannelError {
    #[error(transparent)]
    Camera(#[from] CameraError),
    #[error("the camera has no back channel (ONVIF Streaming Specification, section 5.3): it takes no audio by RTSP")]
    Missing,
    #[error(
        "the camera takes audio as {0}, and the gateway sends PCMU or PCMA with 8 kHz: set the codec of its audio output \
         to G.711"
    )]
    UnsupportedCodec(String),
}
