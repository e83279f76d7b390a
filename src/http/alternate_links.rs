//! Points viewers whose session cannot carry the video to the HLS playlist of the stream: a `Link` header with
//! `rel="alternate"` (RFC 8288 and the HTML standard) in the 201 response of a WHEP session and in its layers resource.
//!
//! The other way round, the multivariant playlist of a stream whose video HLS does not carry points to the WHEP endpoint.
//!
//! A stream without video has no such link, so that a player can distinguish "no video" from "no video that this
//! session can carry".

use axum::http::{HeaderMap, HeaderValue, header};

use crate::access::AccessAction;
use crate::control::ControlPlane;
use crate::control::session_record::SessionRecord;
use millstream_core::hub::name::StreamName;
use millstream_core::media::track_delivery::{self, SourceTrack, TrackDelivery, TranscodeTarget};
use millstream_core::media::{Codec, MediaKind};
use millstream_core::sdp::Offer;
use millstream_core::sdp::negotiation_result::{AvailableTrack, NegotiatedPlayback};

/// Returns the codecs that a viewer's video may be sent in: empty if the video section of its offer was rejected,
/// `None` if its offer has no video section.
pub(super) fn negotiated_video_codecs(offer: &Offer, playback: &NegotiatedPlayback) -> Option<Vec<Codec>> {
    let track = playback.tracks.iter().find(|track| track.kind == MediaKind::Video);
    let codecs = track.into_iter().flat_map(|track| &track.codecs);
    offer
        .media_kinds()
        .any(|kind| kind == MediaKind::Video)
        .then(|| codecs.map(|codec| codec.format.codec()).collect())
}

/// Adds the link to a response if the stream has video and this session cannot carry it.
pub(super) fn add_hls_link_if_video_missing(control: &ControlPlane, record: &SessionRecord, headers: &mut HeaderMap) {
    let codecs = record
        .negotiated_video_codecs
        .as_ref()
        .filter(|_| record.action == AccessAction::Play);
    let available = control.media_plane.available_tracks(&record.stream);
    let missing = codecs.zip(available).and_then(|(codecs, available)| {
        let layer = available.best_playable_layer(|format| codecs.contains(&format.codec()));
        let video = available.video.filter(|_| layer.is_none())?;
        undeliverable_video_codec(&video, codecs)
    });
    let Some(codec) = missing else { return };
    let target = format!("/hls/{}/index.m3u8", record.stream);
    append_alternate_link(&target, "application/vnd.apple.mpegurl", codec, headers);
}

/// Adds the link to the response to an HLS player, whose playlist lacks video of this codec.
pub(super) fn add_whep_link(stream: &StreamName, codec: Codec, headers: &mut HeaderMap) {
    append_alternate_link(&format!("/whep/{stream}"), "application/sdp", codec, headers);
}

fn append_alternate_link(target: &str, media_type: &str, codec: Codec, headers: &mut HeaderMap) {
    let video = codec.name();
    let link = format!("<{target}>; rel=\"alternate\"; type=\"{media_type}\"; video=\"{video}\"");
    if let Ok(link) = HeaderValue::from_str(&link) {
        headers.append(header::LINK, link);
    }
}

/// Returns the codec of the video if a session with these codecs cannot receive it, transcoded or not.
fn undeliverable_video_codec(video: &AvailableTrack, codecs: &[Codec]) -> Option<Codec> {
    let is_accepted = |track: SourceTrack| codecs.contains(&track.format.codec());
    let target = TranscodeTarget::webrtc_target_for_kind(MediaKind::Video);
    match track_delivery::choose_track_delivery(video.source_track, target, video.can_transcode, is_accepted) {
        TrackDelivery::Passthrough | TrackDelivery::Transcode(_) => None,
        TrackDelivery::Unavailable(_) => Some(video.source_track.format.codec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_core::media::CodecFormat;

    #[test]
    fn video_is_missing_where_neither_it_nor_what_is_made_of_it_can_be_sent() {
        let h265 = CodecFormat::H265 {
            profile_id: 1,
            tier_flag: 0,
        };
        for (format, can_transcode, codecs, expected) in [
            (CodecFormat::Vp8, false, &[Codec::Vp8][..], None),
            (CodecFormat::Vp8, false, &[][..], Some(Codec::Vp8)),
            (h265, false, &[Codec::H264][..], Some(Codec::H265)),
            (h265, true, &[Codec::H264][..], None),
            (h265, true, &[Codec::Vp8][..], Some(Codec::H265)),
        ] {
            let source = SourceTrack::new_without_b_frames(format);
            let video = AvailableTrack {
                source_track: source,
                can_transcode,
            };
            assert_eq!(undeliverable_video_codec(&video, codecs), expected);
        }
    }
}
