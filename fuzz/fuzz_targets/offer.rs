//! The body of a POST to WHIP and WHEP: an SDP offer, and our answer to it.
//!
//! An offer is refused with a client error whose line exists, or answered with what the tests of `tests/core/sdp` require of
//! every answer. The answer parses again, and has the sections of the offer.
#![no_main]

use millstream_core::{
    media::{CodecFormat, ProfileLevelId, track_delivery::SourceTrack},
    sdp::{
        LocalTransport, Offer, OfferError, answer_whep_offer, answer_whip_offer, formats_sent_to_offerer,
        negotiation_result::{
            AudioVideoFormats, AvailableTrack, AvailableTracks, Fingerprint, FingerprintHashFunction, IceCredentials,
        },
    },
};

#[path = "../../tests/core/sdp/description.rs"]
mod description;
#[path = "../../tests/core/sdp/invariants.rs"]
mod invariants;

/// Where `invariants` looks for what it uses.
mod sdp {
    pub(crate) use crate::{Us, description};
}

/// Our side of the transport, as `invariants` expects it.
struct Us {
    credentials: IceCredentials,
    fingerprint: Fingerprint,
    candidates: Vec<std::net::SocketAddr>,
}

impl Us {
    fn new() -> Self {
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
                ([198, 51, 100, 7], 8189).into(),
                ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7], 8189).into(),
            ],
        }
    }

    fn local(&self) -> LocalTransport<'_> {
        LocalTransport {
            ice_credentials: &self.credentials,
            fingerprint: &self.fingerprint,
            candidate_addresses: &self.candidates,
            accepts_ice_tcp: false,
            viewer_congestion_control: true,
            viewer_playout_delay: true,
            accepts_data_channels: true,
            sdp_session_id: 7,
        }
    }
}

/// Longest error text: it repeats codec names of the offer, cut.
const MAX_ERROR: usize = 1_024;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let offer = match Offer::parse(body) {
        Ok(offer) => offer,
        Err(error) => return check_error(body, &error),
    };
    let text = str::from_utf8(body).expect("what is parsed is text");
    let us = Us::new();
    match answer_whip_offer(&offer, &us.local()) {
        Ok((plan, answer)) => {
            invariants::check_publication(text, &answer.sdp, &plan);
            check_answer(&offer, &answer.sdp);
        }
        Err(error) => check_error(body, &error),
    }
    let source = source(body.len());
    match answer_whep_offer(&offer, &source, &us.local(), &mut millstream_fuzz::counter()) {
        Ok((plan, answer)) => {
            invariants::check_playback(text, &answer.sdp, &plan);
            check_answer(&offer, &answer.sdp);
        }
        Err(error) => check_error(body, &error),
    }
    let track = |format| AvailableTrack {
        source_track: SourceTrack::new_without_b_frames(format),
        can_transcode: true,
    };
    let available = AvailableTracks {
        video: source.video.map(track),
        audio: source.audio.map(track),
        video_layers: Default::default(),
    };
    let chosen = formats_sent_to_offerer(&offer, &available);
    assert_eq!(
        (chosen.video.is_some(), chosen.audio.is_some()),
        (source.video.is_some(), source.audio.is_some())
    );
});

/// One of three streams.
fn source(choice: usize) -> AudioVideoFormats {
    let h264 = CodecFormat::H264 {
        profile: ProfileLevelId([0x64, 0x00, 0x1f]),
        packetization_mode: 1,
    };
    let audio = Some(CodecFormat::Opus { stereo: true });
    match choice % 3 {
        0 => AudioVideoFormats {
            video: Some(h264),
            audio,
        },
        1 => AudioVideoFormats {
            video: Some(CodecFormat::Vp8),
            audio: None,
        },
        _ => AudioVideoFormats { video: None, audio },
    }
}

/// The answer is an SDP that has the offer's sections. It is that of an ICE-lite agent, which no offer may be.
fn check_answer(offer: &Offer, answer: &str) {
    let parsed = Offer::parse(answer.replace("a=ice-lite\r\n", "").as_bytes());
    let parsed = parsed.unwrap_or_else(|error| panic!("the answer does not parse: {error}\n{answer}"));
    assert_eq!(parsed.section_kinds_and_mids(), offer.section_kinds_and_mids());
}

fn check_error(body: &[u8], error: &OfferError) {
    assert!(matches!(error.http_status(), 400 | 422), "{error}");
    let lines = body.split_inclusive(|byte| *byte == b'\n').count();
    assert!(
        error.line_number().is_none_or(|line| (1..=lines).contains(&line)),
        "{error}: there are {lines} lines"
    );
    let text = error.to_string();
    assert!(text.len() <= MAX_ERROR && !text.contains(char::is_control), "{text:?}");
}
