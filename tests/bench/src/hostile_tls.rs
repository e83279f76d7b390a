//! Hostile TLS and HTTP/2 connections for `chaos addresses`.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
};

use millstream_test_support::tls::client_config;
use rustls::ClientConfig;

use crate::{
    mutate::{Chance, mutate},
    paced::ConnectionOutcomes,
    tls::{self, TlsStream},
};

/// Preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of HTTP/2 frames (RFC 9113 §6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An open connection that nobody reads any more.
pub(crate) enum Held {
    Plain { _stream: TcpStream },
    Tls { _stream: Box<TlsStream> },
}

/// Makes hostile connections.
pub(crate) struct TlsAttacker {
    h2: Arc<ClientConfig>,
    h1: Arc<ClientConfig>,
    /// The first records of a handshake.
    hello: Vec<u8>,
}

impl TlsAttacker {
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub(crate) fn new() -> io::Result<Self> {
        let (h2, h1) = (client_config(&["h2"])?, client_config(&["http/1.1"])?);
        let mut hello = Vec::new();
        tls::begin(&h2)?.write_tls(&mut hello)?;
        Ok(Self { h2, h1, hello })
    }

    /// Attacks by a connection.
    ///
    /// # Errors
    ///
    /// When the gateway ends the connection.
    pub(crate) fn attack(
        &self,
        mut stream: TcpStream,
        chance: &mut Chance,
        outcomes: &ConnectionOutcomes,
    ) -> io::Result<Held> {
        let kind = chance.below(14);
        if let Some(bytes) = hostile_records(kind, &self.hello, chance) {
            stream.write_all(&bytes)?;
            return Ok(Held::Plain { _stream: stream });
        }
        let connected = tls::connect(if kind == 13 { &self.h1 } else { &self.h2 }, stream);
        let mut stream = connected.inspect_err(|_| ConnectionOutcomes::count(&outcomes.refused))?;
        ConnectionOutcomes::count(&outcomes.accepted);
        if kind == 12 {
            // Something that is no record, on the socket below.
            let mut damaged = Vec::new();
            mutate(std::slice::from_ref(&self.hello), chance, &mut damaged);
            stream.sock.write_all(&damaged)?;
        } else {
            stream.write_all(&hostile_frames(kind, chance))?;
            stream.flush()?;
        }
        if chance.below(2) == 0 {
            let _ = stream.read(&mut [0; 4_096]);
        }
        Ok(Held::Tls {
            _stream: Box::new(stream),
        })
    }
}

/// What is sent instead of a handshake; `None` for kinds that begin after one.
fn hostile_records(kind: usize, hello: &[u8], chance: &mut Chance) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match kind {
        0 => {}
        1 => bytes.extend((0..chance.below(2_000)).map(|n| ((n as u64).wrapping_mul(2_654_435_761) >> 9) as u8)),
        2 => mutate(&[hello.to_vec()], chance, &mut bytes),
        3 => bytes.extend_from_slice(hello.get(..chance.below(hello.len())).unwrap_or_default()),
        4 => {
            // A handshake message of 16 MiB, and the first records of it.
            bytes.extend([0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]);
            bytes.resize(3 * 16_384, 0);
        }
        _ => return None,
    }
    Some(bytes)
}

/// What is sent after a handshake.
fn hostile_frames(kind: usize, chance: &mut Chance) -> Vec<u8> {
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let streams = || (0..100u32).map(|number| 2 * number + 1);
    match kind {
        // The preface alone.
        5 => {}
        // Streams that are reset at once.
        6 => bytes.extend(streams().flat_map(|id| [get(id), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat())),
        // Answers that are not read.
        7 => bytes.extend((0..1_000).flat_map(|_| [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])].concat())),
        // Headers without end.
        8 => {
            bytes.extend(frame(HEADERS, 0, 1, &REQUEST));
            bytes.extend((0..60).flat_map(|_| frame(CONTINUATION, 0, 1, &[b'x'; 1_024])));
        }
        // A long header that is repeated by one byte each.
        9 => {
            let mut block = REQUEST.to_vec();
            // A literal with incremental indexing of 3,000 bytes (RFC 7541 §6.2.1).
            block.extend([0x40, 1, b'a', 0x7f, 0xb9, 0x16]);
            block.extend([b'y'; 3_000]);
            block.extend([0xbe; 8_000]);
            bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block));
        }
        // Responses that find no window.
        10 => {
            bytes.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
            bytes.extend(streams().take(60).flat_map(get));
        }
        // HTTP/1.1 that does not end.
        13 => bytes = b"POST /whip/bench/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nv=0".to_vec(),
        _ => {
            let valid = [
                get(1),
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
                frame(DATA, END_STREAM, 1, &[0; 100]),
                get(3),
            ];
            let mut damaged = Vec::new();
            mutate(&[valid.concat()], chance, &mut damaged);
            bytes.extend(damaged);
        }
    }
    bytes
}

/// `GET / ` of `https://x`, compressed (RFC 7541 appendix A).
const REQUEST: [u8; 6] = [0x82, 0x87, 0x84, 0x41, 1, b'x'];

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &REQUEST)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_length_type_flags_and_stream() {
        assert_eq!(frame(PING, 1, 3, &[9; 8])[..10], [0, 0, 8, 6, 1, 0, 0, 0, 3, 9]);
        assert_eq!(get(5)[..9], [0, 0, 6, 1, 5, 0, 0, 0, 5]);
    }

    #[test]
    fn each_kind_sends_something_of_its_own() {
        let mut chance = Chance::new(1);
        let hello = [0x16; 300];
        let made: Vec<Vec<u8>> = (0..14)
            .map(|kind| hostile_records(kind, &hello, &mut chance).unwrap_or_else(|| hostile_frames(kind, &mut chance)))
            .collect();
        for (number, one) in made.iter().enumerate() {
            assert!(!made[number + 1..].contains(one), "{number}");
        }
        assert!(made.iter().all(|one| one.len() < 64 * 1_024), "it is written at once");
    }
}
