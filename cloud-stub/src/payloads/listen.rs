//! The address payloads come to: TLS and a token wherever others can reach it.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use hedge_listen::{Bounds, CancellationToken, Listener};

use super::{Storage, routes};
use crate::identity::{certificate_in, server_config};

/// Devices at once, of which those that fetch a bundle may take an hour; others wait to be let in. A site with one
/// address may have many.
const BOUNDS: Bounds = Bounds { what: "--payload-listen", connections_max: 1024, address_max: 256, files_each: 2 };

/// Where payloads are taken, if they are.
#[derive(Debug, Args)]
pub struct PayloadsArgs {
    /// Take payloads that are too large for MQTT by HTTPS here. Any address but loopback needs a certificate and a token
    #[arg(long, value_name = "ADDR", env = "HEDGE_CLOUD_PAYLOAD_LISTEN")]
    pub payload_listen: Option<SocketAddr>,

    /// The certificate shown there (PEM)
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_PAYLOAD_CERT", requires_all = ["payload_listen", "payload_key"])]
    pub payload_cert: Option<PathBuf>,

    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_PAYLOAD_KEY", requires = "payload_cert")]
    pub payload_key: Option<PathBuf>,

    /// File that holds the token devices must show there, and nothing else
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_PAYLOAD_TOKEN_FILE", requires = "payload_listen")]
    pub payload_token_file: Option<PathBuf>,

    /// Where such payloads lie until their case comes; all instances need the same one [default: payloads in the state
    /// directory]
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_PAYLOAD_DIR")]
    pub payload_dir: Option<PathBuf>,

    /// Serve the published bundles of this folder under /bundles of that address, to devices that show the token
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_BUNDLES", requires = "payload_listen")]
    pub bundles: Option<PathBuf>,
}

impl PayloadsArgs {
    /// Opens the address, if there is one, and serves until the process ends. Returns the real address.
    pub async fn serve(&self, storage: Storage) -> anyhow::Result<Option<SocketAddr>> {
        let Some(listen) = self.payload_listen else { return Ok(None) };
        let tls = match (&self.payload_cert, &self.payload_key) {
            (Some(certificate), Some(key)) => Some(
                server_config(certificate_in(certificate.clone(), key.clone())?, None)
                    .context("TLS cannot be set up")?,
            ),
            _ => None,
        };
        let token = self.payload_token_file.as_ref().map(|path| -> anyhow::Result<String> {
            let token = hedge_inference::read_secret(path).with_context(|| path.display().to_string())?;
            ensure!(!token.is_empty(), "--payload-token-file {} is empty", path.display());
            Ok(token)
        });
        let token = token.transpose()?;
        if !listen.ip().is_loopback() && (tls.is_none() || token.is_none()) {
            bail!(
                "--payload-listen {listen} can be reached by others: give --payload-cert, --payload-key and \
                 --payload-token-file"
            );
        }
        if let Some(dir) = self.bundles.as_ref().filter(|dir| !dir.join("list.json").is_file()) {
            bail!(
                "--bundles {} is no folder of published bundles: it has no list.json; `hedge-cloud bundle publish` \
                 makes one",
                dir.display()
            );
        }
        let listener = Listener::tcp(listen).await.context("--payload-listen")?;
        let address = listener.address().unwrap_or(listen);
        let routes = routes(storage, token.as_deref(), self.bundles.as_deref());
        tokio::spawn(hedge_listen::serve(listener, BOUNDS, tls, routes, CancellationToken::new()));
        Ok(Some(address))
    }
}
