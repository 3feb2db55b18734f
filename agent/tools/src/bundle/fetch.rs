//! Fetches files over HTTP: goes on where it was cut off, takes no more than it was told to, and believes sums only.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use hedge_config::BundlesConfig;
use hedge_core::clock::doubled;
use hedge_core::release::DOCUMENT_BYTES_MAX;
use hedge_proto::{Digest, in_one_line};
use reqwest::header::{self, HeaderValue};
use reqwest::{Certificate, Client, StatusCode, Url};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long nothing may come before a connection counts as dead.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// The slowest a file may come, in bytes a second: below it a connection is given up and made anew.
const BYTES_PER_S_MIN: u64 = 512;

/// How often in a row a file is asked for without a single byte of it coming.
const TRIES_MAX: u32 = 6;

/// The first wait after a cut, and the longest; doubled each time that nothing comes.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What a request and its answer cost besides what is asked for, and a connection with TLS; both rather more than less.
const REQUEST_BYTES: u64 = 1024;
const CONNECTION_BYTES: u64 = 8 * 1024;

/// How many bytes come before it is said that they have.
const SAID_EVERY: u64 = 16 * 1024;

/// A server that bundles are fetched from.
pub(super) struct Server {
    client: Client,
    base: Url,
    pace: Option<RefCell<Pace>>,
}

/// Keeps what comes to a rate, and says how much has come: whoever started this process counts it.
struct Pace {
    bytes_per_s: NonZeroU64,
    came: u64,
    said: u64,
    /// Of the whole bundle, once that is known.
    expected: u64,
    /// When the next byte is due.
    due: Instant,
}

/// Why a try ended, and whether another may help.
enum Cut {
    /// What is on the disk is good as far as it goes.
    Again(String),
    Never(anyhow::Error),
}

impl Server {
    pub(super) fn new(from: &BundlesConfig, bytes_per_s: Option<NonZeroU64>) -> anyhow::Result<Self> {
        // A base without a slash at its end would lose its last part.
        let base = Url::parse(&format!("{}/", from.url)).with_context(|| from.url.to_string())?;
        // Sums are over the bytes as they lie on the server, so nothing is asked for compressed, nor unpacked.
        let mut client = Client::builder().connect_timeout(SILENCE_MAX).redirect(reqwest::redirect::Policy::limited(3));
        if !from.url.tls {
            // Without this, a machine without any certificates could not even use plain HTTP.
            client = client.tls_certs_only([]);
        } else if let Some(file) = &from.ca_file {
            let at = || format!("[bundles] ca_file = {}", file.display());
            let pem = hedge_inference::read_pem(file).with_context(at)?;
            client = client.tls_certs_only(Certificate::from_pem_bundle(&pem).with_context(at)?);
        }
        if let Some(file) = &from.token_file {
            let at = || format!("[bundles] token_file = {}", file.display());
            let token = hedge_inference::read_text(file).with_context(at)?;
            let mut value: HeaderValue = format!("Bearer {}", token.trim()).parse().with_context(at)?;
            value.set_sensitive(true);
            client = client.default_headers([(header::AUTHORIZATION, value)].into_iter().collect());
        }
        let pace = |bytes_per_s| RefCell::new(Pace { bytes_per_s, came: 0, said: 0, expected: 0, due: Instant::now() });
        let server = Self { client: client.build()?, base, pace: bytes_per_s.map(pace) };
        server.count(CONNECTION_BYTES)?;
        Ok(server)
    }

    /// For people.
    pub(super) fn name(&self) -> &Url {
        &self.base
    }

    /// How many bytes the bundle has.
    pub(super) fn expect(&self, bytes: u64) {
        if let Some(pace) = &self.pace {
            pace.borrow_mut().expected = bytes;
        }
    }

    /// So many bytes went over the link.
    fn count(&self, bytes: u64) -> std::io::Result<()> {
        self.pace.as_ref().map_or(Ok(()), |pace| pace.borrow_mut().count(bytes))
    }

