//! One measured run: a fresh gateway, one publisher, so many viewers, between two measurements of the floor.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    endpoint::{Endpoint, Role},
    floor::{self, Floor},
    gateway::Gateway,
    http, procfs,
    publisher::Publisher,
    receiver::Receiver,
    stats::Quantiles,
    stream, sys,
    timeline::Timeline,
    viewer::{Tally, Viewer},
};

/// Name of the stream under test.
const STREAM: &str = "bench/load";

/// Viewers that decrypt and compare everything; the rest do so with every 256th packet.
const AUDITORS: usize = 2;

/// Joins before the first that counts: they pay for what the gateway sets up once.
const WARM_UP_JOINS: usize = 3;

/// Catch-up bursts of the last viewer are over and the counters at rest.
const SETTLE: Duration = Duration::from_millis(1500);

/// A packet that is later than this after the end of a window is lost.
const GRACE: Duration = Duration::from_millis(500);

/// Longest wait for all viewers to find their place in the stream.
const SYNCHRONISE_LIMIT: Duration = Duration::from_secs(60);

/// What to run.
pub(crate) struct Plan<'a> {
    pub gateway: &'a Path,
    pub viewers: usize,
    pub window: Duration,
    pub floor: Duration,
    pub churn: bool,
}

/// What came out.
pub(crate) struct Run {
    pub viewers: usize,
    pub window: Duration,
    pub floor: Floor,
    /// CPU of the server's process tree in the window.
    pub server_cpu: Duration,
    /// CPU of this tool in the window.
    pub tool_cpu: Duration,
    /// CPU of everybody else in the window.
    pub others_cpu: Duration,
    pub tally: Tally,
    pub delay: Quantiles,
    /// From the POST to the end of the DTLS handshake.
    pub connect: Quantiles,
    /// Server CPU per join, without the forwarding that went on meanwhile.
    pub join_cpu: Duration,
    /// Memory at the end of the window, and what it has grown by since before the first join.
    pub memory: procfs::Memory,
    pub growth: procfs::Memory,
    /// Datagrams dropped at full sockets: the viewers', and the server's.
    pub tool_drops: u64,
    pub server_drops: u64,
    pub churn: Option<Churn>,
}

/// Viewers that come and go while the others watch.
pub(crate) struct Churn {
    pub joins: usize,
    pub length: Duration,
    pub connect: Quantiles,
    /// What the viewers that stayed saw meanwhile.
    pub tally: Tally,
    pub delay: Quantiles,
    /// Growth of the server's resident set over the phase, in bytes; negative when it gave memory back.
    pub rss_growth: i64,
}

/// # Errors
///
/// When the gateway does not start, refuses, or ends.
pub(crate) fn run(plan: &Plan) -> io::Result<Run> {
    let bursts = stream::bursts(plan.floor);
    let before = floor::measure(&bursts, plan.viewers, plan.floor)?;
    let mut gateway = Gateway::start(plan.gateway)?;
    let mut run = measure(plan, &mut gateway)?;
    drop(gateway);
    let after = floor::measure(&bursts, plan.viewers, plan.floor)?;
    run.floor = Floor::mean(&before, &after);
    Ok(run)
}

fn measure(plan: &Plan, gateway: &mut Gateway) -> io::Result<Run> {
    let timeline = Arc::new(Timeline::new());
    let publisher = Publisher::start(gateway.http(), STREAM, Arc::clone(&timeline))?;
    let mut stage = Stage {
        http: gateway.http(),
        receiver: Receiver::start(Arc::clone(&timeline))?,
        ports: Vec::new(),
    };
    // The first key frame has to be there before anybody watches.
    thread::sleep(Duration::from_millis(500));
    for _ in 0..WARM_UP_JOINS {
        stage.join_and_leave()?;
    }
    let idle = idle_rate(gateway)?;
    let memory_before = gateway.memory()?;
    let ramp = Ramp::climb(&mut stage, gateway, plan.viewers)?;
    thread::sleep(SETTLE);
    stage.synchronise()?;

    let drops = (procfs::udp_drops(&stage.ports), gateway.socket_drops());
    stage.receiver.open()?;
    let start = Usage::now(gateway)?;
    thread::sleep(plan.window);
    let used = Usage::now(gateway)?.since(&start);
    let end = timeline.position();
    thread::sleep(GRACE);
    let mut tally = stage.receiver.close(end)?;
    let memory = gateway.memory()?;
    gateway.ensure_alive()?;
    let busy = used.server.as_secs_f64() / used.elapsed.as_secs_f64();
    let mut run = Run {
        viewers: plan.viewers,
        window: used.elapsed,
        floor: Floor::default(),
        server_cpu: used.server,
        tool_cpu: used.tool,
        others_cpu: used.machine.saturating_sub(used.server + used.tool),
        delay: Quantiles::of(&mut tally.delays),
        tally,
        connect: Quantiles::of(&mut ramp.connects.clone()),
        join_cpu: ramp.cpu_per_join(idle, busy),
        growth: procfs::Memory {
            rss: memory.rss.saturating_sub(memory_before.rss),
            heap: memory.heap.saturating_sub(memory_before.heap),
        },
        memory,
        tool_drops: procfs::udp_drops(&stage.ports) - drops.0,
        server_drops: gateway.socket_drops() - drops.1,
        churn: None,
    };
    if plan.churn {
        run.churn = Some(churn(plan, gateway, &mut stage, &timeline)?);
    }
    publisher.stop()?;
    stage.receiver.stop()?;
    Ok(run)
}

