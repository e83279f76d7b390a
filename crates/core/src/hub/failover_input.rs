//! What makes a stream a source of another one: its packets are handed to the failover group of that stream.

use super::name::StreamName;

/// One of the sources of the failover group of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverInput {
    /// The stream that the failover group feeds.
    pub failover_group: StreamName,
    /// Position in the failover group, 0 for the highest source.
    pub source_index: usize,
}

/// The failover groups that a stream feeds: none for ordinary streams, and several for a slate that streams share.
#[derive(Debug, Default)]
pub(super) struct FailoverInputs {
    inputs: Vec<FailoverInput>,
    /// Those that need the source to run.
    demanding: Vec<FailoverInput>,
}

impl FailoverInputs {
    pub(super) fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    pub(super) fn to_vec(&self) -> Vec<FailoverInput> {
        self.inputs.clone()
    }

    pub(super) fn add(&mut self, input: FailoverInput) {
        if !self.inputs.contains(&input) {
            self.inputs.push(input);
        }
    }

    pub(super) fn remove_failover_group(&mut self, failover_group: &StreamName) {
        self.inputs.retain(|input| input.failover_group != *failover_group);
        self.demanding.retain(|input| input.failover_group != *failover_group);
    }

    pub(super) fn set_source_demand(&mut self, input: &FailoverInput, is_needed: bool) {
        self.demanding.retain(|other| other != input);
        if is_needed {
            self.demanding.push(input.clone());
        }
    }

    /// Whether a failover group needs the source to run.
    pub(super) fn is_source_needed_by_failover_group(&self) -> bool {
        !self.demanding.is_empty()
    }
}
