//! Parameter sets of H.264 and H.265: stores the latest one of each ID and detects random access units that were sent
//! without them.
//!
//! Access units are distinguished by RTP timestamp only (RFC 6184 §5.1): some cameras set the marker bit incorrectly,
//! and late packets arrive after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{BufMut as _, Bytes, BytesMut};

/// Maximum length of an inserted RTP payload in bytes: retransmitted, with headers, a transport-wide number and
/// authentication tag it fits a path MTU of 1,280. Whole blocks of AES are cheaper to encrypt.
pub const MAX_RTP_PAYLOAD_BYTES: usize = 1184;

/// Maximum length of a stored parameter set in bytes: it must fit a payload. Typical ones have 10 to 100.
const MAX_PARAMETER_SET_LENGTH: usize = MAX_RTP_PAYLOAD_BYTES;

/// Maximum total length of the stored parameter sets in bytes. H.264 allows 32 SPSs and 256 PPSs; typical streams have
/// one or two of each. Sets beyond this limit are not stored.
const MAX_TOTAL_PARAMETER_SET_BYTES: usize = 8 * 1024;

/// Number of remembered access units, so that a late packet does not start its unit again.
const MAX_TRACKED_ACCESS_UNITS: usize = 8;

/// Bytes that may be inserted at the start of a stream, and at most at once. No more is inserted altogether than the stream
/// itself has: a stream of tiny key frames must not become a hundred times as long by long parameter sets.
const INITIAL_INSERTION_BUDGET_BYTES: usize = 64 * 1024;
const MAX_INSERTION_BUDGET_BYTES: usize = 1024 * 1024;

/// Types of parameter sets, in order of dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ParameterSetKind {
    Vps,
    Sps,
    Pps,
}

impl ParameterSetKind {
    const ALL_KINDS: [Self; 3] = [Self::Vps, Self::Sps, Self::Pps];
}

/// A set of [`ParameterSetKind`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ParameterSetKinds(u8);

impl ParameterSetKinds {
    pub(super) fn from_kinds(kinds: &[ParameterSetKind]) -> Self {
        let mut set = Self::default();
        kinds.iter().for_each(|kind| set.add(*kind));
        set
    }

    pub(super) fn add(&mut self, kind: ParameterSetKind) {
        self.0 |= 1 << kind as u8;
    }

    fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn contains_kind(self, kind: ParameterSetKind) -> bool {
        self.contains_all(Self::from_kinds(&[kind]))
    }
}

/// A parameter set: its type and ID.
pub(super) type ParameterSetId = (ParameterSetKind, u8);

/// What a packet contains, as far as relevant here.
#[derive(Clone, Debug, Default)]
pub(super) struct PacketNalSummary {
    pub(super) parameter_sets: Vec<ParameterSetId>,
    /// Starts a slice that a decoder can start with.
    pub(super) starts_random_access_slice: bool,
}

/// Result for one packet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KeyFrameAndMissingParameterSets {
    pub(super) is_key_frame: bool,
    /// NAL units that the publisher did not send, in the order in which a decoder needs them.
    pub(super) missing_parameter_sets: Vec<Bytes>,
}

/// An access unit with parameter sets or a random access slice.
struct TrackedAccessUnit {
    timestamp: u32,
    parameter_sets: BTreeSet<ParameterSetId>,
    has_random_access_slice: bool,
    /// The missing parameter sets have been returned once; they are not returned again.
    missing_sets_supplied: bool,
}

/// A stored parameter set.
struct StoredParameterSet {
    nal: Bytes,
    /// The set of another type that it refers to.
    refers_to: Option<ParameterSetId>,
    /// Access unit in which it was received; `None` if it was signalled separately.
    access_unit_timestamp: Option<u32>,
}

/// The latest parameter sets of one stream, and its recent access units.
pub(super) struct ParameterSetStore {
    required_kinds: ParameterSetKinds,
    stored_sets: BTreeMap<ParameterSetId, StoredParameterSet>,
    /// Length of all of them.
    stored_byte_count: usize,
    access_units: VecDeque<TrackedAccessUnit>,
    /// Number of bytes that may be inserted now.
    credit: usize,
}

