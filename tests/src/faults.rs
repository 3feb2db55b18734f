//! The way between two programs, breakable at will: a TCP proxy that passes, slows, stalls, cuts or resets.
//!
//! ```text
//!          stall() deafen()           cut() reset()
//! passing ─────────────────► stalled      any ─────────► cut
//!    ▲                          │                         │
//!    └───────── pass() ─────────┴─────────────────────────┘
//! ```
//! Stalled bytes are held, not lost, as by a network that lost its route; cut connections are gone. Whatever the
//! mode, a [`Shape`] says how slow the way is, and a [`Meter`] counts what each side has sent.
//!
//! The proxy's kernel goes on acknowledging what is stalled; a link that is dead for the kernel, too, is a
//! [`crate::namespace::CloudSide`] whose packets are dropped.

mod pipe;

use std::io::{ErrorKind, Read as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::SockRef;

use self::pipe::{Direction, Pipe};
use crate::address;

/// How long the way to the real server may take to open; it is on the same machine.
const DIAL_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a slow way holds of a sender's bytes: a modem's buffer, not a server's.
const SLOW_BUFFER_BYTES: usize = 16 * 1024;

/// What a test sends in a minute, many times over.
const RECORDED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How slow the way is while it passes. The default is as fast as the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// How long a byte is under way, in each direction.
    pub latency: Duration,
    /// How many bytes go through in a second, in each direction, on all connections together.
    pub bytes_per_s: Option<u32>,
}

/// What came in from either side since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meter {
    /// From clients to the server.
    pub up_bytes: u64,
    pub down_bytes: u64,
    /// Reads in both directions: on a quiet link one for each TCP segment that carried something.
    pub pieces: u64,
}

impl Meter {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.up_bytes + self.down_bytes
    }

    /// What has come in since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            up_bytes: self.up_bytes - earlier.up_bytes,
            down_bytes: self.down_bytes - earlier.down_bytes,
            pieces: self.pieces - earlier.pieces,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    Stall,
    /// Stalled from the server to the client only.
    Deaf,
    /// New connections are closed as soon as they are accepted.
    Cut,
}

impl Mode {
    fn holds(self, direction: Direction) -> bool {
        self == Self::Stall || (self == Self::Deaf && direction == Direction::Down)
    }
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
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
    pieces: AtomicU64,
    /// What clients have said, once it is recorded.
    recorded: Mutex<Option<Vec<u8>>>,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    shape: Shape,
    /// When the way is free for the next byte, up and down.
    free_at: [Instant; 2],
    /// Both ends of every open connection, so that they can be closed from outside.
    open: Vec<(TcpStream, TcpStream)>,
}

