//! The answer to an ICE restart: an SDP fragment with new local credentials (RFC 9725 §4.3.3, RFC 8840 §9).

use super::answer::{Local, candidate_lines};
use super::plan::IceCredentials;

/// The lines of the answer that a fragment repeats: the BUNDLE group and the tagged m-section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    group: Option<String>,
    /// The m-line with one format, and the `a=mid` if there is one.
    section: Vec<String>,
}

impl Frame {
    /// Extracts them from an answer.
    pub fn of(answer: &str) -> Self {
        let mut lines = answer.lines();
        let group = lines
            .by_ref()
            .take_while(|line| !line.starts_with("m="))
            .find(|line| line.starts_with("a=group:BUNDLE"));
        // The tagged section is the one with the candidates.
        let mut section: Vec<String> = Vec::new();
        for line in answer.lines() {
            if line.starts_with("m=") {
                section = vec![line.split(' ').take(4).collect::<Vec<_>>().join(" ")];
            } else if line.starts_with("a=mid:") {
                section.push(line.to_owned());
            } else if line == "a=end-of-candidates" {
                break;
            }
        }
        Self {
            group: group.map(str::to_owned),
            section,
        }
    }

    /// Returns the fragment, with the same `ice-lite` and `ice-options` as every answer. Lines end with CRLF, and the
    /// credentials and candidates are below the tagged m-line, where whip.js expects them.
    pub fn fragment(&self, credentials: &IceCredentials, local: &Local<'_>) -> String {
        let mut lines = vec!["a=ice-lite".to_owned(), "a=ice-options:trickle ice2".to_owned()];
        lines.extend(self.group.clone());
        lines.extend(self.section.iter().cloned());
        lines.push(format!("a=ice-ufrag:{}", credentials.ufrag));
        lines.push(format!("a=ice-pwd:{}", credentials.pwd));
        lines.extend(candidate_lines(local).map(|line| format!("a=candidate:{line}")));
        lines.push("a=end-of-candidates\r\n".to_owned());
        lines.join("\r\n")
    }
}
