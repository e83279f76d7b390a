//! The Debian packages that provide GStreamer elements. GStreamer itself does not know them.

/// Debian packages of the libraries that the worker links.
pub const GSTREAMER_LIBRARY_PACKAGES: &str = "libgstreamer1.0-0 libgstreamer-plugins-base1.0-0";

/// Elements of the shipped pipelines and of those that operators are likely to write. Use `apt-file search` for others.
const ELEMENTS_BY_PACKAGE: [(&str, &[&str]); 8] = [
    (
        "gstreamer1.0-plugins-base",
        &[
            "appsink",
            "appsrc",
            "audioconvert",
            "audiorate",
            "audioresample",
            "audiotestsrc",
            "decodebin",
            "decodebin3",
            "opusdec",
            "opusenc",
            "opusparse",
            "parsebin",
            "playbin",
            "uridecodebin",
            "uridecodebin3",
            "videoconvert",
            "videorate",
            "videoscale",
            "videotestsrc",
            "vorbisdec",
            "compositor",
            "theoradec",
        ],
    ),
    ("gstreamer1.0-x", &["clockoverlay", "textoverlay", "timeoverlay"]),
    (
        "gstreamer1.0-plugins-good",
        &[
            "aacparse",
            "alawdec",
            "alawenc",
            "flvdemux",
            "hlsdemux2",
            "jpegdec",
            "jpegenc",
            "matroskademux",
            "mulawdec",
            "mulawenc",
            "multifilesrc",
            "qtdemux",
            "rtpbin",
            "rtph264depay",
            "rtph265depay",
            "rtpjpegdepay",
            "rtspsrc",
            "souphttpsrc",
            "v4l2src",
            "vp8dec",
            "vp8enc",
            "vp9dec",
            "vp9enc",
            "wavparse",
            "imagefreeze",
            "pngdec",
            "mpegaudioparse",
        ],
    ),
    (
        "gstreamer1.0-plugins-bad",
        &[
            "faad",
            "h264parse",
            "h265parse",
            "jpegparse",
            "libde265dec",
            "openh264dec",
            "openh264enc",
            "rtmp2src",
            "srtsrc",
            "srtclientsrc",
            "srtserversrc",
            "tsdemux",
            "tsparse",
            "voaacenc",
            "x265enc",
            "av1dec",
            "kmssrc",
        ],
    ),
    ("gstreamer1.0-plugins-ugly", &["x264enc", "asfdemux", "mpeg2dec"]),
    (
        "gstreamer1.0-libav",
        &[
            "avdec_aac",
            "avdec_aac_latm",
            "avdec_h264",
            "avdec_h265",
            "avdec_mjpeg",
            "avdec_mp3",
            "avenc_aac",
        ],
    ),
    ("gstreamer1.0-alsa", &["alsasrc"]),
    ("gstreamer1.0-pulseaudio", &["pulsesrc"]),
];

/// Returns the package of an element; `None` if the element is not listed here.
pub fn debian_package_of(element: &str) -> Option<&'static str> {
    ELEMENTS_BY_PACKAGE
        .iter()
        .find(|(_, elements)| elements.contains(&element))
        .map(|(package, _)| *package)
}

/// Returns how to install these elements, in a sentence.
pub fn install_advice(elements: &[String]) -> String {
    let mut packages: Vec<&str> = elements
        .iter()
        .filter_map(|element| debian_package_of(element))
        .collect();
    packages.sort_unstable();
    packages.dedup();
    let unknown: Vec<&str> = elements
        .iter()
        .filter(|element| debian_package_of(element).is_none())
        .map(String::as_str)
        .collect();
    let mut advice = Vec::new();
    if !packages.is_empty() {
        advice.push(format!(
            "install the missing Debian packages with: apt-get install {}",
            packages.join(" ")
        ));
    }
    if !unknown.is_empty() {
        advice.push(format!(
            "the Debian packages of these GStreamer elements are unknown: {}",
            unknown.join(", ")
        ));
    }
    advice.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_elements_are_named_with_their_package() {
        let missing = ["x264enc", "opusenc", "x264enc", "ndisrc"].map(str::to_owned);
        assert_eq!(
            install_advice(&missing),
            "install the missing Debian packages with: apt-get install gstreamer1.0-plugins-base gstreamer1.0-plugins-ugly; the Debian packages of these GStreamer elements are unknown: ndisrc"
        );
    }
}
