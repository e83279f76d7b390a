//! A gateway whose file descriptors are all in use.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use super::{PATIENCE, Running, program};

/// The program with this limit of open files.
fn limited_program(open_files: u32) -> Command {
    let gateway = program(&["serve"]);
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n {open_files}; exec \"$0\" serve")])
        .arg(gateway.get_program());
    command.env_clear();
    for (name, value) in gateway.get_envs() {
        command.env(name, value.expect("only set"));
    }
    command
        .env("MILLSTREAM_AUTH__API_TOKEN", "secret")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    command
}

/// Opens an event stream, which stays open. Returns it with the status of its response; 0 without one.
fn open_event_stream(http: &str) -> (TcpStream, u16) {
    let mut stream = TcpStream::connect(http).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sends");
    let mut start = [0; 12];
    let status = match stream.read_exact(&mut start) {
        Ok(()) => String::from_utf8_lossy(&start[9..]).parse().expect("a status"),
        Err(_) => 0,
    };
    (stream, status)
}

fn get(http: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(http).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sends");
    let mut reply = String::new();
    // A reply that is cut off shows in what there is of it.
    let _ = stream.read_to_string(&mut reply);
    reply
}

/// F25.
#[test]
#[expect(clippy::disallowed_methods, reason = "the test waits for a process")]
fn health_checks_are_answered_while_all_descriptors_are_in_use() {
    let gateway = Running::start(limited_program(64));
    let mut open = Vec::new();
    let refused = loop {
        let (stream, status) = open_event_stream(&gateway.http);
        if status != 200 || open.len() > 64 {
            break status;
        }
        open.push(stream);
    };
    assert_eq!(refused, 503, "after {} connections", open.len());
    // Clients that say nothing take the reserved descriptors for a moment only.
    let silent: Vec<TcpStream> = (0..20)
        .map(|_| TcpStream::connect(&gateway.http).expect("connects"))
        .collect();
    for _ in 0..3 {
        let reply = get(&gateway.http, "/healthz");
        assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("ok\n"), "{reply}");
        let reply = get(&gateway.http, "/readyz");
        assert!(
            reply.starts_with("HTTP/1.1 503") && reply.contains("out_of_descriptors"),
            "{reply}"
        );
    }
    drop((open, silent));
    // The gateway notices that an event stream has no reader with the next write, a keep-alive at the latest.
    let recovered = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        get(&gateway.http, "/readyz").starts_with("HTTP/1.1 200")
    });
    assert!(recovered);
    println!(
        "measured: 3 of 3 health checks answered with all descriptors in use, others 503; everything answered again"
    );
    let (code, _, log) = gateway.end("-TERM");
    assert_eq!(code, Some(0));
    assert!(log.contains("all file descriptors are in use"), "{log}");
}
