//! Parameter sets of H.264 and H.265: keeps the latest of each id and notices when an access unit that a decoder could
//! begin with came without them.
//!
//! Access units are told apart by their RTP time alone (RFC 6184 §5.1): the marker is wrong on some cameras, and late
//! packets come after it.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut as _, Bytes, BytesMut};

/// Longest RTP payload that we insert, in bytes: with headers and tag it passes a path of 1,280 bytes.
pub const MAX_PAYLOAD: usize = 1200;

/// Longest parameter set that is kept, in bytes: it has to fit into a payload. Real ones have 10 to 100.
const MAX_SET: usize = MAX_PAYLOAD;

/// All parameter sets together, in bytes. H.264 allows 32 SPSs and 256 PPSs; real streams have one or two of each. What
/// would go beyond is not kept.
const MAX_TOTAL: usize = 8 * 1024;

/// Access units that are remembered, so that a late packet does not open its unit for a second time.
const MAX_UNITS: usize = 8;

/// The kinds of parameter sets, in the order in which they depend on each other.
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

/// What one packet carries, as far as it matters here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) outcome: SetKinds,
    /// The start of a slice that a decoder can begin with.
    pub(super) random_access: bool,
}

/// What follows from it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) key_frame: bool,
    /// NAL units that the publisher left out, in the order in which a decoder needs them.
    pub(super) missing: Vec<Bytes>,
}

/// One access unit that brought parameter sets or can be begun with.
struct Unit {
    time: u32,
    outcome: SetKinds,
    random_access: bool,
    /// The missing parameter sets were handed out: they are not, for a second time.
    supplied: bool,
}

/// The latest parameter sets of one stream, and the access units they came or should have come with.
pub(super) struct ParameterSets {
    required: SetKinds,
    sets: BTreeMap<(SetKind, u8), Bytes>,
    units: VecDeque<Unit>,
}

impl ParameterSets {
    /// A decoder of this stream has to have one of each of `required`.
    pub(super) fn new(required: SetKinds) -> Self {
        Self {
            required,
            sets: BTreeMap::new(),
            units: VecDeque::new(),
        }
    }

    /// Keeps a parameter set. True if it is new or differs from the one of the same id. It is copied, so that it does
    /// not hold on to the buffer of a whole packet.
    pub(super) fn store(&mut self, kind: SetKind, id: u8, nal: &[u8]) -> bool {
        let old = self.sets.get(&(kind, id));
        if old.is_some_and(|old| old == nal) {
            return false;
        }
        let others = self.sets.values().map(Bytes::len).sum::<usize>() - old.map_or(0, Bytes::len);
        if nal.len() > MAX_SET || others + nal.len() > MAX_TOTAL {
            // What stands there is outdated: better none than a wrong one.
            self.sets.remove(&(kind, id));
        } else {
            self.sets.insert((kind, id), Bytes::copy_from_slice(nal));
        }
        true
    }

    /// Takes note of a packet that brought parameter sets or starts a slice to begin with.
    pub(super) fn judge(&mut self, time: u32, seen: Seen) -> Verdict {
        if seen.outcome == SetKinds::default() && !seen.random_access {
            return Verdict::default();
        }
        let known = self.known();
        let required = self.required;
        let unit = self.unit(time);
        unit.outcome.0 |= seen.outcome.0;
        unit.random_access |= seen.random_access;
        if !unit.random_access {
            return Verdict::default();
        }
        let complete = unit.outcome.contains(required);
        if complete || unit.supplied || !seen.random_access || !known.contains(required) {
            return Verdict {
                key_frame: complete || unit.supplied,
                missing: Vec::new(),
            };
        }
        unit.supplied = true;
        let outcome = unit.outcome;
        Verdict {
            key_frame: true,
            missing: self.missing(outcome),
        }
    }

