//! The cases of the scoreboard.

use crate::link::LinkConfig;
use crate::measures::{MS, SECOND, fluent, freezes, held, steps, time_below, time_to, wait};
use crate::scoreboard::{Case, Measure, at_least, at_most};
use crate::source::SourceConfig;
use crate::tcp::TcpConfig;
use crate::world::{Path, ViewerConfig, World, WorldConfig};

const MBIT: u64 = 1_000_000;

fn source(answers: bool) -> SourceConfig {
    SourceConfig {
        layers: vec![300_000, 1_000_000, 2_500_000],
        key_interval: if answers { 300 } else { 60 },
        answers,
        loss: 0,
    }
}

fn viewer(path: Path) -> ViewerConfig {
    ViewerConfig {
        path,
        source: 0,
        start: 0,
        pause: None,
        degradable: false,
    }
}

/// One viewer on one link, one-way delay 20 ms.
fn single(capacity: u64, length: u64) -> WorldConfig {
    WorldConfig {
        links: vec![LinkConfig::new(capacity)],
        sources: vec![source(true)],
        viewers: vec![viewer(Path::through(0, 20 * MS))],
        tcp: Vec::new(),
        length,
        measured: (0, u64::MAX),
    }
}

fn case(
    name: &'static str,
    measures: &'static [Measure],
    config: WorldConfig,
    measure: impl Fn(&World) -> Vec<u64> + Sync + 'static,
) -> Case {
    Case {
        name,
        measures,
        run: Box::new(move |seed, is_baseline| measure(&World::new(config.clone(), seed, is_baseline).run())),
    }
}

pub(crate) fn all() -> Vec<Case> {
    let mut cases = starts();
    cases.extend(falls());
    cases.extend(steady());
    cases.extend(losses());
    cases.extend(shared());
    cases.extend(crate::rfc8867::cases());
    cases.push(little());
    cases
}

/// C1: the time to the top.
fn starts() -> Vec<Case> {
    const ANSWERED: &[Measure] = &[at_most("top ms", 2_000), at_most("probes B/100 B", 10)];
    const INTERVAL: &[Measure] = &[at_most("top ms", 4_000)];
    let mut by_interval = single(5 * MBIT, 30 * SECOND);
    by_interval.sources = vec![source(false)];
    let probed = |world: &World| {
        let sender = &world.viewers[0].sender;
        sender.probed * 100 / sender.sent_bytes
    };
    vec![
        case(
            "C1 PLI answered",
            ANSWERED,
            single(5 * MBIT, 30 * SECOND),
            move |world| vec![time_to(&world.viewers[0], 2, 0), probed(world)],
        ),
        case("C1 key frame each 2 s", INTERVAL, by_interval, |world| {
            vec![time_to(&world.viewers[0], 2, 0)]
        }),
    ]
}

/// From 5 to 0.8 Mbit/s after 20 s, and back after 40 s.
fn fall(queue: u64, one_way: u64, answers: bool) -> WorldConfig {
    let mut config = single(5 * MBIT, 60 * SECOND);
    config.links[0].capacity = vec![(0, 5 * MBIT), (20 * SECOND, 800_000), (40 * SECOND, 5 * MBIT)];
    config.links[0].queue = queue * MS;
    config.viewers[0].path.one_way = one_way * MS;
    config.sources = vec![source(answers)];
    config.measured = (20 * SECOND, 30 * SECOND);
    config
}

/// C2 and C3, and the same with other queues and round trips.
fn falls() -> Vec<Case> {
    const GOALS: &[Measure] = &[
        at_most("below ms", 1_000),
        at_most("freeze ms", 500),
        at_most("queue ms", 200),
        at_most("back on top ms", 8_000),
    ];
    const OTHER: &[Measure] = &[
        at_most("below ms", 1_500),
        at_most("freeze ms", 1_000),
        at_most("back on top ms", 8_000),
    ];
    let all = |world: &World| {
        let viewer = &world.viewers[0];
        vec![
            time_below(viewer, 2, 20 * SECOND),
            viewer.receiver.frozen(20 * SECOND, 30 * SECOND) / MS,
            wait(world, 0),
            time_to(viewer, 2, 40 * SECOND),
        ]
    };
    let some = move |world: &World| {
        let values = all(world);
        vec![values[0], values[1], values[3]]
    };
    vec![
        case("C2/C3 PLI answered", GOALS, fall(300, 20, true), all),
        case("C2/C3 key frame each 2 s", GOALS, fall(300, 20, false), all),
        case("fall, queue 70, RTT 40", OTHER, fall(70, 20, true), some),
        case("fall, queue 1000, RTT 40", OTHER, fall(1_000, 20, true), some),
        case("fall, queue 70, RTT 200", OTHER, fall(70, 100, true), some),
        case("fall, queue 300, RTT 200", OTHER, fall(300, 100, true), some),
        case("fall, queue 1000, RTT 200", OTHER, fall(1_000, 100, true), some),
    ]
}

