//! Cameras in pipelines: how `rtspsrc` is configured so that it plays those that deviate from RTSP.

use std::sync::{Arc, Mutex, PoisonError};

use gst::prelude::*;
use gstreamer as gst;

/// Prepares all `rtspsrc` elements: they select tracks of video and audio only, and packets of a track keep one SSRC.
///
/// Without the latter, each new SSRC of a camera is a new pad, which nothing is linked to.
pub(crate) fn install_rtspsrc_track_and_ssrc_handlers(pipeline: &gst::Pipeline) {
    for element in pipeline.iterate_recurse().into_iter().flatten() {
        if element.factory().is_none_or(|factory| factory.name() != "rtspsrc") {
            continue;
        }
        element.connect("select-stream", false, |values| {
            let caps = values.get(2)?.get::<gst::Caps>().ok()?;
            let media = caps.structure(0)?.get::<String>("media").ok();
            let is_used = media.is_none_or(|media| matches!(media.as_str(), "video" | "audio"));
            Some(is_used.to_value())
        });
        element.connect("new-manager", false, |values| {
            let manager = values.get(1)?.get::<gst::Element>().ok()?;
            manager.connect_pad_added(|_, pad| {
                if pad.name().starts_with("recv_rtp_sink_") {
                    install_ssrc_rewriting_probe(pad);
                }
            });
            None
        });
    }
}

/// Offset of the SSRC in an RTP packet, and its length (RFC 3550 §5.1).
const SSRC_BYTE_RANGE: std::ops::Range<usize> = 8..12;

/// Gives all packets that pass a pad the SSRC of the first one.
fn install_ssrc_rewriting_probe(pad: &gst::Pad) {
    let first_ssrc: Arc<Mutex<Option<[u8; 4]>>> = Arc::default();
    pad.add_probe(
        gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST,
        move |_, info| {
            let mut first = first_ssrc.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => rewrite_to_first_ssrc(buffer, &mut first),
                Some(gst::PadProbeData::BufferList(list)) => {
                    let rewritten = list.iter_owned().map(|mut buffer| {
                        rewrite_to_first_ssrc(&mut buffer, &mut first);
                        buffer
                    });
                    *list = rewritten.collect();
                }
                _ => {}
            }
            gst::PadProbeReturn::Ok
        },
    );
}

fn rewrite_to_first_ssrc(buffer: &mut gst::Buffer, first_ssrc: &mut Option<[u8; 4]>) {
    let mut ssrc = [0; 4];
    // `copy_to_slice` panics beyond the end.
    if buffer.size() < SSRC_BYTE_RANGE.end || buffer.copy_to_slice(SSRC_BYTE_RANGE.start, &mut ssrc).is_err() {
        return;
    }
    let wanted = *first_ssrc.get_or_insert(ssrc);
    if wanted != ssrc
        && let Ok(mut map) = buffer.make_mut().map_writable()
        && let Some(place) = map.get_mut(SSRC_BYTE_RANGE)
    {
        place.copy_from_slice(&wanted);
    }
}
