//! Cameras that refer to addresses outside `sources.allow`: nothing is sent there, whoever reads the camera.

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::Ordering;

use millstream::Gateway;
use millstream::config::Config;

use super::scripted::{Request, Script, Scripted};
use super::{PATIENCE, shown};
use crate::pipeline::programs;

/// An address that is not in `sources.allow`, where connections and datagrams are noticed.
struct ForbiddenHost {
    connections: TcpListener,
    datagrams: UdpSocket,
}

impl ForbiddenHost {
    fn start() -> Self {
        let connections = TcpListener::bind("127.0.0.2:0").expect("a free port");
        let datagrams = UdpSocket::bind("127.0.0.2:0").expect("a free port");
        connections.set_nonblocking(true).expect("a socket");
        datagrams.set_nonblocking(true).expect("a socket");
        Self { connections, datagrams }
    }

    fn url(&self) -> String {
        format!("rtsp://{}/inner", self.connections.local_addr().expect("it is bound"))
    }

    fn udp_port(&self) -> u16 {
        self.datagrams.local_addr().expect("it is bound").port()
    }

    fn assert_untouched(&self) {
        let connected = self.connections.accept().map(|(_, peer)| peer);
        assert_eq!(connected.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
        let received = self.datagrams.recv(&mut [0; 1_500]);
        assert_eq!(received.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    }
}

/// Reads a camera that answers like this until its source says why it failed, or until it has played for two seconds.
async fn last_error(source: &str, answer: impl Fn(&Request) -> Option<String> + Send + Sync + 'static) -> String {
    let camera = Scripted::start(Script {
        answer: Box::new(answer),
        ..Script::default()
    });
    let camera = camera.await;
    let source = source.replace("PORT", &camera.port.to_string());
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n\
         [sources]\nallow = [\"127.0.0.1/32\"]\n[streams.\"c0\"]\n{source}"
    );
    let config = Config::parse(&text, "test.toml".as_ref(), []).map_err(|error| error.to_string());
    let gateway = Gateway::start_with_worker_programs(config.expect("valid"), programs()).await;
    let gateway = gateway.expect("free ports");
    let failing = async {
        loop {
            if let Some(error) = shown(&gateway, "c0").last_error {
                return error;
            }
            if camera.counts.frames.load(Ordering::SeqCst) >= 100 {
                return String::new();
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let error = tokio::time::timeout(PATIENCE, failing).await.expect("it fails");
    gateway.stop().await;
    error
}

const BY_PIPELINE: &str = "pipeline = \"rtsp\"\nparams = { uri = \"rtsp://127.0.0.1:PORT/cam\" }\n";
const BY_PIPELINE_OVER_UDP: &str =
    "pipeline = \"rtsp\"\nparams = { uri = \"rtsp://127.0.0.1:PORT/cam\", transport = \"udp\" }\n";
const BY_CLIENT_OVER_UDP: &str = "rtsp = \"rtsp://127.0.0.1:PORT/cam\"\ntransport = \"udp\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_leads_to_no_other_network() {
    for (method, status) in [
        ("DESCRIBE", "302 Moved Temporarily"),
        ("SETUP", "301 Moved Permanently"),
    ] {
        let host = ForbiddenHost::start();
        let location = host.url();
        let error = last_error(BY_PIPELINE, move |request| {
            let cseq = &request.cseq;
            let moved = format!("RTSP/1.0 {status}\r\nCSeq: {cseq}\r\nLocation: {location}\r\n\r\n");
            (request.method == method).then_some(moved)
        })
        .await;
        host.assert_untouched();
        if method == "DESCRIBE" {
            assert!(error.contains("127.0.0.2, which is not in a network of"), "{error}");
        }
    }
}

/// A request to go elsewhere (RFC 2326 §10.10), in the middle of a session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_request_leads_to_no_other_network() {
    let host = ForbiddenHost::start();
    let location = host.url();
    let error = last_error(BY_PIPELINE, move |request| {
        let cseq = &request.cseq;
        let redirect = format!(
            "RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\nSession: 1\r\n\r\n\
             REDIRECT rtsp://127.0.0.1/cam RTSP/1.0\r\nCSeq: 7\r\nLocation: {location}\r\n\r\n"
        );
        (request.method == "PLAY").then_some(redirect)
    })
    .await;
    host.assert_untouched();
    assert_eq!(error, "", "it plays on");
}

/// The address and the ports that media is exchanged with, as the camera names them in its answer to SETUP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_go_to_no_other_network() {
    for source in [BY_PIPELINE_OVER_UDP, BY_CLIENT_OVER_UDP] {
        let host = ForbiddenHost::start();
        let port = host.udp_port();
        let error = last_error(source, move |request| {
            let (cseq, asked) = (&request.cseq, request.header("transport"));
            let client_port = asked.split("client_port=").nth(1)?.split(';').next()?;
            let transport = format!(
                "RTP/AVP;unicast;client_port={client_port};server_port={port}-{};source=127.0.0.2",
                port + 1
            );
            let setup = format!("RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\nSession: 1\r\nTransport: {transport}\r\n\r\n");
            (request.method == "SETUP").then_some(setup)
        })
        .await;
        host.assert_untouched();
        assert!(error.contains("127.0.0.2, which is not in a network of"), "{error}");
    }
}
