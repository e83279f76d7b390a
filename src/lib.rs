//! Millstream: a WHIP/WHEP live-streaming gateway.
//!
//! One publisher sends a stream over WHIP (RFC 9725); many viewers watch it over WHEP (draft-ietf-wish-whep). Media is
//! forwarded unchanged. The design optimizes fan-out: forwarding a packet to one more viewer only copies it, rewrites
//! its header, encrypts it and sends it, one whole frame at a time.
//!
//! ```text
//!        control plane (tokio)                        media plane (one thread per shard)
//!  POST /whip/{s}   POST /whep/{s}            +------- shard: one socket on the shared UDP port -------+
//!        |               |                    |  socket -> Session (ICE, guard, DTLS, SRTP) -> sources |
//!        +---- http -----+  Message::Open     |                                                  |     |
//!            sdp: offer -+------------------->|  mailbox                               hub: ring + batch --> other
//!            and answer                       |  socket <- Outbox <- Session <- outputs <--------+     |    shards
//!                                             +--------------------------------------------------------+
//! ```
//!
//! # Map
//!
//! The media path without IO is a crate of its own, [`millstream_core`]: formats, SDP, sessions, streams, the WHIP source,
//! the WHEP output, the shard. This crate holds the shells around it, and the control plane:
//!
//! | folder | contents |
//! |---|---|
//! | [`pipeline`] | worker processes that run GStreamer or demux HLS segments: descriptions, supervision, the demuxer |
//! | [`sources`] | clients of other servers: cameras, pipelines and HLS origins, written to the tracks of a stream |
//! | [`outputs`] | the parts and playlists of LL-HLS |
//! | [`transcode`] | transcoding of formats that viewers cannot play: one worker per stream, shared by all viewers who need it |
//! | [`shard`] | media threads: sockets, ticks, timers; [`shard::MediaPlane`] is the handle on all of them |
//! | [`access`] | authorization: tokens, signed tokens, the authorization webhook |
//! | [`control`] | the session table, client policy, reload requests; no HTTP |
//! | [`http`] | WHIP, WHEP, HLS, session resources, authentication, limits, pages, metrics, the control API |
//! | [`config`], [`telemetry`] | typed configuration; logs |
//! | [`doctor`] | diagnosis of this host, with suggested fixes |
//! | [`gateway`] | starts and stops the parts in order |
//!
//! A folder uses only the folders above it in this table; `tests/layers.rs` checks the `use` lines.
//!
//! # Questions
//!
//! * Where does a datagram enter? [`millstream_core::shard::ShardCore::handle_datagram`].
//! * Who owns a session? One shard, from offer to close: [`millstream_core::shard::peers::Peer`].
//! * What happens when a viewer is slow? The kernel drops its packets, which are counted
//!   ([`millstream_core::shard::counters::SendCounters`]). The viewer requests them by NACK; the ring answers, within a budget.
//! * What happens when a shard is slow? Its mailbox overflows, and it reads the missed packets from the ring
//!   ([`millstream_core::outputs::whep::Viewer::handle_mailbox_overflow`]).
//! * What happens when a shard hangs? [`shard::watchdog`].
//! * What happens when a worker crashes, hangs or exceeds its memory limit? [`pipeline::worker_process::WorkerProcessError`]; it is
//!   restarted.
//! * Which files use GStreamer? Those of `crates/worker`, a program of its own.
//! * What closes a session? Every reason is a [`millstream_core::session::CloseReason`].
//! * Which files use the webrtc-rs crates? Those in `session/` and `sdp/` of the core crate.
//!
//! # Invariants
//!
//! 1. A session lives on one shard from offer to close; nothing in it is shared or locked.
//! 2. In the core crate time and randomness are arguments. It uses neither tokio nor a socket; the shells supply both.
//! 3. A stream has one active source. A viewer receives one SSRC with continuous sequence numbers and timestamps per
//!    track, across joins, retransmissions, layer switches and source changes.
//! 4. Video starts at a key frame, and resumes at one after a loss inside the gateway.
//! 5. Nothing on the media path waits. A full mailbox or socket drops and counts.
//! 6. No (key, SSRC, index) is ever used to encrypt two different packets.
//! 7. A datagram is only answered or processed after ICE has authenticated its sender. An address in use by a session
//!    is not reassigned to another one. The destination of a session moves only on an authenticated nomination, and
//!    only to an address that was shown to receive.
//! 8. Input from outside never causes a panic or a 5xx; it yields a typed refusal or increments a counter with a
//!    reason.
//! 9. Everything is bounded: bodies, candidates, half-open sessions, handshake bytes, frames, queues, retransmissions
//!    per viewer, segments, and the resources and messages of a worker.
//!
//! # Glossary
//!
//! * **back channel**: the audio that a camera receives, by ONVIF.
//! * **camera**: an RTSP server that the gateway pulls a stream from.
//! * **frame source**: a source that delivers whole frames instead of RTP from a peer: a camera, a pipeline or an
//!   origin. It belongs to no shard.
//! * **key frame**: a frame that a decoder can start with.
//! * **layer**: one simulcast layer of a publisher's video track, or one of the streams of a camera, with its own RID,
//!   resolution and bitrate; a viewer receives one layer at a time.
//! * **mailbox**: the bounded message queue of a shard; its writers never block.
//! * **origin**: an HLS server that the gateway pulls a stream from.
//! * **packager**: produces the playlists, segments and parts of LL-HLS from the tracks of a stream.
//! * **pipeline**: a GStreamer launch line in a file of `pipelines/`, with typed parameters and limits.
//! * **publisher**: the peer of a WHIP session.
//! * **rendition**: one series of HLS segments, of an origin or of our packager.
//! * **rewriter**: maps the sequence numbers and timestamps of a source or layer onto the continuous ones of its track
//!   or viewer.
//! * **ring**: the recent packets of a track; it serves as key frame cache and as retransmission history.
//! * **run**: consecutive datagrams to one destination that the kernel sends in one call (UDP_SEGMENT).
//! * **session**: the transport of one peer, from offer to close; its URL cannot be guessed.
//! * **shard**: one media thread with a socket of its own on the shared UDP port.
//! * **source**: the input of a stream: a publisher, a camera, a pipeline or an origin.
//! * **stream**: a named broadcast; it has at most one active source and one track of each kind.
//! * **talker**: the peer of a WHIP session whose audio goes to a camera.
//! * **tap**: a reader of a stream that is not a viewer, such as the packager or a transcode.
//! * **tick**: one iteration of a shard's loop; all packets that arrived in it are forwarded together.
//! * **timeline**: the part of an HLS rendition between two discontinuities.
//! * **track**: the audio or the video of a stream; it outlives its sources.
//! * **transcode**: conversion of a track to a format that viewers can play; its result is the **transcoded stream**.
//! * **viewer**: the peer of a WHEP session.
//! * **worker**: a sandboxed process that runs one pipeline or demuxes HLS segments.
pub mod access;
pub mod config;
pub mod control;
pub mod doctor;
pub mod gateway;
mod header_list;
pub mod http;
pub mod outputs;
pub mod pipeline;
pub mod shard;
pub mod sources;
pub mod telemetry;
pub mod transcode;

pub use config::Config;
pub use gateway::{Gateway, GatewayStartError};
