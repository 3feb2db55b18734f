//! Keeps what the cloud knows: cases, their payloads, verdicts, devices, totals.
//!
//! One [`Writer`] owns all changes and groups them into durable commits; any number of [`Reader`]s look
//! at what is committed. What a message means, who may send it and what is answered is decided elsewhere;
//! nothing here knows MQTT or a model.
//!
//! They are in a file, or for several instances on a PostgreSQL server: [`RecordsAt`]. Tables, columns and nearly all
//! statements are the same.
//!
//! Crash rule: SQLite in WAL mode with `synchronous = FULL`, or a server's commit, so what a commit returned for
//! survives a power cut. A case, its payload and the totals change in one transaction.
//!
//! Several instances: a commit holds the locks of all devices it is about from its beginning on, taken in order, so
//! that no two decide about one device at the same time and none waits for one that waits for it. Each counts in a row
//! of its own. Each unanswered case is one instance's; see `lease.rs`.

mod args;
mod audit;
mod checkpoint;
mod delete;
mod devices;
mod files;
mod lease;
mod objects;
mod postgres;
mod prune;
mod reader;
mod review;
mod schema;
mod spot_checks;
mod sql;
#[cfg(test)]
pub(crate) mod testing;
mod totals;
mod trend;
mod wanted;
mod writer;

pub use args::RecordsArgs;
pub use audit::{Act, Audit, AuditRow};
pub use delete::Deleted;
pub use objects::{Coming, Objects, Payload};
pub use prune::Keep;
pub use reader::{CaseRow, DeviceEvent, DeviceRow, Reader, SettingsRow};
pub use review::{CaseList, Closed, Place, Sought};
pub use totals::Totals;
pub use writer::{Batch, Waiting, Writer};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hedge_proto::{Digest, Verdict, from_cbor};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use postgres::Server;
use sql::Sql;

/// The largest document of a row that is read.
const ROW_BYTES_MAX: usize = 1024 * 1024;

/// The database's file name in the state directory.
pub const FILE_NAME: &str = "records.sqlite";

