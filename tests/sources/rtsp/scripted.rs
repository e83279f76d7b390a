//! A camera that follows a script, for what no real RTSP server does: it answers and sends as the script says, and
//! counts what it sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};

pub(crate) const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
pub(crate) const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];
pub(crate) const IDR: &[u8] = &[0x65, 0x88, 1, 2, 3, 4];
const P: &[u8] = &[0x41, 0x9a, 1, 2, 3, 4];

/// Frames from one key frame to the next.
pub(crate) const GOP: u64 = 10;

/// Time between two frames, and their distance in RTP time.
const INTERVAL: Duration = Duration::from_millis(20);
const TICKS: u32 = 1_800;

/// A request of the client.
pub(crate) struct Request {
    pub method: String,
    pub headers: Vec<(String, String)>,
    pub cseq: String,
    /// Number of requests of this connection before it.
    pub number: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value.as_str())
    }
}

type Answer = Box<dyn Fn(&Request) -> Option<String> + Send + Sync>;
type SendFrame = Box<dyn Fn(u64, &mut Sender) + Send + Sync>;

/// What the camera does. Each part has a default that is plain RTSP.
pub(crate) struct Script {
    pub sdp: Vec<u8>,
    /// Headers of the answer to DESCRIBE.
    pub describe: String,
    pub session: String,
    /// The `Transport` of the answer to a SETUP of this channel.
    pub transport: fn(u8) -> String,
    pub play: String,
    /// Replaces an answer, if it returns one.
    pub answer: Answer,
    /// Sends frame `n` of the session.
    pub frame: SendFrame,
}

/// Writes packets of a session.
pub(crate) struct Sender {
    out: Vec<u8>,
    pub seq: u16,
    pub time: u32,
    pub ssrc: u32,
    pub payload_type: u8,
    pub channel: u8,
    /// Ends the connection.
    pub closes: bool,
}

#[derive(Default)]
pub(crate) struct Counts {
    /// Frames of the last session.
    pub frames: AtomicU64,
    /// PLAY requests.
    pub sessions: AtomicUsize,
    /// First lines of the client's answers to requests.
    pub answers: AtomicUsize,
    /// The last PLAY request came from GStreamer.
    pub is_gstreamer: AtomicBool,
}

pub(crate) struct Scripted {
    pub port: u16,
    pub counts: Arc<Counts>,
}

pub(crate) fn sdp(more: &str) -> Vec<u8> {
    format!(
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=cam\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n\
         m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track0\r\n{more}"
    )
    .into_bytes()
}

impl Default for Script {
    fn default() -> Self {
        Self {
            sdp: sdp(""),
            describe: "Content-Type: application/sdp\r\n".to_owned(),
            session: "12345678;timeout=60".to_owned(),
            transport: |channel| format!("RTP/AVP/TCP;unicast;interleaved={channel}-{}", channel + 1),
            play: String::new(),
            answer: Box::new(|_| None),
            frame: Box::new(|n, sender| sender.frame(n)),
        }
    }
}

impl Sender {
    /// One RTP packet in the RTSP connection.
    pub(crate) fn packet(&mut self, payload: &[u8], marker: bool) {
        let (seq, time, ssrc) = (self.seq, self.time, self.ssrc);
        self.seq = self.seq.wrapping_add(1);
        let pt = self.payload_type | u8::from(marker) << 7;
        let mut packet = vec![0x80, pt];
        packet.extend(seq.to_be_bytes());
        packet.extend(time.to_be_bytes());
        packet.extend(ssrc.to_be_bytes());
        packet.extend(payload);
        self.interleaved(self.channel, &packet);
    }

    pub(crate) fn interleaved(&mut self, channel: u8, data: &[u8]) {
        self.out.extend([b'$', channel]);
        self.out.extend((data.len() as u16).to_be_bytes());
        self.out.extend(data);
    }

    pub(crate) fn raw(&mut self, data: &[u8]) {
        self.out.extend(data);
    }

    /// The packets of frame `n`: parameter sets and IDR, or P.
    pub(crate) fn frame(&mut self, n: u64) {
        if n.is_multiple_of(GOP) {
            self.packet(SPS, false);
            self.packet(PPS, false);
            self.packet(IDR, true);
        } else {
            self.packet(P, true);
        }
    }

    /// A frame without parameter sets.
    pub(crate) fn slices(&mut self, n: u64) {
        self.packet(if n.is_multiple_of(GOP) { IDR } else { P }, true);
    }
}

