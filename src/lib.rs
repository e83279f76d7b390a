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
//! | [`media`] | vocabulary: ids, codecs, the shared packet, RTP and RTCP formats, what bitstreams say, payloads of frames, containers, clocks |
//! | [`sdp`] | a peer's offer, validated and typed, and our answer to it |
//! | [`session`] | one peer without IO: ICE-lite, the guard, DTLS, SRTP, the outbox, feedback to publishers |
//! | [`hub`] | streams by name, their tracks, the ring that all viewers share, mailboxes between shards |
//! | [`pipeline`] | GStreamer, and segments of HLS, in worker processes: descriptions, the wire, supervision; the worker itself |
//! | [`config`], [`telemetry`] | configuration as data, with its mistakes; logs |
//! | [`sources`] | from a publisher's RTP, or the frames of a camera, a pipeline or an origin of HLS, to the tracks of its stream |
//! | [`outputs`] | from the tracks to each viewer's own line of packets, and to the parts and playlists of LL-HLS |
//! | [`transcode`] | what browsers cannot play, made playable by one worker for all viewers who need it |
//! | [`shard`] | the threads: sockets, the turn, timers; [`shard::MediaPlane`] is the handle on all of it |
//! | [`access`] | who may do what: tokens, signed tokens, a service that is asked |
//! | [`signalling`] | HTTP: WHIP, WHEP, HLS, session resources, access, limits, pages |
//! | [`api`] | the control API |
//! | [`doctor`] | whether this machine can serve, and what to do where not |
//! | [`gateway`] | starts and stops the parts in order |
//!
//! A folder uses only what stands above it in this table; `tests/layers.rs` reads the `use` lines.
//!
//! # Questions
//!
//! * Where does a datagram enter? [`shard::core::Core::handle_datagram`].
//! * Who owns a session? One shard, from offer to close: [`shard::peers::Peer`].
//! * What happens when a viewer is slow? Its packets are dropped by the kernel and counted
//!   ([`shard::socket::SendCounters`]), or by the bounded queue of its TCP connection ([`shard::tcp`]); it asks again by
//!   NACK and is answered from the ring, within a budget.
//! * What happens when a shard is slow? Its mailbox overflows; it reads what it missed from the ring
//!   ([`outputs::whep::Viewer::on_lost_batches`]).
//! * What happens when a shard stands still? [`shard::watchdog`].
//! * What happens when a worker crashes, hangs or grows? [`pipeline::process::ProcessError`]; it is started anew.
//! * Which files name GStreamer? Those in `pipeline/worker/`.
//! * What closes a session? Every reason is a [`session::CloseReason`].
//! * Which files name a webrtc-rs crate? Those in `session/` and `sdp/`.
//!
//! # Invariants
//!
//! 1. A session lives on one shard from offer to close; nothing in it is shared or locked.
//! 2. In `media`, `hub`, `session`, `sdp`, `sources` and `outputs` time and randomness are arguments; `sources/rtsp`,
//!    `sources/fetch`, the network's half of `sources/hls` and two files of `outputs/hls` are shells and give them.
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
//!    per viewer, segments, what a worker may use and say.
//!
//! # Glossary
//!
//! * **stream**: what has a name; it has at most one source and one track of each kind.
//! * **source**: what feeds a stream: a publisher, a camera, a pipeline or an origin.
//! * **origin**: a server of HLS that the gateway fetches a stream from; **rendition**: one series of its segments;
//!   **timeline**: what lies between two discontinuities.
//! * **pipeline**: a launch line of GStreamer in a file; **worker**: the process that runs one.
//! * **transcode**: making of a track what a viewer can play; the **transcoded stream** beside a stream has the result.
//! * **tap**: a reader of a stream that is no viewer.
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
pub mod access;
pub mod api;
pub mod config;
pub mod doctor;
pub mod gateway;
pub mod hub;
pub mod media;
pub mod outputs;
pub mod pipeline;
pub mod sdp;
pub mod session;
pub mod shard;
pub mod signalling;
pub mod sources;
pub mod telemetry;
pub mod transcode;

pub use config::Config;
pub use gateway::{Gateway, GatewayError};
