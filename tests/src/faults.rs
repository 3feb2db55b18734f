//! The way between two programs, breakable at will: a TCP proxy that passes, cuts, stalls or resets.
//!
//! ```text
//!            stall()                 cut() / reset()
//! passing ───────────► stalled      any ─────────────► cut
//!    ▲                    │                             │
//!    └──────── pass() ────┴─────────────────────────────┘
//! ```
//! Stalled bytes are held, not lost, as by a network that lost its route; cut connections are gone.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

use crate::address;

/// How long the way to the real server may take to open; it is on the same machine.
const DIAL_WAIT_MAX: Duration = Duration::from_secs(5);

/// One read: enough for full speed on loopback.
const PIECE_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    Stall,
    /// New connections are closed as soon as they are accepted.
    Cut,
}

/// A listener in front of `target`.
#[derive(Debug, Clone)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    accepted: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// Both ends of every open connection, so that they can be closed from outside.
    open: Vec<(TcpStream, TcpStream)>,
}

impl FaultProxy {
    /// Listens on an address of its own and passes everything on to `target`.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address::own(target.port())).context("cannot open the fault proxy")?;
        let address = listener.local_addr()?;
        let state = Mutex::new(State { mode: Mode::Pass, open: Vec::new() });
        let shared = Arc::new(Shared {
            target,
            state,
            changed: Condvar::new(),
            accepted: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::Builder::new().name("fault proxy".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                accepting.accept(client);
            }
        })?;
        Ok(Self { address, shared })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted since the start, including those closed at once.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Bytes passed on in both directions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Lets everything through again.
    pub fn pass(&self) {
        self.shared.set(Mode::Pass);
    }

    /// Holds all bytes; connections stay open and say nothing.
    pub fn stall(&self) {
        self.shared.set(Mode::Stall);
    }

    /// Closes every connection, and every new one at once.
    pub fn cut(&self) {
        for (client, server) in self.shared.set(Mode::Cut) {
            close(&client);
            close(&server);
        }
    }

    /// Like [`Self::cut`], but clients see a reset instead of an orderly end.
    pub fn reset(&self) {
        for (client, server) in self.shared.set(Mode::Cut) {
            if SockRef::from(&client).set_linger(Some(Duration::ZERO)).is_ok() {
                shut(&client, Shutdown::Read);
            }
            close(&server);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the mode; hands out the connections that a cut has to close.
    fn set(&self, mode: Mode) -> Vec<(TcpStream, TcpStream)> {
        let mut state = self.lock();
        state.mode = mode;
        self.changed.notify_all();
        if mode == Mode::Cut { std::mem::take(&mut state.open) } else { Vec::new() }
    }

    /// Blocks while stalled; false once cut.
    fn may_pass(&self) -> bool {
        let state = self.lock();
        let state =
            self.changed.wait_while(state, |state| state.mode == Mode::Stall).unwrap_or_else(PoisonError::into_inner);
        state.mode == Mode::Pass
    }

    fn accept(self: &Arc<Self>, client: TcpStream) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        if self.lock().mode == Mode::Cut {
            return;
        }
        let shared = Arc::clone(self);
        let opened = std::thread::Builder::new().name("fault proxy up".into()).spawn(move || {
            if let Err(error) = shared.connect(client) {
                eprintln!("fault proxy: {error:#}");
            }
        });
        if let Err(error) = opened {
            eprintln!("fault proxy: no thread for a connection: {error}");
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream) -> Result<()> {
        // A refused connection is what the client should see as a closed one; nothing to report.
        let Ok(server) = TcpStream::connect_timeout(&self.target, DIAL_WAIT_MAX) else { return Ok(()) };
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        {
            let mut state = self.lock();
            if state.mode == Mode::Cut {
                return Ok(());
            }
            state.open.retain(|(client, _)| client.peer_addr().is_ok());
            state.open.push((client.try_clone()?, server.try_clone()?));
        }
        let (from, to) = (server.try_clone()?, client.try_clone()?);
        let down = Arc::clone(self);
        std::thread::Builder::new().name("fault proxy down".into()).spawn(move || down.pump(from, to))?;
        self.pump(client, server);
        Ok(())
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut piece = vec![0; PIECE_BYTES];
        // Any error is one end going away, which the other end is told by closing it.
        while let Ok(length @ 1..) = from.read(&mut piece) {
            if !self.may_pass() || to.write_all(&piece[..length]).is_err() {
                break;
            }
            self.bytes.fetch_add(length as u64, Ordering::Relaxed);
        }
        if self.lock().mode != Mode::Cut {
            close(&from);
            close(&to);
        }
    }
}

fn close(stream: &TcpStream) {
    shut(stream, Shutdown::Both);
}

fn shut(stream: &TcpStream, how: Shutdown) {
    // The other side may have closed it already; then there is nothing left to do.
    drop(stream.shutdown(how));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind(address::own(7007)).expect("an own address is free");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let (mut from, mut to) = (stream.try_clone().expect("clone"), stream);
                    std::io::copy(&mut from, &mut to)
                });
            }
        });
        address
    }

    fn dial(proxy: &FaultProxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).expect("the proxy accepts");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a valid timeout");
        stream
    }

    fn ask(stream: &mut TcpStream) -> std::io::Result<[u8; 4]> {
        let mut answer = [0; 4];
        stream.write_all(b"ping")?;
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn a_cut_ends_open_connections_and_new_ones_until_it_passes_again() {
        let proxy = FaultProxy::start(echo()).expect("start");
        let mut stream = dial(&proxy);
        assert_eq!(&ask(&mut stream).expect("passes"), b"ping");
        proxy.cut();
        assert!(ask(&mut stream).is_err());
        assert!(ask(&mut dial(&proxy)).is_err());
        proxy.pass();
        assert_eq!(&ask(&mut dial(&proxy)).expect("passes again"), b"ping");
    }

    #[test]
    fn a_reset_is_seen_as_one() {
        let proxy = FaultProxy::start(echo()).expect("start");
        let mut stream = dial(&proxy);
        ask(&mut stream).expect("passes");
        proxy.reset();
        let error = stream.read(&mut [0; 1]).expect_err("reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_stall_holds_bytes_and_loses_none() {
        let proxy = FaultProxy::start(echo()).expect("start");
        let mut stream = dial(&proxy);
        ask(&mut stream).expect("passes");
        proxy.stall();
        stream.write_all(b"late").expect("taken by the kernel");
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a valid timeout");
        assert!(stream.read(&mut [0; 4]).is_err(), "nothing comes while stalled");
        proxy.pass();
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a valid timeout");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("held bytes arrive");
        assert_eq!(&answer, b"late");
    }
}
