//! The program itself: arguments, exit codes, what it prints, and how it ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

mod mistakes;

const PATIENCE: Duration = Duration::from_secs(20);

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
            if event["fields"]["message"] == "listening" {
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
fn check_says_whether_the_configuration_is_valid() {
    let good = run(&mut program(&["check"]));
    assert!(good.status.success(), "{}", text(&good.stderr));
    let bad = run(program(&["check"]).env("MILLSTREAM_WEBRTC__SHARDS", "many"));
    assert_eq!(bad.status.code(), Some(1));
    let error = text(&bad.stderr);
    for part in ["webrtc.shards", "MILLSTREAM_WEBRTC__SHARDS", "many", "a whole number"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn the_file_is_found_by_argument_and_by_variable() {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("unknown-key.toml");
    std::fs::write(&file, "[http]\nport = 80\n").expect("writes");
    let path = file.to_str().expect("path");
    for output in [
        run(&mut program(&["check", "--config", path])),
        run(&mut program(&["--config", path])),
        run(program(&["serve"]).env("MILLSTREAM_CONFIG", path)),
    ] {
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains("unknown key `http.port`"),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn ten_mistakes_of_one_file_are_ten_messages_with_their_lines() {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("ten-mistakes.toml");
    let lines = [
        ("[http]", ""),
        (
            "listen = 8080",
            "`http.listen` is 8080: expected an IP address and a port, such as \"[::]:8080\" or \"127.0.0.1:8080\"",
        ),
        (
            "cors_origin = \"*\"",
            "unknown key `http.cors_origin` (did you mean `cors_origins`?)",
        ),
        (
            "counter_offer = \"sometimes\"",
            "`http.counter_offer` is \"sometimes\": expected \"never\", \"when_needed\" or \"always\"",
        ),
        (
            "wait_for_publisher = 61",
            "`http.wait_for_publisher` is 61: expected a whole number of seconds from 0 to 60",
        ),
        ("[webrtc]", ""),
        (
            "shards = \"many\"",
            "`webrtc.shards` is \"many\": expected a whole number from 0 to 64",
        ),
        (
            "shards = 2",
            "duplicate key `webrtc.shards`: it is set in line 7 already; remove one of them",
        ),
        ("[ice]", ""),
        (
            "turn_lifetime = 3601",
            "`ice.turn_lifetime` is 3601: expected a whole number of seconds from 60 to 3600",
        ),
        ("[limts]", "unknown section `limts` (did you mean `limits`?)"),
        ("connections = 1", ""),
        ("[log]", ""),
        (
            "level = loud",
            "`log.level`: expected a string in quotes (\"text\"), a number, `true` or `false`",
        ),
        ("[streams.\"door\"]", ""),
        (
            "rtsp = \"rtsp://user:a#b@192.0.2.1/cam\"",
            "`streams.door.rtsp` has a user or password that has to be escaped: percent-encode `#` as %23",
        ),
    ];
    std::fs::write(&file, lines.map(|(line, _)| line).join("\n")).expect("writes");
    let output = run(&mut program(&["check", "--config", file.to_str().expect("path")]));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let found: Vec<(usize, &str)> = error
        .lines()
        .filter_map(|line| line.split_once("ten-mistakes.toml, line "))
        .filter_map(|(_, rest)| {
            let (line, rest) = rest.split_once(", column ")?;
            Some((line.parse().ok()?, rest.split_once(": ")?.1))
        })
        .collect();
    let wanted: Vec<(usize, &str)> = (1..)
        .zip(lines)
        .filter(|(_, (_, message))| !message.is_empty())
        .map(|(number, (_, message))| (number, message))
        .collect();
    assert_eq!(found, wanted, "{error}");
    assert_eq!(wanted.len(), 10);
}

#[test]
fn check_names_the_process_that_uses_a_port() {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let (tcp, udp) = (tcp.local_addr().expect("bound"), udp.local_addr().expect("bound"));
    let output = run(program(&["check"])
        .env("MILLSTREAM_HTTP__LISTEN", tcp.to_string())
        .env("MILLSTREAM_WEBRTC__LISTEN", udp.to_string())
        .env("MILLSTREAM_WEBRTC__TCP", "false"));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let own = format!("(process {}) is using it", std::process::id());
    for wanted in [
        format!("MILLSTREAM_HTTP__LISTEN: `http.listen` cannot be bound: TCP {tcp}: "),
        format!("MILLSTREAM_WEBRTC__LISTEN: `webrtc.listen` cannot be bound: UDP {udp}: "),
    ] {
        let line = error.lines().find(|line| line.contains(&wanted));
        assert!(line.is_some_and(|line| line.contains(&own)), "{wanted} in {error}");
    }
    // Both on one port, which media takes by TCP too.
    let free = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port");
    let output = run(program(&["check"])
        .env("MILLSTREAM_HTTP__LISTEN", free.to_string())
        .env("MILLSTREAM_WEBRTC__LISTEN", free.to_string()));
    let error = text(&output.stderr);
    let wanted = format!("`webrtc.listen` cannot be bound: TCP {free}: `http.listen` uses it too");
    assert!(error.contains(&wanted), "{error}");
}

/// A changed configuration is checked before the running gateway reloads it.
#[test]
fn check_beside_the_running_gateway_is_no_failure() {
    let gateway = Running::start(program(&["serve"]));
    let mut command = program(&["check"]);
    command.env("MILLSTREAM_HTTP__LISTEN", &gateway.http);
    let output = run(&mut command);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        said.contains(&format!("TCP {}: ", gateway.http)) && said.contains("a gateway is already running"),
        "{said}"
    );
    let bad = run(command.env("MILLSTREAM_WEBRTC__SHARDS", "many"));
    assert_eq!(bad.status.code(), Some(1));
    assert!(!text(&bad.stderr).contains("http.listen"), "{}", text(&bad.stderr));
}

#[test]
fn an_old_name_is_warned_of_and_works() {
    let output = run(program(&["check"]).env("MILLSTREAM_PIPELINES__REPAIR", "false"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let wanted = "warning: MILLSTREAM_PIPELINES__REPAIR: `pipelines.repair` was renamed to `pipelines.transcode`";
    assert!(text(&output.stdout).contains(wanted), "{}", text(&output.stdout));
    let gateway = Running::start({
        let mut command = program(&["serve"]);
        command.env("MILLSTREAM_PIPELINES__REPAIR", "false");
        command
    });
    gateway.end("-TERM");
}

#[test]
fn the_long_help_lists_all_keys() {
    let long = text(&run(&mut program(&["--help"])).stdout);
    let keys = millstream::config::keys();
    assert!(keys.len() > 40);
    for key in keys {
        assert!(
            long.contains(&format!("  {} (default: ", key.path)),
            "{} in {long}",
            key.path
        );
    }
    assert!(!text(&run(&mut program(&["-h"])).stdout).contains("http.listen ("));
}

/// Containers and shells pass on whatever they were given.
#[test]
fn variables_that_are_not_text_are_refused_only_if_they_are_keys() {
    use std::os::unix::ffi::OsStrExt as _;
    let not_text = std::ffi::OsStr::from_bytes(b"s3cret\xff");
    let good = run(program(&["check"]).env("LS_COLORS", not_text).env(not_text, "x"));
    assert!(good.status.success(), "{}", text(&good.stderr));
    let bad = run(program(&["check"]).env("MILLSTREAM_AUTH__PLAY_TOKEN", not_text));
    let error = text(&bad.stderr);
    assert_eq!(bad.status.code(), Some(1), "{error}");
    assert!(
        error.contains("MILLSTREAM_AUTH__PLAY_TOKEN") && !error.contains("s3cret"),
        "{error}"
    );
}

#[test]
fn the_gateway_outlives_whoever_reads_its_output() {
    let mut command = program(&["serve"]);
    command
        .env("MILLSTREAM_LOG__LEVEL", "trace")
        .env("MILLSTREAM_AUTH__PUBLISH_TOKEN", "token");
    // The pipe of the banner is closed before anything is written to it.
    let (reader, writer) = std::io::pipe().expect("pipe");
    command.stdout(writer);
    drop(reader);
    let mut gateway = Running::start(command);
    // And that of the log once the address is known.
    gateway.stop_reading();
    let offer = include_str!("../data/offers/obs-32.2.2-h264-advanced.sdp");
    for _ in 0..3 {
        let reply = gateway.request(&format!(
            "POST /whip/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer token\r\n\
             Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{offer}",
            offer.len()
        ));
        assert!(reply.starts_with("HTTP/1.1 201"), "{reply:?}");
    }
    assert_eq!(gateway.end("-TERM").0, Some(0));

    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    assert!(run(program(&["check"]).stdout(writer)).status.success());
}

#[test]
fn a_generated_token_is_in_the_banner_and_nowhere_else() {
    let mut command = program(&[]);
    command.env("MILLSTREAM_LOG__LEVEL", "trace");
    let gateway = Running::start(command);
    let page = gateway.request("GET / HTTP/1.0\r\n\r\n");
    assert!(page.starts_with("HTTP/1.0 200 OK"), "{page}");
    let http = gateway.http.clone();
    let (code, banner, log) = gateway.end("-TERM");
    assert_eq!(code, Some(0));
    let token = banner
        .lines()
        .find_map(|line| line.trim().strip_prefix("Bearer Token"))
        .expect("token")
        .trim();
    assert_eq!(token.len(), 22, "{banner}");
    for line in [
        format!("http://{http}/watch/live"),
        format!(
            "http://localhost:{}/publish/live",
            http.rsplit(':').next().expect("port")
        ),
        format!("Server         http://{http}/whip/live"),
        "Service        WHIP".to_owned(),
    ] {
        assert!(banner.contains(&line), "{line} in {banner}");
    }
    assert!(log.contains("stopped") && !log.contains(token), "{log}");
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

/// T21.
#[test]
fn tokens_are_never_told_and_session_urls_never_logged() {
    let mut command = program(&["serve"]);
    command
        .env("MILLSTREAM_LOG__LEVEL", "trace")
        .env("MILLSTREAM_AUTH__PUBLISH_TOKEN", "canary-publish")
        .env("MILLSTREAM_AUTH__PLAY_TOKEN", "canary-play")
        .env("MILLSTREAM_AUTH__API_TOKEN", "canary-api");
    let gateway = Running::start(command);
    let offer = include_str!("../data/offers/obs-32.2.2-h264-advanced.sdp");
    let post = |token: &str| {
        gateway.request(&format!(
            "POST /whip/live?token=canary-query HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\nContent-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{offer}",
            offer.len()
        ))
    };
    let wrong = post("canary-wrong");
    assert!(wrong.starts_with("HTTP/1.1 401"), "{wrong}");
    let foreign = post("canary-play");
    assert!(foreign.starts_with("HTTP/1.1 403"), "{foreign}");
    let created = post("canary-publish");
    let mut told = vec![wrong, foreign, created.clone()];
    for path in [
        "/metrics",
        "/api/v1/streams",
        "/api/v1/sessions",
        "/api/v1/openapi.json",
    ] {
        let answer = gateway.request(&format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer canary-api\r\n\r\n"
        ));
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        told.push(answer);
    }
    let id = created
        .split("/session/")
        .nth(1)
        .and_then(|rest| rest.get(..22))
        .expect("Location");
    let deleted = gateway.request(&format!(
        "DELETE /session/{id} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    ));
    assert!(deleted.starts_with("HTTP/1.1 200"), "{deleted}");
    // As a client asks that joins `Location` to its own URL.
    let lost = gateway.request(&format!("GET /whip/session/{id} HTTP/1.0\r\n\r\n"));
    assert!(lost.starts_with("HTTP/1.0 204"), "{lost}");
    let (code, stdout, log) = gateway.end("-INT");
    assert_eq!(code, Some(0));
    assert!(log.contains("publisher accepted"), "{log}");
    for (method, path, status) in [
        ("POST", "/whip/live", 401),
        ("POST", "/whip/live", 403),
        ("POST", "/whip/live", 201),
        ("DELETE", "/session/", 200),
        ("GET", "/whip/session/..", 204),
    ] {
        let is_logged = log.lines().any(|line| {
            let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let fields = &event["fields"];
            fields["message"] == "request"
                && event["level"] == "DEBUG"
                && fields["method"] == method
                && fields["path"].as_str().is_some_and(|p| p.starts_with(path))
                && fields["status"] == status
        });
        assert!(is_logged, "{method} {path} {status} in {log}");
    }
    for output in told.iter().chain([&stdout, &log]) {
        assert!(!output.contains("canary"), "{output}");
    }
    for output in [&stdout, &log] {
        assert!(!output.contains(id), "{output}");
    }
}

/// An OTLP collector that sends the paths and bodies of requests to a channel.
fn collector() -> (String, mpsc::Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (sender, exported) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                loop {
                    let (mut path, mut length) = (None, 0);
                    loop {
                        let mut line = String::new();
                        if reader.read_line(&mut line).unwrap_or(0) == 0 {
                            return;
                        }
                        let line = line.trim_end().to_ascii_lowercase();
                        if let Some(value) = line.strip_prefix("content-length: ") {
                            length = value.parse().expect("a length");
                        }
                        if line.is_empty() {
                            break;
                        }
                        path.get_or_insert(line);
                    }
                    let mut body = vec![0; length];
                    reader.read_exact(&mut body).expect("the body");
                    let _ = sender.send((path.expect("a request"), text(&body)));
                    let answer =
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
                    reader.get_mut().write_all(answer).expect("answers");
                }
            });
        }
    });
    (url, exported)
}

#[test]
fn a_collector_gets_the_log_and_a_span_of_each_request() {
    let (url, exported) = collector();
    let mut command = program(&["serve"]);
    command
        .env("MILLSTREAM_LOG__OTLP", url)
        .env("MILLSTREAM_AUTH__API_TOKEN", "canary-api");
    let gateway = Running::start(command);
    let answer = gateway.request(
        "GET /api/v1/streams?token=canary-query HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
         Authorization: Bearer canary-api\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (code, _, log) = gateway.end("-TERM");
    assert_eq!(code, Some(0));
    assert!(!log.contains("\"span\""), "spans are for collectors: {log}");
    let (mut events, mut spans) = (String::new(), String::new());
    while let Ok((path, body)) = exported.recv_timeout(Duration::from_millis(200)) {
        match path.split(' ').nth(1) {
            Some("/v1/logs") => events += &body,
            Some("/v1/traces") => spans += &body,
            _ => panic!("{path}"),
        }
    }
    // The last line too: the rest is exported at shutdown.
    for wanted in ["millstream", "listening", "stopped"] {
        assert!(events.contains(wanted), "{wanted}: {events}");
    }
    for wanted in ["request", "/api/v1/streams", "http.response.status_code"] {
        assert!(spans.contains(wanted), "{wanted}: {spans}");
    }
    assert!(
        !events.contains("canary") && !spans.contains("canary"),
        "{events} {spans}"
    );
}

/// A collector that does not answer delays nothing.
#[test]
fn a_gateway_ends_without_its_collector() {
    let mut command = program(&["serve"]);
    // It reads requests and never responds.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    std::thread::spawn(move || silent.incoming().collect::<Vec<_>>());
    command.env("MILLSTREAM_LOG__OTLP", url);
    let gateway = Running::start(command);
    assert!(gateway.request("GET /healthz HTTP/1.0\r\n\r\n").contains("200"));
    let (code, _, _) = gateway.end("-TERM");
    assert_eq!(code, Some(0));
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
    let after = fewest();
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
        assert!(error.contains("is using it; stop that process"), "{error}");
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
    says(&running, "the configuration was reloaded");
    assert!(running.request(&post("b", "first")).contains("401"));
    assert!(running.request(&post("b", "second-one")).contains("201"));
    write("[auth]\npublish_tokn = \"third-of-all\"\n");
    let line = says(&running, "the configuration was not reloaded");
    assert!(
        line.contains("publish_tokn") && !line.contains("third-of-all"),
        "{line}"
    );
    assert!(running.request(&post("c", "second-one")).contains("201"));
    write("[auth]\npublish_token = \"fourth\"\n");
    let id = running.child.id().to_string();
    let sent = Command::new("kill").args(["-s", "HUP", &id]).status();
    assert!(sent.expect("kill starts").success());
    says(&running, "the configuration was reloaded");
    assert!(running.request(&post("d", "fourth")).contains("201"));
    let (code, ..) = running.end("-TERM");
    assert_eq!(code, Some(0));
    let _ = std::fs::remove_file(&file);
}

#[test]
fn a_gateway_that_is_told_to_stop_takes_nobody_new_and_ends_within_its_limit() {
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
    says(&running, "\"stopped\"");
    assert_eq!(running.child.wait().expect("exits").code(), Some(0));
}

/// As much as a pipe holds, many times over.
const UNREAD_LINES: usize = 4_000;

#[test]
fn a_log_that_nobody_reads_stops_neither_http_nor_media() {
    let mut command = program(&["serve"]);
    command
        .env("MILLSTREAM_AUTH__PUBLISH_TOKEN", "publish")
        .env("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0")
        .env("MILLSTREAM_LOG__LEVEL", "debug")
        .env("MILLSTREAM_LOG__FORMAT", "json");
    let mut child = command.spawn().expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut http = String::new();
    while http.is_empty() {
        let mut line = String::new();
        assert!(stderr.read_line(&mut line).expect("reads") > 0, "it ended");
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        if event["fields"]["message"] == "listening" {
            http = event["fields"]["http"].as_str().expect("address").to_owned();
        }
    }
    // Nothing is read from now on.
    let running = Running {
        child,
        log: mpsc::channel().1,
        http,
    };
    // A line each of the control plane and of a shard.
    for _ in 0..UNREAD_LINES / 2 {
        let created = running.request(&post("live", "publish"));
        let session = created.lines().find_map(|line| line.strip_prefix("Location: "));
        let session = session.unwrap_or_else(|| panic!("no session: {created}")).trim();
        let deleted = running.request(&format!(
            "DELETE {session} HTTP/1.0\r\nAuthorization: Bearer publish\r\n\r\n"
        ));
        assert!(deleted.contains(" 200 "), "{deleted}");
    }
    let health = running.request("GET /healthz HTTP/1.0\r\n\r\n");
    assert!(health.contains(" 200 "), "{health}");
    // Buffered lines arrive when reading resumes.
    let mut line = String::new();
    assert!(
        stderr.read_line(&mut line).expect("reads") > 0 && line.starts_with('{'),
        "{line}"
    );
}

#[test]
fn the_doctor_says_what_is_well_and_what_is_not() {
    let mut command = program(&["doctor"]);
    command.env("MILLSTREAM_WEBRTC__ANNOUNCE", "203.0.113.7");
    let output = run(&mut command);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    for wanted in [
        "ok    http.listen",
        "ok    webrtc.listen",
        "ok    addresses: 203.0.113.7",
        "pipeline test: ready",
    ] {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let mut command = program(&["doctor"]);
    command
        .env("MILLSTREAM_HTTP__LISTEN", &address)
        .env("MILLSTREAM_HTTP__TLS_KEY", "/nonexistent");
    let output = run(&mut command);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("FAIL  http.listen: cannot be bound: TCP {address}: ")),
        "{said}"
    );
    assert!(
        said.contains("-> stop that process, or choose another port") && said.contains("must be set together"),
        "{said}"
    );
}

/// All plugins of this machine but one, in a folder that is gone in the end.
struct Plugins(std::path::PathBuf);

impl Plugins {
    fn without(missing: &str) -> Self {
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("plugins-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let found = Command::new("pkg-config")
            .args(["--variable=pluginsdir", "gstreamer-1.0"])
            .output()
            .expect("pkg-config starts");
        let mut left_out = 0;
        for plugin in std::fs::read_dir(text(&found.stdout).trim()).expect("plugins") {
            let plugin = plugin.expect("an entry").path();
            let name = plugin.file_name().expect("a name").to_string_lossy().into_owned();
            if name.contains(missing) {
                left_out += 1;
            } else if name.ends_with(".so") {
                std::os::unix::fs::symlink(&plugin, folder.join(name)).expect("a link");
            }
        }
        assert_eq!(left_out, 1, "{missing}");
        Self(folder)
    }
}

impl Drop for Plugins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_missing_plugin_is_named_with_the_command_that_brings_it() {
    let plugins = Plugins::without("x264");
    let remedy = "missing GStreamer elements: x264enc; install with: apt-get install gstreamer1.0-plugins-ugly";
    for suffix in ["", "_1_0"] {
        let mut command = program(&["check"]);
        command.env(format!("GST_PLUGIN_SYSTEM_PATH{suffix}"), &plugins.0).env(
            format!("GST_REGISTRY{suffix}"),
            plugins.0.join(format!("registry{suffix}")),
        );
        let output = run(&mut command);
        let said = text(&output.stdout);
        assert!(said.contains(&format!("pipeline test: {remedy}")), "{said}");
        assert!(said.contains("pipeline rtsp: ready"), "{said}");
    }
}
