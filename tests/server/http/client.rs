//! A gateway in this process, and a raw HTTP client: requests and responses are bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use millstream::shard::AudioVideoFormats;
use millstream::{Config, Gateway};
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::{SessionId, ShardIndex, SourceRef};
use millstream_core::media::CodecFormat;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

pub(super) const PUBLISH: &str = "publish-token";
/// Longer than any timeout of the gateway.
const PATIENCE: Duration = Duration::from_secs(20);

/// Moves the clock of this test's runtime, which is that of the HTTP side of its gateway. Shards, other processes and
/// the kernel keep the time of the machine.
pub(super) async fn advance(time: Duration) {
    /// A clock that stands still jumps to the next timer by itself as soon as everybody waits for a socket.
    struct Resume;
    impl Drop for Resume {
        fn drop(&mut self) {
            tokio::time::resume();
        }
    }
    tokio::time::pause();
    let _resume = Resume;
    tokio::time::advance(time).await;
}

/// Runs `work`, which waits for deadlines of the HTTP side, while the clock of this test's runtime goes on by a second
/// every 20 ms. Limits on what `work` waits for have to be generous: a minute of that clock is a good second.
pub(super) async fn hurry<T>(work: impl Future<Output = T>) -> T {
    let clock = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            advance(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = clock => unreachable!("a clock does not end"),
    }
}

/// Starts a gateway with [`PUBLISH`] as its token and these additional settings.
pub(super) async fn gateway(settings: &[(&str, &str)]) -> Gateway {
    let defaults = [
        ("MILLSTREAM_HTTP__LISTEN", "127.0.0.1:0"),
        ("MILLSTREAM_WEBRTC__LISTEN", "127.0.0.1:0"),
        ("MILLSTREAM_WEBRTC__SHARDS", "1"),
        ("MILLSTREAM_AUTH__PUBLISH_TOKEN", PUBLISH),
        // Its workers would be this test.
        ("MILLSTREAM_PIPELINES__TRANSCODE", "false"),
    ];
    let environment = defaults
        .iter()
        .chain(settings)
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let config = Config::parse("", Path::new("-"), environment).expect("valid configuration");
    Gateway::start(config).await.expect("starts")
}

/// Starts a gateway with [`PUBLISH`] as its token and this configuration file.
pub(super) async fn from_text(text: &str) -> Gateway {
    let settings = [
        ("MILLSTREAM_HTTP__LISTEN", "127.0.0.1:0"),
        ("MILLSTREAM_WEBRTC__LISTEN", "127.0.0.1:0"),
        ("MILLSTREAM_WEBRTC__SHARDS", "1"),
        ("MILLSTREAM_AUTH__PUBLISH_TOKEN", PUBLISH),
        ("MILLSTREAM_PIPELINES__TRANSCODE", "false"),
    ];
    let environment = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let config = Config::parse(text, Path::new("test.toml"), environment);
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    Gateway::start(config).await.expect("starts")
}

/// Makes a stream live, as if a publisher with VP8 and Opus had sent its first packets.
pub(super) fn make_live(gateway: &Gateway, stream: &str) {
    let source = SourceRef {
        session_id: SessionId([7; 16]),
        shard: ShardIndex(0),
        accepts_key_frame_requests: true,
    };
    let formats = AudioVideoFormats {
        video: Some(CodecFormat::Vp8),
        audio: Some(CodecFormat::Opus { stereo: true }),
    };
    let name = StreamName::parse(stream).expect("name");
    gateway.media_plane().hub().open_and_update_stream(&name, |state| {
        state.replace_source(source, &formats);
    });
}

