//! The body of a PATCH to a session URL: a trickle fragment (RFC 8840).
//!
//! The credentials of a fragment are well-formed, belong to the fragment, and are the same after we wrote them as the
//! answer to an ICE restart and parsed that. The line of an error exists.
#![no_main]

use millstream::http::fragment::{Fragment, FragmentError};
use millstream_core::sdp::{
    Local, SHORTEST_PWD, SHORTEST_UFRAG, is_ice_text, offer_viewer,
    plan::{Fingerprint, FingerprintHash, IceCredentials, SourceFormats},
};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let fragment = match Fragment::parse(body) {
        Ok(fragment) => fragment,
        Err(FragmentError::NotALine { line } | FragmentError::NoSection { line }) => {
            let text = str::from_utf8(body).expect("lines are counted in text");
            return assert!((1..=text.lines().count()).contains(&line), "line {line}");
        }
        Err(FragmentError::Empty | FragmentError::NotText | FragmentError::BadCredentials) => return,
    };
    let Ok(IceCredentials { ufrag, pwd }) = fragment.credentials() else {
        return;
    };
    assert!(is_ice_text(&ufrag, SHORTEST_UFRAG) && is_ice_text(&pwd, SHORTEST_PWD));
    let other = IceCredentials {
        ufrag: format!("{ufrag}0"),
        pwd: pwd.clone(),
    };
    assert!(!fragment.belongs_to(&other), "credentials of another ICE session");
    let credentials = IceCredentials { ufrag, pwd };
    assert!(fragment.belongs_to(&credentials));
    let fingerprint = Fingerprint {
        hash: FingerprintHash::Sha256,
        digest: vec![7; 32],
    };
    let candidates = [([192, 0, 2, 1], 8189).into()];
    let local = Local {
        credentials: &credentials,
        fingerprint: &fingerprint,
        candidates: &candidates,
        tcp: true,
        session_id: 1,
    };
    let description = offer_viewer(&SourceFormats::default(), &local);
    let written = description.ice.fragment(&credentials, &local);
    let again = Fragment::parse(written.as_bytes()).expect("our fragment parses");
    assert_eq!(again.credentials(), Ok(credentials));
});
