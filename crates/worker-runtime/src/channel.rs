//! The worker's end of the socket to the gateway, which is its standard input.

use std::ffi::CStr;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;

use crate::wire::{MAX_WORKER_MESSAGE_BYTES, MessageFromWorker, MessageToWorker};

/// How much higher the nice value of a worker is than that of the gateway's thread which started it: when processors are
/// short, live media and HTTP run before transcodes.
const WORKER_NICE_STEP: i32 = 5;

/// The worker's end of the socket. Writes block until the gateway has read, which it always does: it drops what it
/// cannot forward.
#[derive(Clone)]
pub struct GatewayMessageSender {
    gateway_socket: Arc<Mutex<UnixStream>>,
}

impl GatewayMessageSender {
    /// Sends a message; returns `false` if the gateway is gone.
    pub fn send(&self, message: &MessageFromWorker) -> bool {
        let mut bytes = BytesMut::new();
        message.write(&mut bytes);
        if bytes.len() > 4 + MAX_WORKER_MESSAGE_BYTES {
            return true;
        }
        let mut stream = self.gateway_socket.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&bytes).is_ok()
    }
}

/// Reads the messages of the gateway.
pub struct GatewayMessageReceiver {
    gateway_socket: UnixStream,
    buffer: BytesMut,
}

impl GatewayMessageReceiver {
    /// Reads from the worker's end of a socket pair.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            gateway_socket: stream,
            buffer: BytesMut::new(),
        }
    }

    /// Waits for the next message; `None` if the gateway is gone or its message is invalid.
    pub fn receive(&mut self) -> Option<MessageToWorker> {
        let mut chunk = vec![0; 1 << 16];
        loop {
            match MessageToWorker::take_message_from_buffer(&mut self.buffer) {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(_) => return None,
            }
            match self.gateway_socket.read(&mut chunk) {
                Ok(0) => return None,
                Ok(read) => self.buffer.extend_from_slice(chunk.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}

/// Connects to the gateway that started this process, which is shown as `name` from here on: it was started by a file
/// descriptor, whose number would be its name otherwise. At most 15 bytes are shown.
///
/// # Errors
///
/// An error if standard input is not the socket of a gateway.
pub fn connect_to_gateway_and_lower_priority(
    name: &CStr,
) -> io::Result<(GatewayMessageSender, GatewayMessageReceiver)> {
    // Before any other thread is started: all threads of the worker get it. It fails only where nice values are not
    // permitted at all, and then all processes are equal.
    if let Ok(nice) = rustix::process::getpriority_process(None) {
        let _ = rustix::process::setpriority_process(None, nice + WORKER_NICE_STEP);
    }
    // For people; and a thread with this name has its priority.
    let _ = rustix::thread::set_name(name);
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let gateway = GatewayMessageSender {
        gateway_socket: Arc::new(Mutex::new(stream.try_clone()?)),
    };
    Ok((gateway, GatewayMessageReceiver::new(stream)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WireFrame;
    use bytes::Bytes;
    use millstream_core::media::MediaKind;

    #[test]
    fn a_frame_that_is_too_long_is_left_out_and_the_next_one_is_read() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        let gateway = GatewayMessageSender {
            gateway_socket: Arc::new(Mutex::new(theirs)),
        };
        let frame = |length| {
            MessageFromWorker::Frame(WireFrame {
                kind: MediaKind::Video,
                pts_ns: 0,
                after_gap: false,
                bytes: Bytes::from(vec![0; length]),
            })
        };
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            ours.read_to_end(&mut bytes).map(|_| bytes)
        });
        assert!(gateway.send(&frame(MAX_WORKER_MESSAGE_BYTES)));
        assert!(gateway.send(&frame(1_000)));
        drop(gateway);
        let bytes = reading.join().expect("no panic").expect("it was closed");
        let read = MessageFromWorker::take_message_from_buffer(&mut BytesMut::from(bytes.as_slice()));
        assert_eq!(read, Ok(Some(frame(1_000))));
    }
}
