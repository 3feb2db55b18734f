//! The session with a PostgreSQL server. It is spoken to from threads that wait, as the file is; a runtime of one thread
//! carries the bytes.
//!
//! Changes are sent without waiting for each to be carried out: a commit waits for all of them, and fails with the first
//! that failed. So a case costs the questions that are asked about it, not a round trip for each thing that is noted.
//!
//! A server that has gone is dialled again by whoever wants to begin something, and never in the middle of a commit. A
//! server that does not answer is given up after [`ANSWER_MAX`]: the cloud tells devices to wait, as for a full disk.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::StoreError;
use super::sql::Value;

/// How long a server may take for one answer. What the intake asks takes milliseconds.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// How long dialling may take, and how long bytes may lie unacknowledged before the connection counts as cut.
const DIAL_MAX: Duration = Duration::from_secs(3);

/// After a dial that failed nobody dials for so long: who wants to begin something is told at once.
const DIAL_REST: Duration = Duration::from_millis(500);

/// What another instance holds up, and a statement, ends before [`ANSWER_MAX`]; one that stopped in the middle of a
/// commit gives its locks back.
const LIMITS: &str = "SET statement_timeout = '7s'; SET lock_timeout = '5s'; \
                      SET idle_in_transaction_session_timeout = '5s'";

/// Held while tables are made or upgraded: any number of instances may start at once.
const UPGRADE_LOCK: i64 = 0x6865_6467_6500;

type Pending = Pin<Box<dyn Future<Output = Result<u64, Error>> + Send>>;

/// How the server is reached.
#[derive(Clone)]
pub(crate) struct Server {
    config: Config,
    tls: MakeRustlsConnect,
}

impl std::fmt::Debug for Server {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({self})")
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use tokio_postgres::config::Host;
        let host = self.config.get_hosts().first().map_or_else(
            || "?".to_owned(),
            |host| match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            },
        );
        write!(f, "PostgreSQL at {host}, database {}", self.config.get_dbname().unwrap_or("?"))
    }
}

impl Server {
    /// Reads `postgres://USER@HOST/DATABASE`. `tls` is used unless the host is this machine or the address says
    /// `sslmode=disable`; nothing is ever sent in the clear because a server wants it so.
    pub(super) fn read(url: &str, tls: rustls::ClientConfig) -> Result<Self, String> {
        use tokio_postgres::config::{Host, SslMode};
        // What stands behind it would be the host, which every error names: a part of the password.
        let before_query = url.split('?').next().unwrap_or_default();
        let (authority, path) =
            before_query.split_once("://").and_then(|(_, rest)| rest.split_once('/')).unwrap_or((before_query, ""));
        if authority.matches('@').count() > 1 || path.contains('@') {
            return Err("there is an `@` or `/` in its user or password; write %40 and %2F for them".to_owned());
        }
        let mut config: Config = url.parse().map_err(|error: Error| said(&error))?;
        if config.get_hosts().is_empty() || config.get_dbname().is_none() {
            return Err("it names no host or no database".to_owned());
        }
        let is_here = |host: &Host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
        };
        if config.get_ssl_mode() == SslMode::Prefer {
            let here = config.get_hosts().iter().all(is_here);
            config.ssl_mode(if here { SslMode::Disable } else { SslMode::Require });
        }
        config.connect_timeout(DIAL_MAX).tcp_user_timeout(DIAL_MAX).keepalives_idle(DIAL_MAX);
        Ok(Self { config, tls: MakeRustlsConnect::new(tls) })
    }

    fn dial(&self) -> Result<Client, StoreError> {
        let (config, tls) = (self.config.clone(), self.tls.clone());
        // `connect_timeout` does not bound a server that takes the connection and then says nothing.
        let dial = async move {
            let (client, connection) = config.connect(tls).await?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::warn!("the connection to the records' server has ended: {}", said(&error));
                }
            });
            client.batch_execute(LIMITS).await?;
            Ok(client)
        };
        let dial = runtime()?.spawn(async move { tokio::time::timeout(2 * DIAL_MAX, dial).await });
        let dialled = futures_executor::block_on(dial).map_err(super::damaged)?;
        dialled
            .map_err(|_| StoreError::Silent(self.to_string()))?
            .map_err(|error: Error| StoreError::Unreached { server: self.to_string(), reason: said(&error) })
    }
}

