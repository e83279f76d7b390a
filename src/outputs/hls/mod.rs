//! LL-HLS (draft-pantos-hls-rfc8216bis): for viewers whom WebRTC cannot reach, from the same packets as the fan-out.
//!
//! ```text
//! ring -> Reader -> Depacketizer -> Packager -> one Rendition for each kind: parts, segments -> playlist, routes
//! ```
//!
//! * [`cmaf`]: samples to fragmented MP4, by the boxes of `shiguredo_mp4`.
//! * [`rendition`]: one track cut into parts of about 200 ms and segments that begin at key frames; bounded memory.
//! * [`packager`]: both tracks of a stream on one timeline.
//! * [`playlist`]: what players read.
//! * [`audience`]: how many players a stream has.
//! * [`service`]: packagers by stream; requests that wait for what is to come.
//! * [`packaging`]: one packager while somebody asks: from the rings to the renditions.
//!
//! All but the last two are without IO and clock. The addresses are above, with the rest of HTTP.

pub mod cmaf;
pub mod packager;
pub mod packaging;
pub mod playlist;
pub mod rendition;
pub mod service;
pub mod viewers;
