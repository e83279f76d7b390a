//! Clips that ffmpeg makes for tests.

use std::path::Path;
use std::process::Command;

/// Makes a clip of two seconds in a folder, with video as H.264. `inputs` are sources of lavfi; `options` are those of the
/// output, its name last.
pub(crate) fn make_h264_clip(folder: &Path, inputs: &[&str], options: &[&str]) {
    let inputs = inputs.iter().flat_map(|input| ["-f", "lavfi", "-i", input]);
    let made = Command::new("ffmpeg")
        .current_dir(folder)
        .args(["-loglevel", "error", "-y"])
        .args(inputs)
        .args(["-t", "2", "-pix_fmt", "yuv420p", "-c:v", "libx264"])
        .args(options)
        .status();
    assert!(made.expect("ffmpeg is installed").success());
}