/// Why, in the server's words if they are below it, or in those of the library.
pub(super) fn said(error: &(dyn std::error::Error + 'static)) -> String {
    let mut chain = std::iter::successors(Some(error), |error| error.source());
    let server = chain.find_map(|error| error.downcast_ref::<tokio_postgres::error::DbError>());
    server.map_or_else(|| hedge_proto::in_one_line(error), |server| server.message().to_owned())
}

/// Never ends: what drops a session may itself run in another runtime, where none may be waited for.
fn runtime() -> Result<&'static Runtime, StoreError> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let built =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("records").enable_all().build();
    let built = built.map_err(super::damaged)?;
    Ok(RUNTIME.get_or_init(|| built))
}

struct Open {
    client: Arc<Client>,
    statements: HashMap<String, Statement>,
    /// Sent, and not waited for yet.
    pending: Vec<Pending>,
}

/// One connection, dialled anew when it has gone.
pub(super) struct Session {
    server: Server,
    open: RefCell<Option<Open>>,
    /// When a dial failed last, and why.
    failed: RefCell<Option<(Instant, String)>>,
    is_in_commit: Cell<bool>,
    /// How often it was dialled.
    dialled: Cell<u64>,
}

impl Session {
    pub(super) fn new(server: &Server) -> Self {
        Self {
            server: server.clone(),
            open: RefCell::new(None),
            failed: RefCell::new(None),
            is_in_commit: Cell::new(false),
            dialled: Cell::new(0),
        }
    }

    /// Makes the tables, or brings them to this version's layout.
    pub(super) fn upgrade(&self, layouts: &[refinery::Migration]) -> Result<(), StoreError> {
        let mut client = self.server.dial()?;
        // Gone with the connection.
        let lock = async { client.execute("SELECT pg_advisory_lock($1)", &[&UPGRADE_LOCK]).await };
        self.wait(lock)?.map_err(StoreError::from)?;
        let runner = refinery::Runner::new(layouts);
        self.wait(runner.run_async(&mut client))?
            .map(drop)
            .map_err(|error| StoreError::Layout { server: self.server.to_string(), reason: said(&error) })
    }

    /// Waits on this thread, which may be another runtime's.
    fn wait<T>(&self, what: impl Future<Output = T>) -> Result<T, StoreError> {
        let _timers = runtime()?.enter();
        futures_executor::block_on(tokio::time::timeout(ANSWER_MAX, what))
            .map_err(|_| StoreError::Silent(self.server.to_string()))
    }

    fn dial(&self) -> Result<(), StoreError> {
        if self.open.borrow().as_ref().is_some_and(|open| !open.client.is_closed()) {
            return Ok(());
        }
        *self.open.borrow_mut() = None;
        if let Some((_, reason)) = self.failed.borrow().as_ref().filter(|(at, _)| at.elapsed() < DIAL_REST) {
            return Err(StoreError::Unreached { server: self.server.to_string(), reason: reason.clone() });
        }
        let dialled = self.server.dial();
        *self.failed.borrow_mut() = dialled.as_ref().err().map(|error| {
            let reason = if let StoreError::Unreached { reason, .. } = error { reason.as_str() } else { "no answer" };
            (Instant::now(), reason.to_owned())
        });
        let client = Arc::new(dialled?);
        self.dialled.set(self.dialled.get() + 1);
        *self.open.borrow_mut() = Some(Open { client, statements: HashMap::new(), pending: Vec::new() });
        Ok(())
    }

    /// Grows with each connection.
    pub(super) fn number(&self) -> Result<u64, StoreError> {
        self.dial()?;
        Ok(self.dialled.get())
    }

