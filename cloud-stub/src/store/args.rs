//! How the command line says where the records are.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{FILE_NAME, Objects, RecordsAt, StoreError};

/// Where the records are, if not in the state directory.
#[derive(Debug, Args)]
pub struct RecordsArgs {
    /// Keep the records in this PostgreSQL database, which any number of instances may share, instead of in --state-dir:
    /// postgres://USER:PASSWORD@HOST/DATABASE. With TLS, unless the host is this machine or `?sslmode=disable` is added
    #[arg(long = "records", value_name = "URL", env = "HEDGE_CLOUD_RECORDS", hide_env_values = true)]
    pub url: Option<String>,

    /// The authority whose certificate that server shows (PEM) [default: those the system trusts]
    #[arg(long = "records-ca", value_name = "FILE", env = "HEDGE_CLOUD_RECORDS_CA", requires = "url")]
    pub authority: Option<PathBuf>,

    /// Keep payloads in this folder or S3-compatible store, which all instances may share, instead of with the records:
    /// file:///PATH or s3://BUCKET/PREFIX. A store's keys, region and, for a server of your own, address are those of
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL: see docs/instances.md
    #[arg(long = "payloads", value_name = "URL", env = "HEDGE_CLOUD_PAYLOADS")]
    pub objects: Option<String>,
}

impl RecordsArgs {
    /// Where they are; `state_dir` has the file.
    pub fn at(&self, state_dir: &Path) -> Result<RecordsAt, StoreError> {
        let at = match &self.url {
            Some(url) => RecordsAt::server(url, self.authority.as_deref())?,
            None => RecordsAt::file(state_dir.join(FILE_NAME)),
        };
        Ok(match &self.objects {
            Some(url) => at.with_objects(Objects::open(url, &|name| std::env::var(name).ok())?),
            None => at,
        })
    }
}