/// A sample of the metrics, by its name and labels.
pub(super) async fn metric(gateway: &Gateway, name: &str) -> u64 {
    let reply = Request::new("GET", "/metrics").send(gateway).await;
    let mut samples = reply.text().lines().filter_map(|line| line.rsplit_once(' '));
    let (_, value) = samples.find(|(sample, _)| *sample == name).expect(name);
    value.parse().expect("a number")
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub(super) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A response as it came.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub(super) fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// A POST of an offer.
    pub(super) fn offer(target: &str, offer: impl AsRef<[u8]>) -> Self {
        Self::new("POST", target)
            .header("Content-Type", "application/sdp")
            .body(offer)
    }

    /// A POST of an offer with the publish token.
    pub(super) fn publish(target: &str, offer: impl AsRef<[u8]>) -> Self {
        Self::offer(target, offer).bearer(PUBLISH)
    }

    /// A PATCH of a fragment.
    pub(super) fn trickle(target: &str, fragment: impl AsRef<[u8]>) -> Self {
        Self::new("PATCH", target)
            .header("Content-Type", "application/trickle-ice-sdpfrag")
            .body(fragment)
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub(super) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(super) async fn send(&self, gateway: &Gateway) -> Reply {
        let reply = raw(gateway.http_address(), &self.bytes()).await;
        Reply::parse(&reply).unwrap_or_else(|| panic!("no response to {self:?}"))
    }

    /// Sends it from another address of this host.
    pub(super) async fn send_from(&self, source: Ipv4Addr, gateway: &Gateway) -> Reply {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("an address of this host");
        let stream = socket.connect(gateway.http_address()).await.expect("connects");
        let reply = reconcile(stream, &self.bytes()).await;
        Reply::parse(&reply).unwrap_or_else(|| panic!("no response to {self:?}"))
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: evil.example\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.method != "GET" && self.method != "HEAD" {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        [head.as_bytes(), b"Connection: close\r\n\r\n", &self.body].concat()
    }
}

/// Sends bytes and reads to the end of the connection.
pub(super) async fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    reconcile(TcpStream::connect(address).await.expect("connects"), bytes).await
}

async fn reconcile(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = stream.split();
    let mut reply = Vec::new();
    // Concurrently: the gateway may respond before it has read the whole request.
    let write = async {
        let _ = writer.write_all(bytes).await;
    };
    let read = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut reply));
    let ((), read) = tokio::join!(write, read);
    read.expect("the gateway closes the connection").expect("reads");
    reply
}

impl Reply {
    /// Reads the first response in these bytes.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .map(|line| line.split_once(": ").expect("header"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let body = bytes[end + 4..].to_vec();
        Some(Self { status, headers, body })
    }

    /// The value of a header that is there at most once.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} stands twice in {self:?}");
        value
    }

    /// All values of a header, in order.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(n, _)| n == name);
        lines.map(|(_, value)| value.as_str()).collect()
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The `code` of the problem document, after checking the whole of it.
    pub(super) fn problem(&self) -> String {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let document: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_eq!(document["status"], self.status, "{document}");
        for member in ["type", "title", "detail", "error"] {
            assert!(
                document[member].as_str().is_some_and(|text| !text.is_empty()),
                "{member} in {document}"
            );
        }
        document["code"].as_str().expect("code").to_owned()
    }

    /// The session URL of a 201.
    pub(super) fn location(&self) -> String {
        assert_eq!(self.status, 201, "{}", self.text());
        self.header("location").expect("Location").to_owned()
    }
}

/// Where OBS sends its DELETE: an absolute `Location` is taken as it is, else it replaces path and query of the URL
/// that the user typed.
pub(super) fn obs_session_url(endpoint: &str, location: &str) -> String {
    if location.starts_with("http") {
        return location.to_owned();
    }
    let authority_end = endpoint.find("://").map_or(0, |at| at + 3);
    let path = endpoint[authority_end..]
        .find('/')
        .map_or(endpoint.len(), |at| authority_end + at);
    format!("{}{location}", &endpoint[..path])
}

macro_rules! recorded {
    ($name:literal) => {
        include_str!(concat!("../../data/offers/", $name))
    };
}
pub(crate) use recorded;

pub(super) const OBS: &str = recorded!("obs-32.2.2-h264-advanced.sdp");
pub(super) const VIEWER: &str = recorded!("chromium-156-recvonly.sdp");
