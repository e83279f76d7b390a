//! The result of a negotiation as plain data, for `session` and `shard`. Nothing here depends on SDP text.

use bytes::Bytes;

use crate::media::track_delivery::{self, SourceTrack, TrackDelivery, TranscodeTarget};
use crate::media::{Codec, CodecFormat, MediaKind, Mid, PayloadType, Rid, Ssrc};

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

/// Accepted hash functions of certificate fingerprints (RFC 8122 §5, RFC 8827 §6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FingerprintHashFunction {
    Sha256,
    Sha384,
    Sha512,
}

/// Digest of a DTLS certificate in DER form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub hash_function: FingerprintHashFunction,
    pub digest: Vec<u8>,
}

/// The gateway's role in the DTLS handshake (RFC 8842 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DtlsRole {
    /// The gateway sends the ClientHello: the peer offered `setup:passive`.
    Client,
    /// The peer sends the ClientHello: it offered `setup:actpass` or `setup:active`.
    Server,
}

/// The peer's side of the bundled transport of a session.
#[derive(Clone, Debug)]
pub struct RemoteTransport {
    pub remote_credentials: IceCredentials,
    /// At least one; the peer's certificate must match any of them.
    pub fingerprints: Vec<Fingerprint>,
    pub gateway_dtls_role: DtlsRole,
    /// `None` unless the data channel section was accepted.
    pub data_channels: Option<NegotiatedDataChannels>,
}

/// The negotiated data channels (RFC 8841).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NegotiatedDataChannels {
    pub peer_role: DataPeerRole,
    /// Longest message in bytes that the peer receives (RFC 8841 §6).
    pub max_sent_message_size: u32,
}

/// What the peer at the other end of data channels is; its limits follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPeerRole {
    Publisher,
    Viewer,
}

impl DataPeerRole {
    /// Longest message in bytes that the gateway receives.
    pub fn max_received_message_size(self) -> u32 {
        match self {
            Self::Publisher => 64 << 10,
            Self::Viewer => 16 << 10,
        }
    }
}

/// RTCP feedback negotiated for a payload type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtcpFeedback {
    pub nack: bool,
    pub pli: bool,
    pub fir: bool,
    pub transport_cc: bool,
    pub remb: bool,
}

/// Ids of the negotiated RTP header extensions; `None` if not negotiated (RFC 8285).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtpHeaderExtensionIds {
    pub mid: Option<u8>,
    pub rid: Option<u8>,
    /// RID in retransmissions (`repaired-rtp-stream-id`, RFC 8852).
    pub repaired_rid: Option<u8>,
    pub transport_cc: Option<u8>,
    pub abs_send_time: Option<u8>,
    pub abs_capture_time: Option<u8>,
    pub audio_level: Option<u8>,
    pub playout_delay: Option<u8>,
}

/// A payload type of an m-section with its RTX payload type (RFC 4588).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NegotiatedCodec {
    pub pt: PayloadType,
    pub rtx_pt: Option<PayloadType>,
    pub format: CodecFormat,
    pub rtcp_feedback: RtcpFeedback,
}

/// An SSRC that the publisher declared, with its RTX SSRC if it declared one (RFC 5576).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeclaredSsrc {
    pub primary: Ssrc,
    pub rtx: Option<Ssrc>,
}

/// A track that a publisher sends.
#[derive(Clone, Debug)]
pub struct IncomingTrack {
    pub mid: Mid,
    pub kind: MediaKind,
    /// All accepted payload types in the peer's order of preference. Never empty.
    pub codecs: Vec<NegotiatedCodec>,
    pub extension_ids: RtpHeaderExtensionIds,
    /// May be empty: the SSRC is then learned from the MID extension or from a payload type that no other track has.
    pub ssrcs: Vec<DeclaredSsrc>,
    /// Simulcast layers in the order of the offer, which is not a quality order. Empty without simulcast.
    pub rids: Vec<Rid>,
    /// Simulcast layers that have SSRCs instead of RIDs (`a=ssrc-group:SIM`), in the order of the offer. Empty if there are
    /// `rids`.
    pub layer_ssrcs: Vec<DeclaredSsrc>,
    /// Parameter sets in the format parameters of H.264 and H.265, as NAL units.
    pub parameter_sets: Vec<(Codec, Vec<Bytes>)>,
    /// Reduced-size RTCP (RFC 5506) may be sent for this track. RFC 8859 §5.1 requires the same value in all bundled
    /// sections, but FFmpeg 9.0.2 and Firefox offer it for video alone.
    pub reduced_size_rtcp: bool,
}

/// A track that the gateway sends to a viewer.
#[derive(Clone, Debug)]
pub struct OutgoingTrack {
    pub mid: Mid,
    pub kind: MediaKind,
    /// All payload types that the viewer can receive, the best match for the source first. Never empty.
    pub codecs: Vec<NegotiatedCodec>,
    pub extension_ids: RtpHeaderExtensionIds,
    pub ssrc: Ssrc,
    /// Present if any of `codecs` has an `rtx_pt`.
    pub rtx_ssrc: Option<Ssrc>,
}

