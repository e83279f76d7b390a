//! The program itself: arguments, exit codes, what it prints, and how it ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

mod checks;
mod descriptors;
mod discover;
mod doctor;
mod logs;
mod memory;
mod mistakes;
mod priorities;
mod webhooks;

const PATIENCE: Duration = Duration::from_secs(60);

/// The program on free ports, with nothing of the environment of the tests.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command
        .args(arguments)
        .env_clear()
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .env("MILLSTREAM_HTTP__LISTEN", "127.0.0.1:0")
        .env("MILLSTREAM_WEBRTC__LISTEN", "127.0.0.1:0")
        .env("MILLSTREAM_WEBRTC__SHARDS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running gateway; killed when the test fails.
struct Running {
    child: Child,
    log: mpsc::Receiver<String>,
    http: String,
}

impl Running {
    /// Starts with JSON logs and waits for the event `listening`.
    fn start(mut command: Command) -> Self {
        let mut child = command.env("MILLSTREAM_LOG__FORMAT", "json").spawn().expect("starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            // Closes the pipe when the lines are no longer read.
            stderr
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let mut running = Self {
            child,
            log,
            http: String::new(),
        };
        loop {
            let line = running.log.recv_timeout(PATIENCE).expect("the event `listening`");
            let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            if event["fields"]["message"] == "gateway listening" {
                assert_eq!(event["level"], "INFO");
                assert!(
                    event["fields"]["webrtc"]
                        .as_str()
                        .is_some_and(|address| address.starts_with("127.0.0.1:"))
                );
                running.http = event["fields"]["http"].as_str().expect("address").to_owned();
                return running;
            }
        }
    }

    /// Closes our end of the log.
    fn stop_reading(&mut self) {
        self.log = mpsc::channel().1;
        // The reader notices with the next line: each request leaves one.
        self.request("GET /healthz HTTP/1.0\r\n\r\n");
    }

    fn request(&self, text: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).expect("connects");
        stream.write_all(text.as_bytes()).expect("sends");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("reads");
        reply
    }

    /// Sends a signal and returns the exit code, standard output, and the log since the start.
    fn end(mut self, signal: &str) -> (Option<i32>, String, String) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .expect("kill")
                .success()
        );
        let mut log = String::new();
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) => {
                    log += &line;
                    log.push('\n');
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end: {log}"),
            }
        }
        let mut stdout = String::new();
        if let Some(mut pipe) = self.child.stdout.take() {
            pipe.read_to_string(&mut stdout).expect("reads");
        }
        (self.child.wait().expect("exits").code(), stdout, log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn health_is_asked_of_the_gateway_that_runs() {
    let gateway = Running::start(program(&["serve"]));
    let mut command = program(&["health"]);
    command.env("MILLSTREAM_HTTP__LISTEN", &gateway.http);
    let asked = run(&mut command);
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    assert_eq!(text(&asked.stdout), "healthy\n");
    // A running gateway stays healthy when its configuration file becomes invalid.
    command.env("MILLSTREAM_LOG__LEVEL", "nonsense");
    assert!(run(&mut command).status.success());
    // On all addresses, by IPv6 or, without IPv6, by IPv4.
    let port = gateway.http.rsplit(':').next().expect("a port");
    command.env("MILLSTREAM_HTTP__LISTEN", format!("[::]:{port}"));
    let asked = run(&mut command);
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    gateway.end("-TERM");
    let asked = run(&mut command);
    assert_eq!(asked.status.code(), Some(1));
    assert!(text(&asked.stderr).contains("/healthz"), "{}", text(&asked.stderr));
}

/// Bad requests leak no file descriptors: they are counted in a separate process.
#[test]
fn bad_input_leaves_no_open_file() {
    let mut command = program(&["serve"]);
    command
        .env("MILLSTREAM_AUTH__PUBLISH_TOKEN", "publish")
        .env("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0");
    let gateway = Running::start(command);
    let files = || -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", gateway.child.id()))
            .expect("Linux")
            .count()
    };
    let offer = include_str!("../data/offers/obs-32.2.2-h264-advanced.sdp");
    let bad = |token: &str, kind: &str, body: &str| {
        format!(
            "POST /whip/bad HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let round = || {
        for request in [
            bad("publish", "application/sdp", ""),
            bad("publish", "application/sdp", "hello"),
            bad("publish", "application/sdp", &offer[..offer.len() / 2]),
            bad(
                "publish",
                "application/sdp",
                &offer.replace("a=fingerprint", "a=nothing"),
            ),
            bad("publish", "text/plain", offer),
            bad("wrong", "application/sdp", offer),
            "NONSENSE\r\n\r\n".to_owned(),
            "GET / HTTP/9.9\r\n\r\n".to_owned(),
            "PATCH /session/AAAAAAAAAAAAAAAAAAAAAA HTTP/1.0\r\n\r\n".to_owned(),
        ] {
            let answer = gateway.request(&request);
            assert!(
                answer.starts_with("HTTP/1.") && answer[9..].starts_with('4'),
                "{answer}"
            );
        }
        // A client that goes in the middle of its request.
        let mut cut = TcpStream::connect(&gateway.http).expect("connects");
        let whole = bad("publish", "application/sdp", offer);
        cut.write_all(&whole.as_bytes()[..whole.len() / 2]).expect("sends");
    };
    // The fewest over many requests: a connection is closed a little after its client has gone.
    let fewest = || {
        (0..2000)
            .map(|_| {
                gateway.request("GET /healthz HTTP/1.0\r\n\r\n");
                files()
            })
            .min()
    };
    // Files that are opened once and kept are open after the first request.
    round();
    let before = fewest();
    for _ in 0..30 {
        round();
    }
    // A thread of the gateway that the machine runs late closes its connection late: what leaks stays for good.
    let mut after = fewest();
    for _ in 0..40 {
        if after > before {
            after = fewest();
        }
    }
    assert!(after <= before, "{after:?} files, {before:?} before");
}

#[test]
fn a_port_in_use_is_explained_by_its_key() {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    for (variable, address, key) in [
        ("MILLSTREAM_HTTP__LISTEN", tcp.local_addr(), "http.listen"),
        ("MILLSTREAM_WEBRTC__LISTEN", udp.local_addr(), "webrtc.listen"),
    ] {
        let address = address.expect("address").to_string();
        let output = run(program(&["serve"]).env(variable, &address));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("is using this port; stop that process"), "{error}");
        assert!(
            error.contains(&format!("`{key}` cannot be bound: ")) && error.contains(&format!("{address}: ")),
            "{error}"
        );
    }
}

