//! Audio to a camera: the back channel of the ONVIF Streaming Specification (§5.3), by an RTSP connection of its own.
//!
//! ```text
//! tap of the talker's stream -> AudioQueue (at most 200 ms) -> RTP in the RTSP connection -> camera
//! ```
//!
//! [`BackChannel::connect`] asks the camera what it takes, [`BackChannel::start`] begins, and
//! [`BackChannelSender::forward_audio`] sends until the talker or the camera ends it. The connection that the stream is
//! read by is not touched.

mod audio_queue;
mod connection;
mod description;
mod error;
mod negotiation;
mod sender;

pub use self::error::BackChannelError;
pub use self::negotiation::BackChannel;
pub use self::sender::{BackChannelCounters, BackChannelEnd, BackChannelSender};
