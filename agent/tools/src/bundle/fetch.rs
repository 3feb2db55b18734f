//! Fetches files over HTTP: goes on where it was cut off, takes no more than it was told to, and believes sums only.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hedge_config::{BundlesConfig, HttpUrl};
use hedge_core::clock::doubled;
use hedge_core::release::DOCUMENT_BYTES_MAX;
use hedge_identity::http_client;
use hedge_proto::{Digest, in_one_line};
use reqwest::header::{self, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::time::{sleep, sleep_until, timeout};

use super::pace::Pace;
use super::part::Part;
use super::registry::{Artifact, Login, MANIFEST_TYPES, token};

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

/// A server that bundles are fetched from.
pub(super) struct Server {
    client: Client,
    base: Url,
    registry: Option<Registry>,
    pace: Option<RefCell<Pace>>,
}

/// What is known of a registry.
struct Registry {
    artifact: Artifact,
    /// The digests of its files, once its manifest has come.
    files: OnceCell<BTreeMap<String, String>>,
    /// Name and password.
    secret: Option<String>,
    /// What it wants to see with every request, as far as it has said so.
    shown: RefCell<Option<HeaderValue>>,
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
        let at = &from.url.at;
        let base = Url::parse(&format!("{at}/")).with_context(|| from.url.to_string())?;
        // Sums are over the bytes as they lie on the server, so nothing is asked for compressed, nor unpacked.
        let client = http_client(base.as_str(), from.ca_file.as_deref().filter(|_| at.tls));
        let client = client.map_err(|why| anyhow!("[bundles] ca_file = {why}"))?;
        let mut client = client.connect_timeout(SILENCE_MAX).redirect(reqwest::redirect::Policy::limited(3));
        let secret = from.token_file.as_ref().map(|file| {
            hedge_inference::read_secret(file).with_context(|| format!("[bundles] token_file = {}", file.display()))
        });
        let secret = secret.transpose()?;
        let registry = match (from.url.is_registry, &secret) {
            (true, _) => Some(Registry::new(at, secret)?),
            (false, Some(token)) => {
                let value = hidden(&format!("Bearer {token}"))?;
                client = client.default_headers([(header::AUTHORIZATION, value)].into_iter().collect());
                None
            }
            (false, None) => None,
        };
        let pace = bytes_per_s.map(|bytes_per_s| RefCell::new(Pace::new(bytes_per_s)));
        let server = Self { client: client.build()?, base, registry, pace };
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

    /// Where a file is; `None` if a registry has none of that path.
    async fn url(&self, path: &str) -> anyhow::Result<Option<Url>> {
        if let Some(registry) = &self.registry {
            if registry.files.get().is_none() {
                let at = registry.artifact.manifest()?;
                let manifest = self.fetched(&at, MANIFEST_TYPES).await?;
                let manifest = manifest.with_context(|| format!("{at}: the registry has no such artifact"))?;
                let files = registry.artifact.files(&manifest).with_context(|| at.to_string())?;
                registry.files.get_or_init(|| files);
            }
            let digest = registry.files.get().and_then(|files| files.get(path));
            return digest.map(|digest| registry.artifact.blob(digest)).transpose();
        }
        let mut url = self.base.clone();
        // Segment by segment: what stands in a name is never read as part of the address.
        url.path_segments_mut()
            .map_err(|()| anyhow!("{} has no path", self.base))?
            .pop_if_empty()
            .extend(path.split('/'));
        Ok(Some(url))
    }

    /// A document, whole; `None` if there is none.
    pub(super) async fn document(&self, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        match self.url(path).await? {
            Some(url) => self.fetched(&url, "*/*").await,
            None => Ok(None),
        }
    }

    /// `accept`: only a manifest has several forms.
    async fn fetched(&self, url: &Url, accept: &'static str) -> anyhow::Result<Option<Vec<u8>>> {
        let mut failures = 0;
        loop {
            match timeout(SILENCE_MAX, self.try_document(url, accept)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(Cut::Never(error))) => return Err(error.context(url.to_string())),
                Ok(Err(Cut::Again(why))) => self.again(&mut failures, &why).await.with_context(|| url.to_string())?,
                Err(_) => self.again(&mut failures, "it takes too long").await.with_context(|| url.to_string())?,
            }
        }
    }

    async fn try_document(&self, url: &Url, accept: &'static str) -> Result<Option<Vec<u8>>, Cut> {
        self.paced().await;
        let response = self.sent(|| self.client.get(url.clone()).header(header::ACCEPT, accept)).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status if status.is_server_error() => return Err(Cut::Again(format!("it answers {status}"))),
            status => return Err(Cut::Never(anyhow!("it answers {status}"))),
        }
        self.whole(response).await.map(Some)
    }

    /// The answer to a request, which is made again once if a registry wants a login first.
    async fn sent(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, Cut> {
        let shown = self.registry.as_ref().and_then(|registry| registry.shown.borrow().clone());
        let response = self.sent_as(request(), shown).await?;
        match &self.registry {
            Some(registry) if response.status() == StatusCode::UNAUTHORIZED => {
                let challenge = response.headers().get(header::WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
                let shown = self.logged_in(registry, challenge.unwrap_or_default()).await?;
                registry.shown.replace(Some(shown.clone()));
                self.sent_as(request(), Some(shown)).await
            }
            _ => Ok(response),
        }
    }

    async fn sent_as(&self, request: RequestBuilder, shown: Option<HeaderValue>) -> Result<Response, Cut> {
        self.count(REQUEST_BYTES).map_err(|error| Cut::Never(error.into()))?;
        let request = match shown {
            Some(shown) => request.header(header::AUTHORIZATION, shown),
            None => request,
        };
        let sent = timeout(SILENCE_MAX, request.send()).await;
        sent.map_err(|_| Cut::Again("no answer comes".to_owned()))?.map_err(|error| Cut::Again(in_one_line(&error)))
    }

    /// What a registry wants to be shown with every request.
    async fn logged_in(&self, registry: &Registry, challenge: &str) -> Result<HeaderValue, Cut> {
        let login = registry.artifact.login(challenge).map_err(Cut::Never)?;
        let secret = registry.secret.as_deref();
        let basic =
            secret.filter(|secret| secret.contains(':')).map(|secret| format!("Basic {}", STANDARD.encode(secret)));
        let basic = basic.map(|basic| hidden(&basic)).transpose().map_err(Cut::Never)?;
        match (login, basic, secret) {
            (Login::Basic, Some(basic), _) => Ok(basic),
            (Login::Basic, None, _) => Err(Cut::Never(anyhow!(
                "the registry wants a name and a password: NAME:PASSWORD in [bundles] token_file"
            ))),
            // A token that somebody else has got.
            (Login::Token(_), None, Some(token)) => hidden(&format!("Bearer {token}")).map_err(Cut::Never),
            (Login::Token(at), basic, _) => {
                let answer = self.sent_as(self.client.get(at.clone()), basic).await?;
                if answer.status() != StatusCode::OK {
                    return Err(Cut::Never(anyhow!("its login at {at} answers {}", answer.status())));
                }
                let token = token(&self.whole(answer).await?).map_err(Cut::Never)?;
                hidden(&format!("Bearer {token}")).map_err(Cut::Never)
            }
        }
    }

    /// A body of the size of a document.
    async fn whole(&self, mut response: Response) -> Result<Vec<u8>, Cut> {
        let cut = |error: reqwest::Error| Cut::Again(in_one_line(&error));
        let disk = |error: std::io::Error| Cut::Never(error.into());
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(cut)? {
            if (bytes.len() + chunk.len()) as u64 > DOCUMENT_BYTES_MAX {
                return Err(Cut::Never(anyhow!("it has more than {DOCUMENT_BYTES_MAX} bytes")));
            }
            self.count(chunk.len() as u64).map_err(disk)?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// A file of at most `bytes_max` with this sum, into `to`, which may hold its beginning. Returns its size.
    pub(super) async fn file(&self, path: &str, to: &Path, sum: Digest, bytes_max: u64) -> anyhow::Result<u64> {
        let url = self.url(path).await?.with_context(|| format!("{} has no file {path}", self.base))?;
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
        let request = || {
            let request = self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            if begin > 0 { request.header(header::RANGE, format!("bytes={begin}-")) } else { request }
        };
        let mut response = self.sent(request).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begin > 0 && begins_at(&response, begin) => {}
            // Of another part than was asked for nothing can be kept; without a range there is only one.
            StatusCode::PARTIAL_CONTENT if begin > 0 => {
                part.begin_again().map_err(Cut::Never)?;
                return Err(Cut::Again("it sends another part of the file than was asked for".to_owned()));
            }
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

impl Registry {
    fn new(at: &HttpUrl, secret: Option<String>) -> anyhow::Result<Self> {
        Ok(Self { artifact: Artifact::new(at)?, files: OnceCell::new(), secret, shown: RefCell::new(None) })
    }
}

/// A header that no log shows.
fn hidden(text: &str) -> anyhow::Result<HeaderValue> {
    let mut value: HeaderValue = text.parse().context("[bundles] token_file holds what no header can")?;
    value.set_sensitive(true);
    Ok(value)
}

fn begins_at(response: &reqwest::Response, begin: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {begin}-")))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;

    async fn listening() -> (TcpListener, Server) {
        // Another test may have been first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let url = format!("http://{}", listener.local_addr().expect("an address")).try_into().expect("a URL");
        let from = BundlesConfig { url, root: None, ca_file: None, token_file: None };
        (listener, Server::new(&from, None).expect("a server"))
    }

    /// A server that answers each request with `head`, then with a piece of `body` now and then, from the byte that is asked
    /// for on. With nothing more to send it keeps silent.
    async fn serve(head: &'static str, body: Vec<u8>, piece: usize, every: Duration) -> Server {
        let (listener, server) = listening().await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, head, body.clone(), piece, every));
            }
        });
        server
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
        silent.file("f", &dir.path().join("f"), Digest::of(b""), 10).await.expect("nothing is missing");
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
        assert_eq!(slow.file("f", &dir.path().join("f"), sum, length).await.expect("it comes"), length);
        // 20,000 bytes at 100 a second, and little for each connection that was given up.
        assert!(begun.elapsed() < Duration::from_secs(200 + 60), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_sends_another_part_than_was_asked_for_is_asked_for_all_of_it() {
        let (dir, (listener, server)) = (tempfile::tempdir().expect("a folder"), listening().await);
        tokio::spawn(async move {
            for status in ["206 Partial Content", "200 OK"] {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\nConnection: close\r\n\r\n0123");
                drop((stream.read(&mut [0; 4096]).await, stream.write_all(answer.as_bytes()).await));
            }
        });
        let to = dir.path().join("f");
        std::fs::write(&to, "01").expect("a beginning");
        server.file("f", &to, Digest::of(b"0123"), 4).await.expect("it comes");
    }

    #[tokio::test]
    async fn what_a_server_has_packed_is_not_unpacked() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let many = vec![0; 20 << 20];
        packed.write_all(&many).expect("packed");
        let (sum, packed) = (Digest::of(&many), packed.finish().expect("packed"));
        let packed_bytes = packed.len();
        let bomb = serve("Content-Encoding: gzip\r\nConnection: close\r\n", packed, usize::MAX, Duration::ZERO).await;
        let document = bomb.document("list.json").await.expect("it comes").expect("a document");
        assert_eq!(document.len(), packed_bytes, "as it came");
        let to = dir.path().join("f");
        let error = bomb.file("f", &to, sum, many.len() as u64).await.expect_err("it is something else");
        assert!(format!("{error:#}").contains("is not the file that was signed"), "{error:#}");
        assert_eq!(std::fs::metadata(&to).expect("a file").len(), packed_bytes as u64, "nothing was unpacked");
    }

    /// A registry that answers only who shows a token of its login, and its login only who shows a name and a password.
    async fn registry(files: &'static [(&'static str, &'static str)], secret: &str) -> (Server, tempfile::TempDir) {
        let (listener, _) = listening().await;
        let at = listener.local_addr().expect("an address").to_string();
        let own = at.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                let shows = |shown: &str| request.to_ascii_lowercase().contains(&format!("authorization: {shown}\r\n"));
                let path = request.split(' ').nth(1).unwrap_or_default();
                let found = files.iter().find(|(of, _)| path.starts_with(of)).map(|(_, body)| *body);
                let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{own}/login\",service=\"{own}\"\r\n");
                let (status, head, body) = match found {
                    _ if path.starts_with("/login?scope=") && shows("basic bjpw") => {
                        ("200 OK", "", "{\"token\":\"t0\"}")
                    }
                    _ if path.starts_with("/login") => ("403 Forbidden", "", ""),
                    _ if !shows("bearer t0") => ("401 Unauthorized", challenge.as_str(), ""),
                    Some(body) => ("200 OK", "", body),
                    None => ("404 Not Found", "", ""),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("login"), secret).expect("written");
        let url = format!("oci+http://{at}/m:1").try_into().expect("a URL");
        let from = BundlesConfig { url, root: None, ca_file: None, token_file: Some(dir.path().join("login")) };
        (Server::new(&from, None).expect("a server"), dir)
    }

    #[tokio::test]
    async fn a_registry_is_logged_in_to_where_it_says() {
        const MANIFEST: &str = "{\"layers\":[{\"digest\":\"sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc\",\
                                \"annotations\":{\"org.opencontainers.image.title\":\"list.json\"}}]}";
        const FILES: &[(&str, &str)] = &[("/v2/m/manifests/1", MANIFEST), ("/v2/m/blobs/sha256:ccc", "[]")];
        let (server, _dir) = registry(FILES, "n:p").await;
        assert_eq!(server.document("list.json").await.expect("it comes"), Some(b"[]".to_vec()));
        assert_eq!(server.document("root/2.json").await.expect("nothing"), None);
        let (server, _dir) = registry(FILES, "n:q").await;
        let error = format!("{:#}", server.document("list.json").await.expect_err("refused"));
        assert!(error.contains("its login at http://") && error.contains("answers 403"), "{error}");
        let (server, _dir) = registry(&[], "n:p").await;
        let error = format!("{:#}", server.document("list.json").await.expect_err("nothing there"));
        assert!(error.contains("/v2/m/manifests/1: the registry has no such artifact"), "{error}");
    }
}
