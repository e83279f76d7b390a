//! What a viewer can be sent, from the least to the most.

/// Which frames of a layer are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameSelection {
    /// Audio only.
    AudioOnly,
    KeyFrames,
    /// All that other frames refer to.
    ReferenceFrames,
    All,
}

/// Something that a viewer can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QualityRung {
    /// Layer, as the caller counts them.
    pub layer: u8,
    pub frames: FrameSelection,
    /// Payload bits per second: the highest of the last seconds.
    pub payload_bitrate: u32,
    /// Whether it is there: active, undamaged and old enough that its rate is known.
    pub usable: bool,
}

/// The rungs that a viewer's selection allows, in ascending order of their rate.
#[derive(Clone, Copy, Debug)]
pub struct QualityLadder {
    rungs: [QualityRung; MAX_RUNGS],
    len: usize,
    /// Bits per second of audio, which is always sent.
    audio_bitrate: u32,
}

/// Three degraded ones of the lowest layer, and five layers.
pub const MAX_RUNGS: usize = 8;

const EMPTY_RUNG: QualityRung = QualityRung {
    layer: 0,
    frames: FrameSelection::AudioOnly,
    payload_bitrate: 0,
    usable: false,
};

impl QualityLadder {
    /// `audio_bitrate` is in bits per second.
    pub fn new(audio: u32) -> Self {
        Self {
            rungs: [EMPTY_RUNG; MAX_RUNGS],
            len: 0,
            audio_bitrate: audio,
        }
    }

    /// Bits per second of audio.
    pub(super) fn audio_bitrate(&self) -> u32 {
        self.audio_bitrate
    }

    /// Adds a rung on top; one too many is left out.
    pub fn push(&mut self, rung: QualityRung) {
        if let Some(slot) = self.rungs.get_mut(self.len) {
            *slot = rung;
            self.len += 1;
        }
    }

    /// The rung with this index.
    pub fn get(&self, index: usize) -> Option<QualityRung> {
        self.rungs().get(index).copied()
    }

    /// All rungs.
    pub fn rungs(&self) -> &[QualityRung] {
        self.rungs.get(..self.len).unwrap_or_default()
    }

    /// Bits per second on the wire: payload, 5 % of headers, and audio.
    pub fn wire_bitrate_with_audio(&self, index: usize) -> u32 {
        let rate = u64::from(self.get(index).map_or(0, |rung| rung.payload_bitrate));
        let cost = rate + rate / 20 + u64::from(self.audio_bitrate);
        u32::try_from(cost).unwrap_or(u32::MAX)
    }

    /// The rung of a layer and its frames.
    pub(super) fn rung_index_of(&self, layer: u8, frames: FrameSelection) -> Option<usize> {
        self.rungs()
            .iter()
            .position(|rung| (rung.layer, rung.frames) == (layer, frames))
    }

    pub(super) fn is_rung_usable(&self, index: usize) -> bool {
        self.get(index).is_some_and(|rung| rung.usable)
    }

    /// The lowest usable rung with whole video, or else the lowest usable one.
    pub(super) fn lowest_usable_full_video_index(&self) -> Option<usize> {
        let whole = self
            .rungs()
            .iter()
            .position(|rung| rung.usable && rung.frames == FrameSelection::All);
        whole.or_else(|| self.rungs().iter().position(|rung| rung.usable))
    }

    /// The highest usable rung.
    pub(super) fn top_usable_index(&self) -> Option<usize> {
        self.rungs().iter().rposition(|rung| rung.usable)
    }

    /// The highest usable rung below `index`.
    pub(super) fn next_usable_index_below(&self, index: usize) -> Option<usize> {
        self.rungs().get(..index)?.iter().rposition(|rung| rung.usable)
    }

    /// The highest usable rung below `index` whose cost is at most this, or else the lowest usable one.
    pub(super) fn highest_fitting_or_lowest_rung_below(&self, index: usize, cost: u32) -> Option<usize> {
        let mut below = (0..index.min(self.len)).filter(|below| self.is_rung_usable(*below));
        let fits = below
            .clone()
            .rfind(|below| self.wire_bitrate_with_audio(*below) <= cost);
        fits.or_else(|| below.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder() -> QualityLadder {
        let mut ladder = QualityLadder::new(64_000);
        for (frames, rate) in [(FrameSelection::AudioOnly, 0), (FrameSelection::KeyFrames, 50_000)] {
            ladder.push(QualityRung {
                layer: 0,
                frames,
                payload_bitrate: rate,
                usable: true,
            });
        }
        for (layer, rate) in [(0, 300_000), (1, 1_000_000), (2, 2_500_000)] {
            ladder.push(QualityRung {
                layer,
                frames: FrameSelection::All,
                payload_bitrate: rate,
                usable: true,
            });
        }
        ladder
    }

    #[test]
    fn cost_is_payload_headers_and_audio() {
        assert_eq!(ladder().wire_bitrate_with_audio(4), 2_689_000);
        assert_eq!(ladder().wire_bitrate_with_audio(0), 64_000);
        assert_eq!(ladder().wire_bitrate_with_audio(9), 64_000);
    }

    #[test]
    fn the_fitting_rung_is_the_highest_below_that_costs_no_more() {
        let ladder = ladder();
        assert_eq!(ladder.lowest_usable_full_video_index(), Some(2));
        assert_eq!(ladder.top_usable_index(), Some(4));
        assert_eq!(ladder.highest_fitting_or_lowest_rung_below(4, 1_200_000), Some(3));
        assert_eq!(ladder.highest_fitting_or_lowest_rung_below(4, 400_000), Some(2));
        assert_eq!(ladder.highest_fitting_or_lowest_rung_below(4, 10), Some(0));
        assert_eq!(ladder.highest_fitting_or_lowest_rung_below(0, 10), None);
    }

    #[test]
    fn unusable_rungs_are_passed_over_and_too_many_are_left_out() {
        let mut ladder = ladder();
        ladder.rungs[3].usable = false;
        assert_eq!(ladder.next_usable_index_below(4), Some(2));
        assert_eq!(ladder.highest_fitting_or_lowest_rung_below(4, 1_200_000), Some(2));
        (0..9).for_each(|_| ladder.push(EMPTY_RUNG));
        assert_eq!(ladder.rungs().len(), MAX_RUNGS);
    }
}
