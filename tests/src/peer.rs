//! A broker that does what a table says, and once the table is worked through behaves, with a cloud behind it.
//!
//! It speaks as much of MQTT 5 as a device hears, from bytes: what no library would send must be sent, too.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hedge_proto::{
    Authority, Case, CaseMessage, DownMessage, MESSAGE_BYTES_MAX, ModelRef, Output, Verdict, from_cbor, to_cbor,
};

use crate::address;

/// A hostile answer is followed by as much patience: the device may hang up, or see no harm in it.
const PATIENCE: Duration = Duration::from_secs(2);

/// One connection that behaves may last as long as a test.
const GOOD_MAX: Duration = Duration::from_secs(300);

/// When in a connection something else happens than should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// In place of CONNACK.
    Connect,
    /// In place of SUBACK.
    Subscribe,
    /// In place of the first PUBACK, which is that of the device's status.
    Status,
    /// Once the session is ready.
    Ready,
}

/// What happens; `None` says nothing and keeps the connection.
type Does = Option<Box<dyn Fn(u16) -> Vec<u8> + Send>>;

/// One row of the table.
pub struct Behaviour {
    pub name: String,
    at: At,
    does: Does,
    /// The connection is closed right behind it.
    closes: bool,
}

impl Behaviour {
    /// Says these bytes, made from the id of the packet that is answered.
    #[must_use]
    pub fn says(name: impl Into<String>, at: At, says: impl Fn(u16) -> Vec<u8> + Send + 'static) -> Self {
        Self { name: name.into(), at, does: Some(Box::new(says)), closes: false }
    }

    /// Says nothing, for as long as the device waits.
    #[must_use]
    pub fn silent(at: At) -> Self {
        Self { name: format!("silence at {at:?}"), at, does: None, closes: false }
    }

    /// Whether it happens there.
    #[must_use]
    pub fn is_at(&self, at: At) -> bool {
        self.at == at
    }

    #[must_use]
    pub fn then_closes(self) -> Self {
        Self { closes: true, ..self }
    }
}

/// What the peer has seen, and what its cloud is to say.
#[derive(Default)]
struct Seen {
    dials: AtomicUsize,
    /// To be published to the device, one after the other, each once the last is acknowledged.
    to_say: Mutex<Vec<(String, Vec<u8>)>>,
    acknowledged: AtomicUsize,
}

/// Listens until the process ends.
pub struct Peer {
    address: SocketAddr,
    seen: Arc<Seen>,
}

impl Peer {
    /// Each connection gets the next row; `device` is whose topics the cloud answers on.
    pub fn start(device: &str, table: Vec<Behaviour>, cloud_says: Vec<(String, Vec<u8>)>) -> Result<Self> {
        let listener = TcpListener::bind(address::own(1883))?;
        let (address, seen, device) = (listener.local_addr()?, Arc::new(Seen::default()), device.to_owned());
        *seen.to_say.lock().unwrap_or_else(PoisonError::into_inner) = cloud_says;
        let counted = seen.clone();
        std::thread::spawn(move || {
            let mut rows = table.into_iter();
            for stream in listener.incoming().flatten() {
                counted.dials.fetch_add(1, Ordering::Relaxed);
                let row = rows.next();
                let connection =
                    Connection { stream, seen: counted.clone(), device: device.clone(), next: 1, greeted: false };
                // The end of a connection is what the device makes of it: that is what the test looks at.
                std::thread::spawn(move || drop(connection.serve(row.as_ref())));
            }
        });
        Ok(Self { address, seen })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    #[must_use]
    pub fn dials(&self) -> usize {
        self.seen.dials.load(Ordering::Relaxed)
    }

    /// How many of the cloud's words the device has acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.seen.acknowledged.load(Ordering::Relaxed)
    }
}

struct Connection {
    stream: TcpStream,
    seen: Arc<Seen>,
    device: String,
    next: u16,
    /// The cloud has said that it is there.
    greeted: bool,
}

impl Connection {
    fn serve(mut self, row: Option<&Behaviour>) -> Result<()> {
        self.stream.set_read_timeout(Some(GOOD_MAX))?;
        let mut ready = false;
        loop {
            let packet = read_packet(&mut self.stream)?;
            let step = match packet.kind {
                0x10 => Some((At::Connect, 0, connack(0, &[]))),
                0x82 => {
                    let pkid = packet.u16_at(0)?;
                    Some((At::Subscribe, pkid, suback(pkid, &vec![1; filters(&packet.body)?])))
                }
                0x32 | 0x33 if !ready => {
                    ready = true;
                    let pkid = packet.publish()?.1;
                    Some((At::Status, pkid, puback(pkid, 0)))
                }
                _ => None,
            };
            if let Some((at, pkid, right)) = step {
                match row.filter(|row| row.at == at) {
                    Some(row) => return self.misbehave(row, pkid),
                    None => self.stream.write_all(&right)?,
                }
                if at == At::Status {
                    match row {
                        Some(row) => return self.misbehave(row, 1),
                        None => self.greet()?,
                    }
                }
            } else {
                self.behave(&packet)?;
            }
        }
    }

