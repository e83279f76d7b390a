//! Cameras in pipelines: what `rtspsrc` needs to be told so that it plays those that deviate from RTSP.

use std::sync::{Arc, Mutex, PoisonError};

use gst::prelude::*;
use gstreamer as gst;

/// Prepares all `rtspsrc` elements: they select tracks of video and audio only, and packets of a track keep one SSRC.
///
/// Without the latter, each new SSRC of a camera is a new pad, which nothing is linked to.
pub(crate) fn prepare(pipeline: &gst::Pipeline) {
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
                    keep_ssrc(pad);
                }
            });
            None
        });
    }
}

/// Offset of the SSRC in an RTP packet, and its length (RFC 3550 §5.1).
const SSRC: std::ops::Range<usize> = 8..12;

/// Gives all packets that pass a pad the SSRC of the first one.
fn keep_ssrc(pad: &gst::Pad) {
    let first: Arc<Mutex<Option<[u8; 4]>>> = Arc::default();
    pad.add_probe(
        gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST,
        move |_, info| {
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => rewrite(buffer, &mut first),
                Some(gst::PadProbeData::BufferList(list)) => {
                    let rewritten = list.iter_owned().map(|mut buffer| {
                        rewrite(&mut buffer, &mut first);
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

fn rewrite(buffer: &mut gst::Buffer, first: &mut Option<[u8; 4]>) {
    let mut ssrc = [0; 4];
    // `copy_to_slice` panics beyond the end.
    if buffer.size() < SSRC.end || buffer.copy_to_slice(SSRC.start, &mut ssrc).is_err() {
        return;
    }
    let wanted = *first.get_or_insert(ssrc);
    if wanted != ssrc
        && let Ok(mut map) = buffer.make_mut().map_writable()
        && let Some(place) = map.get_mut(SSRC)
    {
        place.copy_from_slice(&wanted);
    }
}
