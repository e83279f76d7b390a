//! What one run does over time, for a person who tunes: `CASE='C7 beside' TRACE=3 cargo test --test quality --
//! --nocapture` prints a line for each viewer and 100 ms of the runs with seed 3. Off by default.

use std::sync::OnceLock;

use crate::link::Link;
use crate::measures::MS;
use crate::sender::Control;
use crate::world::Viewer;

const INTERVAL: u64 = 100 * MS;

/// Whether runs of ours with this seed are traced.
#[expect(clippy::disallowed_methods, reason = "the environment asks for the trace")]
pub(crate) fn is_on(seed: u64, is_baseline: bool) -> bool {
    static SEED: OnceLock<Option<u64>> = OnceLock::new();
    let traced = SEED.get_or_init(|| std::env::var("TRACE").ok()?.parse().ok());
    !is_baseline && *traced == Some(seed)
}

/// Prints the state of all viewers, if it is time.
pub(crate) fn note(now: u64, viewers: &[Viewer], links: &[Link]) {
    if !now.is_multiple_of(INTERVAL) {
        return;
    }
    let waits: Vec<u64> = links.iter().map(|link| link.wait(now) / MS).collect();
    for (index, viewer) in viewers.iter().enumerate() {
        let Control::Ours(controller, _) = &viewer.sender.control else {
            continue;
        };
        let (current, pending) = viewer.sender.choice();
        println!(
            "{:>7.1} s  viewer {index}  sends {}  next {}  unsent {:>2}  links {waits:?} ms  excess {:>3} ms  \
             received {:>4} kbit/s  lost {:>2} %  probed {:>6}  {}{:?}",
            now as f64 / 1e6,
            current.map_or("-".to_owned(), |(layer, frames)| format!("{layer} {frames:?}")),
            pending.map_or("-".to_owned(), |(layer, _)| layer.to_string()),
            viewer.sender.unsent(),
            controller.excess_delay().as_millis(),
            controller.received_bitrate().unwrap_or(0) / 1_000,
            u32::from(controller.loss_per_256().unwrap_or(0)) * 100 / 256,
            viewer.sender.probed,
            if controller.has_competing_traffic() {
                "competes "
            } else {
                ""
            },
            controller.last_layer_decision_cause(),
        );
    }
}