    fn misbehave(mut self, row: &Behaviour, pkid: u16) -> Result<()> {
        let Some(says) = &row.does else {
            // Until the device hangs up.
            while read_packet(&mut self.stream).is_ok() {}
            return Ok(());
        };
        self.stream.write_all(&says(pkid))?;
        if !row.closes {
            let until = Instant::now() + PATIENCE;
            while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                self.stream.set_read_timeout(Some(left))?;
                if read_packet(&mut self.stream).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The cloud's next word; after the last, once, that it is there.
    fn greet(&mut self) -> Result<()> {
        let next = {
            let mut to_say = self.seen.to_say.lock().unwrap_or_else(PoisonError::into_inner);
            if to_say.is_empty() { None } else { Some(to_say.remove(0)) }
        };
        match next {
            Some((topic, payload)) => self.publish(&topic, &payload),
            None if self.greeted => Ok(()),
            None => {
                self.greeted = true;
                self.publish("hedge/v1/cloud/good/status", br#"{"state":"online","wire":[1]}"#)
            }
        }
    }

    fn publish(&mut self, topic: &str, payload: &[u8]) -> Result<()> {
        let pkid = self.next;
        self.next += 1;
        Ok(self.stream.write_all(&publish(topic, payload, 1, pkid))?)
    }

    /// What a broker with a cloud does.
    fn behave(&mut self, packet: &Packet) -> Result<()> {
        match packet.kind & 0xf0 {
            0xc0 => Ok(self.stream.write_all(&[0xd0, 0])?),
            0x30 => {
                let (topic, pkid, payload) = packet.publish()?;
                if pkid != 0 {
                    self.stream.write_all(&puback(pkid, 0))?;
                }
                if topic.ends_with("/up/case") { self.answer(&payload) } else { Ok(()) }
            }
            0x40 => {
                self.seen.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.greet()
            }
            0xe0 => bail!("the device has said goodbye"),
            _ => Ok(()),
        }
    }

    fn answer(&mut self, payload: &[u8]) -> Result<()> {
        let cases = match from_cbor(payload, MESSAGE_BYTES_MAX)? {
            CaseMessage::Case(case) => vec![*case],
            CaseMessage::Batch(cases) => cases,
            CaseMessage::Ask { ids } => {
                let topic = format!("hedge/v1/{}/down/verdict", self.device);
                return self.publish(&topic, &to_cbor(&DownMessage::Unknown { ids }));
            }
        };
        for case in cases {
            let topic = format!("hedge/v1/{}/down/verdict", self.device);
            self.publish(&topic, &to_cbor(&DownMessage::Verdict(verdict(&case))))?;
        }
        Ok(())
    }
}

fn verdict(case: &Case) -> Verdict {
    Verdict {
        v: 1,
        id: case.id.clone(),
        revision: 1,
        authority: Authority::Model,
        task: case.task.clone(),
        said: Output::label("Coat"),
        model: ModelRef { name: "peer".to_owned(), version: "1".to_owned() },
    }
}

struct Packet {
    kind: u8,
    body: Vec<u8>,
}

impl Packet {
    fn u16_at(&self, at: usize) -> Result<u16> {
        let bytes = self.body.get(at..at + 2).context("a short packet")?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Topic, packet id or 0, payload.
    fn publish(&self) -> Result<(String, u16, Vec<u8>)> {
        let length = usize::from(self.u16_at(0)?);
        let topic = self.body.get(2..2 + length).context("a short topic")?;
        let mut at = 2 + length;
        let mut pkid = 0;
        if self.kind & 0x06 != 0 {
            pkid = self.u16_at(at)?;
            at += 2;
        }
        let (properties, read) = varint(self.body.get(at..).context("no properties")?)?;
        let payload = self.body.get(at + read + properties..).context("a short payload")?;
        Ok((String::from_utf8(topic.to_vec())?, pkid, payload.to_vec()))
    }
}

/// The number of filters in a SUBSCRIBE.
fn filters(body: &[u8]) -> Result<usize> {
    let (properties, read) = varint(body.get(2..).context("no properties")?)?;
    let mut at = 2 + read + properties;
    let mut count = 0;
    while at < body.len() {
        let length = body.get(at..at + 2).context("a short filter")?;
        at += 3 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        count += 1;
    }
    Ok(count)
}

fn varint(bytes: &[u8]) -> Result<(usize, usize)> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((value, at + 1));
        }
    }
    bail!("no length")
}

fn read_packet(stream: &mut TcpStream) -> Result<Packet> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    let kind = byte[0];
    let mut head = Vec::new();
    loop {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if byte[0] & 0x80 == 0 || head.len() == 4 {
            break;
        }
    }
    let mut body = vec![0; varint(&head)?.0];
    stream.read_exact(&mut body)?;
    Ok(Packet { kind, body })
}

/// One packet with its length.
#[must_use]
pub fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    let mut left = body.len();
    loop {
        let more = if left > 0x7f { 0x80 } else { 0 };
        bytes.push(u8::try_from(left & 0x7f).unwrap_or(0) | more);
        left >>= 7;
        if left == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

#[must_use]
pub fn connack(code: u8, properties: &[u8]) -> Vec<u8> {
    let length = u8::try_from(properties.len()).unwrap_or(0);
    packet(0x20, &[&[0, code, length], properties].concat())
}

#[must_use]
pub fn suback(pkid: u16, codes: &[u8]) -> Vec<u8> {
    packet(0x90, &[&pkid.to_be_bytes()[..], &[0], codes].concat())
}

#[must_use]
pub fn puback(pkid: u16, code: u8) -> Vec<u8> {
    packet(0x40, &[&pkid.to_be_bytes()[..], &[code, 0]].concat())
}

#[must_use]
pub fn disconnect(code: u8) -> Vec<u8> {
    packet(0xe0, &[code, 0])
}

#[must_use]
pub fn publish(topic: &str, payload: &[u8], qos: u8, pkid: u16) -> Vec<u8> {
    let length = u16::try_from(topic.len()).unwrap_or(0).to_be_bytes();
    let mut body = [&length[..], topic.as_bytes()].concat();
    if qos > 0 {
        body.extend(pkid.to_be_bytes());
    }
    body.push(0);
    body.extend_from_slice(payload);
    packet(0x30 | qos << 1, &body)
}