/// C4: the right layer is held, with jitter up to 30 ms.
fn steady() -> Vec<Case> {
    const GOALS: &[Measure] = &[
        at_least("right layer %", 95),
        at_most("switches/10 min", 10),
        at_most("freeze ms/min", 100),
        at_most("probes B/100 B", 10),
    ];
    const PERIOD: (u64, u64) = (10 * SECOND, 310 * SECOND);
    let steady = |capacity, answers| {
        let mut config = single(capacity, 310 * SECOND);
        config.viewers[0].path.jitter = 10_000;
        config.sources = vec![source(answers)];
        config
    };
    let measure = |right: u8| {
        move |world: &World| {
            let viewer = &world.viewers[0];
            vec![
                held(viewer, PERIOD, |layer| layer == right),
                steps(viewer, PERIOD).1 * 2,
                freezes(world, PERIOD),
                viewer.sender.probed * 100 / viewer.sender.sent_bytes,
            ]
        }
    };
    let mut drifting = steady(3_200_000, true);
    drifting.viewers[0].path.drift = 100;
    let mut policed = steady(1_500_000, true);
    policed.links[0].policer = Some(30_000);
    policed.viewers[0].path.jitter = 0;
    vec![
        case("C4 3.2 Mbit/s, jitter 30", GOALS, steady(3_200_000, true), measure(2)),
        case(
            "C4 3.2 Mbit/s, jitter 30, key each 2 s",
            GOALS,
            steady(3_200_000, false),
            measure(2),
        ),
        case("C4 2.2 Mbit/s, jitter 30", GOALS, steady(2_200_000, true), measure(1)),
        case("C4 0.8 Mbit/s, jitter 30", GOALS, steady(800_000, true), measure(0)),
        case("drift 100 ppm, 3.2 Mbit/s, jitter 30", GOALS, drifting, measure(2)),
        case("policer 1.5 Mbit/s", GOALS, policed, measure(1)),
    ]
}

/// C5 and C6: loss that is no congestion.
fn losses() -> Vec<Case> {
    const GOALS: &[Measure] = &[at_most("downs", 0), at_least("top layer %", 95)];
    const PERIOD: (u64, u64) = (5 * SECOND, 65 * SECOND);
    let lossy = |change: fn(&mut WorldConfig)| {
        let mut config = single(5 * MBIT, 65 * SECOND);
        change(&mut config);
        config
    };
    let measure = |world: &World| {
        let viewer = &world.viewers[0];
        vec![steps(viewer, PERIOD).0, held(viewer, PERIOD, |layer| layer == 2)]
    };
    vec![
        case(
            "C5 loss 2 %",
            GOALS,
            lossy(|config| config.viewers[0].path.loss = 200),
            measure,
        ),
        case(
            "C5 loss 5 %",
            GOALS,
            lossy(|config| config.viewers[0].path.loss = 500),
            measure,
        ),
        case(
            "loss in bursts, 2 %",
            GOALS,
            lossy(|config| config.viewers[0].path.bursts = Some((50, 2_500))),
            measure,
        ),
        case(
            "C6 publisher loses 5 %",
            GOALS,
            lossy(|config| config.sources[0].loss = 500),
            measure,
        ),
        case(
            "feedback loss 20 %",
            GOALS,
            lossy(|config| config.viewers[0].path.feedback_loss = 2_000),
            measure,
        ),
    ]
}

