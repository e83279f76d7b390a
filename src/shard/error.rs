//! Why the media plane does not start.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

/// Why the media plane did not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("cannot listen on UDP {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot set up a shard: {0}")]
    Shard(#[source] io::Error),
    #[error("no address to announce: the host has none, and webrtc.announce is empty")]
    NoAddress,
}
