//! Which transmission sequence numbers of a peer were received (RFC 9260 §6.2).

/// The numbers after the one up to which everything was received.
#[derive(Debug, Default)]
pub(super) struct TsnWindow {
    /// Everything up to this number was received.
    cumulative: u32,
    /// Bit `n` of the numbers after `cumulative`: number `cumulative + 1 + n` was received.
    received: [u64; Self::BITMAP_WORDS],
}

impl TsnWindow {
    const BITMAP_WORDS: usize = 16;
    /// Numbers that a peer may be ahead. It bounds the gaps of an acknowledgement, and what is kept out of order.
    pub(super) const MAX_TSNS_AHEAD: u32 = Self::BITMAP_WORDS as u32 * u64::BITS;

    /// The first number of the peer will be this one.
    pub(super) fn reset_to_initial_tsn(&mut self, initial_tsn: u32) {
        *self = Self {
            cumulative: initial_tsn.wrapping_sub(1),
            received: Default::default(),
        };
    }

    /// Everything up to this number was received.
    pub(super) fn advance_to(&mut self, cumulative: u32) {
        let by = cumulative.wrapping_sub(self.cumulative);
        if by > i32::MAX as u32 {
            return;
        }
        self.cumulative = cumulative;
        if by >= Self::MAX_TSNS_AHEAD {
            self.received = Default::default();
            return;
        }
        let (words, bits) = ((by / u64::BITS) as usize, by % u64::BITS);
        self.received.copy_within(words.., 0);
        if let Some(vacated) = self.received.get_mut(Self::BITMAP_WORDS - words..) {
            vacated.fill(0);
        }
        if bits > 0 {
            let mut carry = 0;
            for word in self.received.iter_mut().rev() {
                let moved = (*word >> bits) | carry;
                carry = *word << (u64::BITS - bits);
                *word = moved;
            }
        }
    }

    /// Whether a number is old or in the window.
    pub(super) fn is_old_or_in_window(&self, tsn: u32) -> bool {
        let ahead = tsn.wrapping_sub(self.cumulative);
        ahead <= Self::MAX_TSNS_AHEAD || ahead > i32::MAX as u32
    }

    /// Notes a number that is in the window. Returns whether it is new.
    pub(super) fn insert(&mut self, tsn: u32) -> bool {
        let ahead = tsn.wrapping_sub(self.cumulative);
        if ahead == 0 || ahead > Self::MAX_TSNS_AHEAD {
            return false;
        }
        let index = ahead - 1;
        let Some(word) = self.received.get_mut((index / u64::BITS) as usize) else {
            return false;
        };
        let bit = 1 << (index % u64::BITS);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_new_once_also_after_the_window_has_moved_and_wrapped() {
        let mut window = TsnWindow::default();
        window.reset_to_initial_tsn(u32::MAX - 70);
        let all: Vec<u32> = (0..400).map(|n| (u32::MAX - 70).wrapping_add(n * 2)).collect();
        for tsn in &all {
            assert!(window.insert(*tsn), "{tsn} is new");
            assert!(!window.insert(*tsn), "{tsn} is known");
        }
        for by in [1, 2, 63, 64, 65, 130] {
            window.advance_to(window.cumulative.wrapping_add(by));
            for tsn in &all {
                assert!(!window.insert(*tsn), "{tsn} is known after {by}");
            }
            let between = window.cumulative.wrapping_add(1);
            let is_known = all.contains(&between);
            assert_eq!(window.insert(between), !is_known);
            window.advance_to(between);
        }
    }

    #[test]
    fn what_is_too_far_ahead_is_outside() {
        let mut window = TsnWindow::default();
        window.reset_to_initial_tsn(1);
        assert!(
            window.is_old_or_in_window(TsnWindow::MAX_TSNS_AHEAD)
                && !window.is_old_or_in_window(TsnWindow::MAX_TSNS_AHEAD + 1)
        );
        assert!(
            window.is_old_or_in_window(0) && window.is_old_or_in_window(u32::MAX - 5),
            "old numbers"
        );
        assert!(!window.is_old_or_in_window(i32::MAX as u32));
        window.advance_to(500);
        assert!(
            window.is_old_or_in_window(TsnWindow::MAX_TSNS_AHEAD + 500)
                && !window.is_old_or_in_window(TsnWindow::MAX_TSNS_AHEAD + 501)
        );
        window.advance_to(400);
        assert!(
            !window.is_old_or_in_window(TsnWindow::MAX_TSNS_AHEAD + 501),
            "it never moves back"
        );
    }
}