impl FaultProxy {
    /// Listens on an address of its own and passes everything on to `target`.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address::own(target.port())).context("cannot open the fault proxy")?;
        let address = listener.local_addr()?;
        let now = Instant::now();
        let state = State { mode: Mode::Pass, shape: Shape::default(), free_at: [now, now], open: Vec::new() };
        let shared = Arc::new(Shared {
            target,
            state: Mutex::new(state),
            changed: Condvar::new(),
            accepted: AtomicU64::new(0),
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            pieces: AtomicU64::new(0),
            recorded: Mutex::default(),
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

    /// What has come in so far, whether or not it was let through.
    #[must_use]
    pub fn meter(&self) -> Meter {
        Meter {
            up_bytes: self.shared.up_bytes.load(Ordering::Relaxed),
            down_bytes: self.shared.down_bytes.load(Ordering::Relaxed),
            pieces: self.shared.pieces.load(Ordering::Relaxed),
        }
    }

    /// Keeps every byte that clients say from now on.
    pub fn record(&self) {
        *self.shared.recorded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// What clients have said since [`Self::record`], connections mixed as they spoke.
    #[must_use]
    pub fn recorded(&self) -> Vec<u8> {
        self.shared.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }

    /// Makes the way as slow as this from now on. A small buffer needs it before the connection begins.
    pub fn shape(&self, shape: Shape) {
        self.shared.lock().shape = shape;
    }

    /// Lets everything through again.
    pub fn pass(&self) {
        self.shared.set(Mode::Pass);
    }

    /// Holds all bytes; connections stay open and say nothing.
    pub fn stall(&self) {
        self.shared.set(Mode::Stall);
    }

    /// Holds what the server says; what clients say still arrives.
    pub fn deafen(&self) {
        self.shared.set(Mode::Deaf);
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

    /// Blocks while that direction is stalled; false once cut.
    fn may_pass(&self, direction: Direction) -> bool {
        let state = self.lock();
        let state =
            self.changed.wait_while(state, |state| state.mode.holds(direction)).unwrap_or_else(PoisonError::into_inner);
        state.mode != Mode::Cut
    }

    fn accept(self: &Arc<Self>, client: TcpStream) {
        // What the way was like when the client came, however late its thread gets its turn.
        let mode = self.lock().mode;
        self.accepted.fetch_add(1, Ordering::Relaxed);
        if mode == Mode::Cut {
            return;
        }
        let shared = Arc::clone(self);
        let opened = std::thread::Builder::new().name("fault proxy up".into()).spawn(move || {
            if let Err(error) = shared.connect(client, mode) {
                eprintln!("fault proxy: {error:#}");
            }
        });
        if let Err(error) = opened {
            eprintln!("fault proxy: no thread for a connection: {error}");
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream, mode: Mode) -> Result<()> {
        if self.lock().shape.bytes_per_s.is_some() {
            SockRef::from(&client).set_recv_buffer_size(SLOW_BUFFER_BYTES)?;
        }
        // Over a dead network no connection comes about. One whose client has given up must not reach the server
        // when the way is open again: its first words would throw out the client's newer connection.
        let Some(said) = self.said_while_stalled(&client, mode)? else { return Ok(()) };
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
        let down = Pipe { shared: Arc::clone(self), direction: Direction::Down };
        let (from, to) = (server.try_clone()?, client.try_clone()?);
        std::thread::Builder::new().name("fault proxy down".into()).spawn(move || down.run(Vec::new(), from, to))?;
        Pipe { shared: Arc::clone(self), direction: Direction::Up }.run(said, client, server);
        Ok(())
    }

    /// What the client of a new connection said while the way was stalled; `None` if it has gone, or the way is cut.
    fn said_while_stalled(&self, client: &TcpStream, mode: Mode) -> Result<Option<Vec<u8>>> {
        if !mode.holds(Direction::Up) && !self.lock().mode.holds(Direction::Up) {
            return Ok(Some(Vec::new()));
        }
        if !self.may_pass(Direction::Up) {
            return Ok(None);
        }
        client.set_nonblocking(true)?;
        let mut said = Vec::new();
        let mut reader = client;
        let alive = reader.read_to_end(&mut said).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        client.set_nonblocking(false)?;
        Ok(alive.then_some(said))
    }

    fn count(&self, direction: Direction, piece: &[u8]) {
        let bytes = match direction {
            Direction::Up => &self.up_bytes,
            Direction::Down => &self.down_bytes,
        };
        bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        if direction == Direction::Up
            && let Some(recorded) = &mut *self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
        {
            assert!(recorded.len() + piece.len() <= RECORDED_BYTES_MAX, "a record of the way has grown too large");
            recorded.extend_from_slice(piece);
        }
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives `length` bytes their turn on the way: when they are through it, and when they arrive.
    fn turn(&self, direction: Direction, length: usize) -> (Instant, Instant) {
        let mut state = self.lock();
        let shape = state.shape;
        let free_at = &mut state.free_at[direction as usize];
        if let Some(bytes_per_s) = shape.bytes_per_s {
            let takes = Duration::from_secs_f64(length as f64 / f64::from(bytes_per_s.max(1)));
            *free_at = (*free_at).max(Instant::now()) + takes;
        } else {
            *free_at = Instant::now();
        }
        (*free_at, *free_at + shape.latency)
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
    use std::io::Write as _;

    use super::*;

    /// For what comes at once, on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(30);

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
        stream.set_read_timeout(Some(PATIENCE)).expect("a valid timeout");
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
        stream.set_read_timeout(Some(PATIENCE)).expect("a valid timeout");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("held bytes arrive");
        assert_eq!(&answer, b"late");
    }

    #[test]
    fn a_deaf_client_is_heard() {
        let proxy = FaultProxy::start(echo()).expect("start");
        let mut stream = dial(&proxy);
        ask(&mut stream).expect("passes");
        let before = proxy.meter();
        proxy.deafen();
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a valid timeout");
        assert!(ask(&mut stream).is_err(), "no answer comes through");
        let since = proxy.meter().since(&before);
        assert_eq!((since.up_bytes, since.down_bytes), (4, 4), "the server was asked and answered");
    }

    #[test]
    fn a_slow_way_takes_its_time_and_counts_both_directions() {
        let proxy = FaultProxy::start(echo()).expect("start");
        proxy.shape(Shape { latency: Duration::from_millis(50), bytes_per_s: Some(20_000) });
        let mut stream = dial(&proxy);
        let start = Instant::now();
        let (sent, mut answer) = (vec![7; 4000], vec![0; 4000]);
        stream.write_all(&sent).expect("taken");
        stream.read_exact(&mut answer).expect("comes back");
        // 200 ms to go through, 50 ms under way, and the same back, less what overlaps.
        assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert_eq!(sent, answer);
        assert_eq!((proxy.meter().up_bytes, proxy.meter().down_bytes), (4000, 4000));
    }

    #[test]
    fn a_client_that_gave_up_while_stalled_never_reaches_the_server() {
        let proxy = FaultProxy::start(echo()).expect("start");
        proxy.stall();
        let (mut gone, mut patient) = (dial(&proxy), dial(&proxy));
        gone.write_all(b"gone").expect("taken by the kernel");
        drop(gone);
        patient.write_all(b"ping").expect("taken by the kernel");
        crate::wait::until_true("both were accepted", PATIENCE, || Ok(proxy.accepted() == 2)).expect("so");
        proxy.pass();
        let mut answer = [0; 4];
        patient.read_exact(&mut answer).expect("held bytes arrive");
        assert_eq!((&answer, proxy.meter().down_bytes), (b"ping", 4));
    }
}
