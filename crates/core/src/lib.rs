//! The media path of Millstream, without IO.
//!
//! Nothing here reads a clock, opens a socket or waits: datagrams, messages, time and randomness are arguments, and
//! datagrams come out of an outbox. So every test runs in virtual time, and the shells around it (threads, sockets,
//! clients of other servers) stay small.
//!
//! | folder | contents |
//! |---|---|
//! | [`media`] | basic types: ids, codecs, the shared packet, RTP and RTCP formats, bitstream parsing, payload formats, containers, clocks |
//! | [`sdp`] | parsing and validation of a peer's offer, and our answer to it |
//! | [`session`] | one peer's transport: ICE-lite, the guard, DTLS, SRTP, the outbox, feedback to publishers |
//! | [`hub`] | streams by name, their tracks, the ring shared by all viewers, mailboxes between shards |
//! | [`congestion`] | congestion control for viewers: from feedback to the layer that a path carries |
//! | [`sources`] | inputs of a stream: a publisher's RTP, or whole frames |
//! | [`outputs`] | outputs of a stream: the rewritten packets of each viewer |
//! | [`shard`] | one shard: its sessions, its timers, and which datagram belongs to whom |
pub mod congestion;
pub mod hub;
pub mod media;
pub mod outputs;
pub mod sdp;
pub mod session;
pub mod shard;
pub mod sources;
