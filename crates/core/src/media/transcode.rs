//! Decides how a track reaches a client: as it is, transcoded, or not at all.

use super::aac::AacConfig;
use super::{Format, H264Class, Kind, ProfileLevelId};

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
    pub const ALL: [Self; 4] = [Self::H264, Self::Opus, Self::Aac, Self::Jpeg];

    /// The default target of a kind for WebRTC viewers.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Video => Self::H264,
            Kind::Audio => Self::Opus,
        }
    }

    /// Media kind of input and output.
    pub fn kind(self) -> Kind {
        match self {
            Self::H264 | Self::Jpeg => Kind::Video,
            Self::Opus | Self::Aac => Kind::Audio,
        }
    }

    /// Format of the output.
    pub fn format(self) -> Format {
        match self {
            Self::H264 => Format::H264 {
                profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
                packetization_mode: 1,
            },
            Self::Opus => Format::Opus { stereo: true },
            Self::Aac => Format::Aac(AacConfig::STEREO),
            Self::Jpeg => Format::Jpeg,
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
/// profile, or the track is `reordered`, i.e. has B-frames. WebRTC renders frames in the order of their arrival.
pub fn is_unplayable(format: Format, reordered: bool) -> bool {
    match format {
        Format::Aac(_) | Format::Jpeg => true,
        Format::H264 { profile, .. } => {
            reordered
                || matches!(
                    profile.class(),
                    H264Class::Extended | H264Class::High444 | H264Class::Other
                )
        }
        Format::H265 { .. } => reordered,
        Format::Vp8 | Format::Vp9 { .. } | Format::Av1 { .. } => false,
        Format::Opus { .. } | Format::Pcmu | Format::Pcma => false,
    }
}

/// A track as its source sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceTrack {
    pub format: Format,
    /// The video has B-frames: decoding order and presentation order differ.
    pub reordered: bool,
}

impl SourceTrack {
    /// A track without B-frames.
    pub fn in_order(format: Format) -> Self {
        Self {
            format,
            reordered: false,
        }
    }

    /// Returns whether WebRTC implementations of browsers can play this; see [`is_unplayable`].
    pub fn is_webrtc(self) -> bool {
        !is_unplayable(self.format, self.reordered)
    }
}

/// How a track reaches a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackPlan {
    /// The packets of the source.
    AsIs,
    /// The packets of the transcoded stream.
    Transcode(TranscodeTarget),
    /// Neither.
    Nothing(NoTrack),
}

/// Why a track does not reach a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTrack {
    /// The client does not play the track, and this host cannot transcode it.
    NoTranscoder,
    /// The client plays neither the track nor its transcode.
    NotAccepted,
}

/// Decides how a track reaches a client that accepts what `accepts` says. `can_transcode` tells whether this host can
/// transcode the track to `target`.
pub fn plan(
    source: SourceTrack,
    target: TranscodeTarget,
    can_transcode: bool,
    accepts: impl Fn(SourceTrack) -> bool,
) -> TrackPlan {
    let transcoded = SourceTrack::in_order(target.format());
    match (accepts(source), can_transcode, accepts(transcoded)) {
        (true, _, _) => TrackPlan::AsIs,
        (false, true, true) => TrackPlan::Transcode(target),
        (false, false, _) => TrackPlan::Nothing(NoTrack::NoTranscoder),
        (false, true, false) => TrackPlan::Nothing(NoTrack::NotAccepted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Codec;

    const H265: Format = Format::H265 {
        profile_id: 1,
        tier_flag: 0,
    };

    fn decide(format: Format, reordered: bool, can_transcode: bool, codecs: &[Codec]) -> TrackPlan {
        let source = SourceTrack { format, reordered };
        plan(source, TranscodeTarget::of(Kind::Video), can_transcode, |track| {
            track.is_webrtc() && codecs.contains(&track.format.codec())
        })
    }

    #[test]
    fn a_track_is_transcoded_only_for_clients_that_cannot_play_it_and_can_play_the_result() {
        let h264 = TranscodeTarget::H264;
        let baseline = h264.format();
        for (format, reordered, can_transcode, codecs, expected) in [
            (
                Format::Vp8,
                false,
                true,
                &[Codec::Vp8, Codec::H264][..],
                TrackPlan::AsIs,
            ),
            (H265, false, true, &[Codec::H264][..], TrackPlan::Transcode(h264)),
            (H265, false, true, &[Codec::H264, Codec::H265][..], TrackPlan::AsIs),
            (
                H265,
                true,
                true,
                &[Codec::H264, Codec::H265][..],
                TrackPlan::Transcode(h264),
            ),
            (baseline, true, true, &[Codec::H264][..], TrackPlan::Transcode(h264)),
            (
                H265,
                false,
                true,
                &[Codec::Vp8][..],
                TrackPlan::Nothing(NoTrack::NotAccepted),
            ),
            (
                H265,
                false,
                false,
                &[Codec::H264][..],
                TrackPlan::Nothing(NoTrack::NoTranscoder),
            ),
        ] {
            let plan = decide(format, reordered, can_transcode, codecs);
            assert_eq!(plan, expected, "{format:?} {reordered} {can_transcode} {codecs:?}");
        }
    }
}
