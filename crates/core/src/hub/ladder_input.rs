//! What makes a stream a source of another one: its packets are handed to the source ladder of that stream.

use super::name::StreamName;

/// One of the sources of the ladder of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LadderInput {
    /// The stream that the ladder feeds.
    pub ladder: StreamName,
    /// Position in the ladder, 0 for the highest source.
    pub source_index: usize,
}

/// The ladders that a stream feeds: none for ordinary streams, and several for a slate that streams share.
#[derive(Debug, Default)]
pub(super) struct LadderInputs {
    inputs: Vec<LadderInput>,
    /// Those that need the source to run.
    demanding: Vec<LadderInput>,
}

impl LadderInputs {
    pub(super) fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    pub(super) fn to_vec(&self) -> Vec<LadderInput> {
        self.inputs.clone()
    }

    pub(super) fn add(&mut self, input: LadderInput) {
        if !self.inputs.contains(&input) {
            self.inputs.push(input);
        }
    }

    pub(super) fn remove_ladder(&mut self, ladder: &StreamName) {
        self.inputs.retain(|input| input.ladder != *ladder);
        self.demanding.retain(|input| input.ladder != *ladder);
    }

    pub(super) fn set_demand(&mut self, input: &LadderInput, is_needed: bool) {
        self.demanding.retain(|other| other != input);
        if is_needed {
            self.demanding.push(input.clone());
        }
    }

    /// Whether a ladder needs the source to run.
    pub(super) fn has_demand(&self) -> bool {
        !self.demanding.is_empty()
    }
}