impl ParameterSetStore {
    /// Creates an empty store. A decoder of the stream needs at least one set of each kind in `required_kinds`.
    pub(super) fn new(required: ParameterSetKinds) -> Self {
        Self {
            required_kinds: required,
            stored_sets: BTreeMap::new(),
            stored_byte_count: 0,
            access_units: VecDeque::new(),
            credit: INITIAL_INSERTION_BUDGET_BYTES,
        }
    }

    /// Records the length of a payload: so much more may be inserted.
    pub(super) fn increase_insertion_budget(&mut self, length: usize) {
        self.credit = self.credit.saturating_add(length).min(MAX_INSERTION_BUDGET_BYTES);
    }

    /// Stores a parameter set of the access unit `timestamp`, or one that was signalled separately. The data is copied, so
    /// that the buffer of the whole packet is not retained.
    ///
    /// A set that changes invalidates those that refer to it, unless they came with it: decoders forget them too.
    pub(super) fn store_parameter_set_and_invalidate_dependents(
        &mut self,
        id: ParameterSetId,
        refers_to: Option<ParameterSetId>,
        time: Option<u32>,
        nal: &[u8],
    ) {
        let old = self.stored_sets.get_mut(&id);
        let old_length = match old {
            Some(old) if old.nal == nal => {
                old.access_unit_timestamp = time;
                return;
            }
            Some(old) => old.nal.len(),
            None => 0,
        };
        // Nothing refers to a PPS, of which a packet can have hundreds.
        if old_length > 0 && id.0 != ParameterSetKind::Pps {
            self.stored_sets
                .retain(|_, set| set.refers_to != Some(id) || (time.is_some() && set.access_unit_timestamp == time));
            self.stored_byte_count = self.stored_sets.values().map(|set| set.nal.len()).sum();
        }
        let others = self.stored_byte_count - old_length;
        if nal.len() > MAX_PARAMETER_SET_LENGTH || others + nal.len() > MAX_TOTAL_PARAMETER_SET_BYTES {
            // The stored set is outdated: a missing set is better than a wrong one.
            self.stored_sets.remove(&id);
            self.stored_byte_count = others;
        } else {
            self.stored_byte_count = others + nal.len();
            let stored = StoredParameterSet {
                nal: Bytes::copy_from_slice(nal),
                refers_to,
                access_unit_timestamp: time,
            };
            self.stored_sets.insert(id, stored);
        }
    }

    /// Forgets the recent access units: the timestamps that follow are unrelated to theirs.
    pub(super) fn on_timestamp_discontinuity(&mut self) {
        self.access_units.clear();
    }

    /// Records the contents of a packet, and returns whether its access unit is a key frame and which sets are missing.
    pub(super) fn record_packet_and_check_key_frame(
        &mut self,
        time: u32,
        contents: &PacketNalSummary,
    ) -> KeyFrameAndMissingParameterSets {
        if contents.parameter_sets.is_empty() && !contents.starts_random_access_slice {
            return KeyFrameAndMissingParameterSets::default();
        }
        let required = self.required_kinds;
        let can_supply = parameter_set_kinds_of(self.stored_sets.keys()).contains_all(required);
        let unit = self.get_or_create_access_unit(time);
        unit.parameter_sets.extend(contents.parameter_sets.iter().copied());
        unit.has_random_access_slice |= contents.starts_random_access_slice;
        if !unit.has_random_access_slice {
            return KeyFrameAndMissingParameterSets::default();
        }
        let is_complete = parameter_set_kinds_of(unit.parameter_sets.iter()).contains_all(required);
        if unit.missing_sets_supplied || !contents.starts_random_access_slice || !can_supply {
            return KeyFrameAndMissingParameterSets {
                is_key_frame: is_complete || unit.missing_sets_supplied,
                missing_parameter_sets: Vec::new(),
            };
        }
        let sets = std::mem::take(&mut unit.parameter_sets);
        let mut missing = self.missing_parameter_sets(&sets);
        let length = missing.iter().map(Bytes::len).sum();
        match self.credit.checked_sub(length) {
            Some(credit) => self.credit = credit,
            None => missing.clear(),
        }
        let is_refused = missing.is_empty() && length > 0;
        let unit = self.get_or_create_access_unit(time);
        unit.parameter_sets = sets;
        unit.missing_sets_supplied = !missing.is_empty();
        KeyFrameAndMissingParameterSets {
            is_key_frame: is_complete || !is_refused,
            missing_parameter_sets: missing,
        }
    }

