//! Decides how a track reaches a client: as it is, transcoded, or not at all.

use super::aac::AacConfig;
use super::{CodecFormat, H264Profile, MediaKind, ProfileLevelId};

/// A transcode output, produced by one shared worker for all viewers of a stream that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TranscodeTarget {
    /// Any video to H.264, Constrained Baseline, without B-frames.
    H264,
    /// Any audio to Opus.
    Opus,
    /// Any audio to AAC, for HLS players without Opus support.
    Aac,
    /// Any video to JPEG images, for snapshots.
    Jpeg,
}

impl TranscodeTarget {
    /// All targets.
    pub const ALL_TARGETS: [Self; 4] = [Self::H264, Self::Opus, Self::Aac, Self::Jpeg];

    /// The default target of a kind for WebRTC viewers.
    pub fn webrtc_target_for_kind(kind: MediaKind) -> Self {
        match kind {
            MediaKind::Video => Self::H264,
            MediaKind::Audio => Self::Opus,
        }
    }

    /// Media kind of input and output.
    pub fn kind(self) -> MediaKind {
        match self {
            Self::H264 | Self::Jpeg => MediaKind::Video,
            Self::Opus | Self::Aac => MediaKind::Audio,
        }
    }

    /// Format of the output.
    pub fn format(self) -> CodecFormat {
        match self {
            Self::H264 => CodecFormat::H264 {
                profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
                packetization_mode: 1,
            },
            Self::Opus => CodecFormat::Opus { stereo: true },
            Self::Aac => CodecFormat::Aac(AacConfig::LC_48KHZ_STEREO),
            Self::Jpeg => CodecFormat::Jpeg,
        }
    }

    /// Label in stream names, logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::H264 => "h264",
            Self::Opus => "opus",
            Self::Aac => "aac",
            Self::Jpeg => "jpeg",
        }
    }
}

/// Whether browsers cannot play a track as it is: the codec is not available in WebRTC, browser decoders lack the
/// profile, or the track is `has_b_frames`, i.e. has B-frames. WebRTC renders frames in the order of their arrival.
pub(crate) fn is_unplayable_in_browsers(format: CodecFormat, has_b_frames: bool) -> bool {
    match format {
        CodecFormat::Aac(_) | CodecFormat::Jpeg => true,
        CodecFormat::H264 { profile, .. } => {
            has_b_frames
                || matches!(
                    profile.profile(),
                    H264Profile::Extended | H264Profile::High444 | H264Profile::Other
                )
        }
        CodecFormat::H265 { .. } => has_b_frames,
        CodecFormat::Vp8 | CodecFormat::Vp9 { .. } | CodecFormat::Av1 { .. } => false,
        CodecFormat::Opus { .. } | CodecFormat::Pcmu | CodecFormat::Pcma => false,
    }
}

/// A track as its source sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceTrack {
    pub format: CodecFormat,
    /// The video has B-frames: decoding order and presentation order differ.
    pub has_b_frames: bool,
}

impl SourceTrack {
    /// A track without B-frames.
    pub fn new_without_b_frames(format: CodecFormat) -> Self {
        Self {
            format,
            has_b_frames: false,
        }
    }

    /// Returns whether WebRTC implementations of browsers can play this; see [`is_unplayable_in_browsers`].
    pub fn is_webrtc_playable(self) -> bool {
        !is_unplayable_in_browsers(self.format, self.has_b_frames)
    }
}

/// How a track reaches a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackDelivery {
    /// The packets of the source.
    Passthrough,
    /// The packets of the transcoded stream.
    Transcode(TranscodeTarget),
    /// Neither.
    Unavailable(TrackUnavailableReason),
}

/// Why a track does not reach a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackUnavailableReason {
    /// The client does not play the track, and this host cannot transcode it.
    NoTranscoder,
    /// The client plays neither the track nor its transcode.
    NotAcceptedByClient,
}

/// Decides how a track reaches a client that accepts what `accepts` says. `can_transcode_codec_for_browsers` tells whether this host can
/// transcode the track to `target`.
pub fn choose_track_delivery(
    source: SourceTrack,
    target: TranscodeTarget,
    can_transcode: bool,
    accepts: impl Fn(SourceTrack) -> bool,
) -> TrackDelivery {
    let transcoded = SourceTrack::new_without_b_frames(target.format());
    match (accepts(source), can_transcode, accepts(transcoded)) {
        (true, _, _) => TrackDelivery::Passthrough,
        (false, true, true) => TrackDelivery::Transcode(target),
        (false, false, _) => TrackDelivery::Unavailable(TrackUnavailableReason::NoTranscoder),
        (false, true, false) => TrackDelivery::Unavailable(TrackUnavailableReason::NotAcceptedByClient),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Codec;

    const H265: CodecFormat = CodecFormat::H265 {
        profile_id: 1,
        tier_flag: 0,
    };

    fn decide(format: CodecFormat, reordered: bool, can_transcode: bool, codecs: &[Codec]) -> TrackDelivery {
        let source = SourceTrack {
            format,
            has_b_frames: reordered,
        };
        choose_track_delivery(
            source,
            TranscodeTarget::webrtc_target_for_kind(MediaKind::Video),
            can_transcode,
            |track| track.is_webrtc_playable() && codecs.contains(&track.format.codec()),
        )
    }

    #[test]
    fn a_track_is_transcoded_only_for_clients_that_cannot_play_it_and_can_play_the_result() {
        let h264 = TranscodeTarget::H264;
        let baseline = h264.format();
        for (format, reordered, can_transcode, codecs, expected) in [
            (
                CodecFormat::Vp8,
                false,
                true,
                &[Codec::Vp8, Codec::H264][..],
                TrackDelivery::Passthrough,
            ),
            (H265, false, true, &[Codec::H264][..], TrackDelivery::Transcode(h264)),
            (
                H265,
                false,
                true,
                &[Codec::H264, Codec::H265][..],
                TrackDelivery::Passthrough,
            ),
            (
                H265,
                true,
                true,
                &[Codec::H264, Codec::H265][..],
                TrackDelivery::Transcode(h264),
            ),
            (baseline, true, true, &[Codec::H264][..], TrackDelivery::Transcode(h264)),
            (
                H265,
                false,
                true,
                &[Codec::Vp8][..],
                TrackDelivery::Unavailable(TrackUnavailableReason::NotAcceptedByClient),
            ),
            (
                H265,
                false,
                false,
                &[Codec::H264][..],
                TrackDelivery::Unavailable(TrackUnavailableReason::NoTranscoder),
            ),
        ] {
            let plan = decide(format, reordered, can_transcode, codecs);
            assert_eq!(plan, expected, "{format:?} {reordered} {can_transcode} {codecs:?}");
        }
    }
}
