//! Trickle ICE fragments: the body of a PATCH (RFC 8840 §9, RFC 9725 §4.3.1).
//!
//! The gateway is ICE-lite and learns the addresses of a peer from its connectivity checks, so candidates are ignored.
//! Only the credentials matter: they tell whether the fragment belongs to the current ICE session or starts a new one.
//! Real clients put the credentials before the first `m=` line, invent `m=` lines, repeat candidates under each mid or
//! omit `a=mid`; all of this is accepted.

use thiserror::Error;

use millstream_core::sdp::{self, negotiation_result::IceCredentials};

/// The ICE credentials of a fragment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TrickleFragmentCredentials<'a> {
    ufrags: Vec<&'a str>,
    pwds: Vec<&'a str>,
}

/// Why a body is not a valid fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TrickleFragmentError {
    #[error("the trickle ICE fragment is empty")]
    Empty,
    #[error(
        "the trickle ICE fragment is not text: expected UTF-8 without control characters, except line breaks and tabs"
    )]
    NotText,
    #[error("line {line} of the trickle ICE fragment is not SDP: expected a line like `a=candidate:..`")]
    NotSdpLine { line: usize },
    #[error(
        "line {line} of the trickle ICE fragment is a candidate without an m-line before it: send the `m=` line of its media section first"
    )]
    CandidateBeforeSection { line: usize },
    #[error(
        "an ICE restart requires one `a=ice-ufrag` of 4 to 256 and one `a=ice-pwd` of 22 to 256 letters, digits, `+` \
         and `/`"
    )]
    InvalidCredentials,
}

impl<'a> TrickleFragmentCredentials<'a> {
    /// Parses the body of a PATCH. Lines end in CRLF or LF, except that the last line end may be missing.
    ///
    /// # Errors
    ///
    /// A [`TrickleFragmentError`].
    pub fn parse(body: &'a [u8]) -> Result<Self, TrickleFragmentError> {
        let text = str::from_utf8(body).map_err(|_| TrickleFragmentError::NotText)?;
        if text.contains(|c: char| c.is_control() && !matches!(c, '\r' | '\n' | '\t')) {
            return Err(TrickleFragmentError::NotText);
        }
        let mut fragment = Self::default();
        let mut is_empty = true;
        let mut has_section = false;
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() {
                continue;
            }
            let [b'a'..=b'z', b'=', ..] = line.as_bytes() else {
                return Err(TrickleFragmentError::NotSdpLine { line: index + 1 });
            };
            is_empty = false;
            // RFC 8840 §9: candidates belong to the section that they stand in.
            if line.starts_with("a=candidate:") && !has_section {
                return Err(TrickleFragmentError::CandidateBeforeSection { line: index + 1 });
            }
            has_section |= line.starts_with("m=");
            if let Some(ufrag) = line.strip_prefix("a=ice-ufrag:") {
                fragment.ufrags.push(ufrag.trim());
            } else if let Some(pwd) = line.strip_prefix("a=ice-pwd:") {
                fragment.pwds.push(pwd.trim());
            }
        }
        if is_empty {
            return Err(TrickleFragmentError::Empty);
        }
        Ok(fragment)
    }

    /// Returns whether the fragment belongs to the ICE session with these credentials; if not, it requests an ICE
    /// restart. A fragment without credentials belongs to the current session.
    pub fn matches_credentials(&self, remote: &IceCredentials) -> bool {
        self.ufrags.iter().all(|ufrag| *ufrag == remote.ufrag) && self.pwds.iter().all(|pwd| *pwd == remote.pwd)
    }

    /// Returns the credentials of the ICE session that the fragment starts. They may be repeated, as some clients do in
    /// every section.
    ///
    /// # Errors
    ///
    /// [`TrickleFragmentError::InvalidCredentials`].
    pub fn credentials(&self) -> Result<IceCredentials, TrickleFragmentError> {
        let unique = |texts: &[&str], shortest| {
            let (first, rest) = texts.split_first()?;
            let is_good = sdp::is_valid_ice_credential(first, shortest) && rest.iter().all(|text| text == first);
            is_good.then(|| (*first).to_owned())
        };
        let ufrag = unique(&self.ufrags, sdp::MIN_UFRAG_LEN);
        let pwd = unique(&self.pwds, sdp::MIN_PWD_LEN);
        let (ufrag, pwd) = ufrag.zip(pwd).ok_or(TrickleFragmentError::InvalidCredentials)?;
        Ok(IceCredentials { ufrag, pwd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> IceCredentials {
        IceCredentials {
            ufrag: "FS44h3zTeMy+d7aWIV7ztKr6cXMd/lsr".to_owned(),
            pwd: "54gFlgJ5zBUeHm03CYITMnBTH+7G9Aqe".to_owned(),
        }
    }

    #[test]
    fn recorded_fragments_belong_to_their_session() {
        for body in [
            include_str!("../../tests/data/offers/simple-whip-client-20240308-gst1.28.8-patch1.sdpfrag"),
            include_str!(
                "../../tests/data/offers/simple-whip-client-20240308-gst1.28.8-patch2-endofcandidates.sdpfrag"
            ),
        ] {
            let crlf = body.replace("\r\n", "\n").replace('\n', "\r\n");
            for body in [body, crlf.as_str(), body.trim_end()] {
                let fragment = TrickleFragmentCredentials::parse(body.as_bytes()).expect("parses");
                assert!(fragment.matches_credentials(&remote()));
            }
        }
    }

    #[test]
    fn other_credentials_ask_for_a_restart() {
        for (body, belongs) in [
            (
                "m=audio 9 RTP/AVP 0\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n",
                true,
            ),
            ("a=end-of-candidates", true),
            ("a=ice-ufrag:FS44h3zTeMy+d7aWIV7ztKr6cXMd/lsr\n", true),
            ("a=ice-ufrag:other\na=ice-pwd:54gFlgJ5zBUeHm03CYITMnBTH+7G9Aqe\n", false),
            ("a=ice-ufrag:FS44h3zTeMy+d7aWIV7ztKr6cXMd/lsr\na=ice-pwd:other\n", false),
            ("m=audio 9 RTP/AVP 0\na=mid:0\na=ice-ufrag:other\n", false),
        ] {
            let fragment = TrickleFragmentCredentials::parse(body.as_bytes()).expect(body);
            assert_eq!(fragment.matches_credentials(&remote()), belongs, "{body}");
        }
    }

    #[test]
    fn what_is_not_a_fragment_is_refused() {
        for (body, error) in [
            (&b""[..], TrickleFragmentError::Empty),
            (b"\r\n\r\n", TrickleFragmentError::Empty),
            (b"\xff\xfe", TrickleFragmentError::NotText),
            (b"a=candidate:\0", TrickleFragmentError::NotText),
            (
                br#"{"candidate":"","sdpMid":"0"}"#,
                TrickleFragmentError::NotSdpLine { line: 1 },
            ),
            (b"a=mid:0\njunk\n", TrickleFragmentError::NotSdpLine { line: 2 }),
            (
                b"a=ice-options:trickle\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\nm=audio 9 RTP/AVP 0\n",
                TrickleFragmentError::CandidateBeforeSection { line: 2 },
            ),
        ] {
            assert_eq!(TrickleFragmentCredentials::parse(body), Err(error));
        }
    }
}
