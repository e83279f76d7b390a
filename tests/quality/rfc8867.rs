//! The test cases of RFC 8867, with layers of 0.15, 0.5 and 1.25 Mbit/s.

use crate::cases::{ideal, rfc_measures};
use crate::link::LinkConfig;
use crate::measures::{MS, SECOND};
use crate::scoreboard::{Case, Measure, at_least, at_most};
use crate::source::SourceConfig;
use crate::tcp::TcpConfig;
use crate::world::{Path, ViewerConfig, World, WorldConfig};

const LAYERS: [u64; 3] = [150_000, 500_000, 1_250_000];

/// "fluent" is what was decoded of the highest layer that fits into 85 % of a fair share.
const GOALS: &[Measure] = &[
    at_least("fluent %", 75),
    at_most("freeze ms/min", 1_000),
    at_most("queue ms", 150),
    at_most("switches/min", 4),
];

const FOREIGN_QUEUE: &[Measure] = &[
    at_least("fluent %", 50),
    at_most("freeze ms/min", 1_500),
    at_most("queue ms", 1_000),
    at_most("switches/min", 6),
];

struct Rfc {
    name: &'static str,
    goals: &'static [Measure],
    config: WorldConfig,
    /// Flows that a viewer shares its link with, itself included, at a time.
    flows: fn(u64) -> u64,
}

/// Capacity in parts of `reference` from these seconds on, in percent.
fn link(reference: u64, steps: &[(u64, u64)]) -> LinkConfig {
    LinkConfig {
        capacity: steps
            .iter()
            .map(|(at, percent)| (at * SECOND, reference * percent / 100))
            .collect(),
        ..LinkConfig::new(reference)
    }
}

fn path(link: usize, one_way: u64) -> Path {
    Path {
        jitter: 10_000,
        ..Path::through(link, one_way * MS)
    }
}

fn world(links: Vec<LinkConfig>, viewers: Vec<ViewerConfig>, seconds: u64) -> WorldConfig {
    let source = SourceConfig {
        layers: LAYERS.to_vec(),
        key_interval: 300,
        answers: true,
        loss: 0,
    };
    WorldConfig {
        links,
        sources: vec![source; viewers.len()],
        viewers: viewers
            .into_iter()
            .enumerate()
            .map(|(source, viewer)| ViewerConfig { source, ..viewer })
            .collect(),
        tcp: Vec::new(),
        length: seconds * SECOND,
        measured: (5 * SECOND, seconds * SECOND),
    }
}

