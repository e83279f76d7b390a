//! Where a viewer finds the video that its session does not carry: a `Link` to the HLS of the stream
//! (`rel="alternate"`, RFC 8288 and the HTML standard), on the 201 of a WHEP session and on its layers.
//!
//! A stream without video has no such link, so that a player can tell "there is none" from "none that you can decode".

use axum::http::{HeaderMap, HeaderValue, header};

use crate::access::Action;
use crate::control::Control;
use crate::control::record::SessionRecord;
use millstream_core::media::transcode::TranscodeTarget;
use millstream_core::media::{Codec, Format, Kind};
use millstream_core::sdp::Offer;
use millstream_core::sdp::plan::{AvailableFormats, Playback};

/// The codecs that a viewer's video may come in: none where its offer was refused in this; `None` where it wants no
/// video.
pub(super) fn video_codecs(offer: &Offer, playback: &Playback) -> Option<Vec<Codec>> {
    let track = playback.tracks.iter().find(|track| track.kind == Kind::Video);
    let codecs = track.into_iter().flat_map(|track| &track.codecs);
    offer
        .kinds()
        .any(|kind| kind == Kind::Video)
        .then(|| codecs.map(|codec| codec.format.codec()).collect())
}

/// Adds the link to a response, if the stream has video and this session cannot carry it.
pub(super) fn add_link(control: &Control, held: &SessionRecord, headers: &mut HeaderMap) {
    let codecs = held.video_codecs.as_ref().filter(|_| held.action == Action::Play);
    let available_formats = control.media.available_formats(&held.stream);
    let missing = codecs
        .zip(available_formats)
        .and_then(|(codecs, available_formats)| missing(&available_formats, codecs));
    let Some(codec) = missing else { return };
    let link = format!(
        "</hls/{}/index.m3u8>; rel=\"alternate\"; type=\"application/vnd.apple.mpegurl\"; video=\"{}\"",
        held.stream,
        codec.name()
    );
    if let Ok(link) = HeaderValue::from_str(&link) {
        headers.append(header::LINK, link);
    }
}

/// The codec of the video that a session with these codecs does not get; `None` if it gets what there is.
fn missing(available_formats: &AvailableFormats, codecs: &[Codec]) -> Option<Codec> {
    let codec = available_formats.formats.video.map(Format::codec)?;
    let transcoded = available_formats
        .transcodable_video
        .then(|| TranscodeTarget::of(Kind::Video).format().codec());
    let gets = |codec| codecs.contains(&codec);
    (!gets(codec) && !transcoded.is_some_and(gets)).then_some(codec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_core::sdp::plan::SourceFormats;

    #[test]
    fn video_is_missing_where_neither_it_nor_what_is_made_of_it_can_be_sent() {
        let available_formats = |video, transcodable_video| AvailableFormats {
            formats: SourceFormats { video, audio: None },
            transcodable_video,
            ..AvailableFormats::default()
        };
        let h265 = Format::H265 {
            profile_id: 1,
            tier_flag: 0,
        };
        for (video, transcodable, codecs, expected) in [
            (None, false, &[][..], None),
            (Some(Format::Vp8), false, &[Codec::Vp8][..], None),
            (Some(Format::Vp8), false, &[][..], Some(Codec::Vp8)),
            (Some(h265), false, &[Codec::H264][..], Some(Codec::H265)),
            (Some(h265), true, &[Codec::H264][..], None),
            (Some(h265), true, &[Codec::Vp8][..], Some(Codec::H265)),
        ] {
            assert_eq!(missing(&available_formats(video, transcodable), codecs), expected);
        }
    }
}
