//! Output, log and telemetry of the program.

use std::path::Path;

use super::*;

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
    let offer = include_str!("../../data/offers/obs-32.2.2-h264-advanced.sdp");
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

/// T21.
#[test]
fn tokens_are_never_disclosed_and_session_urls_never_logged() {
    let mut command = program(&["serve"]);
    command
        .env("MILLSTREAM_LOG__LEVEL", "trace")
        .env("MILLSTREAM_AUTH__PUBLISH_TOKEN", "canary-publish")
        .env("MILLSTREAM_AUTH__PLAY_TOKEN", "canary-play")
        .env("MILLSTREAM_AUTH__API_TOKEN", "canary-api");
    let gateway = Running::start(command);
    let offer = include_str!("../../data/offers/obs-32.2.2-h264-advanced.sdp");
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
    let mut outputs = vec![wrong, foreign, created.clone()];
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
        outputs.push(answer);
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
    assert!(
        log.contains("WHIP publisher accepted, waiting for its ICE connection"),
        "{log}"
    );
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
            fields["message"] == "HTTP request answered"
                && event["level"] == "DEBUG"
                && fields["method"] == method
                && fields["path"].as_str().is_some_and(|p| p.starts_with(path))
                && fields["status"] == status
        });
        assert!(is_logged, "{method} {path} {status} in {log}");
    }
    for output in outputs.iter().chain([&stdout, &log]) {
        assert!(!output.contains("canary"), "{output}");
    }
    for output in [&stdout, &log] {
        assert!(!output.contains(id), "{output}");
    }
}

#[test]
fn the_log_says_who_issued_and_revoked_a_token_and_shows_neither() {
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("issuers-{}.toml", std::process::id()));
    let mut command = program(&["serve"]);
    command
        .env("MILLSTREAM_AUTH__API_TOKEN", "canary-api")
        .env("MILLSTREAM_API__STATE_FILE", &state);
    let gateway = Running::start(command);
    let send = |method: &str, path: &str, body: &str| {
        gateway.request(&format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer canary-api\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let issued = send("POST", "/api/v1/tokens", r#"{"publish": "studio/*", "expires_in": 60}"#);
    let (_, body) = issued.split_once("\r\n\r\n").expect("a body");
    let issued: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let (id, token) = (
        issued["id"].as_str().expect("an id"),
        issued["token"].as_str().expect("a token"),
    );
    let revoked = send("DELETE", &format!("/api/v1/tokens/{id}"), "");
    assert!(revoked.starts_with("HTTP/1.1 204"), "{revoked}");
    let (_, _, log) = gateway.end("-TERM");
    let _ = std::fs::remove_file(&state);
    let event = |message: &str| {
        let events = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let found = events
            .map(|event| event["fields"].clone())
            .find(|fields| fields["message"] == message);
        found.unwrap_or_else(|| panic!("{message} in {log}"))
    };
    let issued = event("token issued through the API");
    assert_eq!(
        (&issued["token"], &issued["issued_by"], &issued["address"]),
        (&id.into(), &"auth.api_token".into(), &"127.0.0.1".into())
    );
    assert!(issued["publish"].to_string().contains("studio/*"), "{issued}");
    assert_eq!(event("token revoked through the API")["revoked_by"], "auth.api_token");
    assert_eq!(
        event("change requested through the API")["credential"],
        "auth.api_token"
    );
    assert!(!log.contains(token) && !log.contains("canary"), "{log}");
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
        if event["fields"]["message"] == "gateway listening" {
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
    println!("measured: {UNREAD_LINES} requests answered while nobody read the log");
    // Buffered lines arrive when reading resumes.
    let mut line = String::new();
    assert!(
        stderr.read_line(&mut line).expect("reads") > 0 && line.starts_with('{'),
        "{line}"
    );
}
