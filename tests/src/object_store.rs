//! A server that speaks S3, from PyPI: `moto`, which keeps everything in memory.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::address;
use crate::program::{Program, Recipe};

/// Names the interpreter of the environment that has it.
const PYTHON: &str = "HEDGETEST_PYTHON";

#[must_use]
pub fn is_installed() -> bool {
    std::env::var_os(PYTHON).is_some()
}

/// Python and what it loads, on a busy machine.
const START_WAIT_MAX: Duration = Duration::from_secs(60);

const BUCKET: &str = "pictures";

/// A running server with one bucket.
pub struct ObjectStore {
    program: Program,
    address: SocketAddr,
}

impl ObjectStore {
    pub fn start(dir: &Path) -> Result<Self> {
        let python = std::env::var_os(PYTHON).context("the tests' Python is not here; `cargo xtask test` makes it")?;
        let address = address::own(9000);
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let recipe = Recipe::new("moto", python.into(), dir).arguments(["-m", "moto.server", "-H", &host, "-p", &port]);
        let mut store = Self { program: recipe.start()?, address };
        let made = format!("http://{address}/{BUCKET}");
        store.program.wait_for("the object store is ready", START_WAIT_MAX, |_| {
            Ok(ureq::put(&made).header("Authorization", AUTHORIZATION).send_empty().ok())
        })?;
        Ok(store)
    }

    /// What a cloud is started with.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("HEDGE_CLOUD_PAYLOADS", format!("s3://{BUCKET}/hedge")),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// The names of all objects; a thousand at most.
    pub fn names(&self) -> Result<Vec<String>> {
        let url = format!("http://{}/{BUCKET}?list-type=2", self.address);
        let list = ureq::get(&url).header("Authorization", AUTHORIZATION).call()?.body_mut().read_to_string()?;
        let keys = list.split("<Key>").skip(1);
        Ok(keys.filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned())).collect())
    }

    /// Nobody is answered any more, until [`Self::thaw`].
    pub fn freeze(&self) -> Result<()> {
        self.program.signal(Signal::STOP)
    }

    pub fn thaw(&self) -> Result<()> {
        self.program.signal(Signal::CONT)
    }
}

/// It looks at the names in it, not at the signature.
const AUTHORIZATION: &str =
    "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