/// Waits for a line of the log that holds this.
fn says(running: &Running, wanted: &str) -> String {
    let mut seen = Vec::new();
    loop {
        match running.log.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(wanted) => return line,
            Ok(line) => seen.push(line),
            Err(_) => panic!("no {wanted:?} in {seen:#?}"),
        }
    }
}

fn post(stream: &str, token: &str) -> String {
    let offer = include_str!("../data/offers/obs-32.2.2-h264-advanced.sdp");
    format!(
        "POST /whip/{stream} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
         Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{offer}",
        offer.len()
    )
}

#[test]
fn a_changed_file_and_a_hang_up_are_a_reload_and_a_mistake_changes_nothing() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("reload-{}.toml", std::process::id()));
    let write = |text: &str| std::fs::write(&file, text).expect("written");
    write("[auth]\npublish_token = \"first\"\n");
    let path = file.to_str().expect("text");
    let running = Running::start(program(&["serve", "--config", path]));
    assert!(running.request(&post("a", "first")).contains("201"));
    write("[auth]\npublish_token = \"second-one\"\n");
    says(&running, "configuration reloaded");
    assert!(running.request(&post("b", "first")).contains("401"));
    assert!(running.request(&post("b", "second-one")).contains("201"));
    write("[auth]\npublish_tokn = \"third-of-all\"\n");
    let line = says(&running, "configuration not reloaded");
    assert!(
        line.contains("publish_tokn") && !line.contains("third-of-all"),
        "{line}"
    );
    assert!(running.request(&post("c", "second-one")).contains("201"));
    write("[auth]\npublish_token = \"fourth\"\n");
    let id = running.child.id().to_string();
    let sent = Command::new("kill").args(["-s", "HUP", &id]).status();
    assert!(sent.expect("kill starts").success());
    says(&running, "configuration reloaded");
    assert!(running.request(&post("d", "fourth")).contains("201"));
    let (code, ..) = running.end("-TERM");
    assert_eq!(code, Some(0));
    let _ = std::fs::remove_file(&file);
}

#[test]
fn a_gateway_that_is_stopped_refuses_new_sessions_and_ends_within_its_limit() {
    let mut command = program(&["serve"]);
    command
        .env("MILLSTREAM_AUTH__PUBLISH_TOKEN", "publish")
        .env("MILLSTREAM_LIMITS__DRAIN_SECONDS", "4");
    let mut running = Running::start(command);
    assert!(running.request(&post("live", "publish")).contains("201"));
    let id = running.child.id().to_string();
    let sent = Command::new("kill").args(["-s", "TERM", &id]).status();
    assert!(sent.expect("kill starts").success());
    // It takes a moment for the signal to arrive; from then on it drains, as a session is there.
    let refused = (0..200).any(|_| {
        #[expect(clippy::disallowed_methods, reason = "nothing else runs here")]
        std::thread::sleep(Duration::from_millis(10));
        let reply = running.request(&post("other", "publish"));
        reply.contains("503") && reply.to_ascii_lowercase().contains("retry-after")
    });
    assert!(refused);
    println!("measured: POST 503 with Retry-After, /readyz 503, /healthz 200, exit status 0");
    assert!(
        running
            .request("GET /readyz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .contains("503")
    );
    assert!(
        running
            .request("GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .contains("200")
    );
    says(&running, "\"gateway stopped\"");
    assert_eq!(running.child.wait().expect("exits").code(), Some(0));
}

/// As much as a pipe holds, many times over.
const UNREAD_LINES: usize = 4_000;
