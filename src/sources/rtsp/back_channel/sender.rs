//! A back channel that is set up: sends audio until the talker leaves, is silent for too long, or the camera ends it.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, interval_at, sleep_until, timeout};

use super::audio_queue::AudioQueue;
use super::connection::{MAX_AUTHENTICATION_ATTEMPTS, RtspConnection, RtspResponse};
use crate::sources::rtsp::message::{InterleavedFrameOrMessage, find_header_value};
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::tap::TapQueue;

/// A talker who sends nothing for this long loses the back channel: a camera has one.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the TEARDOWN.
const TEARDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Time that the camera has to close the connection afterwards. The next talker waits for it.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

/// Batches of a tap that wait: more than fit the queue of audio.
const TAP_CAPACITY: usize = 64;

/// Answers and requests that wait for the connection. A camera that asks for more without reading is given up.
const MAX_QUEUED_MESSAGES: usize = 16;

/// Counters of all back channels of a gateway.
#[derive(Debug, Default)]
pub struct BackChannelCounters {
    pub opened: AtomicU64,
    pub sent_packets: AtomicU64,
    /// Packets that came late, or for which the connection to the camera was too slow.
    pub dropped_packets: AtomicU64,
}

/// Why a back channel has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackChannelEnd {
    /// The talker left.
    TalkerLeft,
    /// No audio came for [`SILENCE_TIMEOUT`].
    NoAudio,
    /// The connection to the camera failed.
    Camera(String),
}

/// A back channel that is set up.
pub struct BackChannelSender {
    connection: RtspConnection,
    audio: AudioQueue,
    keepalive_interval: Duration,
    /// Number of the last keepalive while it has no response.
    is_keepalive_pending: bool,
    /// How often the last keepalive was sent.
    keepalive_attempts: u32,
    messages: VecDeque<Vec<u8>>,
    /// What is being written: a message, or a frame with a packet.
    writing: Bytes,
    writes_audio: bool,
}

impl BackChannelSender {
    pub(super) fn new(connection: RtspConnection, audio: AudioQueue, session_timeout: Duration) -> Self {
        Self {
            connection,
            audio,
            keepalive_interval: session_timeout / 2,
            is_keepalive_pending: false,
            keepalive_attempts: 0,
            messages: VecDeque::new(),
            writing: Bytes::new(),
            writes_audio: false,
        }
    }

    /// Returns a queue for the tap from which audio is sent, and what wakes its reader.
    pub fn make_tap_queue() -> (Arc<TapQueue>, Arc<Notify>) {
        let arrived = Arc::new(Notify::new());
        let notify = arrived.clone();
        let queue = Mailbox::new(TAP_CAPACITY, move || notify.notify_one());
        (Arc::new(queue), arrived)
    }

    /// Sends what arrives at the tap, until `talker_left` completes or something fails. Then the session with the camera
    /// ends.
    pub async fn forward_audio(
        mut self,
        tap: (&TapQueue, &Notify),
        counters: &BackChannelCounters,
        talker_left: impl Future<Output = ()>,
    ) -> BackChannelEnd {
        counters.opened.fetch_add(1, Ordering::Relaxed);
        let end = tokio::select! {
            () = talker_left => BackChannelEnd::TalkerLeft,
            end = self.send_until_failure(tap, counters) => end,
        };
        if !matches!(end, BackChannelEnd::Camera(_)) {
            self.tear_down().await;
        }
        end
    }

    async fn send_until_failure(
        &mut self,
        (tap, arrived): (&TapQueue, &Notify),
        counters: &BackChannelCounters,
    ) -> BackChannelEnd {
        let mut batches = VecDeque::new();
        let mut silent_at = Instant::now() + SILENCE_TIMEOUT;
        let mut keepalive = interval_at(Instant::now() + self.keepalive_interval, self.keepalive_interval);
        loop {
            self.choose_next_write();
            let (mut reader, mut writer) = self.connection.stream.split();
            let step = tokio::select! {
                () = arrived.notified() => {
                    tap.take_all_messages(&mut batches);
                    for entry in batches.drain(..).flat_map(|batch| batch.to_vec()) {
                        silent_at = Instant::now() + SILENCE_TIMEOUT;
                        self.audio.push(&entry.packet);
                    }
                    counters.dropped_packets.fetch_add(self.audio.take_dropped_count(), Ordering::Relaxed);
                    Ok(())
                }
                written = writer.write_buf(&mut self.writing), if !self.writing.is_empty() => {
                    self.handle_written(written, counters)
                }
                read = reader.read_buf(&mut self.connection.received) => self.handle_read(read),
                _ = keepalive.tick() => self.begin_keepalive(),
                () = sleep_until(silent_at) => return BackChannelEnd::NoAudio,
            };
            if let Err(problem) = step {
                return BackChannelEnd::Camera(problem);
            }
        }
    }

