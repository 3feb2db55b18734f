//! A connection that does not wait for ever and does not slam the door.
//!
//! A peer that stops reading is given up after [`WRITE_WAIT_MAX`]. At the end, what the peer is still sending
//! is read and thrown away for a moment: closing a socket with unread bytes resets it, and a client in the
//! middle of a refused upload would see a broken pipe instead of the reason.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a peer may leave a response unread.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a refused upload is still drained.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// Any connected socket.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

pub(super) struct Connection {
    socket: Box<dyn Socket>,
    write_deadline: Option<Pin<Box<Sleep>>>,
    linger_deadline: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    pub(super) fn new(socket: impl Socket + 'static) -> Self {
        Self { socket: Box::new(socket), write_deadline: None, linger_deadline: None }
    }

    /// Turns a write that waits for too long into an error.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        let deadline = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(WRITE_WAIT_MAX)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger_deadline.is_none() {
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
            self.linger_deadline = Some(Box::pin(sleep(LINGER_MAX)));
        }
        let mut unwanted = [0; 16 * 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut unwanted);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        match &mut self.linger_deadline {
            Some(deadline) => deadline.as_mut().poll(cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}
