//! A web server for one folder, as simple as they come: whole files and ranges, and the ways a bad link or host has.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::address;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trouble {
    #[default]
    None,
    /// Each connection ends after so many bytes of a body.
    CutAfter(u64),
    /// The same, and it does not know ranges.
    CutAfterWithoutRanges(u64),
    /// Files whose path ends so go on with zeros and have no end.
    Endless(&'static str),
}

/// Serves until it is dropped.
pub struct ShelfServer {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    dir: PathBuf,
    trouble: Mutex<Trouble>,
    bytes: AtomicU64,
    connections: AtomicU64,
}

impl ShelfServer {
    pub fn start(dir: &Path) -> Result<Self> {
        let listener = TcpListener::bind(address::own(8088))?;
        let (address, state) = (listener.local_addr()?, Arc::new(State { dir: dir.to_owned(), ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // A client that goes away is no failure.
                std::thread::spawn(move || drop(state.serve(&stream)));
            }
        });
        Ok(Self { address, state })
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn trouble(&self, trouble: Trouble) {
        *self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Bytes of bodies sent, and connections, until now.
    #[must_use]
    pub fn sent(&self) -> (u64, u64) {
        (self.state.bytes.load(Ordering::SeqCst), self.state.connections.load(Ordering::SeqCst))
    }
}

impl State {
    fn serve(&self, mut stream: &TcpStream) -> Result<()> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let trouble = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().context("a request")??;
        let path = first.split(' ').nth(1).context("a path")?.trim_start_matches('/').to_owned();
        let mut begin: u64 = 0;
        for line in lines {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(range) = line.strip_prefix("range: bytes=") {
                begin = range.trim_end_matches('-').parse()?;
            }
        }
        if matches!(trouble, Trouble::CutAfterWithoutRanges(_)) {
            begin = 0;
        }
        let Ok(mut file) = std::fs::File::open(self.dir.join(&path)) else {
            return Ok(stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?);
        };
        let length = file.metadata()?.len();
        if begin > 0 && begin >= length {
            return Ok(stream
                .write_all(b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?);
        }
        let status = if begin > 0 { "206 Partial Content" } else { "200 OK" };
        let endless = matches!(trouble, Trouble::Endless(end) if path.ends_with(end));
        let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
        if begin > 0 {
            head += &format!("Content-Range: bytes {begin}-{}/{length}\r\n", length - 1);
        }
        if !endless {
            head += &format!("Content-Length: {}\r\n", length - begin);
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        file.seek(SeekFrom::Start(begin))?;
        let mut body = Vec::new();
        match trouble {
            Trouble::CutAfter(most) | Trouble::CutAfterWithoutRanges(most) => file.take(most).read_to_end(&mut body)?,
            Trouble::None | Trouble::Endless(_) => file.read_to_end(&mut body)?,
        };
        loop {
            stream.write_all(&body)?;
            self.bytes.fetch_add(body.len() as u64, Ordering::SeqCst);
            if !endless {
                return Ok(());
            }
            body = vec![0; 64 * 1024];
        }
    }
}