/// Why the records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the records in {path} cannot be opened: {source}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "the records in {path} have layout {found}, newer than the {known} this version reads; start the newer version"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("another hedge-cloud works with the records in {}: stop it, or give this one its own --state-dir", .0.display())]
    InUse(PathBuf),
    #[error("{path} cannot be used: {source}")]
    Unusable { path: PathBuf, source: std::io::Error },
    #[error(
        "{} was removed or replaced while this program works with it, and what is written now would be gone at the next \
         start: put it back, or start again with what is in {} then", file.display(), records.display()
    )]
    Moved { records: PathBuf, file: PathBuf },
    #[error("the records cannot be read or written: {0}")]
    Sql(#[from] rusqlite::Error),
    #[error("the records cannot be read or written: {}", postgres::said(.0))]
    Server(#[from] tokio_postgres::Error),
    #[error("the records cannot be reached ({server}): {reason}")]
    Unreached { server: String, reason: String },
    #[error("the records' server does not answer ({0})")]
    Silent(String),
    #[error("the tables cannot be made or upgraded ({server}): {reason}")]
    Layout { server: String, reason: String },
    #[error("--records names no PostgreSQL database: {0}; write postgres://USER@HOST/DATABASE")]
    Address(String),
    #[error("--records-ca {path}: {reason}")]
    Authority { path: PathBuf, reason: String },
    #[error("another instance is called `{0}` and lives; give each its own --instance")]
    NameTaken(String),
    #[error("`{0}` was not heard of for so long that another process has its name, and its cases; start again")]
    Replaced(String),
    #[error("--payloads: {0}")]
    ObjectsAddress(String),
    #[error("the payloads' store cannot be used: {0}")]
    Objects(String),
    #[error("this payload lies outside the database: give --payloads")]
    ElsewhereUnknown,
    /// A row that this program did not write like this.
    #[error("a record is damaged: {0}")]
    Damaged(String),
}

/// Where the records are.
#[derive(Debug, Clone)]
pub struct RecordsAt {
    pub(crate) database: Database,
    /// Where payloads are, if not with the rest.
    objects: Option<Objects>,
}

#[derive(Debug, Clone)]
pub(crate) enum Database {
    /// A file of one instance.
    File(PathBuf),
    /// A server of any number of instances.
    Server(Box<Server>),
}

impl RecordsAt {
    #[must_use]
    pub fn file(path: PathBuf) -> Self {
        Self { database: Database::File(path), objects: None }
    }

    /// With payloads in this store.
    #[must_use]
    pub(crate) fn with_objects(self, objects: Objects) -> Self {
        Self { objects: Some(objects), ..self }
    }

    /// Reads `postgres://USER@HOST/DATABASE`. The server's certificate is checked against `authority`, or those that the
    /// system trusts.
    pub fn server(url: &str, authority: Option<&Path>) -> Result<Self, StoreError> {
        if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(StoreError::Address("it does not begin with postgres://".to_owned()));
        }
        let mut roots = rustls::RootCertStore::empty();
        match authority {
            Some(path) => {
                let wrong = |reason: String| StoreError::Authority { path: path.to_owned(), reason };
                let pem = hedge_inference::read_pem(path).map_err(|error| wrong(error.to_string()))?;
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                    roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(wrong("it holds no certificate".to_owned()));
                }
            }
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
        let tls = tls.map_err(damaged)?.with_root_certificates(roots).with_no_client_auth();
        let server = Server::read(url, tls).map_err(StoreError::Address)?;
        Ok(Self { database: Database::Server(Box::new(server)), objects: None })
    }

    /// Where what is made of them may lie for a while.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        match &self.database {
            Database::File(path) => path.parent().unwrap_or(path).to_owned(),
            Database::Server(_) => std::env::temp_dir(),
        }
    }

    fn open_for_reading(&self) -> Result<Sql, StoreError> {
        Ok(match &self.database {
            Database::File(path) => Sql::File(schema::open_for_reading(path)?),
            Database::Server(server) => Sql::Server(Box::new(postgres::Session::new(server))),
        })
    }
}

/// Of all instances together.
fn totals(sql: &Sql) -> Result<Totals, StoreError> {
    let read = |row: &sql::Row<'_>| serde_json::from_str(&row.get::<String>(0)?).map_err(damaged);
    Ok(Totals::sum(sql.rows("SELECT json FROM totals", &[], read)?))
}

/// What is on record about one case.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    pub payload_sha256: Digest,
    /// Of the sample's other form: of the whole that is offered, or of the thumbnail that came before it.
    pub other_sha256: Option<Digest>,
    pub standing: Standing,
}

/// How far a case has come here.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Recorded, not answered yet.
    Waiting,
    /// Recorded with a thumbnail, which is not enough: the whole is wanted of its device.
    Wanted,
    /// The verdict of the highest revision.
    Answered(Verdict),
    /// The model could not; it may be tried again.
    Failed(String),
    /// It will never be answered.
    Dead(String),
}

/// How [`Standing`] is written in the `state` column.
const WAITING: i64 = 0;
const ANSWERED: i64 = 1;
const FAILED: i64 = 2;
const DEAD: i64 = 3;

impl Standing {
    /// By the columns `state`, `reason` and `wanted_ms`, and the latest verdict.
    fn read(
        state: i64,
        reason: Option<String>,
        wanted_ms: Option<i64>,
        verdict: Option<Vec<u8>>,
    ) -> Result<Self, StoreError> {
        let reason = reason.unwrap_or_default();
        Ok(match state {
            WAITING if wanted_ms.is_some() => Self::Wanted,
            WAITING => Self::Waiting,
            ANSWERED => {
                let verdict = verdict.ok_or_else(|| damaged("an answered case without a verdict"))?;
                Self::Answered(from_cbor(&verdict, ROW_BYTES_MAX).map_err(damaged)?)
            }
            FAILED => Self::Failed(reason),
            DEAD => Self::Dead(reason),
            other => return Err(damaged(format!("state {other}"))),
        })
    }
}

fn damaged(error: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(error.to_string())
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