/// Cores that the server keeps busy with the publisher alone.
fn idle_rate(gateway: &Gateway) -> io::Result<f64> {
    let start = Usage::now(gateway)?;
    thread::sleep(Duration::from_secs(1));
    let used = Usage::now(gateway)?.since(&start);
    Ok(used.server.as_secs_f64() / used.elapsed.as_secs_f64())
}

fn churn(plan: &Plan, gateway: &Gateway, stage: &mut Stage, timeline: &Timeline) -> io::Result<Churn> {
    let memory = gateway.memory()?;
    let started = Instant::now();
    let mut connects = Vec::new();
    stage.receiver.open()?;
    while started.elapsed() < plan.window {
        connects.push(stage.join_and_leave()?);
    }
    let (length, end) = (started.elapsed(), timeline.position());
    thread::sleep(GRACE);
    let mut tally = stage.receiver.close(end)?;
    Ok(Churn {
        joins: connects.len(),
        length,
        connect: Quantiles::of(&mut connects),
        delay: Quantiles::of(&mut tally.delays),
        tally,
        rss_growth: gateway.memory()?.rss as i64 - memory.rss as i64,
    })
}

/// Where viewers join and are received.
struct Stage {
    http: SocketAddr,
    receiver: Receiver,
    /// Local ports of the viewers that stay.
    ports: Vec<u16>,
}

impl Stage {
    /// Joins a viewer that stays; returns the time to connect.
    fn join(&mut self, auditor: bool) -> io::Result<Duration> {
        let joined = Endpoint::join(self.http, Role::Viewer, STREAM)?;
        self.ports.push(joined.endpoint.socket().local_addr()?.port());
        self.receiver.add(Viewer::new(joined.endpoint, auditor))?;
        Ok(joined.connected_after)
    }

    /// Joins a viewer and ends its session at once; returns the time to connect.
    fn join_and_leave(&mut self) -> io::Result<Duration> {
        let joined = Endpoint::join(self.http, Role::Viewer, STREAM)?;
        let session = joined.session;
        let number = self.receiver.add(Viewer::new(joined.endpoint, false))?;
        let status = http::delete(self.http, &session)?.status;
        self.receiver.remove(number)?;
        if !(200..300).contains(&status) {
            return Err(io::Error::other(format!("DELETE {session}: {status}")));
        }
        Ok(joined.connected_after)
    }

    /// Waits until each viewer knows its place in the stream.
    fn synchronise(&self) -> io::Result<()> {
        let started = Instant::now();
        while !self.receiver.synchronised()? {
            if started.elapsed() > SYNCHRONISE_LIMIT {
                return Err(io::Error::other(
                    "a viewer got nothing that the publisher sent on one of its tracks",
                ));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// The joins of all viewers, one after the other.
struct Ramp {
    connects: Vec<Duration>,
    /// How long each step took, from join to join.
    steps: Vec<Duration>,
    cpu: Duration,
}

impl Ramp {
    fn climb(stage: &mut Stage, gateway: &Gateway, viewers: usize) -> io::Result<Self> {
        let before = gateway.cpu()?;
        let (mut connects, mut steps) = (Vec::new(), Vec::new());
        for number in 0..viewers {
            let started = Instant::now();
            connects.push(stage.join(number < AUDITORS)?);
            steps.push(started.elapsed());
        }
        Ok(Self {
            connects,
            steps,
            cpu: gateway.cpu()? - before,
        })
    }

    /// Server CPU of the ramp without what it would have spent on forwarding, per join. Forwarding is priced per time:
    /// from `idle` cores with no viewer to `busy` with all of them, linear between. Catch-up bursts stay in.
    fn cpu_per_join(&self, idle: f64, busy: f64) -> Duration {
        let count = self.steps.len().max(1) as f64;
        let background: f64 = self
            .steps
            .iter()
            .enumerate()
            .map(|(joined, step)| step.as_secs_f64() * (idle + (busy - idle) * joined as f64 / count))
            .sum();
        Duration::from_secs_f64(((self.cpu.as_secs_f64() - background) / count).max(0.0))
    }
}

/// Clocks at one moment, or the differences between two.
struct Usage {
    at: Instant,
    elapsed: Duration,
    server: Duration,
    tool: Duration,
    machine: Duration,
}

impl Usage {
    fn now(gateway: &Gateway) -> io::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            elapsed: Duration::ZERO,
            server: gateway.cpu()?,
            tool: sys::own_cpu(),
            machine: procfs::machine_busy(),
        })
    }

    fn since(&self, start: &Self) -> Self {
        Self {
            at: self.at,
            elapsed: self.at - start.at,
            server: self.server.saturating_sub(start.server),
            tool: self.tool.saturating_sub(start.tool),
            machine: self.machine.saturating_sub(start.machine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_is_taken_off_the_price_of_a_join() {
        let ramp = Ramp {
            connects: Vec::new(),
            steps: vec![Duration::from_millis(10); 100],
            // A second of ramp at half of 0.2 cores on average, and 1 ms per join.
            cpu: Duration::from_millis(200),
        };
        let price = ramp.cpu_per_join(0.0, 0.2);
        assert!((1000..1020).contains(&price.as_micros()), "{price:?}");
        assert_eq!(ramp.cpu_per_join(5.0, 5.0), Duration::ZERO);
    }
}
