//! Notices that the network has changed: a carrier, an address or a route came or went.
//!
//! Then a dial need not wait for its turn. Without the kernel's word (no permission, no netlink) the waits
//! between dials go on as they are.

use std::io;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::time::Duration;

use hedge_core::engine::Event;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The kernel's multicast groups for links, IPv4 and IPv6 addresses and routes (`RTMGRP_…`).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// A change comes as a burst of messages; one dial is enough for all.
const BURST: Duration = Duration::from_millis(500);

/// Tells the engine of every change until told to stop.
pub async fn watch(events: mpsc::Sender<Event>, stop: CancellationToken) {
    let socket = match open() {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(%error, "changes of the network are not seen");
            return;
        }
    };
    loop {
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            changed = next_message(&socket) => changed,
        };
        if let Err(error) = changed {
            tracing::warn!(%error, "changes of the network are no longer seen");
            return;
        }
        if events.send(Event::NetworkChanged).await.is_err() {
            return;
        }
        tokio::time::sleep(BURST).await;
    }
}

fn open() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // Protocol 0 is the routing family.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    // To tokio a netlink socket is one more socket of datagrams.
    UnixDatagram::from_std(StdDatagram::from(socket))
}

/// Waits for messages and reads all there are. What they say does not matter.
async fn next_message(socket: &UnixDatagram) -> io::Result<()> {
    let mut message = [0; 8192];
    let mut any = false;
    loop {
        socket.readable().await?;
        loop {
            match socket.try_recv(&mut message) {
                Ok(_) => any = true,
                // Too many to keep: all the more reason to look.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && any => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}
