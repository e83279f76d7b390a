//! The SDP of WHIP and WHEP against recorded offers of real clients: golden answers, invariants that hold for every
//! answer, bad offers, mutations of good ones, and replicas of how clients read what we write.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod bad_offers;
mod clients;
mod data_channels;
mod description;
mod goldens;
mod invariants;
mod loss;
mod mutations;
mod refusals;
mod rules;
mod tolerance;

use std::path::{Path, PathBuf};

use millstream_core::media::{CodecFormat, ProfileLevelId};
use millstream_core::sdp::negotiation_result::{
    AudioVideoFormats, Fingerprint, FingerprintHashFunction, IceCredentials, NegotiatedPlayback, NegotiatedPublication,
};
use millstream_core::sdp::{LocalDescription, LocalTransport, Offer, OfferError, answer_whep_offer, answer_whip_offer};

/// Ours in every test.
pub(crate) struct Us {
    credentials: IceCredentials,
    fingerprint: Fingerprint,
    candidates: Vec<std::net::SocketAddr>,
}

impl Us {
    pub(crate) fn new() -> Self {
        Self {
            credentials: IceCredentials {
                ufrag: "00Millstream".to_owned(),
                pwd: "0123456789abcdefghijklmn".to_owned(),
            },
            fingerprint: Fingerprint {
                hash_function: FingerprintHashFunction::Sha256,
                digest: (0xe0..=0xff).collect(),
            },
            candidates: vec![
                "198.51.100.7:8189".parse().unwrap(),
                "[2001:db8::7]:8189".parse().unwrap(),
            ],
        }
    }

    pub(crate) fn local(&self) -> LocalTransport<'_> {
        LocalTransport {
            ice_credentials: &self.credentials,
            fingerprint: &self.fingerprint,
            candidate_addresses: &self.candidates,
            accepts_ice_tcp: false,
            viewer_congestion_control: true,
            viewer_playout_delay: true,
            accepts_data_channels: true,
            sdp_session_id: 4_611_686_018_427_387_904,
        }
    }
}

/// Answers as WHIP does.
pub(crate) fn publish(offer: &str) -> Result<(NegotiatedPublication, String), OfferError> {
    let offer = Offer::parse(offer.as_bytes())?;
    answer_whip_offer(&offer, &Us::new().local()).map(|(plan, answer)| (plan, checked(answer)))
}

/// Answers as WHEP does, with SSRCs 1001, 1002, ...
pub(crate) fn play(offer: &str, source: AudioVideoFormats) -> Result<(NegotiatedPlayback, String), OfferError> {
    let offer = Offer::parse(offer.as_bytes())?;
    let mut last = 1000;
    let mut random = || {
        last += 1;
        last
    };
    answer_whep_offer(&offer, &source, &Us::new().local(), &mut random).map(|(plan, answer)| (plan, checked(answer)))
}

pub(crate) fn h264(profile: [u8; 3]) -> CodecFormat {
    CodecFormat::H264 {
        profile: ProfileLevelId(profile),
        packetization_mode: 1,
    }
}

pub(crate) const OPUS: CodecFormat = CodecFormat::Opus { stereo: true };

/// What OBS sends by default, whatever its offer says: High profile.
pub(crate) fn high_and_opus() -> AudioVideoFormats {
    AudioVideoFormats {
        video: Some(h264([0x64, 0x00, 0x1f])),
        audio: Some(OPUS),
    }
}

/// Checks the description of an answer against its text, and returns the text.
fn checked(answer: LocalDescription) -> String {
    let sections: Vec<&str> = answer.sdp.split("m=").skip(1).collect();
    assert_eq!(sections.len(), answer.section_kinds_and_mids.len());
    let is_used = |section: &&&str| section.starts_with("video 9 ");
    assert_eq!(sections.iter().find(is_used).is_some(), answer.video_section.is_some());
    if let Some(video) = &answer.video_section {
        let section = sections[video.index];
        assert!(section.starts_with("video 9 "), "{section}");
        let mid = section.lines().find_map(|line| line.strip_prefix("a=mid:"));
        assert_eq!(mid, video.mid.as_deref());
    }
    // A fragment repeats the BUNDLE group, the m-line with its first format, and the mid of the section with the
    // candidates.
    let us = Us::new();
    let fragment = answer
        .ice_fragment_template
        .ice_restart_sdp_fragment(us.local().ice_credentials, &us.local());
    let tagged = sections.iter().find(|section| section.contains("a=end-of-candidates"));
    let media = fragment.lines().find(|line| line.starts_with("m=")).expect("an m-line");
    assert!(
        tagged.is_some_and(|section| section.starts_with(&media[2..])),
        "{media}"
    );
    for line in fragment
        .lines()
        .filter(|line| line.starts_with("a=group") || line.starts_with("a=mid"))
    {
        assert!(answer.sdp.lines().any(|written| written == line), "{line}");
    }
    answer.sdp
}

pub(crate) fn vp8_and_opus() -> AudioVideoFormats {
    AudioVideoFormats {
        video: Some(CodecFormat::Vp8),
        audio: Some(OPUS),
    }
}

pub(crate) fn data(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder)
}

/// A recorded offer by the beginning of its file name.
pub(crate) fn recorded(name: &str) -> String {
    let (_, text) = all_recorded()
        .into_iter()
        .find(|(file, _)| file == name)
        .expect("a recorded offer");
    text
}

/// All recorded offers as (file name without `.sdp`, text), sorted.
pub(crate) fn all_recorded() -> Vec<(String, String)> {
    let mut offers: Vec<(String, String)> = std::fs::read_dir(data("offers"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sdp"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    offers.sort();
    assert!(offers.len() >= 12, "the recorded offers are gone");
    offers
}

/// Whether a recorded offer is that of a viewer.
pub(crate) fn is_viewer(name: &str) -> bool {
    name.contains("recvonly") || name.contains("whep")
}

/// Replaces all `from`; there must be one.
pub(crate) fn edit(offer: &str, from: &str, to: &str) -> String {
    assert!(offer.contains(from), "nothing to edit: {from:?}");
    offer.replace(from, to)
}

pub(crate) const OBS: &str = "obs-32.2.2-h264-advanced";
pub(crate) const OBS_SIMULCAST: &str = "obs-32.2.2-h264-simulcast3";
pub(crate) const FFMPEG: &str = "ffmpeg-9.0.2-whip-default";
pub(crate) const CHROMIUM_VIEWER: &str = "chromium-156-recvonly";
pub(crate) const CHROMIUM_PUBLISHER: &str = "chromium-156-sendonly";
pub(crate) const FIREFOX_VIEWER: &str = "firefox-esr-153.7.0-openh264-recvonly";
pub(crate) const FIREFOX_VIEWER_NO_H264: &str = "firefox-esr-153.7.0-noh264-recvonly";
pub(crate) const GSTREAMER_VIEWER: &str = "gst-1.28.8-rswebrtc-0.15.4-whepclientsrc";
pub(crate) const GSTREAMER: &str = "gst-1.28.8-rswebrtc-0.15.4-whipclientsink";
