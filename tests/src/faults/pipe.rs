//! One direction of one connection: reads, lets bytes take their time, writes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use super::{Mode, Shared, close};
use crate::wait;

/// One read: enough for full speed on loopback.
const PIECE_BYTES: usize = 64 * 1024;

/// One read from a slow way: an Ethernet packet's worth, so that directions and connections take turns.
const SLOW_PIECE_BYTES: usize = 1400;

/// Pieces under way at the same time: a second's worth of the slow ones at 64 kB/s.
const PIECES_MAX: usize = 48;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client to the server.
    Up,
    Down,
}

/// Bytes under way, and when they arrive.
type Piece = (Instant, Vec<u8>);

pub(super) struct Pipe {
    pub(super) shared: Arc<Shared>,
    pub(super) direction: Direction,
}

impl Pipe {
    /// Moves bytes until either side goes away. `said` goes first.
    pub(super) fn run(self, said: Vec<u8>, from: TcpStream, to: TcpStream) {
        let (line, end) = sync_channel(PIECES_MAX);
        let (shared, direction) = (Arc::clone(&self.shared), self.direction);
        let writer = std::thread::Builder::new().name("fault proxy out".into()).spawn(move || {
            let pipe = Self { shared, direction };
            pipe.deliver(&end, &to);
            // What came before the end has been delivered; the other direction sees this as its own end. A cut has
            // closed it already, and an orderly end would soften a reset.
            if pipe.shared.lock().mode != Mode::Cut {
                close(&to);
            }
        });
        match writer {
            Ok(_) => self.take_in(said, &from, &line),
            Err(error) => eprintln!("fault proxy: no thread for a direction: {error}"),
        }
    }

    fn take_in(&self, said: Vec<u8>, mut from: &TcpStream, line: &SyncSender<Piece>) {
        if !said.is_empty() && !self.enter(said, line) {
            return;
        }
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let most = if self.shared.lock().shape.bytes_per_s.is_some() { SLOW_PIECE_BYTES } else { PIECE_BYTES };
            // Any error is one end going away, which the other end is told by closing it.
            let Ok(length @ 1..) = from.read(&mut piece[..most]) else { return };
            if !self.enter(piece[..length].to_vec(), line) {
                return;
            }
        }
    }

    /// Puts bytes onto the way; false if it ends here.
    fn enter(&self, bytes: Vec<u8>, line: &SyncSender<Piece>) -> bool {
        self.shared.count(self.direction, &bytes);
        let (through_at, arrives_at) = self.shared.turn(self.direction, bytes.len());
        wait::pause(through_at.saturating_duration_since(Instant::now()));
        self.shared.may_pass(self.direction) && line.send((arrives_at, bytes)).is_ok()
    }

    fn deliver(&self, line: &Receiver<Piece>, mut to: &TcpStream) {
        for (arrives_at, bytes) in line {
            wait::pause(arrives_at.saturating_duration_since(Instant::now()));
            if !self.shared.may_pass(self.direction) || to.write_all(&bytes).is_err() {
                return;
            }
        }
    }
}