    /// Messages go first: they are few, and audio may be dropped.
    fn choose_next_write(&mut self) {
        if !self.writing.is_empty() {
            return;
        }
        let message = self.messages.pop_front();
        self.writes_audio = message.is_none();
        self.writing = message.or_else(|| self.audio.pop_frame()).unwrap_or_default().into();
    }

    fn handle_written(&mut self, written: io::Result<usize>, counters: &BackChannelCounters) -> Result<(), String> {
        written.map_err(|error| error.to_string())?;
        if self.writes_audio && self.writing.is_empty() {
            counters.sent_packets.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn handle_read(&mut self, read: io::Result<usize>) -> Result<(), String> {
        if read.map_err(|error| error.to_string())? == 0 {
            return Err("the camera closed the connection".to_owned());
        }
        loop {
            match self.connection.take_next_item()? {
                None => return Ok(()),
                // RTCP of the camera.
                Some(InterleavedFrameOrMessage::Interleaved { .. }) => {}
                Some(InterleavedFrameOrMessage::Message { first, headers, .. }) if !first.starts_with("RTSP/") => {
                    self.answer_request(&headers)?;
                }
                Some(item) => {
                    if let Some(response) = RtspResponse::from_item(item) {
                        self.handle_response(&response)?;
                    }
                }
            }
        }
    }

    /// A camera asks whether the client is there.
    fn answer_request(&mut self, headers: &[(String, String)]) -> Result<(), String> {
        let cseq = find_header_value(headers, "cseq").unwrap_or("0");
        self.queue_message(format!("RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\n\r\n").into_bytes())
    }

    fn handle_response(&mut self, response: &RtspResponse) -> Result<(), String> {
        if !std::mem::take(&mut self.is_keepalive_pending) {
            return Ok(());
        }
        match response.status {
            // The nonce has expired.
            401 if self.keepalive_attempts < MAX_AUTHENTICATION_ATTEMPTS
                && self.connection.take_challenge(response) =>
            {
                self.queue_keepalive()
            }
            401 => Err("the camera rejected the credentials of an RTSP keepalive request".to_owned()),
            // Session not found (RFC 2326 §11.3.5).
            454 => Err("the camera ended the RTSP session".to_owned()),
            // Whatever it says to OPTIONS, it is there.
            _ => Ok(()),
        }
    }

    fn begin_keepalive(&mut self) -> Result<(), String> {
        if self.is_keepalive_pending {
            return Err("the camera does not respond to RTSP keepalive requests".to_owned());
        }
        self.keepalive_attempts = 0;
        self.queue_keepalive()
    }

    fn queue_keepalive(&mut self) -> Result<(), String> {
        self.keepalive_attempts += 1;
        let uri = self.connection.uri.clone();
        let bytes = self.connection.write_request("OPTIONS", &uri, "");
        self.is_keepalive_pending = true;
        self.queue_message(bytes)
    }

    fn queue_message(&mut self, bytes: Vec<u8>) -> Result<(), String> {
        if self.messages.len() >= MAX_QUEUED_MESSAGES {
            return Err("the camera sends requests and does not read the responses".to_owned());
        }
        self.messages.push_back(bytes);
        Ok(())
    }

    /// Ends the session with the camera. What is half written is completed.
    async fn tear_down(mut self) {
        let uri = self.connection.uri.clone();
        let teardown = self.connection.write_request("TEARDOWN", &uri, "");
        let ending = async {
            let stream = &mut self.connection.stream;
            stream.write_all_buf(&mut self.writing).await?;
            stream.write_all(&teardown).await?;
            stream.shutdown().await?;
            // The connection is closed by the camera first: otherwise what it still sends resets it.
            let closing = async {
                while stream.read_buf(&mut self.connection.received).await? > 0 {
                    self.connection.received.clear();
                }
                io::Result::Ok(())
            };
            timeout(CLOSE_TIMEOUT, closing).await.unwrap_or(Ok(()))
        };
        // A camera that does not take it ends the session with the connection.
        let _ = timeout(TEARDOWN_TIMEOUT, ending).await;
    }
}