impl Scripted {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let counts = Arc::new(Counts::default());
        let (script, counted) = (Arc::new(script), counts.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script.clone(), counted.clone()));
            }
        });
        Self { port, counts }
    }
}

async fn read_request(
    reader: &mut BufReader<tokio::net::tcp::OwnedReadHalf>,
) -> Option<(String, Vec<(String, String)>)> {
    let mut first = [0; 1];
    loop {
        reader.read_exact(&mut first).await.ok()?;
        if first[0] != b'$' {
            break;
        }
        let mut head = [0; 3];
        reader.read_exact(&mut head).await.ok()?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        reader.read_exact(&mut body).await.ok()?;
    }
    let mut line = String::new();
    reader.read_line(&mut line).await.ok()?;
    let request = format!("{}{}", char::from(first[0]), line.trim_end());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Some((request, headers))
}

async fn serve(stream: TcpStream, script: Arc<Script>, counts: Arc<Counts>) {
    let (reader, writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let writer = Arc::new(tokio::sync::Mutex::new(writer));
    let mut playing = None;
    let mut number = 0;
    while let Some((line, headers)) = read_request(&mut reader).await {
        if line.starts_with("RTSP/") {
            counts.answers.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let method = line.split(' ').next().unwrap_or_default().to_owned();
        let cseq = headers.iter().find(|(name, _)| name == "cseq");
        let request = Request {
            cseq: cseq.map_or_else(String::new, |(_, value)| value.clone()),
            method,
            headers,
            number,
        };
        number += 1;
        if request.method == "PLAY" {
            let is_gstreamer = request.header("user-agent").contains("GStreamer");
            counts.is_gstreamer.store(is_gstreamer, Ordering::SeqCst);
        }
        let special = (script.answer)(&request);
        let starts = request.method == "PLAY" && special.as_ref().is_none_or(|answer| answer.contains(" 200 "));
        let mut bytes = special.clone().unwrap_or_else(|| usual(&request, &script)).into_bytes();
        if special.is_none() && request.method == "DESCRIBE" {
            bytes.extend(&script.sdp);
        }
        if writer.lock().await.write_all(&bytes).await.is_err() {
            break;
        }
        if starts && playing.is_none() {
            counts.sessions.fetch_add(1, Ordering::SeqCst);
            playing = Some(tokio::spawn(play(script.clone(), writer.clone(), counts.clone())));
        }
    }
    if let Some(task) = playing {
        task.abort();
    }
}

fn usual(request: &Request, script: &Script) -> String {
    let head = format!("RTSP/1.0 200 OK\r\nCSeq: {}\r\n", request.cseq);
    let session = &script.session;
    match request.method.as_str() {
        "OPTIONS" => format!("{head}Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n\r\n"),
        "DESCRIBE" => format!("{head}{}Content-Length: {}\r\n\r\n", script.describe, script.sdp.len()),
        "SETUP" => {
            let asked = request.header("transport");
            let channel = asked
                .split("interleaved=")
                .nth(1)
                .and_then(|text| text.split('-').next()?.parse().ok());
            let transport = (script.transport)(channel.unwrap_or(0));
            let transport = if transport.is_empty() {
                transport
            } else {
                format!("Transport: {transport}\r\n")
            };
            format!("{head}Session: {session}\r\n{transport}\r\n")
        }
        "PLAY" => format!("{head}Session: {session}\r\n{}\r\n", script.play),
        _ => format!("{head}Session: {session}\r\n\r\n"),
    }
}

async fn play(script: Arc<Script>, writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>, counts: Arc<Counts>) {
    let mut sender = Sender {
        out: Vec::new(),
        seq: 1_000,
        time: 90_000,
        ssrc: 0x1234_5678,
        payload_type: 96,
        channel: 0,
        closes: false,
    };
    let mut due = tokio::time::interval(INTERVAL);
    counts.frames.store(0, Ordering::SeqCst);
    for n in 0.. {
        due.tick().await;
        (script.frame)(n, &mut sender);
        if writer.lock().await.write_all(&sender.out).await.is_err() {
            return;
        }
        if sender.closes {
            let _ = writer.lock().await.shutdown().await;
            return;
        }
        sender.out.clear();
        sender.time = sender.time.wrapping_add(TICKS);
        counts.frames.store(n + 1, Ordering::SeqCst);
    }
}