    fn known(&self) -> SetKinds {
        let mut known = SetKinds::default();
        self.sets.keys().for_each(|(kind, _)| known.add(*kind));
        known
    }

    /// All sets from the first kind on that was not brought: a set must not come before the one it refers to.
    fn missing(&self, outcome: SetKinds) -> Vec<Bytes> {
        let required = SetKind::ALL.iter().filter(|kind| self.required.has(**kind));
        let Some(first) = required.copied().find(|kind| !outcome.has(*kind)) else {
            return Vec::new();
        };
        self.sets.range((first, 0)..).map(|(_, nal)| nal.clone()).collect()
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
                    outcome: SetKinds::default(),
                    random_access: false,
                    supplied: false,
                });
                self.units.len() - 1
            }
        };
        &mut self.units[index]
    }
}

/// Packs NAL units into as few payloads as possible: alone as they are, several behind the `header` of an aggregation
/// packet, each with its length before it (STAP-A of RFC 6184 §5.7.1, AP of RFC 7798 §4.4.2).
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

/// Walks over the NAL units of an aggregation packet, header removed. Ends at the first that is empty or cut off.
pub(super) fn aggregated(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&length, behind) = rest.split_first_chunk::<2>()?;
        let (nal, behind) = behind.split_at_checked(usize::from(u16::from_be_bytes(length)))?;
        rest = behind;
        (!nal.is_empty()).then_some(nal)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(kinds: &[SetKind]) -> Seen {
        Seen {
            outcome: SetKinds::of(kinds),
            random_access: false,
        }
    }

    const SLICE: Seen = Seen {
        outcome: SetKinds(0),
        random_access: true,
    };

    fn h264_sets() -> ParameterSets {
        ParameterSets::new(SetKinds::of(&[SetKind::Sps, SetKind::Pps]))
    }

    #[test]
    fn sets_are_supplied_once_for_each_access_unit() {
        let mut sets = h264_sets();
        assert!(sets.store(SetKind::Pps, 0, b"pps"));
        assert!(sets.store(SetKind::Sps, 0, b"sps"));
        assert!(!sets.store(SetKind::Sps, 0, b"sps"));
        assert_eq!(sets.judge(1, SLICE).missing, ["sps", "pps"]);
        let again = sets.judge(1, SLICE);
        assert_eq!((again.key_frame, again.missing.len()), (true, 0));
        assert_eq!(sets.judge(2, SLICE).missing.len(), 2);
        assert_eq!(sets.judge(1, SLICE).missing.len(), 0, "late, and not opened anew");
    }

    #[test]
    fn a_unit_that_brought_only_its_sps_gets_the_pps() {
        let mut sets = h264_sets();
        sets.store(SetKind::Sps, 0, b"sps");
        sets.store(SetKind::Pps, 0, b"pps");
        sets.judge(1, outcome(&[SetKind::Sps]));
        assert_eq!(sets.judge(1, SLICE).missing, ["pps"]);
        sets.judge(2, outcome(&[SetKind::Pps]));
        assert_eq!(
            sets.judge(2, SLICE).missing,
            ["sps", "pps"],
            "in the order of dependence"
        );
    }

    #[test]
    fn without_known_sets_the_late_ones_prove_the_key_frame() {
        let mut sets = h264_sets();
        assert_eq!(sets.judge(1, SLICE), Verdict::default());
        assert!(!sets.judge(1, outcome(&[SetKind::Sps])).key_frame);
        assert!(sets.judge(1, outcome(&[SetKind::Pps])).key_frame);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut sets = h264_sets();
        for id in 0..=255 {
            sets.store(SetKind::Pps, id, &[id; 1000]);
        }
        assert_eq!(sets.sets.len(), 8);
        sets.store(SetKind::Pps, 0, &[0; MAX_SET + 1]);
        assert!(!sets.sets.contains_key(&(SetKind::Pps, 0)));
        for time in 0..1000 {
            sets.judge(time, SLICE);
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
