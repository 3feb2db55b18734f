//! Counts every byte of the connection, in both directions, below TLS and WebSocket, and keeps the first that came.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a peer says first is kept this far: enough to tell MQTT, TLS and HTTP apart.
const OPENING_BYTES_MAX: usize = 16;

/// Bytes since the process started. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    bytes: Arc<AtomicU64>,
    opening: Arc<Mutex<Vec<u8>>>,
}

impl Meter {
    /// The bytes since this was last called.
    #[must_use]
    pub fn take(&self) -> u64 {
        self.bytes.swap(0, Relaxed)
    }

    /// The same count, with the opening of one connection of its own.
    #[must_use]
    pub fn for_one(&self) -> Self {
        Self { bytes: self.bytes.clone(), opening: Arc::default() }
    }

    /// The first bytes that came from the peer.
    #[must_use]
    pub fn opening(&self) -> Vec<u8> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts what passes through the stream.
    #[must_use]
    pub fn on(&self, stream: TcpStream) -> Metered {
        Metered { stream, meter: self.clone(), kept: 0 }
    }

    /// What went over the link by another way.
    pub fn count(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }
}

/// A stream whose bytes are counted.
pub struct Metered {
    stream: TcpStream,
    meter: Meter,
    /// How much of its opening is kept.
    kept: usize,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        let came = into.filled().get(before..).unwrap_or_default();
        self.meter.count(came.len() as u64);
        if self.kept < OPENING_BYTES_MAX && !came.is_empty() {
            let more = came.get(..OPENING_BYTES_MAX - self.kept).unwrap_or(came);
            self.meter.opening.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(more);
            self.kept += more.len();
        }
        read
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = &written {
            self.meter.count(*written as u64);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(written)) = &written {
            self.meter.count(*written as u64);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn bytes_count_in_both_directions_and_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("bound");
        let echo = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut four = [0; 4];
            stream.read_exact(&mut four).await.expect("reads");
            stream.write_all(b"seven77").await.expect("writes");
        });
        let meter = Meter::default();
        let mut stream = meter.on(TcpStream::connect(address).await.expect("connects"));
        stream.write_all(b"four").await.expect("writes");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("reads");
        echo.await.expect("ends");
        assert_eq!((meter.take(), meter.take()), (11, 0));
        assert_eq!((meter.opening(), meter.for_one().opening()), (b"seven77".to_vec(), Vec::new()));
    }
}
