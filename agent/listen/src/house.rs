//! The accept loop and its places: who is let in, and who has to leave for another.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::socket::{Listener, Socket, sender};

/// How long a TLS handshake may take: slow links need seconds, and who takes longer comes again.
const GREETING_WAIT_MAX: Duration = Duration::from_secs(20);

/// How long to wait when no connection can be accepted because file descriptors or memory ran out.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_secs(1);

/// How long a peer may always take before it has to leave for another: a handshake and a request over a slow link.
/// It also bounds how fast peers that come back at once can turn a full house over.
const GRACE: Duration = Duration::from_millis(500);

/// No listener takes more than this part of the files a process may open: the broker, the disk and the other
/// listeners need theirs, whatever comes in here.
const FILES_SHARE: usize = 4;

/// As many files as the units allow; more are of no use.
const FILES_WANTED: u64 = 65_536;

/// A full house is said once in this time, with how many had to leave.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// How many connections one listener has.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// What listens, as the log says it.
    pub what: &'static str,
    /// At once; fewer where the process may open few files.
    pub connections_max: usize,
    /// Of these from one address that is not this machine's.
    pub address_max: usize,
    /// The files a connection takes: itself, and what is opened to serve it.
    pub files_each: usize,
}

/// A connection that was let in and, where there is TLS, has shaken hands. From now on it is not closed for another,
/// unless whoever serves it says that it is the peer's turn.
pub struct Accepted {
    pub socket: Box<dyn Socket>,
    /// `None` over a unix socket.
    pub from: Option<SocketAddr>,
    /// What the peer showed, its own certificate first.
    pub certificates: Vec<CertificateDer<'static>>,
    pub(crate) place: Arc<Place>,
}

