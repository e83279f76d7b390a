//! `check` and the configuration that the program reads.

use super::*;

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
            "duplicate key `webrtc.shards`: it already is set on line 7; remove one of the two",
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
            "`streams.door.rtsp`: the URL has a user name or password with reserved characters: percent-encode `#` as %23",
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
    let own = format!("(process {}) is using this port", std::process::id());
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
    let wanted = format!("`webrtc.listen` cannot be bound: TCP {free}: `http.listen` uses this port too");
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
        said.contains(&format!("TCP {}: ", gateway.http))
            && said.contains("in use by a gateway that is already running"),
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
    let keys = millstream::config::all_keys_except_streams();
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
