//! The worker's end of the socket to the gateway, which is its standard input.

use std::ffi::CStr;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;

use crate::wire::{FromWorker, MAX_MESSAGE, ToWorker};

/// The worker's end of the socket. Writes block until the gateway has read, which it always does: it drops what it
/// cannot forward.
#[derive(Clone)]
pub struct Gateway {
    stream: Arc<Mutex<UnixStream>>,
}

impl Gateway {
    /// Sends a message; returns `false` if the gateway is gone.
    pub fn notify(&self, message: &FromWorker) -> bool {
        let mut bytes = BytesMut::new();
        message.write(&mut bytes);
        if bytes.len() > 4 + MAX_MESSAGE {
            return true;
        }
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&bytes).is_ok()
    }
}

/// Reads the messages of the gateway.
pub struct Commands {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Commands {
    /// Reads from the worker's end of a socket pair.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// Waits for the next message; `None` if the gateway is gone or its message is invalid.
    pub fn receive(&mut self) -> Option<ToWorker> {
        let mut chunk = vec![0; 1 << 16];
        loop {
            match ToWorker::read(&mut self.buffer) {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(_) => return None,
            }
            match self.stream.read(&mut chunk) {
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
pub fn connect(name: &CStr) -> io::Result<(Gateway, Commands)> {
    // Only for people: nothing depends on it.
    let _ = rustix::thread::set_name(name);
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let gateway = Gateway {
        stream: Arc::new(Mutex::new(stream.try_clone()?)),
    };
    Ok((gateway, Commands::new(stream)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WireFrame;
    use bytes::Bytes;
    use millstream_core::media::Kind;

    #[test]
    fn a_frame_that_is_too_long_is_left_out_and_the_next_one_is_read() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        let gateway = Gateway {
            stream: Arc::new(Mutex::new(theirs)),
        };
        let frame = |length| {
            FromWorker::Frame(WireFrame {
                kind: Kind::Video,
                time: 0,
                after_gap: false,
                bytes: Bytes::from(vec![0; length]),
            })
        };
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            ours.read_to_end(&mut bytes).map(|_| bytes)
        });
        assert!(gateway.notify(&frame(MAX_MESSAGE)));
        assert!(gateway.notify(&frame(1_000)));
        drop(gateway);
        let bytes = reading.join().expect("no panic").expect("it was closed");
        let read = FromWorker::read(&mut BytesMut::from(bytes.as_slice()));
        assert_eq!(read, Ok(Some(frame(1_000))));
    }
}
