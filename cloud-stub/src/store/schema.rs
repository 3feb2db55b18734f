//! The tables, and the steps from older layouts to this one. The tables on a server are in `postgres_*.sql`.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::StoreError;

/// Each step leads from the layout of its index to the next. Never edit one that was released: add one.
const STEPS: &[&str] = &[
    r"
CREATE TABLE cases (
    seq            INTEGER PRIMARY KEY,
    id             TEXT NOT NULL UNIQUE,
    device         TEXT NOT NULL,
    task           TEXT NOT NULL,
    received_ms    INTEGER NOT NULL,
    payload_sha256 BLOB NOT NULL,
    payload_bytes  INTEGER NOT NULL,
    content_type   TEXT NOT NULL,
    header         BLOB NOT NULL,              -- the case as CBOR, without its payload
    state          INTEGER NOT NULL,           -- 0 waiting, 1 answered, 2 failed, 3 dead
    attempts       INTEGER NOT NULL DEFAULT 0, -- no longer used
    reason         TEXT,                       -- of state 2 and 3
    agrees         INTEGER                     -- of state 1: local and cloud answer say the same
);
CREATE INDEX cases_by_state ON cases (state, seq) WHERE state = 0;
CREATE INDEX cases_by_device ON cases (device, seq);
CREATE TABLE payloads (seq INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE verdicts (
    seq      INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    given_ms INTEGER NOT NULL,
    verdict  BLOB NOT NULL,                    -- CBOR
    PRIMARY KEY (seq, revision)
) WITHOUT ROWID;
CREATE TABLE devices (
    device       TEXT PRIMARY KEY,
    status       BLOB,                         -- up/status as JSON
    status_ms    INTEGER,
    telemetry    BLOB,                         -- up/telemetry as JSON
    telemetry_ms INTEGER,
    cases        INTEGER NOT NULL DEFAULT 0,
    agreed       INTEGER NOT NULL DEFAULT 0,
    disagreed    INTEGER NOT NULL DEFAULT 0,
    case_ms      INTEGER
) WITHOUT ROWID;
CREATE TABLE totals (one INTEGER PRIMARY KEY CHECK (one = 1), json TEXT NOT NULL);
",
    r"
ALTER TABLE devices ADD COLUMN reported TEXT;    -- up/reported as JSON
ALTER TABLE devices ADD COLUMN reported_ms INTEGER;
ALTER TABLE devices ADD COLUMN desired TEXT;     -- down/desired as JSON
ALTER TABLE devices ADD COLUMN desired_ms INTEGER;
CREATE TABLE device_events (
    seq    INTEGER PRIMARY KEY,
    device TEXT NOT NULL,
    at_ms  INTEGER NOT NULL,
    kind   TEXT NOT NULL,                        -- desired, reported, reply
    json   TEXT NOT NULL
);
CREATE INDEX device_events_by_device ON device_events (device, seq);
",
    r"
ALTER TABLE cases ADD COLUMN declined TEXT;      -- names, between commas, of the answerers that will not answer it
ALTER TABLE cases ADD COLUMN review INTEGER NOT NULL DEFAULT 0; -- 1: it waits for a person
CREATE INDEX cases_for_review ON cases (seq) WHERE review = 1;
CREATE TABLE spent (
    month    INTEGER NOT NULL,                   -- 202611
    answerer TEXT NOT NULL,
    micro    INTEGER NOT NULL,                   -- millionths
    PRIMARY KEY (month, answerer)
) WITHOUT ROWID;
",
    r"
CREATE TABLE device_cases (                      -- beside `devices`: its long documents are not written anew with each case
    device    TEXT PRIMARY KEY,
    cases     INTEGER NOT NULL DEFAULT 0,
    agreed    INTEGER NOT NULL DEFAULT 0,
    disagreed INTEGER NOT NULL DEFAULT 0,
    case_ms   INTEGER
) WITHOUT ROWID;
INSERT INTO device_cases SELECT device, cases, agreed, disagreed, case_ms FROM devices WHERE cases > 0;
",
    r"
CREATE INDEX cases_disagreed ON cases (seq) WHERE agrees = 0;
CREATE TABLE corrections (                       -- words on closed cases that their devices may not have heard
    seq   INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL
);
",
    r"
ALTER TABLE cases ADD COLUMN instance TEXT NOT NULL DEFAULT ''; -- of state 0: who is to answer it
ALTER TABLE totals RENAME TO totals_of_one;
CREATE TABLE totals (instance TEXT PRIMARY KEY, json TEXT NOT NULL); -- what each has counted: the sum is what is so
INSERT INTO totals SELECT '', json FROM totals_of_one;
DROP TABLE totals_of_one;
",
    r"
CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY,
    at_ms   INTEGER NOT NULL,
    who     TEXT NOT NULL,                       -- empty where nobody is asked
    address TEXT NOT NULL,                       -- where the request came from
    act     TEXT NOT NULL,                       -- login, settings, command, review, …
    about   TEXT NOT NULL,                       -- the device or case
    detail  TEXT NOT NULL,
    outcome TEXT NOT NULL                        -- `begun` until it has ended
);
",
    r"
CREATE TABLE trends (                            -- what became of each device: pages of buckets of one length
    device   TEXT NOT NULL,
    bucket_s INTEGER NOT NULL,
    at_s     INTEGER NOT NULL,                   -- when the page begins, since 1970 UTC
    page     BLOB NOT NULL,                      -- CBOR
    UNIQUE (device, bucket_s, at_s)
);
",
    r"
CREATE TABLE spot_checks (                       -- what each device's spot checks of a model have come to
    device  TEXT NOT NULL,
    model   TEXT NOT NULL,
    version TEXT NOT NULL,
    cloud   TEXT NOT NULL,                       -- name and version of whom they were compared with, as JSON
    at_ms   INTEGER NOT NULL,
    counted BLOB NOT NULL,                       -- CBOR
    UNIQUE (model, version, cloud, device)
);
",
    r"
ALTER TABLE cases ADD COLUMN wanted_ms INTEGER;  -- since when the whole sample is wanted; nobody is asked meanwhile
ALTER TABLE cases ADD COLUMN other_sha256 BLOB;  -- of the whole that is offered, or of the thumbnail that came before it
CREATE INDEX cases_wanted ON cases (device) WHERE wanted_ms IS NOT NULL;
",
];

