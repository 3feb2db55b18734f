//! A connection that does not wait for ever and does not slam the door.
//!
//! A peer that does not read its answer is given up after [`UNREAD_WAIT_MAX`], and later by what it has read: at
//! [`READ_RATE_MIN`] it may go on. At the end, what the peer is still sending is read and thrown away for a moment:
//! closing a socket with unread bytes resets it, and a client in the middle of a refused upload would see a broken
//! pipe instead of the reason.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::house::{Accepted, Place};
use crate::socket::Socket;

/// How long a peer may leave an answer unread.
const UNREAD_WAIT_MAX: Duration = Duration::from_secs(30);

/// The slowest a peer may read, in bytes a second: half of what the slowest link carries.
const READ_RATE_MIN: u64 = 1024;

/// How long a refused upload is still drained.
const LINGER_MAX: Duration = Duration::from_secs(2);

pub(crate) struct Connection {
    socket: Box<dyn Socket>,
    place: Arc<Place>,
    /// From the first write that had to wait until all is written.
    unread: Option<Unread>,
    linger_deadline: Option<Pin<Box<Sleep>>>,
}

struct Unread {
    since: Instant,
    bytes: u64,
    deadline: Pin<Box<Sleep>>,
}

impl Connection {
    pub(crate) fn new(accepted: Accepted) -> Self {
        Self { socket: accepted.socket, place: accepted.place, unread: None, linger_deadline: None }
    }

    /// Turns a write that waits for too long into an error.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let place = &self.place;
        let unread = self.unread.get_or_insert_with(|| {
            place.set_unread(true);
            let since = Instant::now();
            Unread { since, bytes: 0, deadline: Box::pin(sleep_until(since + UNREAD_WAIT_MAX)) }
        });
        let deadline = unread.since + UNREAD_WAIT_MAX + Duration::from_secs(unread.bytes / READ_RATE_MIN);
        if unread.deadline.deadline() != deadline {
            unread.deadline.as_mut().reset(deadline);
        }
        ready!(unread.deadline.as_mut().poll(cx));
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
        if let (Poll::Ready(Ok(count)), Some(unread)) = (&written, &mut self.unread) {
            unread.bytes += *count as u64;
        }
        self.bounded(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        // Only flushed once everything is written.
        if flushed.is_ready() && self.unread.take().is_some() {
            self.place.set_unread(false);
        }
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
