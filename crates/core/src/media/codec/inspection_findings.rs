//! What the inspection of one packet found.

use bytes::Bytes;

use crate::media::CodecFormat;

/// What a codec module found in one packet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KeyFrameAndFormatFindings {
    pub(super) identifies_key_frame: bool,
    pub(super) parameter_sets_to_insert: Vec<Bytes>,
    pub(super) format: Option<CodecFormat>,
    pub(super) resolution: Option<(u16, u16)>,
}
