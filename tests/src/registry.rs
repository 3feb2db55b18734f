//! Debian's registry of containers, with a name and a password, and what pushes a folder into it as one artifact.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hedge_proto::Digest;
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::program::{Program, Recipe};
use crate::{address, wait};

const PROGRAM: &str = "/usr/bin/docker-registry";

/// `hedge`, and the password as it is and as bcrypt stores it, by the least work: the registry does it again with each request.
pub const LOGIN: &str = "hedge:between hosts";
const STORED: &str = "hedge:$2b$04$O0EGgxymyuURmRtL5xMW0.vCeO/asSEvd7SKB96qkHK5HvHjF8m5G\n";

const START_WAIT_MAX: Duration = Duration::from_secs(60);

#[must_use]
pub fn is_installed() -> bool {
    Path::new(PROGRAM).is_file()
}

/// Runs until it is dropped.
pub struct Registry {
    address: SocketAddr,
    http: Agent,
    _program: Program,
}

impl Registry {
    pub fn start(dir: &Path) -> Result<Self> {
        let address = address::own(5000);
        let own = dir.join("registry");
        std::fs::create_dir_all(&own)?;
        std::fs::write(own.join("passwords"), STORED)?;
        let settings = json!({
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": own.join("data")}},
            "http": {"addr": address.to_string()},
            "auth": {"htpasswd": {"realm": "bundles", "path": own.join("passwords")}},
        });
        let file = own.join("registry.yml");
        // JSON is YAML, too.
        std::fs::write(&file, settings.to_string())?;
        let recipe = Recipe::new("registry", PathBuf::from(PROGRAM), dir).argument("serve").argument(&file);
        let program = recipe.start()?;
        let http = Agent::config_builder().http_status_as_error(false).build().new_agent();
        let registry = Self { address, http, _program: program };
        wait::until_true("the registry listens", START_WAIT_MAX, || Ok(TcpStream::connect(address).is_ok()))?;
        Ok(registry)
    }

    /// `name` with a tag or a digest.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("oci+http://{}/{name}", self.address)
    }

    /// Pushes all files of a folder as `NAME:TAG`; the artifact's digest.
    pub fn push(&self, folder: &Path, name: &str, tag: &str) -> Result<String> {
        let mut layers = Vec::new();
        for file in files(folder)? {
            let bytes = std::fs::read(&file)?;
            let title = file.strip_prefix(folder)?.to_str().context("UTF-8")?;
            let mut layer = self.blob(name, &bytes)?;
            layer["annotations"] = json!({"org.opencontainers.image.title": title});
            layers.push(layer);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.blob(name, b"{}")?,
            "layers": layers,
        })
        .to_string();
        let path = format!("/v2/{name}/manifests/{tag}");
        self.send("PUT", &path, "application/vnd.oci.image.manifest.v1+json", manifest.as_bytes())?;
        Ok(format!("sha256:{}", Digest::of(manifest.as_bytes())))
    }

    fn blob(&self, name: &str, bytes: &[u8]) -> Result<Value> {
        let digest = format!("sha256:{}", Digest::of(bytes));
        let begun = self.send("POST", &format!("/v2/{name}/blobs/uploads/"), "application/octet-stream", b"")?;
        let place = begun.headers().get("location").and_then(|place| place.to_str().ok()).context("no place for it")?;
        let place =
            place.split_once("/v2/").map(|(_, rest)| format!("/v2/{rest}&digest={digest}")).context("a path")?;
        self.send("PUT", &place, "application/octet-stream", bytes)?;
        Ok(json!({"mediaType": "application/octet-stream", "digest": digest, "size": bytes.len()}))
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Response<Body>> {
        let login = STANDARD.encode(LOGIN);
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Basic {login}"))
            .header("content-type", kind)
            .body(body.to_vec())?;
        let response = self.http.run(request)?;
        ensure!(response.status().is_success(), "{method} {path}: {}", response.status());
        Ok(response)
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files.extend(self::files(&path)?) } else { files.push(path) }
    }
    Ok(files)
}
