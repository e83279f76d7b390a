//! Parameter sets of H.264 and H.265: stores the latest one of each ID and detects random access units that were sent
//! without them.
//!
//! Access units are distinguished by RTP timestamp only (RFC 6184 §5.1): some cameras set the marker bit incorrectly,
//! and late packets arrive after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{BufMut as _, Bytes, BytesMut};

/// Maximum length of an inserted RTP payload in bytes: with headers and authentication tag it fits a path MTU of 1,280.
pub const MAX_PAYLOAD: usize = 1200;

/// Maximum length of a stored parameter set in bytes: it must fit a payload. Typical ones have 10 to 100.
const MAX_SET: usize = MAX_PAYLOAD;

/// Maximum total length of the stored parameter sets in bytes. H.264 allows 32 SPSs and 256 PPSs; typical streams have
/// one or two of each. Sets beyond this limit are not stored.
const MAX_TOTAL: usize = 8 * 1024;

/// Number of remembered access units, so that a late packet does not start its unit again.
const MAX_UNITS: usize = 8;

/// Types of parameter sets, in order of dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetKind {
    Vps,
    Sps,
    Pps,
}

impl SetKind {
    const ALL: [Self; 3] = [Self::Vps, Self::Sps, Self::Pps];
}

/// A set of [`SetKind`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SetKinds(u8);

impl SetKinds {
    pub(super) fn of(kinds: &[SetKind]) -> Self {
        let mut set = Self::default();
        kinds.iter().for_each(|kind| set.add(*kind));
        set
    }

    pub(super) fn add(&mut self, kind: SetKind) {
        self.0 |= 1 << kind as u8;
    }

    fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn has(self, kind: SetKind) -> bool {
        self.contains(Self::of(&[kind]))
    }
}

/// A parameter set: its type and ID.
pub(super) type SetId = (SetKind, u8);

/// What a packet contains, as far as relevant here.
#[derive(Clone, Debug, Default)]
pub(super) struct PacketContents {
    pub(super) sets: Vec<SetId>,
    /// Starts a slice that a decoder can start with.
    pub(super) random_access: bool,
}

/// Result for one packet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) key_frame: bool,
    /// NAL units that the publisher did not send, in the order in which a decoder needs them.
    pub(super) missing: Vec<Bytes>,
}

/// An access unit with parameter sets or a random access slice.
struct Unit {
    time: u32,
    sets: BTreeSet<SetId>,
    random_access: bool,
    /// The missing parameter sets have been returned once; they are not returned again.
    supplied: bool,
}

/// A stored parameter set.
struct Stored {
    nal: Bytes,
    /// The set of another type that it refers to.
    refers_to: Option<SetId>,
    /// Access unit in which it was received; `None` if it was signalled separately.
    received: Option<u32>,
}

/// The latest parameter sets of one stream, and its recent access units.
pub(super) struct ParameterSets {
    required: SetKinds,
    sets: BTreeMap<SetId, Stored>,
    /// Length of all of them.
    total: usize,
    units: VecDeque<Unit>,
}

impl ParameterSets {
    /// Creates an empty store. A decoder of the stream needs at least one set of each kind in `required`.
    pub(super) fn new(required: SetKinds) -> Self {
        Self {
            required,
            sets: BTreeMap::new(),
            total: 0,
            units: VecDeque::new(),
        }
    }

    /// Stores a parameter set of the access unit `time`, or one that was signalled separately. The data is copied, so
    /// that the buffer of the whole packet is not retained.
    ///
    /// A set that changes invalidates those that refer to it, unless they came with it: decoders forget them too.
    pub(super) fn store(&mut self, id: SetId, refers_to: Option<SetId>, time: Option<u32>, nal: &[u8]) {
        let old = self.sets.get_mut(&id);
        let old_length = match old {
            Some(old) if old.nal == nal => {
                old.received = time;
                return;
            }
            Some(old) => old.nal.len(),
            None => 0,
        };
        // Nothing refers to a PPS, of which a packet can have hundreds.
        if old_length > 0 && id.0 != SetKind::Pps {
            self.sets
                .retain(|_, set| set.refers_to != Some(id) || (time.is_some() && set.received == time));
            self.total = self.sets.values().map(|set| set.nal.len()).sum();
        }
        let others = self.total - old_length;
        if nal.len() > MAX_SET || others + nal.len() > MAX_TOTAL {
            // The stored set is outdated: a missing set is better than a wrong one.
            self.sets.remove(&id);
            self.total = others;
        } else {
            self.total = others + nal.len();
            let stored = Stored {
                nal: Bytes::copy_from_slice(nal),
                refers_to,
                received: time,
            };
            self.sets.insert(id, stored);
        }
    }

