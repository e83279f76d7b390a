//! Where a viewer begins with a lower layer.

use std::time::Duration;

/// Where a new layer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewLayerStartPoint {
    NextKeyFrame,
    CachedInterval,
}

/// A key frame that comes within this time is waited for.
const MAX_WAIT_FOR_NEXT_KEY_FRAME: Duration = Duration::from_millis(300);
/// A cached interval is sent if it leaves within this time.
const MAX_CACHED_INTERVAL_SEND_TIME: Duration = Duration::from_millis(600);

/// Returns where a lower layer begins, which the viewer waits for: at the next key frame if it comes soon; at the
/// cached one if what follows it leaves soon, or before the next one would come, at the rate received in bits per
/// second; or else at the next one. `cached` is in bytes.
pub fn choose_new_layer_start_point(
    next_key_frame: Option<Duration>,
    cached: Option<u64>,
    received: u32,
) -> NewLayerStartPoint {
    let leaves_in = |bytes: u64| Duration::from_micros(bytes * 8_000_000 / u64::from(received.max(1)));
    let is_near = next_key_frame.is_some_and(|wait| wait <= MAX_WAIT_FOR_NEXT_KEY_FRAME);
    let limit = MAX_CACHED_INTERVAL_SEND_TIME.max(next_key_frame.unwrap_or_default());
    let is_short = cached.is_some_and(|bytes| leaves_in(bytes) <= limit);
    match !is_near && is_short {
        true => NewLayerStartPoint::CachedInterval,
        false => NewLayerStartPoint::NextKeyFrame,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_new_layer_begins_where_its_first_frame_comes_first() {
        let start =
            |wait: Option<u32>, cached| choose_new_layer_start_point(wait.map(|wait| wait * MS), cached, 800_000);
        assert_eq!(start(Some(300), Some(1_000)), NewLayerStartPoint::NextKeyFrame);
        assert_eq!(start(Some(301), Some(40_000)), NewLayerStartPoint::CachedInterval);
        assert_eq!(start(None, Some(40_000)), NewLayerStartPoint::CachedInterval);
        assert_eq!(start(None, Some(60_000)), NewLayerStartPoint::CachedInterval);
        assert_eq!(start(None, Some(60_001)), NewLayerStartPoint::NextKeyFrame);
        // Before the next key frame comes.
        assert_eq!(start(Some(2_000), Some(200_000)), NewLayerStartPoint::CachedInterval);
        assert_eq!(start(Some(1_999), Some(200_000)), NewLayerStartPoint::NextKeyFrame);
        assert_eq!(start(None, None), NewLayerStartPoint::NextKeyFrame);
    }
}
