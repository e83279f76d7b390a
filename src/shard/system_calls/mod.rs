//! System calls that the standard library does not provide: the only folder with `unsafe` code.
//!
//! * [`socket`]: the UDP port that all shards share, [`receiver`] and [`sender`]: datagrams in batches. They do not interpret
//!   the datagrams.
//! * [`wait`]: how a shard waits for datagrams and messages.
//! * [`process`]: threads and memory of the process.
#![expect(
    unsafe_code,
    reason = "recvmmsg, sendmmsg, eventfd, ppoll, malloc_trim and mallopt have no safe wrapper"
)]

mod control_message;
pub mod process;
pub mod receiver;
pub mod sender;
pub mod socket;
pub mod wait;

#[cfg(test)]
mod tests;
