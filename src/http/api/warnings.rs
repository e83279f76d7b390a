//! Warnings of a stream: what its owner should change, in plain words. Each holds as long as it is shown; a new one is
//! logged once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};
use tracing::warn;

use millstream_core::hub::track::MissingPacketsOrKeyFrame;
use millstream_core::media::Codec;

/// A warning. The API shows its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Stable name.
    pub code: &'static str,
    pub text: String,
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// What is known of the source of a live stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceWarningInputs {
    pub video: Option<VideoWarningInputs>,
    pub missing_video: Option<MissingPacketsOrKeyFrame>,
    pub missing_audio: Option<MissingPacketsOrKeyFrame>,
    /// Number of frames whose timestamps stood still.
    pub video_frames_timed_by_arrival: u64,
    pub audio_frames_timed_by_arrival: u64,
    /// Number of HLS viewers of the stream.
    pub hls_viewer_count: usize,
}

/// What is known of its video.
#[derive(Clone, Copy, Debug)]
pub struct VideoWarningInputs {
    pub codec: Codec,
    pub has_b_frames: bool,
    /// H.264 without IDR frames.
    pub lacks_idr_frames: bool,
    /// Seconds between the last two key frames.
    pub key_frame_interval: Option<f64>,
    /// The source answers key frame requests.
    pub answers_key_frame_requests: bool,
}

/// Key frame interval in seconds above which a warning is shown: it delays the start of HLS and makes the initial burst
/// to WebRTC viewers longer.
const LONG_KEY_FRAME_INTERVAL_SECS: f64 = 4.5;

/// Returns the warnings of a live stream.
pub fn source_warnings(source: SourceWarningInputs) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut add = |code, text: String| warnings.push(Warning { code, text });
    match source.missing_video {
        Some(MissingPacketsOrKeyFrame::Packets) => add(
            "no_video",
            "The publisher negotiated video, but sends none: check its video source and its encoder.".to_owned(),
        ),
        Some(MissingPacketsOrKeyFrame::KeyFrame) => add(
            "no_key_frame",
            "Video comes without key frames, so new viewers cannot start: set the encoder's key frame interval to 2 s."
                .to_owned(),
        ),
        None => {}
    }
    if source.missing_audio == Some(MissingPacketsOrKeyFrame::Packets) {
        let text = "The publisher negotiated audio, but sends none: check its audio source.";
        add("no_audio", text.to_owned());
    }
    for (kind, code, count) in [
        ("video", "video_timestamps", source.video_frames_timed_by_arrival),
        ("audio", "audio_timestamps", source.audio_frames_timed_by_arrival),
    ] {
        if count > 0 {
            let text = format!(
                "The RTP timestamps of the {kind} do not advance, or advance much faster or slower than real time, so \
                 {count} frames were timed by their arrival: check the RTP timestamps and clock rate of the encoder."
            );
            add(code, text);
        }
    }
    let Some(video) = source.video else {
        return warnings;
    };
    let interval = video.key_frame_interval.filter(|_| !video.answers_key_frame_requests);
    if let Some(interval) = interval.filter(|interval| *interval > LONG_KEY_FRAME_INTERVAL_SECS) {
        let text = format!(
            "The key frame interval is {interval:.0} s, which delays the start for new viewers: set the encoder's key \
             frame interval to 2 s."
        );
        add("long_key_frame_interval", text);
    }
    if video.has_b_frames {
        let text = "B-frames: WebRTC does not support them, so WebRTC viewers get this video only if the gateway can \
                    transcode it; turn B-frames off in the encoder to avoid this.";
        add("b_frames", text.to_owned());
    }
    if video.lacks_idr_frames {
        let text = "The video has no IDR frames (open GOPs or intra refresh): browsers cannot start decoding it, so \
                    they get this video only if the gateway can transcode it; set the encoder to closed GOPs without \
                    intra refresh to avoid this.";
        add("no_idr_frames", text.to_owned());
    }
    if video.codec == Codec::Vp8 && source.hls_viewer_count > 0 {
        let text = "VP8: HLS does not support it, so HLS viewers get only audio; publish H.264, VP9 or AV1.";
        add("vp8_by_hls", text.to_owned());
    }
    if video.codec == Codec::H265 {
        let text =
            "H.265: many browsers cannot decode it, and get this video only if the gateway can transcode it to H.264.";
        add("h265", text.to_owned());
    }
    warnings
}

