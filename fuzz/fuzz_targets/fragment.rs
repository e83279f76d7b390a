//! The body of a PATCH to a session URL: a trickle fragment (RFC 8840).
//!
//! The credentials of a fragment are well-formed, belong to the fragment, and are the same after we wrote them as the
//! answer to an ICE restart and parsed that. The line of an error exists.
#![no_main]

use millstream::http::trickle_fragment::{TrickleFragmentCredentials, TrickleFragmentError};
use millstream_core::sdp::{
    LocalTransport, MIN_PWD_LEN, MIN_UFRAG_LEN, create_offer_to_viewer, is_valid_ice_credential,
    negotiation_result::{AudioVideoFormats, Fingerprint, FingerprintHashFunction, IceCredentials},
};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let fragment = match TrickleFragmentCredentials::parse(body) {
        Ok(fragment) => fragment,
        Err(TrickleFragmentError::NotSdpLine { line } | TrickleFragmentError::CandidateBeforeSection { line }) => {
            let text = str::from_utf8(body).expect("lines are counted in text");
            return assert!((1..=text.lines().count()).contains(&line), "line {line}");
        }
        Err(TrickleFragmentError::Empty | TrickleFragmentError::NotText | TrickleFragmentError::InvalidCredentials) => {
            return;
        }
    };
    let Ok(IceCredentials { ufrag, pwd }) = fragment.credentials() else {
        return;
    };
    assert!(is_valid_ice_credential(&ufrag, MIN_UFRAG_LEN) && is_valid_ice_credential(&pwd, MIN_PWD_LEN));
    let other = IceCredentials {
        ufrag: format!("{ufrag}0"),
        pwd: pwd.clone(),
    };
    assert!(
        !fragment.matches_credentials(&other),
        "credentials of another ICE session"
    );
    let credentials = IceCredentials { ufrag, pwd };
    assert!(fragment.matches_credentials(&credentials));
    let fingerprint = Fingerprint {
        hash_function: FingerprintHashFunction::Sha256,
        digest: vec![7; 32],
    };
    let candidates = [([192, 0, 2, 1], 8189).into()];
    let local = LocalTransport {
        ice_credentials: &credentials,
        fingerprint: &fingerprint,
        candidate_addresses: &candidates,
        accepts_ice_tcp: true,
        viewer_congestion_control: true,
        viewer_playout_delay: true,
        accepts_data_channels: true,
        sdp_session_id: 1,
    };
    let description = create_offer_to_viewer(&AudioVideoFormats::default(), &local);
    let written = description
        .ice_fragment_template
        .ice_restart_sdp_fragment(&credentials, &local);
    let again = TrickleFragmentCredentials::parse(written.as_bytes()).expect("our fragment parses");
    assert_eq!(again.credentials(), Ok(credentials));
});
