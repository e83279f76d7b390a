//! What is read from a world that has run.

use millstream_core::congestion::ladder::FrameSelection;

use crate::world::{Viewer, World};

pub(crate) const MS: u64 = 1_000;
pub(crate) const SECOND: u64 = 1_000_000;

/// What stands for "never".
pub(crate) const NEVER: u64 = 99_999;

/// Milliseconds from `from` until a layer is chosen.
pub(crate) fn time_to(viewer: &Viewer, layer: u8, from: u64) -> u64 {
    let before = viewer.sender.choices.iter().rev().find(|(at, _)| *at < from);
    if before.is_some_and(|(_, choice)| *choice == Some((layer, FrameSelection::All))) {
        return 0;
    }
    let reached = viewer
        .sender
        .choices
        .iter()
        .find(|(at, choice)| *at >= from && *choice == Some((layer, FrameSelection::All)));
    reached.map_or(NEVER, |(at, _)| (at - from) / MS)
}

/// Milliseconds from `from` until less than a layer is sent.
pub(crate) fn time_below(viewer: &Viewer, layer: u8, from: u64) -> u64 {
    let is_below =
        |choice: Option<(u8, FrameSelection)>| choice.is_none_or(|choice| choice < (layer, FrameSelection::All));
    let left = viewer
        .sender
        .choices
        .iter()
        .find(|(at, choice)| *at >= from && is_below(*choice));
    left.map_or(NEVER, |(at, _)| (at - from) / MS)
}

/// Share of the time in which what is chosen satisfies a condition, in percent.
pub(crate) fn held(viewer: &Viewer, (from, until): (u64, u64), is_right: impl Fn(u8) -> bool) -> u64 {
    let choices = &viewer.sender.choices;
    let ends = choices.iter().skip(1).map(|(at, _)| *at).chain([until]);
    let time: u64 = choices
        .iter()
        .zip(ends)
        .filter(|((_, choice), _)| choice.is_some_and(|(layer, _)| is_right(layer)))
        .map(|((begin, _), end)| end.min(until).saturating_sub((*begin).max(from)))
        .sum();
    time * 100 / (until - from)
}

/// Steps to another layer within a period: down, and all.
pub(crate) fn steps(viewer: &Viewer, (from, until): (u64, u64)) -> (u64, u64) {
    let choices: Vec<_> = viewer
        .sender
        .choices
        .iter()
        .filter_map(|(at, choice)| Some((*at, (*choice)?)))
        .collect();
    let within = choices.windows(2).filter(|pair| (from..until).contains(&pair[1].0));
    within.fold((0, 0), |(down, all), pair| {
        let (before, after) = (pair[0].1, pair[1].1);
        (down + u64::from(after < before), all + u64::from(after != before))
    })
}

/// 95th percentile of the wait in a link, in milliseconds.
pub(crate) fn wait(world: &World, link: usize) -> u64 {
    let mut waits = world.links[link].waits.clone();
    if waits.is_empty() {
        return 0;
    }
    let index = waits.len() * 95 / 100;
    u64::from(*waits.select_nth_unstable(index).1) / 10
}

/// Decoded bits of all viewers second by second, as far as they are wanted, in percent of what is wanted. `ideal` is in
/// bits per second of one viewer at a time.
pub(crate) fn fluent(world: &World, (from, until): (u64, u64), ideal: impl Fn(usize, u64) -> u64) -> u64 {
    let (mut got, mut wanted) = (0, 0);
    for (index, viewer) in world.viewers.iter().enumerate() {
        let mut seconds = vec![0; (until / SECOND) as usize + 1];
        for (at, _, bytes) in &viewer.receiver.decoded {
            if let Some(second) = seconds.get_mut((at / SECOND) as usize) {
                // Without headers.
                *second += u64::from(*bytes) * 8 * 95 / 100;
            }
        }
        for second in from / SECOND..until / SECOND {
            let ideal = ideal(index, second * SECOND);
            wanted += ideal;
            got += seconds[second as usize].min(ideal);
        }
    }
    got * 100 / wanted.max(1)
}

/// Milliseconds of freezes per minute and viewer.
pub(crate) fn freezes(world: &World, period: (u64, u64)) -> u64 {
    let frozen: u64 = world
        .viewers
        .iter()
        .map(|viewer| viewer.receiver.frozen(period.0, period.1))
        .sum();
    frozen / MS * 60 * SECOND / (period.1 - period.0) / world.viewers.len() as u64
}