    /// Returns the stored sets that an access unit with these sets lacks. From the first type on of which it has none,
    /// all are returned: a set must not precede the one it refers to.
    fn missing_parameter_sets(&self, sets: &BTreeSet<ParameterSetId>) -> Vec<Bytes> {
        let present = parameter_set_kinds_of(sets.iter());
        let required = ParameterSetKind::ALL_KINDS
            .iter()
            .filter(|kind| self.required_kinds.contains_kind(**kind));
        let first = required.copied().find(|kind| !present.contains_kind(*kind));
        let is_missing = |id: &ParameterSetId| !sets.contains(id) || first.is_some_and(|first| id.0 >= first);
        let missing = self.stored_sets.iter().filter(|(id, _)| is_missing(id));
        missing.map(|(_, set)| set.nal.clone()).collect()
    }

    fn get_or_create_access_unit(&mut self, time: u32) -> &mut TrackedAccessUnit {
        let index = match self.access_units.iter().position(|unit| unit.timestamp == time) {
            Some(index) => index,
            None => {
                if self.access_units.len() == MAX_TRACKED_ACCESS_UNITS {
                    self.access_units.pop_front();
                }
                self.access_units.push_back(TrackedAccessUnit {
                    timestamp: time,
                    parameter_sets: BTreeSet::new(),
                    has_random_access_slice: false,
                    missing_sets_supplied: false,
                });
                self.access_units.len() - 1
            }
        };
        &mut self.access_units[index]
    }
}

/// The types of sets.
fn parameter_set_kinds_of<'a>(sets: impl Iterator<Item = &'a ParameterSetId>) -> ParameterSetKinds {
    let mut kinds = ParameterSetKinds::default();
    sets.for_each(|(kind, _)| kinds.add(*kind));
    kinds
}

/// Packs NAL units into as few payloads as possible. A single NAL unit stays as it is; several are aggregated behind
/// `header`, each with a length prefix (STAP-A of RFC 6184 §5.7.1, AP of RFC 7798 §4.4.2).
pub(super) fn pack_nals_into_payloads(header: &[u8], nals: &[Bytes]) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    let mut rest = nals;
    while let Some(first) = rest.first() {
        let mut length = header.len();
        let fitting = rest.iter().take_while(|nal| {
            length += 2 + nal.len();
            length <= MAX_RTP_PAYLOAD_BYTES
        });
        let (together, others) = rest.split_at(fitting.count().max(1));
        payloads.push(if together.len() == 1 {
            first.clone()
        } else {
            aggregate_nals(header, together)
        });
        rest = others;
    }
    payloads
}

fn aggregate_nals(header: &[u8], nals: &[Bytes]) -> Bytes {
    let mut payload = BytesMut::with_capacity(MAX_RTP_PAYLOAD_BYTES);
    payload.put_slice(header);
    for nal in nals {
        payload.put_u16(nal.len() as u16);
        payload.put_slice(nal);
    }
    payload.freeze()
}