/// Lets connections in until `stop` and has `serve` do the rest; returns when the last one has ended.
pub async fn accept<F>(
    listener: Listener,
    bounds: Bounds,
    tls: Option<Arc<ServerConfig>>,
    stop: CancellationToken,
    serve: impl Fn(Accepted) -> F + Clone + Send + 'static,
) where
    F: Future<Output = ()> + Send,
{
    let house = House::new(bounds, files());
    let tls = tls.map(TlsAcceptor::from);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (socket, from) = match accepted {
            Ok(accepted) => accepted,
            // It was gone before it was taken; the next one is not to wait for that.
            Err(error) if is_the_peers(&error) => continue,
            Err(error) => {
                tracing::warn!("{}: no connection can be accepted: {error}", bounds.what);
                house.send_away_one();
                tokio::select! {
                    () = sleep(ACCEPT_RETRY_WAIT) => continue,
                    () = stop.cancelled() => break,
                }
            }
        };
        let entered = tokio::select! {
            entered = house.enter(from.and_then(sender)) => entered,
            () = stop.cancelled() => break,
        };
        let Some(place) = entered else { continue };
        let (tls, serve) = (tls.clone(), serve.clone());
        connections.spawn(async move {
            let leave = place.leave.clone();
            let served = async move {
                if let Some(accepted) = greet(socket, from, tls, place).await {
                    accepted.place.answer();
                    serve(accepted).await;
                }
            };
            tokio::select! {
                () = served => {}
                () = leave.cancelled() => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn greet(
    socket: Box<dyn Socket>,
    from: Option<SocketAddr>,
    tls: Option<TlsAcceptor>,
    place: Place,
) -> Option<Accepted> {
    let place = Arc::new(place);
    let Some(tls) = tls else { return Some(Accepted { socket, from, certificates: Vec::new(), place }) };
    let what = place.house.bounds.what;
    match timeout(GREETING_WAIT_MAX, tls.accept(socket)).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificates = shown.iter().map(|certificate| certificate.clone().into_owned()).collect();
            Some(Accepted { socket: Box::new(stream), from, certificates, place })
        }
        Ok(Err(error)) => {
            tracing::info!(?from, "{what}: no TLS connection: {error}");
            None
        }
        Err(_) => {
            tracing::info!(?from, "{what}: no TLS connection within {} s", GREETING_WAIT_MAX.as_secs());
            None
        }
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// How many files this process may open, once it may open as many as it is allowed to ask for.
fn files() -> usize {
    static FILES: OnceLock<usize> = OnceLock::new();
    *FILES.get_or_init(|| {
        let now = getrlimit(Resource::Nofile);
        let (soft, hard) = (now.current.unwrap_or(FILES_WANTED), now.maximum.unwrap_or(FILES_WANTED));
        let wanted = soft.max(hard.min(FILES_WANTED));
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum }).is_ok();
        usize::try_from(if raised { wanted } else { soft }).unwrap_or(usize::MAX)
    })
}

/// One listener's places.
pub(crate) struct House {
    bounds: Bounds,
    connections_max: usize,
    guests: Mutex<Guests>,
    /// A place is free, or somebody can be sent away.
    changed: Notify,
}

#[derive(Default)]
struct Guests {
    open: BTreeMap<u64, Guest>,
    next: u64,
    /// Sent away since the last time it was said.
    sent_away: u64,
    said: Option<Instant>,
}

struct Guest {
    sender: Option<IpAddr>,
    /// Since when it has been the peer's turn to send something.
    awaited: Option<Instant>,
    /// Since when it has left unread what was sent to it.
    unread: Option<Instant>,
    leave: CancellationToken,
}

/// One connection's place; free again when dropped.
pub(crate) struct Place {
    house: Arc<House>,
    number: u64,
    leave: CancellationToken,
}

impl House {
    fn new(bounds: Bounds, files: usize) -> Arc<Self> {
        let share = files / FILES_SHARE / bounds.files_each.max(1);
        let connections_max = bounds.connections_max.min(share).max(1);
        Arc::new(Self { bounds, connections_max, guests: Mutex::default(), changed: Notify::new() })
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place; `None` if the sender already has all that it may have, and none of it can be closed yet.
    async fn enter(self: &Arc<Self>, sender: Option<IpAddr>) -> Option<Place> {
        loop {
            // One task enters at a time, so the permit that `notify_one` leaves behind is never lost.
            let changed = self.changed.notified();
            let again = {
                let mut guests = self.guests();
                let of_sender = |guest: &Guest| sender.is_none() || guest.sender == sender;
                let crowd = sender.is_some()
                    && guests.open.values().filter(|guest| of_sender(guest)).count() >= self.bounds.address_max;
                if !crowd && guests.open.len() < self.connections_max {
                    return Some(self.place(&mut guests, sender));
                }
                let sent = guests.send_away(|guest| !crowd || of_sender(guest));
                self.say_full(&mut guests);
                match sent {
                    Sent::Leaves => None,
                    // A crowd of one address holds up nobody else.
                    Sent::NotBefore(_) | Sent::Nobody if crowd => return None,
                    Sent::NotBefore(at) => Some(at),
                    Sent::Nobody => None,
                }
            };
            match again {
                Some(at) => drop(timeout_at(at, changed).await),
                None => changed.await,
            }
        }
    }

    fn place(self: &Arc<Self>, guests: &mut Guests, sender: Option<IpAddr>) -> Place {
        let (number, leave) = (guests.next, CancellationToken::new());
        guests.next += 1;
        let guest = Guest { sender, awaited: Some(Instant::now()), unread: None, leave: leave.clone() };
        guests.open.insert(number, guest);
        Place { house: self.clone(), number, leave }
    }

    fn send_away_one(&self) {
        self.guests().send_away(|_| true);
    }

    fn say_full(&self, guests: &mut Guests) {
        if guests.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            tracing::warn!(
                "{}: all {} connections, or all of one address, are taken; {} that kept others waiting were closed",
                self.bounds.what,
                self.connections_max,
                guests.sent_away
            );
            (guests.said, guests.sent_away) = (Some(Instant::now()), 0);
        }
    }
}

/// Whether somebody leaves for another.
enum Sent {
    Leaves,
    /// All whose turn it is have been so for a moment only.
    NotBefore(Instant),
    /// It is our turn with everybody.
    Nobody,
}

impl Guests {
    /// Closes the one of these whose turn it has been for longest.
    fn send_away(&mut self, among: impl Fn(&Guest) -> bool) -> Sent {
        let turn = |guest: &Guest| [guest.awaited, guest.unread].into_iter().flatten().min();
        let among = || self.open.values().filter(|guest| among(guest));
        // Whoever is on the way out already makes room soon.
        if among().any(|guest| guest.leave.is_cancelled()) {
            return Sent::Leaves;
        }
        let Some((since, oldest)) = among().filter_map(|guest| Some((turn(guest)?, guest))).min_by_key(|(at, _)| *at)
        else {
            return Sent::Nobody;
        };
        if since.elapsed() < GRACE {
            return Sent::NotBefore(since + GRACE);
        }
        oldest.leave.cancel();
        self.sent_away += 1;
        Sent::Leaves
    }
}

impl Place {
    fn note(&self, change: impl FnOnce(&mut Guest)) {
        let mut guests = self.house.guests();
        if let Some(guest) = guests.open.get_mut(&self.number) {
            change(guest);
        }
        drop(guests);
        self.house.changed.notify_one();
    }

    /// The peer is to send something: a handshake, a head, a body.
    pub(crate) fn await_peer(&self) {
        self.note(|guest| guest.awaited = Some(Instant::now()));
    }

    /// All is here that an answer needs.
    pub(crate) fn answer(&self) {
        self.note(|guest| guest.awaited = None);
    }

    /// Whether the peer leaves unread what was sent to it.
    pub(crate) fn set_unread(&self, unread: bool) {
        self.note(|guest| guest.unread = unread.then(Instant::now));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.house.guests().open.remove(&self.number);
        self.house.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { what: "a test", connections_max: 4, address_max: 2, files_each: 1 };

    fn from(last: u8) -> Option<IpAddr> {
        sender(([192, 0, 2, last], 1).into())
    }

    /// What is promised happens at once, or never.
    async fn enter(house: &Arc<House>, sender: Option<IpAddr>) -> Option<Place> {
        timeout(Duration::from_secs(1), house.enter(sender)).await.expect("let in or refused at once")
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_house_closes_whoever_has_kept_it_waiting_longest() {
        let house = House::new(BOUNDS, 1000);
        let mut places = Vec::new();
        for _ in 0..4 {
            places.push(enter(&house, None).await.expect("room"));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        places[0].answer();
        let oldest = places.remove(1);
        let leave = oldest.leave.clone();
        let leaving = async {
            leave.cancelled().await;
            drop(oldest);
        };
        let (newcomer, ()) = tokio::join!(enter(&house, None), leaving);
        assert!(newcomer.is_some());
        let told = places.iter().filter(|place| place.leave.is_cancelled()).count();
        assert_eq!(told, 0, "the one being answered and the younger ones stay");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_who_is_being_answered_is_closed_for_another() {
        let house = House::new(BOUNDS, 1000);
        let mut places = Vec::new();
        for _ in 0..4 {
            places.push(enter(&house, None).await.expect("room"));
        }
        places.iter().for_each(Place::answer);
        assert!(timeout(Duration::from_secs(60), house.enter(None)).await.is_err(), "it waits");
        assert!(places.iter().all(|place| !place.leave.is_cancelled()));
        // One that does not read its answer is not being answered any more.
        let slow = places.remove(2);
        slow.set_unread(true);
        let leave = slow.leave.clone();
        let leaving = async {
            leave.cancelled().await;
            drop(slow);
        };
        let (newcomer, ()) = tokio::join!(enter(&house, None), leaving);
        assert!(newcomer.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_takes_its_share_and_no_more() {
        let house = House::new(BOUNDS, 1000);
        let held = [enter(&house, from(1)).await.expect("room"), enter(&house, from(1)).await.expect("room")];
        held.iter().for_each(Place::answer);
        assert!(enter(&house, from(1)).await.is_none(), "it has all it may have");
        let others = [enter(&house, from(2)).await, enter(&house, from(3)).await];
        assert!(others.iter().all(Option::is_some));
        assert!(others.iter().flatten().all(|other| !other.leave.is_cancelled()));
    }

    #[test]
    fn senders_are_told_apart_as_far_as_addresses_are_given_out() {
        let of = |text: &str| sender(format!("{text}:1").parse().expect("an address"));
        assert_eq!(of("127.0.0.1"), None);
        assert_eq!(of("[::1]"), None);
        assert_eq!(of("[::ffff:192.0.2.1]"), of("192.0.2.1"));
        assert_eq!(of("[2001:db8::1]"), of("[2001:db8::ffff:2]"));
        assert_ne!(of("[2001:db8::1]"), of("[2001:db8:0:1::1]"));
    }

    #[test]
    fn a_listener_leaves_most_files_to_the_rest_of_the_process() {
        let wide = Bounds { connections_max: 1000, ..BOUNDS };
        assert_eq!(House::new(wide, 65_536).connections_max, 1000);
        assert_eq!(House::new(wide, 1024).connections_max, 256);
        assert_eq!(House::new(Bounds { files_each: 2, ..wide }, 1024).connections_max, 128);
        assert_eq!(House::new(wide, 1).connections_max, 1);
    }
}
