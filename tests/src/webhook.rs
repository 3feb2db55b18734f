//! A web server that takes corrections, and sometimes forgets to say so.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::address;

/// A head or body larger than this is not a correction.
const PART_BYTES_MAX: u64 = 64 * 1024;

/// An idle client is let go, so that its thread ends.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Every such delivery is taken and not confirmed.
const UNCONFIRMED_EVERY: usize = 5;

/// A running server; it lives as long as the process.
#[derive(Debug)]
pub struct Webhook {
    address: SocketAddr,
    taken: Arc<Mutex<Taken>>,
}

/// What has been delivered.
#[derive(Debug, Default)]
struct Taken {
    deliveries: usize,
    /// Bodies by idempotency key, as often as they came.
    bodies: BTreeMap<String, Vec<Value>>,
    wrong: Vec<String>,
}

impl Webhook {
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind(address::own(8090)).context("cannot open the webhook")?;
        let address = listener.local_addr()?;
        let taken = Arc::new(Mutex::new(Taken::default()));
        let counted = Arc::clone(&taken);
        std::thread::Builder::new().name("webhook".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                let taken = Arc::clone(&counted);
                std::thread::spawn(move || {
                    if let Err(error) = serve(&client, &taken) {
                        taken.lock().unwrap_or_else(PoisonError::into_inner).wrong.push(format!("{error:#}"));
                    }
                });
            }
        })?;
        Ok(Self { address, taken })
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/corrections", self.address)
    }

    /// Whether something has been delivered under this key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).bodies.contains_key(key)
    }

    /// Every delivery named its own id and revision as key, and said the same under one key. Returns how many keys
    /// came, and how many of them more than once.
    pub fn check(&self) -> Result<(usize, usize)> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(taken.wrong.is_empty(), "deliveries that cannot be read: {:?}", taken.wrong);
        for (key, bodies) in &taken.bodies {
            for body in bodies {
                let named = format!("{}/{}", body["id"].as_str().unwrap_or_default(), body["revision"]);
                ensure!(*key == named, "the key is {key}, the correction is {named}");
                ensure!(body["result"] == bodies[0]["result"], "one key, two corrections: {bodies:?}");
            }
        }
        let repeated = taken.bodies.values().filter(|bodies| bodies.len() > 1).count();
        Ok((taken.bodies.len(), repeated))
    }
}

fn serve(client: &TcpStream, taken: &Mutex<Taken>) -> Result<()> {
    client.set_read_timeout(Some(IDLE_MAX))?;
    let mut reader = BufReader::new(client);
    while let Some((key, body)) = read_one(&mut reader)? {
        let body = serde_json::from_slice(&body).context("the body is not JSON")?;
        let confirmed = {
            let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.deliveries += 1;
            taken.bodies.entry(key).or_default().push(body);
            !taken.deliveries.is_multiple_of(UNCONFIRMED_EVERY)
        };
        let status = if confirmed { "204 No Content" } else { "503 Service Unavailable" };
        let mut writer = client;
        // A client that was killed meanwhile does not hear it.
        if write!(writer, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Key and body of one request; `None` when the client has gone, whether between two or within one.
fn read_one(reader: &mut BufReader<&TcpStream>) -> Result<Option<(String, Vec<u8>)>> {
    let (mut key, mut length) = (String::new(), 0);
    let mut line = String::new();
    let mut head = reader.by_ref().take(PART_BYTES_MAX);
    loop {
        line.clear();
        if !matches!(head.read_line(&mut line), Ok(1..)) {
            return Ok(None);
        }
        let text = line.trim_end();
        if text.is_empty() {
            break;
        }
        match text.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("idempotency-key") => key = value.to_owned(),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse()?,
            _ => {}
        }
    }
    ensure!(!key.is_empty() && length as u64 <= PART_BYTES_MAX, "no key, or a body of {length} bytes");
    let mut body = vec![0; length];
    Ok(reader.read_exact(&mut body).is_ok().then_some((key, body)))
}