    /// Forgets the recent access units, whose timestamps are unrelated to those that follow.
    pub(super) fn forget_units(&mut self) {
        self.units.clear();
    }

    /// Records the contents of a packet, and returns whether its access unit is a key frame and which sets are missing.
    pub(super) fn judge(&mut self, time: u32, contents: &PacketContents) -> Verdict {
        if contents.sets.is_empty() && !contents.random_access {
            return Verdict::default();
        }
        let required = self.required;
        let can_supply = kinds(self.sets.keys()).contains(required);
        let unit = self.unit(time);
        unit.sets.extend(contents.sets.iter().copied());
        unit.random_access |= contents.random_access;
        if !unit.random_access {
            return Verdict::default();
        }
        let is_complete = kinds(unit.sets.iter()).contains(required);
        if unit.supplied || !contents.random_access || !can_supply {
            return Verdict {
                key_frame: is_complete || unit.supplied,
                missing: Vec::new(),
            };
        }
        let sets = std::mem::take(&mut unit.sets);
        let missing = self.missing(&sets);
        let unit = self.unit(time);
        unit.sets = sets;
        unit.supplied = !missing.is_empty();
        Verdict {
            key_frame: true,
            missing,
        }
    }

    /// Returns the stored sets that an access unit with these sets lacks. From the first type on of which it has none,
    /// all are returned: a set must not precede the one it refers to.
    fn missing(&self, sets: &BTreeSet<SetId>) -> Vec<Bytes> {
        let present = kinds(sets.iter());
        let required = SetKind::ALL.iter().filter(|kind| self.required.has(**kind));
        let first = required.copied().find(|kind| !present.has(*kind));
        let is_missing = |id: &SetId| !sets.contains(id) || first.is_some_and(|first| id.0 >= first);
        let missing = self.sets.iter().filter(|(id, _)| is_missing(id));
        missing.map(|(_, set)| set.nal.clone()).collect()
    }

    fn unit(&mut self, time: u32) -> &mut Unit {
        let index = match self.units.iter().position(|unit| unit.time == time) {
            Some(index) => index,
            None => {
                if self.units.len() == MAX_UNITS {
                    self.units.pop_front();
                }
                self.units.push_back(Unit {
                    time,
                    sets: BTreeSet::new(),
                    random_access: false,
                    supplied: false,
                });
                self.units.len() - 1
            }
        };
        &mut self.units[index]
    }
}

/// The types of sets.
fn kinds<'a>(sets: impl Iterator<Item = &'a SetId>) -> SetKinds {
    let mut kinds = SetKinds::default();
    sets.for_each(|(kind, _)| kinds.add(*kind));
    kinds
}

/// Packs NAL units into as few payloads as possible. A single NAL unit stays as it is; several are aggregated behind
/// `header`, each with a length prefix (STAP-A of RFC 6184 §5.7.1, AP of RFC 7798 §4.4.2).
pub(super) fn pack(header: &[u8], nals: &[Bytes]) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    let mut rest = nals;
    while let Some(first) = rest.first() {
        let mut length = header.len();
        let fitting = rest.iter().take_while(|nal| {
            length += 2 + nal.len();
            length <= MAX_PAYLOAD
        });
        let (together, others) = rest.split_at(fitting.count().max(1));
        payloads.push(if together.len() == 1 {
            first.clone()
        } else {
            aggregate(header, together)
        });
        rest = others;
    }
    payloads
}

fn aggregate(header: &[u8], nals: &[Bytes]) -> Bytes {
    let mut payload = BytesMut::with_capacity(MAX_PAYLOAD);
    payload.put_slice(header);
    for nal in nals {
        payload.put_u16(nal.len() as u16);
        payload.put_slice(nal);
    }
    payload.freeze()
}

