//! Idle HTTP/2 connections. The frames are written by hand, because client libraries do not leave connections idle.

use std::time::Duration;

use millstream::Gateway;
use millstream_test_support::tls::client_config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::http::client::{advance, from_text, hurry};
use crate::http::tls::Folder;

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Types of frames (RFC 9113 §6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
/// Flags of headers: nothing follows them.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// Longer than any timeout of the gateway, and, with an accelerated clock, than any pause of a busy machine.
const PATIENCE: Duration = Duration::from_secs(3_600);

const API_TOKEN: &str = "api-token";

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// `GET` of a path with a token, in fields without an index (RFC 7541 §6.2.2).
fn get(path: &str) -> Vec<u8> {
    let authorization = format!("Bearer {API_TOKEN}");
    let mut fields = vec![0x82, 0x87];
    for (name, value) in [(&[4][..], path), (&[1], "localhost"), (&[15, 8], &authorization)] {
        fields.extend(name);
        fields.push(value.len() as u8);
        fields.extend(value.bytes());
    }
    fields
}

async fn connect(gateway: &Gateway) -> TlsStream<TcpStream> {
    let config = client_config(&["h2"]).expect("a library");
    let stream = TcpStream::connect(gateway.http_address()).await.expect("connects");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TlsConnector::from(config).connect(name, stream).await;
    let stream = stream.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    stream
}

/// Sends the first bytes, then some every second, until the gateway closes the connection.
async fn is_closed(mut stream: TlsStream<TcpStream>, first: &[u8], again: &[u8]) -> bool {
    stream.write_all(first).await.expect("sends");
    let closed = async {
        let mut rest = [0; 4_096];
        loop {
            match timeout(Duration::from_secs(1), stream.read(&mut rest)).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => return,
                Err(_) => {
                    let _ = stream.write_all(again).await;
                    let _ = stream.flush().await;
                }
            }
        }
    };
    timeout(PATIENCE, closed).await.is_ok()
}

async fn start(folder: &Folder) -> Gateway {
    folder.certificate("one");
    from_text(&format!("{}[auth]\napi_token = \"{API_TOKEN}\"\n", folder.config())).await
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let folder = Folder::new("silent");
    let gateway = start(&folder).await;
    let settings = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let half = frame(HEADERS, END_STREAM, 1, &[0x82]);
    let whole = frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/healthz"));
    let cases = [
        ("nothing", Vec::new(), Vec::new()),
        ("half a preface", PREFACE[..10].to_vec(), Vec::new()),
        ("the preface", PREFACE.to_vec(), Vec::new()),
        ("settings", settings.clone(), Vec::new()),
        ("settings, and pings", settings.clone(), frame(PING, 0, 0, &[7; 8])),
        (
            "half of a request's header",
            [&settings[..], &half].concat(),
            Vec::new(),
        ),
        (
            "a request, and nothing after it",
            [&settings[..], &whole].concat(),
            Vec::new(),
        ),
        (
            "a request, and pings after it",
            [&settings[..], &whole].concat(),
            frame(PING, 0, 0, &[7; 8]),
        ),
    ];
    let each = cases.into_iter().map(async |(case, first, again)| {
        let stream = connect(&gateway).await;
        assert!(is_closed(stream, &first, &again).await, "{case}");
    });
    hurry(futures_util::future::join_all(each)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_connection_with_a_stream_stays_until_the_stream_is_over() {
    let folder = Folder::new("events");
    let gateway = start(&folder).await;
    let mut stream = connect(&gateway).await;
    let events = frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/api/v1/events"));
    let first = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &events].concat();
    stream.write_all(&first).await.expect("sends");
    let mut received = Vec::new();
    // Longer than a connection without a stream is there.
    for second in 0..18 {
        let mut bytes = [0; 4_096];
        while let Ok(read) = timeout(Duration::from_millis(20), stream.read(&mut bytes)).await {
            let count = read.expect("open");
            assert!(count > 0, "closed after {second} s");
            received.extend_from_slice(&bytes[..count]);
        }
        advance(Duration::from_secs(1)).await;
    }
    // The response is the one that was asked for: `:status 200`.
    let is_response = |frame: &[u8]| frame[..2] == [HEADERS, END_HEADERS] && frame[6] == 0x88;
    assert!(received.windows(7).any(is_response), "{received:?}");
    let over = [frame(SETTINGS, ACK, 0, &[]), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])].concat();
    assert!(hurry(is_closed(stream, &over, &[])).await);
    gateway.stop().await;
}

/// SETTINGS_INITIAL_WINDOW_SIZE of zero (RFC 9113 §6.5.2): the response cannot be sent.
const NO_WINDOW: &[u8] = &[0, 4, 0, 0, 0, 0];

/// Reads frames and answers pings, until a frame of this type and stream comes.
async fn read_until(stream: &mut TlsStream<TcpStream>, received: &mut Vec<u8>, kind: u8, id: u8) {
    loop {
        while let Some(length) = received.get(..3).map(|l| usize::from(l[1]) << 8 | usize::from(l[2])) {
            if received.len() < 9 + length {
                break;
            }
            let one: Vec<u8> = received.drain(..9 + length).collect();
            if one[3] == PING && one[4] & ACK == 0 {
                let pong = frame(PING, ACK, 0, &one[9..]);
                stream.write_all(&pong).await.expect("sends");
                stream.flush().await.expect("sends");
            }
            if one[3] == kind && one[8] == id {
                return;
            }
        }
        let mut bytes = [0; 4_096];
        let count = stream.read(&mut bytes).await.expect("open");
        assert!(count > 0, "closed");
        received.extend_from_slice(&bytes[..count]);
    }
}

#[tokio::test]
async fn a_response_that_nobody_reads_is_reset_and_others_of_the_connection_go_on() {
    let folder = Folder::new("unread");
    let gateway = start(&folder).await;
    let mut stream = connect(&gateway).await;
    let request = |id, path| frame(HEADERS, END_STREAM | END_HEADERS, id, &get(path));
    let first = [PREFACE, &frame(SETTINGS, 0, 0, NO_WINDOW), &request(1, "/hls.min.js")].concat();
    stream.write_all(&first).await.expect("sends");
    let mut received = Vec::new();
    let reset = read_until(&mut stream, &mut received, RST_STREAM, 1);
    hurry(timeout(Duration::from_secs(600), reset)).await.expect("a reset");
    stream.write_all(&request(3, "/healthz")).await.expect("sends");
    let answered = read_until(&mut stream, &mut received, HEADERS, 3);
    timeout(PATIENCE, answered).await.expect("an answer");
    gateway.stop().await;
}
