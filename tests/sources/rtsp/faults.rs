//! Cameras that die, freeze, change their password or lose their network: the stream is back soon after the camera, its
//! viewers stay, and meanwhile the status says what is wrong.
//!
//! One round of each in CI; `make camera-faults` runs twenty and judges the times (`CAMERA_ROUNDS`).

use std::process::Command;
use std::time::{Duration, Instant};

use millstream::Gateway;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::ShardIndex;
use millstream_test_support::skipped;

use crate::rtsp::{Camera, NOTHING, Seen, gateway, plays_on, trouble, until};

/// After its camera, a stream is back within this time. Judged only where that was asked for: machines are shared.
const LIMIT: Duration = Duration::from_secs(3);

struct Rounds {
    count: usize,
    judged: bool,
}

fn rounds() -> Rounds {
    let asked = std::env::var_os("CAMERA_ROUNDS").and_then(|count| count.to_str()?.parse().ok());
    Rounds {
        count: asked.unwrap_or(1),
        judged: asked.is_some(),
    }
}

/// How long the stream took to come back.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    /// Waits for video after `before`; `returned` is when the camera was back.
    async fn back(&mut self, gateway: &Gateway, before: Option<Seen>, returned: Instant) {
        let has_video = |now: Option<Seen>| {
            let end = before.map_or(0, |before| before.video);
            now.is_some_and(|now| now.has_source && now.video > end)
        };
        until(gateway, "is back", has_video).await;
        self.0.push(returned.elapsed());
        until(gateway, "plays again", |now| plays_on(before, now)).await;
    }

    fn report(mut self, what: &str, judged: bool) {
        self.0.sort();
        let in_time = self.0.iter().filter(|time| **time <= LIMIT).count();
        let (median, worst) = (self.0[self.0.len() / 2], self.0[self.0.len() - 1]);
        println!(
            "measured: {what}: back within 3 s {in_time} of {} times; median {median:.2?}, worst {worst:.2?}",
            self.0.len()
        );
        assert!(!judged || in_time == self.0.len());
    }
}

/// A permanent viewer.
fn watch(gateway: &Gateway) -> impl FnOnce() + use<'_> {
    let hub = gateway.media_plane().hub();
    let stream = hub.open_and_update_stream(StreamName::parse("door").expect("a name"), |state| {
        state.add_viewer(ShardIndex(0));
    });
    move || {
        let now = hub.find_stream(&stream.key).expect("it is there");
        assert_eq!(now.id, stream.id, "viewers kept their stream");
        hub.update_stream_and_remove_if_unused(&stream, |state| state.remove_viewer(ShardIndex(0)));
    }
}