/// Iterates over the NAL units of an aggregation packet without its header; skips empty ones. Stops at the first one that
/// is truncated.
pub(super) fn aggregated(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
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

    const SPS: SetId = (SetKind::Sps, 0);
    const PPS: SetId = (SetKind::Pps, 0);

    fn with_sets(sets: &[SetId]) -> PacketContents {
        PacketContents {
            sets: sets.to_vec(),
            random_access: false,
        }
    }

    const SLICE: PacketContents = PacketContents {
        sets: Vec::new(),
        random_access: true,
    };

    fn h264_sets() -> ParameterSets {
        ParameterSets::new(SetKinds::of(&[SetKind::Sps, SetKind::Pps]))
    }

    fn h264_with_one_of_each() -> ParameterSets {
        let mut sets = h264_sets();
        sets.store(PPS, Some(SPS), Some(0), b"pps");
        sets.store(SPS, None, Some(0), b"sps");
        sets
    }

    #[test]
    fn sets_are_supplied_once_for_each_access_unit() {
        let mut sets = h264_with_one_of_each();
        assert_eq!(sets.judge(1, &SLICE).missing, ["sps", "pps"]);
        let again = sets.judge(1, &SLICE);
        assert_eq!((again.key_frame, again.missing.len()), (true, 0));
        assert_eq!(sets.judge(2, &SLICE).missing.len(), 2);
        assert_eq!(sets.judge(1, &SLICE).missing.len(), 0, "late, and not started again");
    }

    #[test]
    fn a_unit_with_only_its_sps_gets_the_pps() {
        let mut sets = h264_with_one_of_each();
        sets.judge(1, &with_sets(&[SPS]));
        assert_eq!(sets.judge(1, &SLICE).missing, ["pps"]);
        sets.judge(2, &with_sets(&[PPS]));
        assert_eq!(sets.judge(2, &SLICE).missing, ["sps", "pps"], "in order of dependency");
    }

    #[test]
    fn a_unit_with_one_of_two_ids_gets_the_other() {
        let mut sets = h264_with_one_of_each();
        let second = (SetKind::Pps, 1);
        sets.store(second, Some(SPS), Some(0), b"pps1");
        sets.judge(1, &with_sets(&[SPS, PPS]));
        let verdict = sets.judge(1, &SLICE);
        assert_eq!(
            (verdict.key_frame, &verdict.missing[..]),
            (true, &[Bytes::from("pps1")][..])
        );
        assert_eq!(sets.judge(1, &SLICE).missing.len(), 0);
        sets.judge(2, &with_sets(&[SPS, PPS, second]));
        assert_eq!(sets.judge(2, &SLICE).missing.len(), 0);
    }

    #[test]
    fn a_changed_set_invalidates_those_that_refer_to_it() {
        let mut sets = h264_with_one_of_each();
        sets.store((SetKind::Pps, 1), Some(SPS), Some(0), b"pps1");
        sets.store((SetKind::Pps, 0), Some(SPS), Some(7), b"pps of the new one");
        sets.store(SPS, None, Some(7), b"new sps");
        assert_eq!(sets.judge(8, &SLICE).missing, ["new sps", "pps of the new one"]);
    }

    #[test]
    fn without_known_sets_the_late_ones_identify_the_key_frame() {
        let mut sets = h264_sets();
        assert_eq!(sets.judge(1, &SLICE), Verdict::default());
        assert!(!sets.judge(1, &with_sets(&[SPS])).key_frame);
        assert!(sets.judge(1, &with_sets(&[PPS])).key_frame);
    }

    #[test]
    fn stored_sets_are_bounded() {
        let mut sets = h264_sets();
        for id in 0..=255 {
            sets.store((SetKind::Pps, id), None, Some(0), &[id; 1000]);
        }
        assert_eq!(sets.sets.len(), 8);
        sets.store(PPS, None, Some(0), &[0; MAX_SET + 1]);
        assert!(!sets.sets.contains_key(&PPS));
        for time in 0..1000 {
            sets.judge(time, &SLICE);
        }
        assert_eq!(sets.units.len(), MAX_UNITS);
    }

    #[test]
    fn packing_fills_payloads_and_never_exceeds_one() {
        let nal = |length| Bytes::from(vec![7; length]);
        let payloads = pack(&[24], &[nal(600), nal(500), nal(200), nal(1200), nal(3)]);
        let lengths: Vec<_> = payloads.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [1 + 602 + 502, 200, 1200, 3]);
        let first: Vec<_> = aggregated(&payloads[0][1..]).map(<[u8]>::len).collect();
        assert_eq!(first, [600, 500]);
    }
}
