//! One way to speak SQL to the file and to the server. Statements are written once, with `?1` for the first value, in
//! words that both take; the few that differ stand beside what they are for.

use bytes::BytesMut;
use hedge_proto::from_cbor;
use rusqlite::types::{FromSql, ToSqlOutput, ValueRef};
use serde::de::DeserializeOwned;
use tokio_postgres::types::{FromSql as FromServer, IsNull, ToSql, Type, to_sql_checked};

use super::postgres::Session;
use super::{ROW_BYTES_MAX, StoreError, damaged};
use crate::signed;

/// Records that are open.
pub(super) enum Sql {
    File(rusqlite::Connection),
    Server(Box<Session>),
}

/// A value of a statement.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Nothing,
    Number(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// A row that was found.
pub(super) enum Row<'r> {
    File(&'r rusqlite::Row<'r>),
    Server(&'r tokio_postgres::Row),
}

/// What a column is read as: numbers are `i64` in both, truth is a number.
pub(super) trait Column: FromSql + for<'a> FromServer<'a> {}
impl<T: FromSql + for<'a> FromServer<'a>> Column for T {}

impl Row<'_> {
    pub(super) fn get<T: Column>(&self, column: usize) -> Result<T, StoreError> {
        Ok(match self {
            Self::File(row) => row.get(column)?,
            Self::Server(row) => row.try_get(column)?,
        })
    }

    /// What is kept as CBOR.
    pub(super) fn cbor<T: DeserializeOwned>(&self, column: usize) -> Result<T, StoreError> {
        from_cbor(&self.get::<Vec<u8>>(column)?, ROW_BYTES_MAX).map_err(damaged)
    }
}

impl Sql {
    /// One statement where the two do not take the same.
    pub(super) fn either<'a>(&self, file: &'a str, server: &'a str) -> &'a str {
        match self {
            Self::File(_) => file,
            Self::Server(_) => server,
        }
    }

    /// All rows, read.
    pub(super) fn rows<T>(
        &self,
        statement: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        match self {
            Self::File(connection) => {
                let mut statement = connection.prepare_cached(statement)?;
                let mut rows = statement.query(rusqlite::params_from_iter(values))?;
                let mut all = Vec::new();
                while let Some(row) = rows.next()? {
                    all.push(read(&Row::File(row))?);
                }
                Ok(all)
            }
            Self::Server(session) => {
                session.rows(statement, values)?.iter().map(|row| read(&Row::Server(row))).collect()
            }
        }
    }

    /// The row there is, if there is one.
    pub(super) fn row<T>(
        &self,
        statement: &str,
        values: &[Value<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.rows(statement, values, read)?.pop())
    }

    pub(super) fn exists(&self, statement: &str, values: &[Value<'_>]) -> Result<bool, StoreError> {
        Ok(self.row(statement, values, |_| Ok(()))?.is_some())
    }

    /// Changes something. On a server it may still be under way: whether it went well is known with the commit.
    pub(super) fn execute(&self, statement: &str, values: &[Value<'_>]) -> Result<(), StoreError> {
        match self {
            Self::File(connection) => {
                connection.prepare_cached(statement)?.execute(rusqlite::params_from_iter(values))?;
                Ok(())
            }
            Self::Server(session) => session.execute(statement, values),
        }
    }

    pub(super) fn begin(&self) -> Result<(), StoreError> {
        match self {
            Self::File(connection) => Ok(connection.prepare_cached("BEGIN IMMEDIATE")?.execute([]).map(drop)?),
            Self::Server(session) => session.begin(),
        }
    }

    pub(super) fn commit(&self) -> Result<(), StoreError> {
        match self {
            Self::File(connection) => Ok(connection.prepare_cached("COMMIT")?.execute([]).map(drop)?),
            Self::Server(session) => session.commit(),
        }
    }

    pub(super) fn rollback(&self) {
        match self {
            // A commit that failed for want of room has left nothing to undo.
            Self::File(connection) if connection.is_autocommit() => {}
            Self::File(connection) => {
                if let Err(error) = connection.execute_batch("ROLLBACK") {
                    tracing::error!("the records could not be put back: {error}");
                }
            }
            Self::Server(session) => session.rollback(),
        }
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Self::Number(signed(number))
    }
}

impl From<u32> for Value<'_> {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Value<'_> {
    fn from(is_so: bool) -> Self {
        Self::Number(is_so.into())
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Value<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a, T: Into<Self>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Nothing, Into::into)
    }
}

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Self::Nothing => ValueRef::Null,
            Self::Number(number) => ValueRef::Integer(number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match (*self, kind) {
            (Self::Nothing, _) => Ok(IsNull::Yes),
            (Self::Number(number), &Type::INT8) => number.to_sql(kind, out),
            // The server's texts have no zeros. What came with one stands whole in the case's header.
            (Self::Text(text), &Type::TEXT) if text.contains('\0') => text.replace('\0', "\u{fffd}").to_sql(kind, out),
            (Self::Text(text), &Type::TEXT) => text.to_sql(kind, out),
            (Self::Bytes(bytes), &Type::BYTEA) => bytes.to_sql(kind, out),
            (_, kind) => Err(format!("a value does not go where {kind} is wanted").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}