async fn away(gateway: &Gateway, wanted: &str) -> Option<Seen> {
    let before = until(gateway, "is away", |now| now.is_some_and(|seen| !seen.has_source)).await;
    let said = async {
        while !trouble(gateway).contains(wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let said = tokio::time::timeout(crate::rtsp::PATIENCE, said).await;
    assert!(said.is_ok(), "{wanted}: {}", trouble(gateway));
    before
}

#[expect(clippy::disallowed_methods, reason = "the time is what is measured")]
fn now() -> Instant {
    Instant::now()
}

/// A camera, and a gateway that plays it.
async fn playing_camera() -> (Camera, Gateway) {
    let camera = Camera::start(0, "h264+pcma", &[]);
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{}/cam\"", camera.port)).await;
    until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
    (camera, gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_that_was_killed() {
    let (camera, gateway) = playing_camera().await;
    let (port, mut camera) = (camera.port, Some(camera));
    let done = watch(&gateway);
    let (mut times, rounds) = (Times::default(), rounds());
    for _ in 0..rounds.count {
        drop(camera.take());
        let before = away(&gateway, "the TCP connection to port").await;
        camera = Some(Camera::start(port, "h264+pcma", &[]));
        times.back(&gateway, before, now()).await;
    }
    done();
    gateway.stop().await;
    times.report("killed", rounds.judged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_that_froze() {
    let (camera, gateway) = playing_camera().await;
    let done = watch(&gateway);
    let (mut times, rounds) = (Times::default(), rounds());
    for _ in 0..rounds.count {
        camera.signal("STOP");
        let before = away(&gateway, "stopped sending video").await;
        camera.signal("CONT");
        times.back(&gateway, before, now()).await;
    }
    done();
    gateway.stop().await;
    times.report("frozen", rounds.judged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_whose_video_stops_while_its_audio_goes_on() {
    let (camera, gateway) = playing_camera().await;
    let done = watch(&gateway);
    camera.signal("USR2");
    let before = away(&gateway, "stopped sending video").await;
    camera.signal("USR2");
    until(&gateway, "plays again", |now| plays_on(before, now)).await;
    done();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_whose_password_changed() {
    let folder = std::env::temp_dir().join(format!("millstream-password-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("password");
    std::fs::write(&file, "first\n").expect("written");
    let mut camera = Some(Camera::start(0, "h264+pcma", &["--credentials", "viewer", "first"]));
    let port = camera.as_ref().map(|camera| camera.port).expect("it runs");
    let gateway = gateway(&format!(
        "rtsp = \"rtsp://127.0.0.1:{port}/cam\"\nusername = \"viewer\"\npassword_file = \"{}\"",
        file.display()
    ))
    .await;
    until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
    let done = watch(&gateway);
    let (mut times, rounds) = (Times::default(), rounds());
    for round in 0..rounds.count {
        drop(camera.take());
        let password = format!("another-{round}");
        camera = Some(Camera::start(
            port,
            "h264+pcma",
            &["--credentials", "viewer", &password],
        ));
        let before = away(&gateway, "the camera rejected the credentials").await;
        std::fs::write(&file, &password).expect("written");
        times.back(&gateway, before, now()).await;
    }
    done();
    gateway.stop().await;
    std::fs::remove_dir_all(&folder).expect("removed");
    times.report("password changed", rounds.judged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_that_came_back_with_another_resolution() {
    let (camera, gateway) = playing_camera().await;
    let (port, mut camera) = (camera.port, Some(camera));
    let done = watch(&gateway);
    let (mut times, rounds) = (Times::default(), rounds());
    for round in 0..rounds.count {
        drop(camera.take());
        let before = away(&gateway, "").await;
        let (text, size) = if round % 2 == 0 {
            ("240x160", (240, 160))
        } else {
            ("320x180", (320, 180))
        };
        camera = Some(Camera::start(port, "h264+pcma", &["--size", text]));
        times.back(&gateway, before, now()).await;
        until(&gateway, "the other size", |now| {
            now.is_some_and(|seen| seen.resolution == Some(size))
        })
        .await;
    }
    done();
    gateway.stop().await;
    times.report("another resolution", rounds.judged);
}

/// A network of its own for a camera, which can be cut.
struct Network {
    name: String,
    /// Addresses of the gateway and of the camera.
    addresses: [std::net::Ipv4Addr; 2],
}

impl Network {
    /// `None` where this cannot be had: it takes root and iproute2.
    fn new() -> Option<Self> {
        let name = format!("ms{}", std::process::id() % 100_000);
        // A network of four addresses for each process, in those for benchmarks (RFC 2544 appendix C.2.2).
        let first = u32::from(std::net::Ipv4Addr::new(198, 18, 0, 0)) + std::process::id() % (1 << 15) * 4;
        let addresses = [first + 1, first + 2].map(std::net::Ipv4Addr::from);
        let [own, camera] = addresses.map(|address| format!("{address}/30"));
        let network = Self { name, addresses };
        let (outside, inside) = (network.link("o"), network.link("i"));
        let made = run(&["netns", "add", &network.name])
            && run(&["link", "add", &outside, "type", "veth", "peer", "name", &inside])
            && run(&["link", "set", &inside, "netns", &network.name])
            && run(&["addr", "add", &own, "dev", &outside])
            && run(&["link", "set", &outside, "up"])
            && run(&["-n", &network.name, "addr", "add", &camera, "dev", &inside])
            && run(&["-n", &network.name, "link", "set", &inside, "up"]);
        made.then_some(network)
    }

    fn link(&self, end: &str) -> String {
        format!("{}{end}", self.name)
    }

    fn set(&self, state: &str) {
        assert!(run(&["-n", &self.name, "link", "set", &self.link("i"), state]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        run(&["link", "del", &self.link("o")]);
        run(&["netns", "del", &self.name]);
    }
}

fn run(arguments: &[&str]) -> bool {
    let output = Command::new("ip").args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_whose_network_was_cut() {
    let Some(network) = Network::new() else {
        return skipped(
            "a_camera_whose_network_was_cut",
            "a network namespace takes root and iproute2",
        );
    };
    let address = network.addresses[1].to_string();
    let camera = Camera::start_in(&network.name, &address, 8554, "h264+pcma", &[]);
    let gateway = gateway(&format!("rtsp = \"rtsp://{address}:8554/cam\"")).await;
    until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
    let done = watch(&gateway);
    let (mut times, rounds) = (Times::default(), rounds());
    for _ in 0..rounds.count {
        let cut = now();
        network.set("down");
        let before = away(&gateway, "").await;
        let rest = Duration::from_secs(20).saturating_sub(cut.elapsed());
        tokio::time::sleep(rest).await;
        println!("after {:.0?}: {}", cut.elapsed(), trouble(&gateway));
        assert!(trouble(&gateway).contains("camera"));
        network.set("up");
        times.back(&gateway, before, now()).await;
    }
    done();
    gateway.stop().await;
    drop(camera);
    times.report("network cut for 20 s", rounds.judged);
}
