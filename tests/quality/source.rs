//! A publisher: simulcast layers at 30 frames per second with key frames by interval or by request.

use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) struct SourceConfig {
    /// Bits per second, the lowest layer first.
    pub(crate) layers: Vec<u64>,
    /// Frames between two key frames.
    pub(crate) key_interval: u32,
    /// Whether it answers requests for key frames.
    pub(crate) answers: bool,
    /// Packets that the publisher loses on its own way, in 1/10,000.
    pub(crate) loss: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) id: u32,
    pub(crate) layer: u8,
    pub(crate) bytes: u32,
    pub(crate) key: bool,
    /// No other frame refers to it.
    pub(crate) droppable: bool,
}

pub(crate) struct Source {
    pub(crate) config: SourceConfig,
    rng: Rng,
    /// Time and number of the next frame.
    next: (u64, u32),
    layers: Vec<LayerState>,
}

#[derive(Default)]
struct LayerState {
    /// The latest key frame and all since.
    cached: Vec<Frame>,
    since_key: u32,
    /// When a request arrives at the publisher.
    requested: Option<u64>,
    last_request: Option<u64>,
    /// Bytes in this second, and in the five before.
    second: u64,
    seconds: [u64; 5],
}

/// Size of a key frame in relation to other ones.
const KEY_SIZE: u64 = 5;

const FRAME_TIME: u64 = 33_333;

/// From a request to the publisher's next frame.
const REQUEST_DELAY: u64 = 30_000;

impl Source {
    pub(crate) fn new(config: SourceConfig, seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x50ce);
        let phase = rng.below(u64::from(config.key_interval)) as u32;
        let layers = config.layers.iter().map(|rate| LayerState {
            since_key: phase,
            seconds: [rate / 8; 5],
            ..LayerState::default()
        });
        Self {
            layers: layers.collect(),
            config,
            rng,
            next: (0, 0),
        }
    }

    /// Returns the frames of all layers if they are due.
    pub(crate) fn poll(&mut self, now: u64) -> Option<Vec<Frame>> {
        if now < self.next.0 {
            return None;
        }
        let id = self.next.1;
        self.next = (self.next.0 + FRAME_TIME, id + 1);
        let interval = u64::from(self.config.key_interval);
        let (config, rng) = (&self.config, &mut self.rng);
        let frames = self
            .layers
            .iter_mut()
            .zip(&config.layers)
            .enumerate()
            .map(|(layer, (state, rate))| {
                let is_requested = state.requested.is_some_and(|at| at <= now);
                let is_first = state.cached.is_empty();
                let key = is_first || state.since_key >= config.key_interval || is_requested;
                let mean = rate / 240 * interval / (interval + KEY_SIZE - 1);
                let size = if key { KEY_SIZE * mean } else { mean } * (70 + rng.below(61)) / 100;
                if key {
                    state.cached.clear();
                    state.requested = None;
                    // The viewers come at any time of an interval: the first key frame does not begin it.
                    state.since_key = if is_first { state.since_key } else { 0 };
                }
                state.since_key += 1;
                let frame = Frame {
                    id,
                    layer: layer as u8,
                    bytes: size.max(100) as u32,
                    key,
                    droppable: !key && state.since_key % 2 == 0,
                };
                state.cached.push(frame);
                state.second += u64::from(frame.bytes);
                if id % 30 == 29 {
                    state.seconds.rotate_right(1);
                    state.seconds[0] = std::mem::take(&mut state.second);
                }
                frame
            });
        Some(frames.collect())
    }

    /// A viewer wants a key frame.
    pub(crate) fn request(&mut self, now: u64, layer: u8) {
        let Some(state) = self.layers.get_mut(usize::from(layer)).filter(|_| self.config.answers) else {
            return;
        };
        // One request per second; one that comes earlier waits, as in the gateway's scheduler.
        if state.requested.is_none() {
            let at = state.last_request.map_or(now, |last| now.max(last + 1_000_000));
            state.last_request = Some(at);
            state.requested = Some(at + REQUEST_DELAY);
        }
    }

    /// The latest key frame of a layer and all frames since.
    pub(crate) fn cached(&self, layer: u8) -> &[Frame] {
        self.layers.get(usize::from(layer)).map_or(&[], |state| &state.cached)
    }

    /// Time until the next key frame of a layer, as a gateway can expect it.
    pub(crate) fn next_key_frame(&self, layer: u8) -> u64 {
        let Some(state) = self.layers.get(usize::from(layer)) else {
            return u64::MAX;
        };
        let by_interval = u64::from(self.config.key_interval.saturating_sub(state.since_key)) * FRAME_TIME;
        if self.config.answers {
            by_interval.min(100_000)
        } else {
            by_interval
        }
    }

    /// Bits per second of a layer: the second highest of five seconds, so that a lone key frame does not count.
    pub(crate) fn rate(&self, layer: u8) -> u32 {
        let Some(mut seconds) = self.layers.get(usize::from(layer)).map(|state| state.seconds) else {
            return 0;
        };
        seconds.sort_unstable();
        (seconds[3] * 8) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(answers: bool, seed: u64) -> Source {
        let config = SourceConfig {
            layers: vec![300_000],
            key_interval: 60,
            answers,
            loss: 0,
        };
        Source::new(config, seed)
    }

    /// Times of key frames in the first ten seconds; asks at these times.
    fn key_frames(source: &mut Source, requests: &[u64]) -> Vec<u64> {
        let steps = (0..10_000_000).step_by(1_000);
        let mut times = Vec::new();
        for now in steps {
            if requests.contains(&now) {
                source.request(now, 0);
            }
            if source.poll(now).is_some_and(|frames| frames[0].key) {
                times.push(now);
            }
        }
        times
    }

    #[test]
    fn viewers_come_at_any_time_of_the_key_frame_interval() {
        let second: Vec<u64> = (0..20)
            .map(|seed| key_frames(&mut source(false, seed), &[])[1])
            .collect();
        assert!(second.iter().any(|at| *at < 500_000), "{second:?}");
        assert!(second.iter().any(|at| *at > 1_500_000), "{second:?}");
    }

    #[test]
    fn a_request_within_a_second_of_another_waits_and_is_not_lost() {
        let keys = key_frames(&mut source(true, 1), &[5_000_000, 5_300_000]);
        let after = |from: u64| keys.iter().find(|at| **at >= from).copied();
        assert!(after(5_000_000).is_some_and(|at| at < 5_100_000), "{keys:?}");
        assert!(
            after(5_300_000).is_some_and(|at| (6_000_000..6_100_000).contains(&at)),
            "{keys:?}"
        );
    }
}
