//! LL-HLS (draft-pantos-hls-rfc8216bis), a fallback for viewers without WebRTC connectivity. Uses the same packets as
//! the fan-out.
//!
//! ```text
//! ring -> Reader -> Depacketizer -> Packager -> one Rendition per track or layer: parts, segments -> playlist, routes
//! ```
//!
//! * [`cmaf`]: samples to fragmented MP4, using the boxes of `shiguredo_mp4`.
//! * [`rendition`]: one track, split into parts of about 200 ms and segments that start at key frames; bounded memory.
//! * [`packager`]: all renditions of a stream on one timeline.
//! * `paused_video`: repeats the last frame of video that pauses while audio goes on.
//! * [`playlist`]: renders the playlists.
//! * [`rendered_playlist`]: playlists that are rendered once per change.
//! * [`viewers`]: counts the players of a stream.
//! * [`service`]: packagers by stream; blocking requests.
//! * [`packaging`]: the task of one packager, from the rings to the renditions.
//!
//! All but the last two are without I/O and clock. The HTTP routes are with the other HTTP handlers.

pub mod cmaf;
pub mod packaged_stream;
pub mod packager;
pub mod packaging;
mod paused_video;
pub mod playlist;
pub mod rendered_playlist;
pub mod rendition;
pub mod service;
pub mod viewers;
