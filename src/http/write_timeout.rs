//! A connection that a client has to read from: one that takes a byte a second is closed, whatever it asks for.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A stream whose other end has to take [`LEAST`] bytes in every [`DEADLINE`] for as long as there is something to take.
pub struct WriteTimeout<S> {
    stream: S,
    deadline: Pin<Box<Sleep>>,
    /// Bytes that were taken since writing last had to wait and the deadline was set; `None` while nothing waits.
    taken: Option<usize>,
}

/// Time for which a client may leave what we sent unread.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Far less than any picture needs: 13 kbit/s.
const LEAST: usize = 32 * 1024;

impl<S> WriteTimeout<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            deadline: Box::pin(sleep(DEADLINE)),
            taken: None,
        }
    }

    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Waits for the other end, but not for ever.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.taken.is_none() {
            self.taken = Some(0);
            self.deadline.as_mut().reset(Instant::now() + DEADLINE);
        }
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn record(&mut self, count: usize) {
        if let Some(taken) = &mut self.taken {
            *taken += count;
            if *taken >= LEAST {
                self.taken = None;
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Ready(Ok(count)) => {
                self.record(count);
                Poll::Ready(Ok(count))
            }
            Poll::Pending => self.wait(cx),
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
                self.record(count);
                Poll::Ready(Ok(count))
            }
            Poll::Pending => self.wait(cx),
            failed => failed,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Comes when all has been written that there was.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.taken = None;
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

    #[tokio::test(start_paused = true)]
    async fn a_reader_of_a_byte_a_second_is_given_up_and_a_slow_one_is_not() {
        for (bytes, ends_well) in [(1, false), (4_096, true)] {
            let (ours, mut theirs) = duplex(1_024);
            let mut ours = WriteTimeout::new(ours);
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
                assert_eq!(begun.elapsed().as_secs(), DEADLINE.as_secs());
            }
            reading.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_not_a_slow_one() {
        let (ours, mut theirs) = duplex(1_024);
        let mut ours = WriteTimeout::new(ours);
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
            tokio::time::sleep(DEADLINE * 3).await;
        }
    }
}
