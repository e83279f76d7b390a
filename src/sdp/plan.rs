//! What a negotiated description means for a session: plain data, made by the answerer, consumed by `session` and
//! `shard`. Nothing here knows SDP text.

use crate::media::{Format, Kind, Mid, Pt, Rid, Ssrc};

/// ICE username fragment and password of one side (RFC 8839 §5.4).
#[derive(Clone, PartialEq, Eq)]
pub struct IceCredentials {
    pub ufrag: String,
    pub pwd: String,
}

impl std::fmt::Debug for IceCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IceCredentials")
            .field("ufrag", &self.ufrag)
            .finish_non_exhaustive()
    }
}

/// Hash functions accepted for certificate fingerprints (RFC 8122 §5, RFC 8827 §6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FingerprintHash {
    Sha256,
    Sha384,
    Sha512,
}

/// Digest of a DTLS certificate in DER form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub hash: FingerprintHash,
    pub digest: Vec<u8>,
}

/// Our role in the DTLS handshake (RFC 8842 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DtlsRole {
    /// We send the ClientHello: the peer offered `setup:passive`.
    Client,
    /// We wait for it: the peer offered `setup:actpass` or `setup:active`.
    Server,
}

/// The one bundled transport of a session, from the peer's side.
#[derive(Clone, Debug)]
pub struct Transport {
    pub remote: IceCredentials,
    /// At least one; the peer's certificate has to match any one of them.
    pub fingerprints: Vec<Fingerprint>,
    pub role: DtlsRole,
}

/// RTCP feedback negotiated for a payload type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feedback {
    pub nack: bool,
    pub pli: bool,
    pub fir: bool,
    pub transport_cc: bool,
    pub remb: bool,
}

/// Ids of the RTP header extensions that both sides agreed on; `None` is not negotiated (RFC 8285).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    pub mid: Option<u8>,
    pub rid: Option<u8>,
    pub transcoded_rid: Option<u8>,
    pub transport_cc: Option<u8>,
    pub abs_send_time: Option<u8>,
    pub abs_capture_time: Option<u8>,
    pub audio_level: Option<u8>,
    pub playout_delay: Option<u8>,
}

/// A payload type of an m-section with its retransmission partner (RFC 4588).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NegotiatedCodec {
    pub pt: Pt,
    pub rtx_pt: Option<Pt>,
    pub format: Format,
    pub feedback: Feedback,
}

/// An SSRC that the publisher declared, with its retransmission SSRC where it declared one (RFC 5576).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeclaredSsrc {
    pub primary: Ssrc,
    pub rtx: Option<Ssrc>,
}

/// A track that a publisher sends.
#[derive(Clone, Debug)]
pub struct IncomingTrack {
    pub mid: Mid,
    pub kind: Kind,
    /// All accepted payload types, the peer's preference first. Never empty.
    pub codecs: Vec<NegotiatedCodec>,
    pub extensions: Extensions,
    /// May be empty: the SSRC is then learned from the MID extension or from a payload type no other track has.
    pub ssrcs: Vec<DeclaredSsrc>,
    /// Simulcast encodings in the order of the offer, which is not a quality order. Empty without simulcast.
    pub rids: Vec<Rid>,
    /// RTCP about this track may be a packet that is no report (RFC 5506). RFC 8859 §5.1 wants the same in all bundled
    /// sections; FFmpeg 9.0.2 and Firefox offer it for video alone.
    pub reduced_size_rtcp: bool,
}

/// A track that we send to a viewer.
#[derive(Clone, Debug)]
pub struct OutgoingTrack {
    pub mid: Mid,
    pub kind: Kind,
    /// All payload types the viewer can take, the one that suits the source first. Never empty.
    pub codecs: Vec<NegotiatedCodec>,
    pub extensions: Extensions,
    pub ssrc: Ssrc,
    /// Present when any of `codecs` has an `rtx_pt`.
    pub rtx_ssrc: Option<Ssrc>,
}

/// What a WHIP offer was answered with.
#[derive(Clone, Debug)]
pub struct Publication {
    pub transport: Transport,
    /// At most one audio and one video track.
    pub tracks: Vec<IncomingTrack>,
}

impl IncomingTrack {
    /// Whether the publisher said that it takes PLI or FIR for this track (RFC 4585 §4.2). FFmpeg 9.0.2 does not:
    /// its muxer has no way back to the encoder.
    pub fn takes_key_frame_requests(&self) -> bool {
        self.kind == Kind::Video && self.codecs.iter().any(|codec| codec.feedback.pli || codec.feedback.fir)
    }
}

impl Publication {
    /// Whether the publisher can be asked for a key frame.
    pub fn takes_key_frame_requests(&self) -> bool {
        self.tracks.iter().any(IncomingTrack::takes_key_frame_requests)
    }
}

/// What a WHEP offer was answered with.
#[derive(Clone, Debug)]
pub struct Playback {
    pub transport: Transport,
    /// At most one audio and one video track.
    pub tracks: Vec<OutgoingTrack>,
    /// The CNAME written into the answer; RTCP SDES repeats it.
    pub cname: String,
}

/// What a stream carries at the moment, judged from its bitstream once there is one, else from the publisher's offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceFormats {
    pub video: Option<Format>,
    pub audio: Option<Format>,
}

/// What a stream carries, and what can be done for viewers who cannot play it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AvailableFormats {
    pub formats: SourceFormats,
    /// No browser plays its picture as it is.
    pub unplayable_video: bool,
    /// No browser plays its sound as it is.
    pub unplayable_audio: bool,
    /// H.264 is made of its picture for viewers who need it.
    pub transcodable_video: bool,
    /// Opus is made of its sound for viewers who need it.
    pub transcodable_audio: bool,
}

impl SourceFormats {
    /// The format of one kind; `None` when the stream does not carry that kind.
    pub fn of(&self, kind: Kind) -> Option<Format> {
        match kind {
            Kind::Audio => self.audio,
            Kind::Video => self.video,
        }
    }
}