fn viewer(path: Path, start: u64) -> ViewerConfig {
    ViewerConfig {
        path,
        source: 0,
        start: start * SECOND,
        pause: None,
        degradable: false,
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = vec![
        variable("RFC 8867 5.1, one-way 50", 50),
        variable("RFC 8867 5.1, one-way 100", 100),
    ];
    all.extend([two_flows(), feedback_shares(), competing(), round_trips()]);
    all.extend([
        beside_tcp("RFC 8867 5.6, queue 300", 300),
        beside_tcp("RFC 8867 5.6, queue 1000", 1_000),
    ]);
    all.extend([short_tcp(), pausing(), bottlenecks()]);
    all.into_iter().map(case).collect()
}

fn case(rfc: Rfc) -> Case {
    let (config, flows) = (rfc.config, rfc.flows);
    let run = move |seed, is_baseline| {
        let world = World::new(config.clone(), seed, is_baseline).run();
        let period = (5 * SECOND, config.length);
        rfc_measures(&world, period, |viewer, at| {
            let viewer = &config.viewers[viewer];
            let pauses = viewer
                .pause
                .is_some_and(|(from, until)| (from..until + 5 * SECOND).contains(&at));
            if pauses || at < viewer.start + 5 * SECOND {
                return 0;
            }
            let capacity = viewer
                .path
                .links
                .iter()
                .map(|link| config.links[*link].capacity_at(at))
                .min();
            ideal(&LAYERS, capacity.unwrap_or(0) / flows(at / SECOND))
        })
    };
    Case {
        name: rfc.name,
        measures: rfc.goals,
        run: Box::new(run),
    }
}

fn variable(name: &'static str, one_way: u64) -> Rfc {
    let link = link(1_000_000, &[(0, 100), (40, 250), (60, 60), (80, 100)]);
    Rfc {
        name,
        goals: GOALS,
        config: world(vec![link], vec![viewer(path(0, one_way), 0)], 100),
        flows: |_| 1,
    }
}

fn two_flows() -> Rfc {
    let link = link(2_000_000, &[(0, 200), (25, 100), (50, 175), (75, 50), (100, 100)]);
    let viewers = vec![viewer(path(0, 50), 0), viewer(path(0, 50), 0)];
    Rfc {
        name: "RFC 8867 5.2, two flows",
        goals: GOALS,
        config: world(vec![link], viewers, 125),
        flows: |_| 2,
    }
}

/// Media in both directions: the feedback of each goes through the link of the other.
fn feedback_shares() -> Rfc {
    let forward = link(1_000_000, &[(0, 200), (20, 100), (40, 50), (60, 200)]);
    let backward = link(1_000_000, &[(0, 200), (35, 80), (70, 200)]);
    let there = Path {
        back: Some(1),
        ..path(0, 50)
    };
    let back = Path {
        back: Some(0),
        ..path(1, 50)
    };
    Rfc {
        name: "RFC 8867 5.3, both directions",
        goals: GOALS,
        config: world(vec![forward, backward], vec![viewer(there, 0), viewer(back, 0)], 100),
        flows: |_| 1,
    }
}

fn competing() -> Rfc {
    let viewers = [0, 20, 40].map(|start| viewer(path(0, 50), start));
    Rfc {
        name: "RFC 8867 5.4, three flows",
        goals: GOALS,
        config: world(vec![LinkConfig::new(3_500_000)], viewers.to_vec(), 120),
        flows: |second| (1 + second / 20).min(3),
    }
}

fn round_trips() -> Rfc {
    let viewers = (0..)
        .zip([10, 25, 50, 100, 150])
        .map(|(index, one_way)| viewer(path(0, one_way), 10 * index));
    Rfc {
        name: "RFC 8867 5.5, five round trips",
        goals: GOALS,
        config: world(vec![LinkConfig::new(4_000_000)], viewers.collect(), 300),
        flows: |second| (1 + second / 10).min(5),
    }
}

fn beside_tcp(name: &'static str, queue: u64) -> Rfc {
    let link = LinkConfig {
        queue: queue * MS,
        ..LinkConfig::new(2_000_000)
    };
    let mut config = world(vec![link], vec![viewer(path(0, 50), 0)], 120);
    let start = 5 * SECOND;
    config.tcp = vec![(Path::through(0, 50 * MS), TcpConfig { start, short: None })];
    Rfc {
        name,
        goals: FOREIGN_QUEUE,
        config,
        flows: |_| 2,
    }
}

fn short_tcp() -> Rfc {
    let viewers = vec![viewer(path(0, 50), 0), viewer(path(0, 50), 0)];
    let mut config = world(vec![LinkConfig::new(2_000_000)], viewers, 300);
    let short = Some((30_000, 50_000, 10 * SECOND));
    config.tcp = vec![(Path::through(0, 50 * MS), TcpConfig { start: 0, short }); 10];
    Rfc {
        name: "RFC 8867 5.7, ten short TCP flows",
        goals: FOREIGN_QUEUE,
        config,
        flows: |_| 2,
    }
}

fn pausing() -> Rfc {
    let mut viewers = [0, 20, 40].map(|start| viewer(path(0, 50), start)).to_vec();
    viewers[0].pause = Some((40 * SECOND, 60 * SECOND));
    Rfc {
        name: "RFC 8867 5.8, one flow pauses",
        goals: GOALS,
        config: world(vec![LinkConfig::new(3_500_000)], viewers, 120),
        flows: |second| match second {
            0..20 => 1,
            20..60 => 2,
            _ => 3,
        },
    }
}

fn bottlenecks() -> Rfc {
    let links = vec![LinkConfig::new(2_000_000), LinkConfig::new(1_500_000)];
    let both = Path {
        links: vec![0, 1],
        ..path(0, 50)
    };
    let viewers = vec![viewer(both, 0), viewer(path(0, 50), 0), viewer(path(1, 50), 0)];
    Rfc {
        name: "RFC 8867 6.3, two bottlenecks",
        goals: GOALS,
        config: world(links, viewers, 300),
        flows: |_| 2,
    }
}
