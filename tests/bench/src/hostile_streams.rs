//! Hostile HTTP requests and hostile media connections over TCP (RFC 4571 framing) for `chaos hostile`.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::mutate::{Chance, mutate};

/// Connections at the same time, of each kind.
const HTTP_CLIENTS: u64 = 8;
const MEDIA_CLIENTS: u64 = 4;

/// Media connections that a client keeps open at a time; most say nothing more.
const OPEN_MEDIA_CONNECTIONS: usize = 50;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const BODY_READ_TIMEOUT: Duration = Duration::from_millis(500);

/// Longest part of a response that is read.
const MAX_READ_BYTES: usize = 64 * 1024;

/// What became of the requests or connections.
#[derive(Default)]
pub(crate) struct Outcomes {
    pub sent: AtomicU64,
    pub answered: AtomicU64,
    /// Answers with a status from 500 on, but for 501 and 503 and 505, which say what the request is to blame for.
    pub server_errors: AtomicU64,
    pub not_connected: AtomicU64,
}

impl Outcomes {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends `count` hostile requests, made of `offer` where they have a body that resembles one.
pub(crate) fn send_http(to: SocketAddr, count: u64, seed: u64, offer: &str, outcomes: &Outcomes) {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for client in 0..HTTP_CLIENTS {
            let next = &next;
            scope.spawn(move || {
                let mut chance = Chance::new(seed ^ (client << 32));
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    let request = hostile_request(&mut chance, offer);
                    exchange(to, &request, outcomes);
                }
            });
        }
    });
}

fn exchange(to: SocketAddr, request: &[u8], outcomes: &Outcomes) {
    Outcomes::count(&outcomes.sent);
    let Ok(mut stream) = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT) else {
        return Outcomes::count(&outcomes.not_connected);
    };
    // A gateway that closes in the middle of a request is within its rights: only what it answers is counted.
    let _ = stream.set_read_timeout(Some(BODY_READ_TIMEOUT));
    let _ = stream.set_write_timeout(Some(BODY_READ_TIMEOUT));
    if stream.write_all(request).is_err() {
        return;
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut reply = Vec::new();
    let _ = stream.take(MAX_READ_BYTES as u64).read_to_end(&mut reply);
    let status = reply
        .get(9..12)
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
    if let Some(status) = status {
        Outcomes::count(&outcomes.answered);
        if status >= 500 && ![501, 503, 505].contains(&status) {
            Outcomes::count(&outcomes.server_errors);
        }
    }
}

/// One request of ten kinds.
fn hostile_request(chance: &mut Chance, offer: &str) -> Vec<u8> {
    let head = |line: &str, headers: &str| format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    let with_body = |line: &str, body: &[u8]| {
        let headers = format!("Content-Type: application/sdp\r\nContent-Length: {}\r\n", body.len());
        [head(line, &headers).as_bytes(), body].concat()
    };
    let mut bytes = Vec::new();
    match chance.below(10) {
        0 => {
            bytes.extend((0..chance.below(600)).map(|n| ((n as u64).wrapping_mul(2_654_435_761) >> 7) as u8));
            bytes
        }
        1 => head("BREW /whep/bench/watched", "").into_bytes(),
        2 => head("GET /hls/../../etc/passwd", "").into_bytes(),
        3 => head(
            "GET /",
            &format!("X-Long: {}\r\n", "y".repeat(1_000 + chance.below(40_000))),
        )
        .into_bytes(),
        4 => head("GET /", &"A: b\r\n".repeat(50 + chance.below(400))).into_bytes(),
        5 => {
            mutate(&[offer.as_bytes().to_vec()], chance, &mut bytes);
            with_body("POST /whep/bench/watched", &bytes)
        }
        6 => {
            let line = format!("PATCH /session/{:032x}", chance.below(usize::MAX));
            with_body(&line, b"a=ice-ufrag:x\r\n")
        }
        7 => [
            head("POST /whep/bench/watched", "Transfer-Encoding: chunked\r\n").as_bytes(),
            b"ffffffffffffffff\r\nv=0",
        ]
        .concat(),
        8 => head("POST /whep/bench/watched", "Content-Length: 4294967295\r\n").into_bytes(),
        _ => {
            let valid = head("GET /hls/bench/watched/index.m3u8?_HLS_msn=18446744073709551615", "");
            mutate(&[valid.into_bytes()], chance, &mut bytes);
            bytes
        }
    }
}

/// Opens `count` media connections that send mutated frames of `wire`, lie about lengths, or say nothing.
pub(crate) fn attack_media_tcp(to: SocketAddr, count: u64, seed: u64, wire: &[Vec<u8>], outcomes: &Outcomes) {
    thread::scope(|scope| {
        for client in 0..MEDIA_CLIENTS {
            scope.spawn(move || {
                let mut chance = Chance::new(seed ^ (client << 40));
                let mut open = std::collections::VecDeque::new();
                for _ in 0..count / MEDIA_CLIENTS {
                    open.extend(media_connection(to, &mut chance, wire, outcomes));
                    if open.len() > OPEN_MEDIA_CONNECTIONS {
                        open.pop_front();
                    }
                }
            });
        }
    });
}

fn media_connection(to: SocketAddr, chance: &mut Chance, wire: &[Vec<u8>], outcomes: &Outcomes) -> Option<TcpStream> {
    Outcomes::count(&outcomes.sent);
    let Ok(mut stream) = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT) else {
        Outcomes::count(&outcomes.not_connected);
        return None;
    };
    let _ = stream.set_write_timeout(Some(BODY_READ_TIMEOUT));
    let mut frame = Vec::new();
    for _ in 0..chance.below(6) {
        mutate(wire, chance, &mut frame);
        let length = match chance.below(4) {
            0 => 0xffff,
            1 => 0,
            _ => frame.len() as u16,
        };
        // The gateway may have closed it already.
        let _ = stream
            .write_all(&length.to_be_bytes())
            .and_then(|()| stream.write_all(&frame));
    }
    Some(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn requests_are_sent_and_statuses_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            for (number, stream) in listener.incoming().take(40).enumerate() {
                let mut stream = stream.unwrap();
                let status = if number == 7 { 500 } else { 400 };
                let _ = stream.read(&mut [0; 16]);
                let _ = write!(stream, "HTTP/1.1 {status} x\r\n\r\n");
            }
        });
        let outcomes = Outcomes::default();
        send_http(to, 40, 1, "v=0\r\n", &outcomes);
        server.join().unwrap();
        assert_eq!(outcomes.sent.into_inner(), 40);
        assert!(outcomes.answered.into_inner() > 20, "a reset may take some answers");
        assert!(outcomes.server_errors.into_inner() <= 1);
        assert_eq!(outcomes.not_connected.into_inner(), 0);
    }
}
