//! What answers an ICE restart: a fragment with new credentials of ours (RFC 9725 §4.3.3, RFC 8840 §9).

use super::answer::{Local, candidate_lines};
use super::plan::IceCredentials;

/// What a fragment repeats of the answer: its group, and its tagged m-section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    group: Option<String>,
    /// The m-line with one format, and the `a=mid` if there is one.
    section: Vec<String>,
}

impl Frame {
    /// Takes it from an answer of ours.
    pub fn of(answer: &str) -> Self {
        let mut lines = answer.lines();
        let group = lines
            .by_ref()
            .take_while(|line| !line.starts_with("m="))
            .find(|line| line.starts_with("a=group:BUNDLE"));
        // The tagged section is the one that has the candidates.
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

    /// The fragment, with the same `ice-lite` and `ice-options` as every answer. CRLF, and everything under the tagged
    /// m-line: whip.js finds it so.
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
