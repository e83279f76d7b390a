//! A shard that stands still: health checks fail, and in the end the process does.

use std::process::Command;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use millstream::Gateway;
use millstream::shard::watchdog;
use tracing::field::Field;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::http::client::{Reply, Request, VIEWER, gateway, make_live};

/// Longer than any timeout of the gateway.
const PATIENCE: Duration = Duration::from_secs(60);

/// The stream whose viewer the shard of a test is stuck with.
const STREAM: &str = "stuck";

/// While this is closed, a shard that logs the end of a session of [`STREAM`] waits for it.
static GATE: Authenticator = Authenticator {
    closed: Mutex::new(false),
    opened: Condvar::new(),
};

struct Authenticator {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Authenticator {
    fn close(&self) {
        *self.closed.lock().expect("not poisoned") = true;
    }

    fn open(&self) {
        *self.closed.lock().expect("not poisoned") = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().expect("not poisoned");
        let _open = self.opened.wait_while(closed, |closed| *closed).expect("not poisoned");
    }
}

/// Stops a shard in the middle of a message, and nothing else: it holds no lock then.
struct Stall;

impl<S: tracing::Subscriber> Layer<S> for Stall {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = String::new();
        event.record(&mut |field: &Field, value: &dyn std::fmt::Debug| {
            fields += &format!("{field}={value:?} ");
        });
        if fields.contains("viewer session ended") && fields.contains(&format!("stream={STREAM} ")) {
            GATE.pass();
        }
    }
}

/// Blocks the only shard of a gateway while [`GATE`] is closed.
async fn stall(gateway: &Gateway) {
    make_live(gateway, STREAM);
    let session = Request::offer(&format!("/whep/{STREAM}"), VIEWER).send(gateway).await;
    assert_eq!(session.status, 201);
    let deleted = Request::new("DELETE", &session.location()).send(gateway).await;
    assert_eq!(deleted.status, 200);
}

async fn until(gateway: &Gateway, probe: &str, status: u16) -> Reply {
    let asking = async {
        loop {
            let reply = Request::new("GET", probe).send(gateway).await;
            if reply.status == status {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect(probe)
}

#[tokio::test]
async fn a_shard_that_stands_still_is_unhealthy_until_it_goes_on() {
    let _ = tracing_subscriber::registry().with(Stall).try_init();
    let gateway = gateway(&[]).await;
    GATE.close();
    stall(&gateway).await;
    for probe in ["/healthz", "/readyz"] {
        let reply = until(&gateway, probe, 503).await;
        assert_eq!(reply.problem(), "shard_stalled");
        assert!(
            reply
                .text()
                .contains("media thread (shard) 0 has not run its event loop for"),
            "{}",
            reply.text()
        );
        assert!(reply.text().contains("phase: messages"), "{}", reply.text());
    }
    GATE.open();
    until(&gateway, "/healthz", 200).await;
    until(&gateway, "/readyz", 200).await;
    println!("measured: /healthz and /readyz 503 `shard_stalled` until it ticked again");
    gateway.stop().await;
}

#[test]
fn a_shard_that_stands_still_for_good_ends_the_process_with_its_state_in_the_log() {
    let test = "http::stalls::the_process_of_a_shard_that_stands_still";
    let ended = Command::new(std::env::current_exe().expect("the path of this test"))
        .args([test, "--exact", "--ignored", "--nocapture"])
        .output()
        .expect("starts");
    let log = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(watchdog::STALL_EXIT_STATUS), "{log}");
    for fact in [
        "state of a media thread (shard) at the time of a stall",
        "phase=\"messages\"",
        "futex",
        "a media thread (shard) is stalled",
    ] {
        assert!(log.contains(fact), "{fact} is missing: {log}");
    }
}

#[tokio::test]
#[ignore = "runs in a process of its own, which ends with it"]
async fn the_process_of_a_shard_that_stands_still() {
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(log).with(Stall).init();
    let gateway = gateway(&[]).await;
    GATE.close();
    stall(&gateway).await;
    tokio::time::sleep(watchdog::FATAL_STALL_TIMEOUT + PATIENCE).await;
    panic!("the process goes on");
}