    /// Works on the connection; one that does not answer is closed.
    fn with<T>(&self, work: impl FnOnce(&mut Open) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if !self.is_in_commit.get() {
            self.dial()?;
        }
        let mut open = self.open.borrow_mut();
        let gone = || StoreError::Unreached { server: self.server.to_string(), reason: "it went away".to_owned() };
        let worked = work(open.as_mut().ok_or_else(gone)?);
        if matches!(worked, Err(StoreError::Silent(_))) {
            *open = None;
        }
        worked
    }

    fn statement(&self, open: &mut Open, text: &str) -> Result<Statement, StoreError> {
        if let Some(statement) = open.statements.get(text) {
            return Ok(statement.clone());
        }
        let prepared = self.wait(open.client.prepare(&text.replace('?', "$")))?;
        let statement = prepared.map_err(|error| self.first(open, error))?;
        open.statements.insert(text.to_owned(), statement.clone());
        Ok(statement)
    }

    pub(super) fn rows(&self, text: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        self.with(|open| {
            let statement = self.statement(open, text)?;
            let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
            let found = self.wait(open.client.query(&statement, &values))?;
            found.map_err(|error| self.first(open, error))
        })
    }

    /// Of a commit in which something failed before, why that did.
    fn first(&self, open: &mut Open, error: Error) -> StoreError {
        let before = match error.code() {
            Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => self.carried_out(open).err(),
            _ => None,
        };
        before.unwrap_or_else(|| error.into())
    }

    pub(super) fn execute(&self, text: &str, values: &[Value<'_>]) -> Result<(), StoreError> {
        self.with(|open| {
            let statement = self.statement(open, text)?;
            let (client, values) = (open.client.clone(), values.iter().map(Owned::from).collect::<Vec<_>>());
            self.send(open, async move {
                client.execute_raw(&statement, values.iter().map(|value| value as &(dyn ToSql + Sync))).await
            })?;
            if self.is_in_commit.get() { Ok(()) } else { self.carried_out(open) }
        })
    }

    /// Polled once, it lies in the connection's queue, before whatever is sent next.
    fn send(
        &self,
        open: &mut Open,
        what: impl Future<Output = Result<u64, Error>> + Send + 'static,
    ) -> Result<(), StoreError> {
        let mut what: Pending = Box::pin(what);
        match what.as_mut().now_or_never() {
            Some(done) => drop(done?),
            None => open.pending.push(what),
        }
        Ok(())
    }

    fn send_simple(&self, open: &mut Open, text: &'static str) -> Result<(), StoreError> {
        let client = open.client.clone();
        self.send(open, async move { client.batch_execute(text).await.map(|()| 0) })
    }

    fn carried_out(&self, open: &mut Open) -> Result<(), StoreError> {
        for pending in std::mem::take(&mut open.pending) {
            self.wait(pending)??;
        }
        Ok(())
    }

    pub(super) fn begin(&self) -> Result<(), StoreError> {
        self.with(|open| self.send_simple(open, "BEGIN"))?;
        self.is_in_commit.set(true);
        Ok(())
    }

    pub(super) fn commit(&self) -> Result<(), StoreError> {
        // A server to which a change was wrong rolls back at this word: the change says so before it is looked at.
        let committed = self.with(|open| {
            self.send_simple(open, "COMMIT")?;
            self.carried_out(open)
        });
        if committed.is_ok() {
            self.is_in_commit.set(false);
        }
        committed
    }

    pub(super) fn rollback(&self) {
        let undone = self.with(|open| {
            open.pending.clear();
            self.send_simple(open, "ROLLBACK")?;
            self.carried_out(open)
        });
        if undone.is_err() {
            // The server undoes what a connection that has gone did not commit.
            *self.open.borrow_mut() = None;
        }
        self.is_in_commit.set(false);
    }
}

/// A value that is under way.
#[derive(Debug)]
pub(super) enum Owned {
    Nothing,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Owned {
    pub(super) fn as_value(&self) -> Value<'_> {
        match self {
            Self::Nothing => Value::Nothing,
            Self::Number(number) => Value::Number(*number),
            Self::Text(text) => Value::Text(text),
            Self::Bytes(bytes) => Value::Bytes(bytes),
        }
    }
}

impl From<&Value<'_>> for Owned {
    fn from(value: &Value<'_>) -> Self {
        match *value {
            Value::Nothing => Self::Nothing,
            Value::Number(number) => Self::Number(number),
            Value::Text(text) => Self::Text(text.to_owned()),
            Value::Bytes(bytes) => Self::Bytes(bytes.to_vec()),
        }
    }
}