/// The same for a server's tables, which began with the layout above.
pub(super) fn server_steps() -> Result<Vec<refinery::Migration>, refinery::Error> {
    let steps = [
        ("V1__records", include_str!("postgres_1.sql")),
        ("V2__audit", include_str!("postgres_2.sql")),
        ("V3__trends", include_str!("postgres_3.sql")),
        ("V4__spot_checks", include_str!("postgres_4.sql")),
        ("V5__wanted", include_str!("postgres_5.sql")),
    ];
    steps.into_iter().map(|(name, sql)| refinery::Migration::unapplied(name, sql)).collect()
}

/// How long a statement waits for another connection's lock. Readers never block the writer in WAL mode.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// More than the writer has.
const STATEMENTS_MAX: usize = 128;

/// The write-ahead log is cut back to this after a checkpoint.
const WAL_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// The writer itself moves the log into the database from this length on: 256 MiB, should nobody else do it.
const WAL_PAGES_MAX: u32 = 65_536;

/// Opens the database for writing, making or upgrading its tables.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let mut connection = connect(path)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES_MAX).map_err(failed)?;
    upgrade(&mut connection, path).map_err(|error| match error {
        StoreError::Sql(source) => failed(source),
        other => other,
    })?;
    Ok(connection)
}

/// One more connection that writes.
pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_WAIT).map_err(failed)?;
    keep_statements(&connection).map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX).map_err(failed)?;
    Ok(connection)
}

/// Opens the database for looking only.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, StoreError> {
    use rusqlite::OpenFlags;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_WAIT).map_err(failed)?;
    keep_statements(&connection).map_err(failed)?;
    Ok(connection)
}

/// A statement is prepared once: neither the number of others nor other values make SQLite read its text again, which took
/// a tenth of the writer's time.
fn keep_statements(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

fn upgrade(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = i64::try_from(STEPS.len()).map_err(super::damaged)?;
    let done = usize::try_from(found).map_err(super::damaged)?;
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    let transaction = connection.transaction()?;
    for step in &STEPS[done..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_layout_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("r.sqlite");
        open(&path).expect("made").pragma_update(None, "user_version", 99).expect("written");
        assert!(matches!(open(&path), Err(StoreError::Newer { found: 99, .. })));
    }

    #[test]
    fn records_of_an_older_layout_are_kept_and_brought_forward() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("r.sqlite");
        let old = Connection::open(&path).expect("made");
        old.execute_batch(STEPS[0]).expect("the first layout");
        old.execute("INSERT INTO devices (device, cases) VALUES ('d', 3)", []).expect("written");
        old.pragma_update(None, "user_version", 1).expect("written");
        drop(old);
        let new = open(&path).expect("opened");
        let found: (i64, Option<String>) = new
            .query_row("SELECT n.cases, reported FROM devices JOIN device_cases n USING (device)", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .expect("there");
        assert_eq!(found, (3, None));
    }

    #[test]
    fn opening_twice_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("r.sqlite");
        drop(open(&path).expect("made"));
        drop(open(&path).expect("opened"));
    }
}
