//! Frames of ICE-TCP (RFC 4571): two bytes of length, then a datagram.
//!
//! The first byte selects how many bytes arrive at a time. Frames are those that a plain split finds; a frame that is too
//! long ends the connection. What we queue for a connection comes out as the same frames.
#![no_main]

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use millstream::shard::tcp::{
    MAX_FRAMED_PACKET_BYTES, read_framed_packet,
    send_queue::{DatagramQueue, MAX_TCP_QUEUED_BYTES},
};
use millstream_fuzz::origin;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((size, stream)) = data.split_first() else {
        return;
    };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let frames = check_frames(stream, usize::from(*size)).await;
            check_queue(&frames).await;
        });
    });
});

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

async fn check_frames(stream: &[u8], size: usize) -> Vec<Vec<u8>> {
    let mut reader = Pieces {
        rest: stream,
        size: size.max(1),
        is_ready: false,
    };
    let (mut frames, mut rest) = (Vec::new(), stream);
    loop {
        let expected = rest
            .split_first_chunk::<2>()
            .map(|(length, body)| (usize::from(u16::from_be_bytes(*length)), body));
        match (read_framed_packet(&mut reader).await, expected) {
            (Ok(frame), Some((length, body))) => {
                assert_eq!(body.get(..length), Some(frame.as_slice()));
                assert!(length <= MAX_FRAMED_PACKET_BYTES);
                rest = &body[length..];
                frames.push(frame);
            }
            (Err(error), Some((length, _))) if length > MAX_FRAMED_PACKET_BYTES => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                return frames;
            }
            (Err(error), expected) => {
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                assert!(
                    expected.is_none_or(|(length, body)| body.len() < length),
                    "a whole frame was left"
                );
                return frames;
            }
            (Ok(frame), None) => panic!("a frame of {} bytes from nothing", frame.len()),
        }
    }
}

/// Queues each frame as a run of datagrams of half its length.
async fn check_queue(frames: &[Vec<u8>]) {
    let queue = DatagramQueue::default();
    let mut expected = Vec::new();
    for frame in frames {
        let segment = (frame.len() / 2).max(1);
        let taken = queue.push_datagrams(origin(), frame, segment);
        expected.extend(frame.chunks(segment).take(taken).map(<[u8]>::to_vec));
        assert!(queue.queued_bytes() <= MAX_TCP_QUEUED_BYTES);
    }
    queue.close();
    let mut written = Vec::new();
    queue
        .write_until_closed_and_empty(&mut written)
        .await
        .expect("memory takes everything");
    assert_eq!(queue.queued_bytes(), 0);
    let mut reader = written.as_slice();
    for datagram in expected {
        assert_eq!(read_framed_packet(&mut reader).await.expect("a frame"), datagram);
    }
    assert!(reader.is_empty());
}

/// Some bytes at a time, and every other time none yet.
struct Pieces<'a> {
    rest: &'a [u8],
    size: usize,
    is_ready: bool,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_ready = !self.is_ready;
        if !self.is_ready {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let length = self.size.min(self.rest.len()).min(buffer.remaining());
        let (now, later) = self.rest.split_at(length);
        buffer.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}