/// The negotiated result of a WHIP offer.
#[derive(Clone, Debug)]
pub struct NegotiatedPublication {
    pub transport: RemoteTransport,
    /// At most one audio and one video track.
    pub tracks: Vec<IncomingTrack>,
}

impl IncomingTrack {
    /// Whether the publisher negotiated PLI or FIR for this track (RFC 4585 §4.2). FFmpeg 9.0.2 does not, because its
    /// muxer cannot reach the encoder.
    pub fn accepts_key_frame_requests(&self) -> bool {
        self.kind == MediaKind::Video
            && self
                .codecs
                .iter()
                .any(|codec| codec.rtcp_feedback.pli || codec.rtcp_feedback.fir)
    }

    /// Whether key frames are requested by PLI; else by FIR.
    pub fn accepts_picture_loss_indications(&self) -> bool {
        self.codecs.iter().any(|codec| codec.rtcp_feedback.pli)
    }
}

impl NegotiatedPublication {
    /// Whether the publisher accepts key frame requests.
    pub fn accepts_key_frame_requests(&self) -> bool {
        self.tracks.iter().any(IncomingTrack::accepts_key_frame_requests)
    }
}

/// The negotiated result of a WHEP offer.
#[derive(Clone, Debug)]
pub struct NegotiatedPlayback {
    /// What is sent adapts to the path of the viewer.
    pub uses_congestion_control: bool,
    pub transport: RemoteTransport,
    /// At most one audio and one video track.
    pub tracks: Vec<OutgoingTrack>,
    /// The CNAME of the answer; RTCP SDES repeats it.
    pub cname: String,
}

/// The formats that a stream has now, taken from its bitstream or, before media arrives, from the publisher's offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AudioVideoFormats {
    pub video: Option<CodecFormat>,
    pub audio: Option<CodecFormat>,
}

/// The tracks that a stream can offer to viewers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AvailableTracks {
    pub video: Option<AvailableTrack>,
    pub audio: Option<AvailableTrack>,
    /// The formats of layers that have their own, the best layer first.
    pub video_layers: [Option<SourceTrack>; MAX_LAYERS_WITH_OWN_FORMATS],
}

/// Layers of a stream that have formats of their own: the streams of a camera.
pub const MAX_LAYERS_WITH_OWN_FORMATS: usize = 4;

/// A track as its source sends it, and whether it can be transcoded on demand: video to H.264, audio to Opus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvailableTrack {
    pub source_track: SourceTrack,
    pub can_transcode: bool,
}

impl AvailableTrack {
    /// Decides how the track reaches a WebRTC viewer that can receive the formats that `takes` says.
    pub(crate) fn choose_passthrough_or_transcode(&self, takes: impl Fn(CodecFormat) -> bool) -> TrackDelivery {
        let target = TranscodeTarget::webrtc_target_for_kind(self.source_track.format.codec().kind());
        let accepts = |track: SourceTrack| track.is_webrtc_playable() && takes(track.format);
        track_delivery::choose_track_delivery(self.source_track, target, self.can_transcode, accepts)
    }

    /// Returns the format to send by a plan; the source's own one if nothing can be sent, for the error text.
    pub(crate) fn format_for_delivery(&self, plan: TrackDelivery) -> CodecFormat {
        match plan {
            TrackDelivery::Transcode(target) => target.format(),
            TrackDelivery::Passthrough | TrackDelivery::Unavailable(_) => self.source_track.format,
        }
    }
}

impl AvailableTracks {
    /// Returns the best layer with a format of its own that a viewer plays who can receive the formats that `takes` says.
    pub fn best_playable_layer(&self, takes: impl Fn(CodecFormat) -> bool) -> Option<SourceTrack> {
        let mut layers = self.video_layers.into_iter().flatten();
        layers.find(|layer| layer.is_webrtc_playable() && takes(layer.format))
    }

    /// Returns the formats that a viewer is sent that can receive the formats that `takes` says.
    pub fn formats_sent_to_viewer(&self, takes: impl Fn(CodecFormat) -> bool) -> AudioVideoFormats {
        let format = |track: AvailableTrack| track.format_for_delivery(track.choose_passthrough_or_transcode(&takes));
        let layer = self.best_playable_layer(&takes);
        AudioVideoFormats {
            video: layer.map(|layer| layer.format).or_else(|| self.video.map(format)),
            audio: self.audio.map(format),
        }
    }
}

impl AudioVideoFormats {
    /// Returns the format of one kind, or `None` if the stream has no track of that kind.
    pub(crate) fn format_of_kind(&self, kind: MediaKind) -> Option<CodecFormat> {
        match kind {
            MediaKind::Audio => self.audio,
            MediaKind::Video => self.video,
        }
    }
}
