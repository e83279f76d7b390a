//! The session description that the gateway writes, and what later requests of the session refer to in it.

use super::ice_restart::IceFragmentTemplate;

/// A session description of the gateway: an answer, or an offer to a viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDescription {
    /// The SDP text (RFC 8866).
    pub sdp: String,
    /// The section that carries video; `None` if there is none or it was rejected.
    pub video_section: Option<VideoSectionId>,
    /// What an SDP fragment for an ICE restart repeats (RFC 9725 §4.3.3).
    pub ice_fragment_template: IceFragmentTemplate,
    /// Media kind and mid of each section in order.
    pub section_kinds_and_mids: Vec<(String, String)>,
}

/// The section of a session description that carries video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VideoSectionId {
    /// Index of the m-line.
    pub index: usize,
    /// `None` if the offer has no `a=mid`.
    pub mid: Option<String>,
}
