//! A web server that takes corrections, and sometimes forgets to say so.

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::address;
use crate::request::Request;

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
    while let Some(request) = Request::read(&mut reader, PART_BYTES_MAX)? {
        let key = request.header("idempotency-key").to_owned();
        ensure!(!key.is_empty(), "a delivery without a key");
        let body = serde_json::from_slice(&request.body).context("the body is not JSON")?;
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