impl ToSql for Owned {
    fn to_sql(
        &self,
        kind: &tokio_postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.as_value().to_sql(kind, out)
    }

    fn accepts(_: &tokio_postgres::types::Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use hedge_proto::Name;

    use crate::store::sql::Sql;
    use crate::store::testing::{Records, authority};
    use crate::store::{Database, RecordsAt, StoreError, Writer};

    /// Why it is not used.
    fn refusal(at: &RecordsAt) -> String {
        match at.open_for_reading().and_then(|sql| sql.exists("SELECT 1", &[])) {
            Err(StoreError::Unreached { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_role_without_rights_is_told_so_in_the_server_s_words() {
        let Some(records) = Records::on_server() else { return };
        let session = records.at.open_for_reading().expect("a session");
        session.execute("CREATE ROLE poor LOGIN", &[]).expect("a role");
        let url = format!("postgres://poor@/postgres?host={}", records.dir.path().display());
        let poor = RecordsAt::server(&url, None).expect("an address");
        let Err(error) = Writer::open(&poor, &Name::new("one").expect("valid")) else { panic!("it may make tables") };
        assert!(error.to_string().contains("permission denied"), "{error}");
    }

    #[test]
    fn why_a_commit_failed_is_told_also_where_it_is_seen_later() {
        let Some(records) = Records::on_server() else { return };
        let sql = records.at.open_for_reading().expect("a session");
        let Sql::Server(session) = &sql else { panic!("a file") };
        session.begin().expect("begun");
        session.execute("SELECT 1 / count(*) FROM generate_series(1, 300000) n WHERE n < 0", &[]).expect("sent");
        let error = session.rows("SELECT 2", &[]).expect_err("the commit has failed").to_string();
        assert!(error.contains("division by zero"), "{error}");
        session.rollback();
        session.rows("SELECT 2", &[]).expect("the next one");
    }

    #[test]
    fn no_part_of_a_password_is_taken_for_the_host() {
        for url in ["postgres://me:pass@word@host/records", "postgres://me:pass/word@host/records"] {
            let error = RecordsAt::server(url, None).expect_err("no address").to_string();
            assert!(error.contains("write %40 and %2F") && !error.contains("word@"), "{error}");
        }
        let at =
            RecordsAt::server("postgres://me:pass%40word%2F@host/records?options=-c%20a@b", None).expect("an address");
        let Database::Server(server) = &at.database else { panic!("a file") };
        assert_eq!(server.config.get_hosts(), [tokio_postgres::config::Host::Tcp("host".to_owned())]);
    }

    #[test]
    fn a_server_elsewhere_is_used_by_tls_and_with_the_right_certificate_only() {
        let Some(mut records) = Records::by_tls() else { return };
        let session = records.at.open_for_reading().expect("a session");
        let statement = "SELECT 1 FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl";
        assert!(session.exists(statement, &[]).expect("asked"), "not by TLS");

        let Database::Server(server) = &records.at.database else { panic!("a file") };
        let [tokio_postgres::config::Host::Tcp(address)] = server.config.get_hosts() else { panic!("one host") };
        authority(records.dir.path(), "other.pem");
        let url = format!("postgres://hedge@{address}/postgres?sslmode=require");
        let other = RecordsAt::server(&url, Some(&records.dir.path().join("other.pem"))).expect("an address");
        let reason = refusal(&other);
        assert!(reason.contains("certificate"), "{reason}");

        records.restart_with(&["-c", "ssl=off"]);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        // While it starts nobody answers; then it says that it has no TLS, and is not spoken to in the clear.
        while !refusal(&records.at).contains("TLS") {
            assert!(std::time::Instant::now() < until, "{}", refusal(&records.at));
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
    }
}
