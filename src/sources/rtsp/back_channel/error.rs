//! Why audio cannot be sent to a camera.

use thiserror::Error;

use crate::sources::rtsp::camera::CameraError;

/// Why audio cannot be sent to a camera.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BackChannelError {
    #[error(transparent)]
    Camera(#[from] CameraError),
    #[error(
        "the camera has no back channel for audio (ONVIF Streaming Specification, section 5.3): it does not accept audio \
         over RTSP"
    )]
    Missing,
    #[error(
        "the camera accepts {0} on its audio back channel, but the gateway sends only PCMU or PCMA at 8 kHz: set the codec \
         of the camera's audio output (loudspeaker) to G.711"
    )]
    UnsupportedCodec(String),
}