/// C7: four viewers of one stream behind one link, and one viewer beside TCP.
fn shared() -> Vec<Case> {
    const EIGHT: &[Measure] = &[
        at_least("at least 1 Mbit/s, worst viewer %", 95),
        at_least("use of the link %", 80),
        at_most("freeze ms/min", 500),
    ];
    const TWELVE: &[Measure] = &[at_least("top layer, worst viewer %", 95), at_most("freeze ms/min", 500)];
    const TCP: &[Measure] = &[at_least("share of the link %", 25), at_most("freeze ms/min", 1_000)];
    const PERIOD: (u64, u64) = (20 * SECOND, 120 * SECOND);
    let four = |capacity| {
        let mut config = single(capacity, 120 * SECOND);
        config.viewers = (0..4)
            .map(|index| ViewerConfig {
                start: index * 700 * MS,
                ..config.viewers[0].clone()
            })
            .collect();
        config.measured = PERIOD;
        config
    };
    let worst = |world: &World, least: u8| {
        let held = world
            .viewers
            .iter()
            .map(|viewer| held(viewer, PERIOD, |layer| layer >= least));
        held.min().unwrap_or(0)
    };
    let beside = |capacity| {
        let mut config = single(capacity, 120 * SECOND);
        config.tcp = vec![(
            Path::through(0, 20 * MS),
            TcpConfig {
                start: 10 * SECOND,
                short: None,
            },
        )];
        config.measured = PERIOD;
        config
    };
    let tcp_share = |world: &World| {
        let link = &world.links[0];
        vec![link.viewer_bits * 100 / link.passed_bits, freezes(world, PERIOD)]
    };
    vec![
        case("C7 four viewers, 8 Mbit/s", EIGHT, four(8 * MBIT), move |world| {
            let used = world.links[0].passed_bits * 100 / (8 * 100 * MBIT);
            vec![worst(world, 1), used, freezes(world, PERIOD)]
        }),
        case("C7 four viewers, 12 Mbit/s", TWELVE, four(12 * MBIT), move |world| {
            vec![worst(world, 2), freezes(world, PERIOD)]
        }),
        case("C7 beside TCP, 5 Mbit/s", TCP, beside(5 * MBIT), tcp_share),
        case("C7 beside TCP, 2 Mbit/s", TCP, beside(2 * MBIT), tcp_share),
    ]
}

/// One layer of 2.5 Mbit/s on 0.6: audio goes on.
fn little() -> Case {
    const GOALS: &[Measure] = &[
        at_most("audio lost /1000", 10),
        at_most("event ms", 2_000),
        at_most("video back ms", 8_000),
    ];
    let mut config = single(5 * MBIT, 60 * SECOND);
    config.links[0].capacity = vec![(0, 5 * MBIT), (20 * SECOND, 600_000), (40 * SECOND, 5 * MBIT)];
    config.sources[0].layers = vec![2_500_000];
    config.viewers[0].degradable = true;
    case("one layer of 2.5 on 0.6 Mbit/s", GOALS, config, |world| {
        let viewer = &world.viewers[0];
        let lost = viewer.sender.audio.saturating_sub(viewer.receiver.audio + 3);
        let event = viewer.sender.events.iter().find(|(at, _)| *at >= 20 * SECOND);
        vec![
            lost * 1_000 / viewer.sender.audio,
            event.map_or(crate::measures::NEVER, |(at, _)| (at - 20 * SECOND) / MS),
            time_to(viewer, 0, 40 * SECOND),
        ]
    })
}

/// What a viewer can get at most: the highest layer whose cost is at most 85 % of its share, in bits per second.
pub(crate) fn ideal(layers: &[u64], share: u64) -> u64 {
    let fits = layers
        .iter()
        .rev()
        .find(|rate| **rate * 105 / 100 + 90_000 <= share * 85 / 100);
    *fits.unwrap_or(&layers[0])
}

pub(crate) fn rfc_measures(world: &World, period: (u64, u64), ideal: impl Fn(usize, u64) -> u64) -> Vec<u64> {
    let minutes = (period.1 - period.0) * world.viewers.len() as u64;
    let switches: u64 = world.viewers.iter().map(|viewer| steps(viewer, period).1).sum();
    vec![
        fluent(world, period, ideal),
        freezes(world, period),
        wait(world, 0),
        switches * 60 * SECOND / minutes,
    ]
}
