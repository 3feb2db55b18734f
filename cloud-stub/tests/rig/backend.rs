//! A server that answers as it is told: the other end of answerers elsewhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub head: String,
    pub body: Vec<u8>,
    /// Of those to this path, from 0.
    pub nth: usize,
    pub at: Instant,
}

/// What comes back, byte for byte, after a while. Then the connection ends.
pub struct Answer {
    pub after: Duration,
    pub bytes: Vec<u8>,
}

pub fn answer(status: u16, headers: &str, body: impl AsRef<[u8]>) -> Answer {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    Answer { after: Duration::ZERO, bytes: [head.as_bytes(), body].concat() }
}

impl Answer {
    pub fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }

    /// Its end is missing.
    pub fn cut(mut self) -> Self {
        self.bytes.truncate(self.bytes.len() - 5);
        self
    }
}

#[derive(Default)]
struct Seen {
    asked: Vec<Asked>,
    by_path: BTreeMap<String, usize>,
    under_way: usize,
    most_under_way: usize,
}

/// Ends when it is dropped: its address then refuses connections.
pub struct Backend {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Backend {
    pub async fn start(how: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let mut addr = super::own_addr();
        addr.set_port(8000);
        Self::start_on(addr, how).await
    }

    pub async fn start_on(addr: SocketAddr, how: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let (listener, seen, how) =
            (TcpListener::bind(addr).await.unwrap(), Arc::<Mutex<Seen>>::default(), Arc::new(how));
        let told = seen.clone();
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, how) = (told.clone(), how.clone());
                connections.spawn(async move { serve(stream, &seen, &*how).await });
            }
        });
        Self { addr, seen, serving }
    }

    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.seen.lock().unwrap().asked.iter().filter(|asked| asked.path == path).cloned().collect()
    }

    pub fn most_under_way(&self) -> usize {
        self.seen.lock().unwrap().most_under_way
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: TcpStream, seen: &Mutex<Seen>, how: &(dyn Fn(&Asked) -> Answer + Send + Sync)) {
    let (mut read, mut ends) = (Vec::new(), None);
    while ends.is_none() {
        let mut chunk = [0; 64 * 1024];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(bytes) => read.extend_from_slice(&chunk[..bytes]),
        }
        let Some(head_ends) = read.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&read[..head_ends]).to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
        ends = (read.len() >= head_ends + 4 + length).then_some(head_ends + 4);
    }
    let (head, body) = read.split_at(ends.unwrap());
    let head = String::from_utf8_lossy(head).into_owned();
    let mut words = head.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let answer = {
        let mut seen = seen.lock().unwrap();
        let nth = seen.by_path.entry(path.clone()).or_default();
        let asked = Asked { method, path, head, body: body.to_vec(), nth: *nth, at: Instant::now() };
        *nth += 1;
        seen.asked.push(asked.clone());
        seen.under_way += 1;
        seen.most_under_way = seen.most_under_way.max(seen.under_way);
        how(&asked)
    };
    tokio::time::sleep(answer.after).await;
    seen.lock().unwrap().under_way -= 1;
    // Who has gone away does not want it any more.
    drop(stream.write_all(&answer.bytes).await);
    drop(stream.shutdown().await);
}