    /// Waits until more may come.
    async fn paced(&self) {
        let due = self.pace.as_ref().map(|pace| pace.borrow().due);
        if let Some(due) = due {
            sleep_until(due).await;
        }
    }

    /// After a cut, unless it was one too many: the next try is a connection of its own.
    async fn again(&self, failures: &mut u32, why: &str) -> anyhow::Result<()> {
        *failures += 1;
        ensure!(*failures < TRIES_MAX, "{why}; tried {TRIES_MAX} times, and what came is kept for the next time");
        sleep(doubled(RETRY_MIN, *failures - 1, RETRY_MAX)).await;
        Ok(self.count(CONNECTION_BYTES)?)
    }

    fn url(&self, path: &str) -> anyhow::Result<Url> {
        let mut url = self.base.clone();
        // Segment by segment: what stands in a name is never read as part of the address.
        url.path_segments_mut()
            .map_err(|()| anyhow!("{} has no path", self.base))?
            .pop_if_empty()
            .extend(path.split('/'));
        Ok(url)
    }

    /// A document, whole; `None` if there is none.
    pub(super) async fn document(&self, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let url = self.url(path)?;
        let mut failures = 0;
        loop {
            match timeout(SILENCE_MAX, self.try_document(&url)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(Cut::Never(error))) => return Err(error.context(url)),
                Ok(Err(Cut::Again(why))) => self.again(&mut failures, &why).await.with_context(|| url.to_string())?,
                Err(_) => self.again(&mut failures, "it takes too long").await.with_context(|| url.to_string())?,
            }
        }
    }

    async fn try_document(&self, url: &Url) -> Result<Option<Vec<u8>>, Cut> {
        let cut = |error: reqwest::Error| Cut::Again(in_one_line(&error));
        let disk = |error: std::io::Error| Cut::Never(error.into());
        self.paced().await;
        self.count(REQUEST_BYTES).map_err(disk)?;
        let mut response = self.client.get(url.clone()).send().await.map_err(cut)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status if status.is_server_error() => return Err(Cut::Again(format!("it answers {status}"))),
            status => return Err(Cut::Never(anyhow!("it answers {status}"))),
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(cut)? {
            if (bytes.len() + chunk.len()) as u64 > DOCUMENT_BYTES_MAX {
                return Err(Cut::Never(anyhow!("it has more than {DOCUMENT_BYTES_MAX} bytes")));
            }
            self.count(chunk.len() as u64).map_err(disk)?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes))
    }

    /// A file of at most `bytes_max` with this sum, into `to`, which may hold its beginning. Returns its size.
    pub(super) async fn file(&self, path: &str, to: &Path, sum: Digest, bytes_max: u64) -> anyhow::Result<u64> {
        let url = self.url(path)?;
        let mut part = Part::open(to, bytes_max)?;
        let mut failures = 0;
        // A beginning may be damaged, by a power cut, say, or be of another file; a second is not.
        let mut afresh = false;
        loop {
            if part.has(sum) {
                part.file.sync_all().with_context(|| to.display().to_string())?;
                return Ok(part.length);
            }
            let before = part.length;
            match self.try_file(&url, &mut part, bytes_max).await {
                Ok(()) if part.has(sum) => {}
                Ok(()) => {
                    ensure!(before > 0 && !afresh, "{url} is not the file that was signed");
                    part.begin_again()?;
                    afresh = true;
                }
                Err(Cut::Never(error)) => return Err(error.context(url)),
                Err(Cut::Again(why)) => {
                    failures = if part.length > before { 0 } else { failures };
                    self.again(&mut failures, &why).await.with_context(|| url.to_string())?;
                }
            }
        }
    }

    async fn try_file(&self, url: &Url, part: &mut Part, bytes_max: u64) -> Result<(), Cut> {
        let cut = |error: reqwest::Error| Cut::Again(in_one_line(&error));
        let disk = |error: std::io::Error| Cut::Never(error.into());
        let begin = part.length;
        let mut request = self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
        if begin > 0 {
            request = request.header(header::RANGE, format!("bytes={begin}-"));
        }
        self.count(REQUEST_BYTES).map_err(disk)?;
        let sent = timeout(SILENCE_MAX, request.send()).await.map_err(|_| Cut::Again("no answer comes".to_owned()))?;
        let mut response = sent.map_err(cut)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begin > 0 && begins_at(&response, begin) => {}
            // Nothing is left to send: the sum says whether that is so.
            StatusCode::RANGE_NOT_SATISFIABLE if begin > 0 => return Ok(()),
            StatusCode::OK => part.begin_again().map_err(Cut::Never)?,
            status if status.is_server_error() => return Err(Cut::Again(format!("it answers {status}"))),
            status => return Err(Cut::Never(anyhow!("it answers {status}"))),
        }
        let slowest = SILENCE_MAX + Duration::from_secs(bytes_max.saturating_sub(part.length) / BYTES_PER_S_MIN);
        let body = async {
            loop {
                let chunk = timeout(SILENCE_MAX, response.chunk()).await;
                let chunk = chunk.map_err(|_| Cut::Again("nothing comes any more".to_owned()))?.map_err(cut)?;
                let Some(chunk) = chunk else { return Ok(()) };
                if part.length + chunk.len() as u64 > bytes_max {
                    return Err(Cut::Never(anyhow!("it sends more than the {bytes_max} bytes that are signed for")));
                }
                // A server that goes back to the beginning at each cut would never come to an end.
                if part.came + chunk.len() as u64 > bytes_max.saturating_mul(2) {
                    return Err(Cut::Never(anyhow!("it has sent all of it twice, and never to the end")));
                }
                part.add(&chunk).map_err(disk)?;
                self.count(chunk.len() as u64).map_err(disk)?;
                self.paced().await;
            }
        };
        timeout(slowest, body).await.unwrap_or_else(|_| Err(Cut::Again("it sends too slowly".to_owned())))
    }
}

