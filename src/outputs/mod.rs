//! Outputs of a stream other than WHEP: LL-HLS.
pub mod hls;
