//! Write timeout: a connection whose client reads too slowly, for example one byte per second, is closed.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A stream whose peer has to read [`MIN_BYTES_WRITTEN_PER_TIMEOUT`] bytes in every `write_timeout` while data is waiting to be
/// sent.
pub(super) struct WriteTimeoutStream<S> {
    stream: S,
    write_timeout: Duration,
    deadline: Pin<Box<Sleep>>,
    /// Bytes written since the deadline was set, which happens when a write has to wait; `None` if no deadline is set.
    written_bytes: Option<usize>,
}

/// In the 20 s of the default this is 13 kbit/s, far less than any video needs.
const MIN_BYTES_WRITTEN_PER_TIMEOUT: usize = 32 * 1024;

impl<S> WriteTimeoutStream<S> {
    pub(super) fn new(stream: S, write_timeout: Duration) -> Self {
        Self {
            stream,
            write_timeout,
            deadline: Box::pin(sleep(write_timeout)),
            written_bytes: None,
        }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// Waits for the peer until the deadline.
    fn start_and_poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.written_bytes.is_none() {
            self.written_bytes = Some(0);
            let deadline = Instant::now() + self.write_timeout;
            self.deadline.as_mut().reset(deadline);
        }
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn record_written(&mut self, count: usize) {
        if let Some(written) = &mut self.written_bytes {
            *written += count;
            if *written >= MIN_BYTES_WRITTEN_PER_TIMEOUT {
                self.written_bytes = None;
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeoutStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeoutStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Ready(Ok(count)) => {
                self.record_written(count);
                Poll::Ready(Ok(count))
            }
            Poll::Pending => self.start_and_poll_deadline(cx),
            failed => failed,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write_vectored(cx, slices) {
            Poll::Ready(Ok(count)) => {
                self.record_written(count);
                Poll::Ready(Ok(count))
            }
            Poll::Pending => self.start_and_poll_deadline(cx),
            failed => failed,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Completes when everything was written, and clears the deadline.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.written_bytes = None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn a_reader_of_a_byte_a_second_is_given_up_and_a_slow_one_is_not() {
        for (bytes, ends_well) in [(1, false), (4_096, true)] {
            let (ours, mut theirs) = duplex(1_024);
            let mut ours = WriteTimeoutStream::new(ours, WRITE_TIMEOUT);
            let writing = tokio::spawn(async move { ours.write_all(&vec![7; 200_000]).await });
            let reading = tokio::spawn(async move {
                let mut buffer = vec![0; bytes];
                while theirs.read_exact(&mut buffer).await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            let begun = Instant::now();
            let written = writing.await.expect("no panic");
            assert_eq!(written.is_ok(), ends_well, "{bytes} bytes a second");
            if let Err(error) = written {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                assert_eq!(begun.elapsed().as_secs(), WRITE_TIMEOUT.as_secs());
            }
            reading.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_not_a_slow_one() {
        let (ours, mut theirs) = duplex(1_024);
        let mut ours = WriteTimeoutStream::new(ours, WRITE_TIMEOUT);
        for _ in 0..3 {
            let reading = async {
                let mut buffer = vec![0; 2_000];
                theirs.read_exact(&mut buffer).await
            };
            let (written, read) = tokio::join!(
                async {
                    ours.write_all(&[7; 2_000]).await?;
                    ours.flush().await
                },
                reading
            );
            assert!(written.is_ok() && read.is_ok());
            tokio::time::sleep(WRITE_TIMEOUT * 3).await;
        }
    }
}
