//! Millstream: a WHIP/WHEP live-streaming gateway.
//!
//! One publisher sends a stream by WHIP (RFC 9725); many viewers watch it by WHEP (draft-ietf-wish-whep). Media is
//! forwarded as it came. Fan-out is the product: per forwarded packet the only work done for each viewer is to copy, to
//! patch the header, to seal, and to send, a whole frame at a time.
//!
//! ```text
//!        control plane (tokio)                        media plane (one thread per shard)
//!  POST /whip/{s}   POST /whep/{s}            +------- shard: one socket on the shared UDP port -------+
//!        |               |                    |  socket -> Session (ICE, guard, DTLS, SRTP) -> sources |
//!        +-- signalling -+  Message::Open     |                                                  |     |
//!            sdp: offer -+------------------->|  mailbox                               hub: ring + batch --> other
//!            and answer                       |  socket <- Outbox <- Session <- outputs <--------+     |    shards
//!                                             +--------------------------------------------------------+
//! ```
//!
//! # Map
//!
//! | folder | holds |
//! |---|---|
//! | [`media`] | vocabulary: ids, codecs, the shared packet, RTP and RTCP formats, what bitstreams say, payloads of frames, clocks |
//! | [`sdp`] | a peer's offer, validated and typed, and our answer to it |
//! | [`session`] | one peer without IO: ICE-lite, the guard, DTLS, SRTP, the outbox, feedback to publishers |
//! | [`hub`] | streams by name, their tracks, the ring that all viewers share, mailboxes between shards |
//! | [`sources`] | from a publisher's RTP, or a camera's frames, to the tracks of its stream |
//! | [`outputs`] | from the tracks to each viewer's own line of packets |
//! | [`shard`] | the threads: sockets, the turn, timers; [`shard::MediaPlane`] is the handle on all of it |
//! | [`signalling`] | HTTP: WHIP, WHEP, session resources, access, limits, pages |
//! | [`config`], [`telemetry`] | typed configuration; logs |
//! | [`gateway`] | starts and stops the parts in order |
//!
//! A folder uses only what stands above it in this table; `tests/layers.rs` reads the `use` lines.
//!
//! # Questions
//!
//! * Where does a datagram enter? [`shard::core::Core::handle_datagram`].
//! * Who owns a session? One shard, from offer to close: [`shard::peers::Peer`].
//! * What happens when a viewer is slow? Its packets are dropped by the kernel and counted
//!   ([`shard::socket::SendCounters`]); it asks again by NACK and is answered from the ring, within a budget.
//! * What happens when a shard is slow? Its mailbox overflows; it reads what it missed from the ring
//!   ([`outputs::whep::Viewer::on_lost_batches`]).
//! * What closes a session? Every reason is a [`session::CloseReason`].
//! * Which files name a webrtc-rs crate? Those in `session/` and `sdp/`.
//!
//! # Invariants
//!
//! 1. A session lives on one shard from offer to close; nothing in it is shared or locked.
//! 2. In `media`, `hub`, `session`, `sdp`, `sources` and `outputs` time and randomness are arguments; the client in
//!    `sources/rtsp` is a shell and gives them.
//! 3. A stream has one active source; a viewer sees one unbroken line of SSRC, sequence numbers and timestamps per
//!    track, across joins, retransmissions, layer switches and source changes.
//! 4. Video begins, and resumes after a loss of our own, at a key frame.
//! 5. Nothing on the media path waits. A full mailbox or socket drops and counts.
//! 6. No (key, SSRC, index) is ever sealed twice with different bytes.
//! 7. A datagram is answered or believed only after its sender was authenticated by ICE, and an address is not taken from
//!    the session that is heard there; the destination moves only on an authenticated nomination, and only to where
//!    somebody has shown to receive.
//! 8. Input from outside is never a panic and never a 5xx; it is a typed refusal or a counter with a reason.
//! 9. Everything is bounded: bodies, candidates, half-open sessions, handshake bytes, frames, queues, retransmissions
//!    per viewer.
//!
//! # Glossary
//!
//! * **stream**: what has a name; it has at most one source and one track of each kind.
//! * **source**: what feeds a stream: a publisher or a camera.
//! * **publisher**, **viewer**: the peers of WHIP and of WHEP sessions.
//! * **camera**: an RTSP server that the gateway fetches a stream from.
//! * **feed**: a source that is no peer, as the hub sees it; it lives on no shard.
//! * **session**: one peer's transport, from offer to close; it has an unguessable URL.
//! * **track**: one kind of media of a stream; it outlives its sources.
//! * **line**: the numbering of a track, or of one viewer's track, that never breaks.
//! * **encoding**: one simulcast version of a publisher's track; viewers get one of them.
//! * **key frame**: a frame that a decoder can begin with.
//! * **ring**: the recent packets of a track: key frame cache and retransmission history in one.
//! * **turn**: one round of a shard's loop; what arrived in it is forwarded in one go.
//! * **run**: consecutive datagrams to one destination that the kernel takes in one call.
pub mod api;
pub mod config;
pub mod gateway;
pub mod hub;
pub mod media;
pub mod outputs;
pub mod pipeline;
pub mod repair;
pub mod sdp;
pub mod session;
pub mod shard;
pub mod signalling;
pub mod sources;
pub mod telemetry;

pub use config::Config;
pub use gateway::{Gateway, GatewayError};
