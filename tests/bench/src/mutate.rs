//! Seeded mutation of datagrams: valid ones bent in the ways that break parsers.

/// Longest datagram that is made, in bytes: beyond an Ethernet frame, so that oversize is tried too.
const MAX_LEN: usize = 2000;

/// Values at which lengths, counts and types turn over.
const EDGES: [u8; 8] = [0x00, 0x01, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff];

/// A deterministic source of chance (SplitMix64).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; zero when that is zero.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % (limit.max(1) as u64)) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// Any of these.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        choices.get(self.below(choices.len()))
    }
}

/// Makes one datagram out of `corpus` into `out`. One in sixteen is a sample as it is: a replay.
pub(crate) fn mutate(corpus: &[Vec<u8>], chance: &mut Chance, out: &mut Vec<u8>) {
    out.clear();
    if let Some(sample) = chance.pick(corpus) {
        out.extend_from_slice(sample);
    }
    if chance.below(16) == 0 {
        return;
    }
    for _ in 0..=chance.below(4) {
        let at = chance.below(out.len());
        match chance.below(8) {
            0 => flip(out, at, 1 << chance.below(8)),
            1 => set(out, at, &[EDGES[chance.below(EDGES.len())]]),
            2 => set(out, at, &[chance.byte()]),
            // Lengths and counts sit at the front, in 16 bits.
            3 => set(out, chance.below(24), &(chance.next() as u16).to_be_bytes()),
            4 => set(
                out,
                chance.below(24),
                if chance.below(2) == 0 { &[0, 0] } else { &[0xff, 0xff] },
            ),
            5 => out.truncate(at),
            6 => {
                let length = chance.below(64);
                out.extend(std::iter::repeat_with(|| chance.byte()).take(length));
            }
            _ => {
                // The head of one sample on the tail of another.
                out.truncate(at);
                if let Some(other) = chance.pick(corpus) {
                    out.extend_from_slice(other.get(at..).unwrap_or(other));
                }
            }
        }
    }
    out.truncate(MAX_LEN);
}

fn flip(bytes: &mut [u8], at: usize, mask: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= mask;
    }
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_same_seed_makes_the_same_datagrams_and_they_differ_from_the_samples() {
        let corpus = vec![vec![0x16; 80], vec![0x80; 1200], (0..100).collect()];
        let make = |seed| {
            let mut chance = Chance::new(seed);
            let mut out = Vec::new();
            let one = |_| {
                mutate(&corpus, &mut chance, &mut out);
                out.clone()
            };
            (0..1000).map(one).collect::<Vec<_>>()
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        let made = make(1);
        assert!(made.iter().all(|datagram| datagram.len() <= MAX_LEN));
        let different: HashSet<&Vec<u8>> = made.iter().collect();
        assert!(different.len() > 900, "{}", different.len());
        assert!(
            corpus.iter().all(|sample| different.contains(sample)),
            "replays are part of it"
        );
    }

    #[test]
    fn an_empty_corpus_is_no_panic() {
        let mut out = vec![1];
        mutate(&[], &mut Chance::new(1), &mut out);
        assert!(out.len() <= MAX_LEN);
    }
}
