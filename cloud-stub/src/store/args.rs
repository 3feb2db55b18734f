//! How the command line says where the records are.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{FILE_NAME, RecordsAt, StoreError};

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
}

impl RecordsArgs {
    /// Where they are; `state_dir` has the file.
    pub fn at(&self, state_dir: &Path) -> Result<RecordsAt, StoreError> {
        match &self.url {
            Some(url) => RecordsAt::server(url, self.authority.as_deref()),
            None => Ok(RecordsAt::File(state_dir.join(FILE_NAME))),
        }
    }
}