/// Which warnings of which streams were logged.
#[derive(Debug, Default)]
pub struct LoggedWarnings(BTreeMap<String, BTreeSet<&'static str>>);

/// A live stream and its warnings.
type StreamWarnings<'a> = (&'a str, &'a [Warning]);

impl LoggedWarnings {
    /// Logs each warning of these streams, which are live, once until its source ends.
    pub fn log_new_warnings<'a>(&mut self, streams: impl Iterator<Item = StreamWarnings<'a>>) {
        for (stream, warning) in self.mark_new_warnings_as_logged(streams) {
            warn!(stream, code = warning.code, "{}", warning.text);
        }
    }

    fn mark_new_warnings_as_logged<'a>(
        &mut self,
        streams: impl Iterator<Item = StreamWarnings<'a>>,
    ) -> Vec<(&'a str, &'a Warning)> {
        let mut new = Vec::new();
        let mut logged = BTreeMap::new();
        for (stream, warnings) in streams {
            let mut codes = self.0.remove(stream).unwrap_or_default();
            let fresh = warnings.iter().filter(|warning| codes.insert(warning.code));
            new.extend(fresh.map(|warning| (stream, warning)));
            logged.insert(stream.to_owned(), codes);
        }
        self.0 = logged;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: VideoWarningInputs = VideoWarningInputs {
        codec: Codec::H264,
        has_b_frames: false,
        lacks_idr_frames: false,
        key_frame_interval: Some(2.0),
        answers_key_frame_requests: false,
    };

    fn codes(source: SourceWarningInputs) -> Vec<&'static str> {
        source_warnings(source).iter().map(|warning| warning.code).collect()
    }

    fn with(video: VideoWarningInputs) -> SourceWarningInputs {
        SourceWarningInputs {
            video: Some(video),
            ..SourceWarningInputs::default()
        }
    }

    /// H.264 of any profile plays in every browser that plays H.264, and audio that was never offered is not missing.
    #[test]
    fn a_stream_without_a_fault_has_no_warning() {
        assert_eq!(codes(with(GOOD)), [""; 0]);
        let vp8 = VideoWarningInputs {
            codec: Codec::Vp8,
            key_frame_interval: None,
            ..GOOD
        };
        assert_eq!(codes(with(vp8)), [""; 0]);
        let browser = VideoWarningInputs {
            key_frame_interval: Some(60.0),
            answers_key_frame_requests: true,
            ..GOOD
        };
        assert_eq!(codes(with(browser)), [""; 0]);
        assert_eq!(codes(SourceWarningInputs::default()), [""; 0], "audio alone");
    }

    #[test]
    fn each_fault_has_its_warning() {
        let missing = |missing_video, missing_audio| SourceWarningInputs {
            missing_video,
            missing_audio,
            ..with(GOOD)
        };
        assert_eq!(
            codes(missing(Some(MissingPacketsOrKeyFrame::Packets), None)),
            ["no_video"]
        );
        assert_eq!(
            codes(missing(Some(MissingPacketsOrKeyFrame::KeyFrame), None)),
            ["no_key_frame"]
        );
        assert_eq!(
            codes(missing(None, Some(MissingPacketsOrKeyFrame::Packets))),
            ["no_audio"]
        );
        let slow = VideoWarningInputs {
            key_frame_interval: Some(8.3),
            ..GOOD
        };
        assert_eq!(codes(with(slow)), ["long_key_frame_interval"]);
        let stuck = |video, audio| SourceWarningInputs {
            video_frames_timed_by_arrival: video,
            audio_frames_timed_by_arrival: audio,
            ..with(GOOD)
        };
        assert_eq!(codes(stuck(7, 0)), ["video_timestamps"]);
        assert_eq!(codes(stuck(0, 7)), ["audio_timestamps"]);
        let reordered = VideoWarningInputs {
            has_b_frames: true,
            ..GOOD
        };
        assert_eq!(codes(with(reordered)), ["b_frames"]);
        let open_gops = VideoWarningInputs {
            lacks_idr_frames: true,
            ..GOOD
        };
        assert_eq!(codes(with(open_gops)), ["no_idr_frames"]);
        let h265 = VideoWarningInputs {
            codec: Codec::H265,
            ..GOOD
        };
        assert_eq!(codes(with(h265)), ["h265"]);
        let vp8 = VideoWarningInputs {
            codec: Codec::Vp8,
            ..GOOD
        };
        let by_hls = SourceWarningInputs {
            hls_viewer_count: 1,
            ..with(vp8)
        };
        assert_eq!(codes(by_hls), ["vp8_by_hls"]);
    }

    #[test]
    fn a_warning_is_logged_once_for_each_source() {
        let h265 = VideoWarningInputs {
            codec: Codec::H265,
            ..GOOD
        };
        let warnings = source_warnings(with(h265));
        let mut logged = LoggedWarnings::default();
        let new = |logged: &mut LoggedWarnings, live| {
            let shown: &[StreamWarnings] = if live { &[("live", &warnings)] } else { &[] };
            logged.mark_new_warnings_as_logged(shown.iter().copied()).len()
        };
        assert_eq!(new(&mut logged, true), 1);
        assert_eq!(new(&mut logged, true), 0);
        assert_eq!(new(&mut logged, false), 0);
        assert_eq!(new(&mut logged, true), 1, "of the next source");
    }
}