/// Iterates over the NAL units of an aggregation packet without its header; skips empty ones. Stops at the first one that
/// is truncated.
pub(in crate::media) fn iter_aggregated_nals(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    let nals = std::iter::from_fn(move || {
        let (&length, behind) = rest.split_first_chunk::<2>()?;
        let (nal, behind) = behind.split_at_checked(usize::from(u16::from_be_bytes(length)))?;
        rest = behind;
        Some(nal)
    });
    nals.filter(|nal| !nal.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPS: ParameterSetId = (ParameterSetKind::Sps, 0);
    const PPS: ParameterSetId = (ParameterSetKind::Pps, 0);

    fn with_sets(sets: &[ParameterSetId]) -> PacketNalSummary {
        PacketNalSummary {
            parameter_sets: sets.to_vec(),
            starts_random_access_slice: false,
        }
    }

    const SLICE: PacketNalSummary = PacketNalSummary {
        parameter_sets: Vec::new(),
        starts_random_access_slice: true,
    };

    fn h264_sets() -> ParameterSetStore {
        ParameterSetStore::new(ParameterSetKinds::from_kinds(&[
            ParameterSetKind::Sps,
            ParameterSetKind::Pps,
        ]))
    }

    fn h264_with_one_of_each() -> ParameterSetStore {
        let mut sets = h264_sets();
        sets.store_parameter_set_and_invalidate_dependents(PPS, Some(SPS), Some(0), b"pps");
        sets.store_parameter_set_and_invalidate_dependents(SPS, None, Some(0), b"sps");
        sets
    }

    #[test]
    fn sets_are_supplied_once_for_each_access_unit() {
        let mut sets = h264_with_one_of_each();
        assert_eq!(
            sets.record_packet_and_check_key_frame(1, &SLICE).missing_parameter_sets,
            ["sps", "pps"]
        );
        let again = sets.record_packet_and_check_key_frame(1, &SLICE);
        assert_eq!((again.is_key_frame, again.missing_parameter_sets.len()), (true, 0));
        assert_eq!(
            sets.record_packet_and_check_key_frame(2, &SLICE)
                .missing_parameter_sets
                .len(),
            2
        );
        assert_eq!(
            sets.record_packet_and_check_key_frame(1, &SLICE)
                .missing_parameter_sets
                .len(),
            0,
            "late, and not started again"
        );
    }

    #[test]
    fn a_unit_with_only_its_sps_gets_the_pps() {
        let mut sets = h264_with_one_of_each();
        sets.record_packet_and_check_key_frame(1, &with_sets(&[SPS]));
        assert_eq!(
            sets.record_packet_and_check_key_frame(1, &SLICE).missing_parameter_sets,
            ["pps"]
        );
        sets.record_packet_and_check_key_frame(2, &with_sets(&[PPS]));
        assert_eq!(
            sets.record_packet_and_check_key_frame(2, &SLICE).missing_parameter_sets,
            ["sps", "pps"],
            "in order of dependency"
        );
    }

    #[test]
    fn a_unit_with_one_of_two_ids_gets_the_other() {
        let mut sets = h264_with_one_of_each();
        let second = (ParameterSetKind::Pps, 1);
        sets.store_parameter_set_and_invalidate_dependents(second, Some(SPS), Some(0), b"pps1");
        sets.record_packet_and_check_key_frame(1, &with_sets(&[SPS, PPS]));
        let verdict = sets.record_packet_and_check_key_frame(1, &SLICE);
        assert_eq!(
            (verdict.is_key_frame, &verdict.missing_parameter_sets[..]),
            (true, &[Bytes::from("pps1")][..])
        );
        assert_eq!(
            sets.record_packet_and_check_key_frame(1, &SLICE)
                .missing_parameter_sets
                .len(),
            0
        );
        sets.record_packet_and_check_key_frame(2, &with_sets(&[SPS, PPS, second]));
        assert_eq!(
            sets.record_packet_and_check_key_frame(2, &SLICE)
                .missing_parameter_sets
                .len(),
            0
        );
    }

    #[test]
    fn a_changed_set_invalidates_those_that_refer_to_it() {
        let mut sets = h264_with_one_of_each();
        sets.store_parameter_set_and_invalidate_dependents((ParameterSetKind::Pps, 1), Some(SPS), Some(0), b"pps1");
        sets.store_parameter_set_and_invalidate_dependents(
            (ParameterSetKind::Pps, 0),
            Some(SPS),
            Some(7),
            b"pps of the new one",
        );
        sets.store_parameter_set_and_invalidate_dependents(SPS, None, Some(7), b"new sps");
        assert_eq!(
            sets.record_packet_and_check_key_frame(8, &SLICE).missing_parameter_sets,
            ["new sps", "pps of the new one"]
        );
    }

    #[test]
    fn without_known_sets_the_late_ones_identify_the_key_frame() {
        let mut sets = h264_sets();
        assert_eq!(
            sets.record_packet_and_check_key_frame(1, &SLICE),
            KeyFrameAndMissingParameterSets::default()
        );
        assert!(
            !sets
                .record_packet_and_check_key_frame(1, &with_sets(&[SPS]))
                .is_key_frame
        );
        assert!(
            sets.record_packet_and_check_key_frame(1, &with_sets(&[PPS]))
                .is_key_frame
        );
    }

    #[test]
    fn stored_sets_are_bounded() {
        let mut sets = h264_sets();
        for id in 0..=255 {
            sets.store_parameter_set_and_invalidate_dependents((ParameterSetKind::Pps, id), None, Some(0), &[id; 1000]);
        }
        assert_eq!(sets.stored_sets.len(), 8);
        sets.store_parameter_set_and_invalidate_dependents(PPS, None, Some(0), &[0; MAX_PARAMETER_SET_LENGTH + 1]);
        assert!(!sets.stored_sets.contains_key(&PPS));
        for time in 0..1000 {
            sets.record_packet_and_check_key_frame(time, &SLICE);
        }
        assert_eq!(sets.access_units.len(), MAX_TRACKED_ACCESS_UNITS);
    }

    #[test]
    fn no_more_is_inserted_than_the_stream_itself_has() {
        let mut sets = h264_sets();
        sets.store_parameter_set_and_invalidate_dependents(SPS, None, None, &[7; MAX_PARAMETER_SET_LENGTH]);
        sets.store_parameter_set_and_invalidate_dependents(PPS, Some(SPS), None, &[8; MAX_PARAMETER_SET_LENGTH]);
        let (mut inserted, mut received, mut key_frames) = (0, 0, 0);
        for time in 0..50_000 {
            received += 10;
            sets.increase_insertion_budget(10);
            let verdict = sets.record_packet_and_check_key_frame(time, &SLICE);
            inserted += verdict.missing_parameter_sets.iter().map(Bytes::len).sum::<usize>();
            key_frames += usize::from(verdict.is_key_frame);
            assert_eq!(verdict.is_key_frame, !verdict.missing_parameter_sets.is_empty());
        }
        assert!(
            inserted <= INITIAL_INSERTION_BUDGET_BYTES + received,
            "{inserted} of {received}"
        );
        assert!(
            key_frames > received / (2 * MAX_PARAMETER_SET_LENGTH),
            "viewers can start now and then"
        );
        // Of a usual stream all key frames have their sets.
        let mut sets = h264_with_one_of_each();
        for time in 0..50_000 {
            sets.increase_insertion_budget(50);
            assert_eq!(
                sets.record_packet_and_check_key_frame(time, &SLICE)
                    .missing_parameter_sets,
                ["sps", "pps"]
            );
        }
    }

    #[test]
    fn packing_fills_payloads_and_never_exceeds_one() {
        let nal = |length| Bytes::from(vec![7; length]);
        let payloads = pack_nals_into_payloads(&[24], &[nal(600), nal(500), nal(200), nal(1184), nal(3)]);
        let lengths: Vec<_> = payloads.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [1 + 602 + 502, 200, 1184, 3]);
        let first: Vec<_> = iter_aggregated_nals(&payloads[0][1..]).map(<[u8]>::len).collect();
        assert_eq!(first, [600, 500]);
    }
}