fn begins_at(response: &reqwest::Response, begin: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {begin}-")))
}

impl Pace {
    fn count(&mut self, bytes: u64) -> std::io::Result<()> {
        self.came += bytes;
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s.get() as f64);
        // What was not used of the rate is not made up for.
        self.due = self.due.max(Instant::now()) + takes;
        if self.came - self.said < SAID_EVERY { Ok(()) } else { self.say() }
    }

    fn say(&mut self) -> std::io::Result<()> {
        self.said = self.came;
        // Also tells that whoever counts has gone.
        let mut out = std::io::stdout();
        writeln!(out, "came       {} of {} bytes", self.came, self.expected)?;
        out.flush()
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        // Little comes of a server that has nothing, however often it is asked: it counts all the same.
        drop(self.say());
    }
}

/// A file's beginning, and the sum of it.
struct Part {
    file: File,
    length: u64,
    /// How many bytes have come, counted again when they come again.
    came: u64,
    sum: Sha256,
}

impl Part {
    fn open(path: &Path, bytes_max: u64) -> anyhow::Result<Self> {
        let at = || path.display().to_string();
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).with_context(at)?;
        let mut part = Self { length: 0, came: 0, sum: Sha256::new(), file: file.try_clone().with_context(at)? };
        let mut piece = vec![0; 64 * 1024];
        loop {
            match file.read(&mut piece).with_context(at)? {
                0 => break,
                read => part.sum.update(piece.get(..read).unwrap_or_default()),
            }
            part.length = file.metadata().with_context(at)?.len();
        }
        if part.length > bytes_max {
            part.begin_again()?;
        }
        Ok(part)
    }

    fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.sum.update(bytes);
        self.length += bytes.len() as u64;
        self.came += bytes.len() as u64;
        Ok(())
    }

    fn begin_again(&mut self) -> anyhow::Result<()> {
        self.file.set_len(0)?;
        (self.length, self.sum) = (0, Sha256::new());
        Ok(())
    }

    fn has(&self, sum: Digest) -> bool {
        Digest(self.sum.clone().finalize().into()) == sum
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A server that answers each request with `head`, then with a piece of `body` now and then, from the byte that is asked
    /// for on. With nothing more to send it keeps silent.
    async fn serve(head: &'static str, body: Vec<u8>, piece: usize, every: Duration) -> Server {
        // Another test may have been first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, head, body.clone(), piece, every));
            }
        });
        let url = url.try_into().expect("a URL");
        Server::new(&BundlesConfig { url, root: None, ca_file: None, token_file: None }, None).expect("a server")
    }

    async fn answer(mut stream: TcpStream, head: &str, body: Vec<u8>, piece: usize, every: Duration) -> Option<()> {
        let mut request = [0; 4096];
        let read = stream.read(&mut request).await.ok()?;
        let request = String::from_utf8_lossy(&request[..read]).to_ascii_lowercase();
        let range = request.split_once("range: bytes=").and_then(|(_, range)| range.split_once('-'));
        let begin: usize = range.map_or(0, |(begin, _)| begin.parse().expect("a number"));
        let status = match begin {
            0 => "200 OK\r\n".to_owned(),
            _ => format!("206 Partial Content\r\nContent-Range: bytes {begin}-{}/{}\r\n", body.len() - 1, body.len()),
        };
        stream.write_all(format!("HTTP/1.1 {status}{head}\r\n").as_bytes()).await.ok()?;
        for piece in body.get(begin..)?.chunks(piece) {
            stream.write_all(piece).await.ok()?;
            sleep(every).await;
        }
        if head.is_empty() { std::future::pending().await } else { Some(()) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_ever_so_slowly_or_not_at_all_is_given_up() {
        let dir = tempfile::tempdir().expect("a folder");
        let begun = Instant::now();
        let slow = serve("", vec![7; 10_000], 1, Duration::from_secs(10)).await;
        let error = slow.document("list.json").await.expect_err("it never comes");
        assert!(format!("{error:#}").contains("it takes too long; tried 6 times"), "{error:#}");
        let silent = serve("", Vec::new(), 1, SILENCE_MAX).await;
        let error = silent.file("f", &dir.path().join("f"), Digest::of(b""), 10).await.map(drop);
        error.expect("of no bytes nothing is missing");
        let error = silent.file("f", &dir.path().join("g"), Digest::of(b"g"), 10).await.expect_err("it never comes");
        assert!(format!("{error:#}").contains("nothing comes any more; tried 6 times"), "{error:#}");
        assert!(begun.elapsed() < Duration::from_secs(600), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_comes_too_slowly_is_asked_for_anew_and_gone_on_with() {
        let dir = tempfile::tempdir().expect("a folder");
        let body: Vec<u8> = (0..20_000_u32).map(|number| (number % 251) as u8).collect();
        let (sum, length) = (Digest::of(&body), body.len() as u64);
        let slow = serve("", body, 100, Duration::from_secs(1)).await;
        let begun = Instant::now();
        let came = slow.file("f", &dir.path().join("f"), sum, length).await.expect("it comes");
        assert_eq!(came, length);
        // 20,000 bytes at 100 a second, and little for each connection that was given up.
        assert!(begun.elapsed() < Duration::from_secs(200 + 60), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn what_a_server_has_packed_is_not_unpacked() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let many = vec![0; 20 << 20];
        packed.write_all(&many).expect("packed");
        let (sum, packed) = (Digest::of(&many), packed.finish().expect("packed"));
        let packed_bytes = packed.len();
        let head = "Content-Encoding: gzip\r\nConnection: close\r\n";
        let bomb = serve(head, packed, usize::MAX, Duration::ZERO).await;
        let document = bomb.document("list.json").await.expect("it comes").expect("a document");
        assert_eq!(document.len(), packed_bytes, "as it came");
        let to = dir.path().join("f");
        let error = bomb.file("f", &to, sum, many.len() as u64).await.expect_err("it is something else");
        assert!(format!("{error:#}").contains("is not the file that was signed"), "{error:#}");
        assert_eq!(std::fs::metadata(&to).expect("a file").len(), packed_bytes as u64, "nothing was unpacked");
    }
}
