//! The answer to an ICE restart: an SDP fragment with new local credentials (RFC 9725 §4.3.3, RFC 8840 §9).

use super::local_transport::{LocalTransport, candidate_lines};
use super::negotiation_result::IceCredentials;

/// The lines of the answer that a fragment repeats: the BUNDLE group and the tagged m-section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IceFragmentTemplate {
    bundle_group_line: Option<String>,
    /// The m-line with one format, and the `a=mid` if there is one.
    section_lines: Vec<String>,
}

impl IceFragmentTemplate {
    pub(super) fn new(group: Option<String>, media_line: String, mid: Option<&str>) -> Self {
        Self {
            bundle_group_line: group.map(|mids| format!("a=group:BUNDLE {mids}")),
            section_lines: std::iter::once(format!("m={media_line}"))
                .chain(mid.map(|mid| format!("a=mid:{mid}")))
                .collect(),
        }
    }

    /// Returns the fragment, with the same `ice-lite` and `ice-options` as every answer. Lines end with CRLF, and the
    /// credentials and candidates are below the tagged m-line, where whip.js expects them.
    pub fn ice_restart_sdp_fragment(&self, credentials: &IceCredentials, local: &LocalTransport<'_>) -> String {
        let mut lines = vec!["a=ice-lite".to_owned(), "a=ice-options:trickle ice2".to_owned()];
        lines.extend(self.bundle_group_line.clone());
        lines.extend(self.section_lines.iter().cloned());
        lines.push(format!("a=ice-ufrag:{}", credentials.ufrag));
        lines.push(format!("a=ice-pwd:{}", credentials.pwd));
        lines.extend(candidate_lines(local).map(|line| format!("a=candidate:{line}")));
        lines.push("a=end-of-candidates\r\n".to_owned());
        lines.join("\r\n")
    }
}
