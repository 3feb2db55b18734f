//! A small HTTP proxy that allows CONNECT and nothing else, and counts how often it was used.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

use crate::address;

/// A request head larger than this is refused.
const HEAD_BYTES_MAX: u64 = 8 * 1024;

/// A running proxy; it lives as long as the process.
#[derive(Debug)]
pub struct ConnectProxy {
    address: SocketAddr,
    tunnels: Arc<AtomicU64>,
}

impl ConnectProxy {
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind(address::own(3128)).context("cannot open the CONNECT proxy")?;
        let address = listener.local_addr()?;
        let tunnels = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&tunnels);
        std::thread::Builder::new().name("connect proxy".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || {
                    if let Err(error) = serve(client, &counter) {
                        eprintln!("connect proxy: {error:#}");
                    }
                });
            }
        })?;
        Ok(Self { address, tunnels })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tunnels opened so far.
    #[must_use]
    pub fn tunnels(&self) -> u64 {
        self.tunnels.load(Ordering::Relaxed)
    }
}

fn serve(client: TcpStream, tunnels: &AtomicU64) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut writer = client;
    let mut head = reader.by_ref().take(HEAD_BYTES_MAX);
    let mut request = String::new();
    head.read_line(&mut request)?;
    let mut line = String::new();
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    let target = request.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let Some(server) = target.and_then(|target| TcpStream::connect(target).ok()) else {
        writer.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")?;
        return Ok(());
    };
    writer.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    tunnels.fetch_add(1, Ordering::Relaxed);
    let (mut from, mut to) = (server.try_clone()?, writer.try_clone()?);
    let down = std::thread::spawn(move || {
        // An error is one end going away; the other is closed below.
        drop(std::io::copy(&mut from, &mut to));
        drop(to.shutdown(Shutdown::Both));
    });
    let mut server = server;
    drop(std::io::copy(&mut reader, &mut server));
    drop(server.shutdown(Shutdown::Both));
    drop(down.join());
    Ok(())
}
