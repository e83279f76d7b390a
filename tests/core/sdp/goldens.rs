//! Golden answers: one file for each recorded offer. `UPDATE_ANSWERS=1 cargo test --test core sdp` writes them anew; read the
//! diff before you commit it.

use std::collections::BTreeSet;

use millstream_core::media::CodecFormat;
use millstream_core::sdp::negotiation_result::AudioVideoFormats;

use crate::sdp::invariants::{check_playback, check_publication};
use crate::sdp::{
    FIREFOX_VIEWER_NO_H264, OPUS, all_recorded, data, h264, high_and_opus, is_viewer, play, publish, vp8_and_opus,
};

fn sources(offer: &str) -> Vec<(&'static str, AudioVideoFormats)> {
    if offer == FIREFOX_VIEWER_NO_H264 {
        return vec![("vp8-opus", vp8_and_opus())];
    }
    let baseline = AudioVideoFormats {
        video: Some(h264([0x42, 0xe0, 0x1f])),
        audio: Some(OPUS),
    };
    let silent_av1 = AudioVideoFormats {
        video: Some(CodecFormat::Av1 { profile: 0 }),
        audio: None,
    };
    vec![
        ("high-opus", high_and_opus()),
        ("baseline-opus", baseline),
        ("av1-silent", silent_av1),
        ("vp8-opus", vp8_and_opus()),
    ]
}

/// V-01, V-05, V-08, V-11, V-12, V-16, R-10, S-03, S-15, C-04.
/// S-05, S-09, S-12, S-13, S-14, R-01, R-03, C-03, I-02.
#[test]
fn recorded_offers_get_their_golden_answers() {
    let mut answers = Vec::new();
    for (name, offer) in all_recorded() {
        if is_viewer(&name) {
            for (source, formats) in sources(&name) {
                let (plan, answer) = play(&offer, formats).unwrap_or_else(|error| panic!("{name}: {error}"));
                check_playback(&offer, &answer, &plan);
                answers.push((format!("{name}.whep-{source}.sdp"), answer));
            }
        } else {
            let (plan, answer) = publish(&offer).unwrap_or_else(|error| panic!("{name}: {error}"));
            check_publication(&offer, &answer, &plan);
            answers.push((format!("{name}.whip.sdp"), answer));
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a switch for the person who runs the test")]
    let update = std::env::var("UPDATE_ANSWERS").is_ok();
    for (file, answer) in &answers {
        let path = data("answers").join(file);
        if update {
            std::fs::write(&path, answer).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(*answer, golden, "{file}");
    }
    let files: BTreeSet<String> = answers.into_iter().map(|(file, _)| file).collect();
    let on_disk: BTreeSet<String> = std::fs::read_dir(data("answers"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, on_disk, "a golden answer without an offer");
}
