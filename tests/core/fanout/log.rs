//! What sessions write to the log.

use std::sync::{Arc, Mutex};

use tracing::field::Field;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::publisher::Publisher;
use super::world::World;
use super::{SECOND, long_gop, near};
use millstream_test_support::LinkConfig;

/// The lines of a log, each with its level.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = String::new();
        event.record(&mut |field: &Field, value: &dyn std::fmt::Debug| {
            fields += &format!("{field}={value:?} ");
        });
        let mut lines = self.0.lock().expect("not poisoned");
        lines.push((*event.metadata().level(), fields));
    }
}

impl Lines {
    fn with(&self, level: Level, text: &str) -> Vec<String> {
        let lines = self.0.lock().expect("not poisoned");
        let found = lines.iter().filter(|(of, line)| *of == level && line.contains(text));
        found.map(|(_, line)| line.clone()).collect()
    }
}

/// Any viewer can cause these lines at any rate.
#[test]
fn viewers_that_do_not_connect_are_a_warning_per_interval_and_a_debug_line_each() {
    let lines = Lines::default();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(lines.clone()), || {
        let mut world = World::new(1, 1, 8192);
        world.publish("live", 0, near(), Publisher::deaf(long_gop()));
        world.run(SECOND);
        let dead = LinkConfig { loss: 1.0, ..near() };
        for _ in 0..100 {
            world.watch("live", 0, dead);
            world.run(SECOND / 10);
        }
        for _ in 0..50 {
            let index = world.watch("live", 0, dead);
            world.delete(index);
        }
        world.run(40 * SECOND);
        let last = world.watch("live", 0, dead);
        world.run(20 * SECOND);
        assert!(world.reason(last).is_some());
    });
    let failed = "viewer session failed";
    let warnings = lines.with(Level::WARN, failed);
    assert!((2..=4).contains(&warnings.len()), "{warnings:#?}");
    let suppressed = warnings.iter().filter_map(|line| {
        let (_, rest) = line.split_once("suppressed=")?;
        rest.split(' ').next()?.parse::<usize>().ok()
    });
    let suppressed: usize = suppressed.sum();
    assert_eq!(warnings.len() + suppressed, 101, "{warnings:#?}");
    assert_eq!(lines.with(Level::DEBUG, failed).len(), suppressed);
    assert_eq!(lines.with(Level::INFO, "viewer session ended").len(), 0);
    assert_eq!(lines.with(Level::DEBUG, "viewer session ended before").len(), 50);
}
