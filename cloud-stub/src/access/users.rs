//! The users file: who may use the page, as what, and how they prove it. Managed by `hedge-cloud user`, read by `serve`.
//!
//! It is written whole beside the old one and then takes its place, so whoever reads it sees one or the other. Passwords
//! are kept as Argon2id hashes. A token is 256 random bits, which nobody guesses however fast it is hashed, so its
//! SHA-256 sum is kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Argon2, PasswordHash};
use clap::ValueEnum;
use hedge_proto::Digest;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

/// The users file's name in the state directory.
pub const USERS_FILE: &str = "users.json";

/// How long a user's name may be: an e-mail address fits.
const NAME_CHARS_MAX: usize = 64;

/// Shorter passwords are guessed, and longer ones only keep the processor busy.
const PASSWORD_CHARS_MIN: usize = 8;
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// So many people know each other.
const USERS_MAX: usize = 1000;

/// What tokens begin with, so that they are recognised where they do not belong.
const TOKEN_PREFIX: &str = "hedge_";

/// What somebody may do: all that the roles before it may, and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees everything
    Viewer,
    /// Also corrects cases and exports them
    Reviewer,
    /// Also changes, commands and deletes
    Operator,
}

impl Role {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Reviewer => "reviewer",
            Self::Operator => "operator",
        }
    }
}

/// One that may use the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub name: String,
    pub role: Role,
    pub proof: Proof,
}

/// How users prove who they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// A password with this hash.
    Password(String),
    /// A token with this SHA-256 sum.
    Token(Digest),
    /// A proxy that is trusted says so.
    Proxy,
}

impl Proof {
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Password(_) => "password",
            Self::Token(_) => "token",
            Self::Proxy => "proxy",
        }
    }

    /// Takes a noticeable part of a second.
    pub fn password(password: &str) -> Result<Self, UsersError> {
        if password.chars().count() < PASSWORD_CHARS_MIN || password.len() > PASSWORD_BYTES_MAX {
            return Err(UsersError::Password);
        }
        let hashed = Argon2::default().hash_password(password.as_bytes());
        Ok(Self::Password(hashed.map_err(|error| UsersError::Hash(error.to_string()))?.to_string()))
    }

    /// A new token, which is shown once, and its proof.
    pub fn token() -> Result<(String, Self), UsersError> {
        let token = format!("{TOKEN_PREFIX}{}", hex::encode(random()?));
        let proof = Self::Token(Digest::of(token.as_bytes()));
        Ok((token, proof))
    }
}

/// 256 bits that nobody guesses.
pub(super) fn random() -> Result<[u8; 32], UsersError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| UsersError::Chance(error.to_string()))?;
    Ok(bytes)
}

/// Why users cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{0}: others may write it; make it yours alone with `chmod 600`")]
    Loose(PathBuf),
    #[error(
        "`{0}` is no user's name: give 1 to {NAME_CHARS_MAX} letters (a-z), digits, or `.`, `_`, `-`, `+`, `@`, beginning with a letter or digit"
    )]
    Name(String),
    #[error("there is a user `{0}` already: change it with `hedge-cloud user change`")]
    Exists(String),
    #[error("there is no user `{0}`; `hedge-cloud user list` tells who is there")]
    Unknown(String),
    #[error("there are {USERS_MAX} users already")]
    TooMany,
    #[error("a password has at least {PASSWORD_CHARS_MIN} characters and at most {PASSWORD_BYTES_MAX} bytes")]
    Password,
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
    #[error("the system gives no random numbers: {0}")]
    Chance(String),
}

/// Reads a user's name.
pub(super) fn name(text: &str) -> Result<String, UsersError> {
    let is_right = (1..=NAME_CHARS_MAX).contains(&text.len())
        && text.starts_with(|one: char| one.is_ascii_alphanumeric())
        && text.chars().all(|one| one.is_ascii_alphanumeric() || "._-+@".contains(one));
    if is_right { Ok(text.to_owned()) } else { Err(UsersError::Name(hedge_proto::readable(text, NAME_CHARS_MAX))) }
}

/// Everybody in the file; nobody if there is none.
pub(super) fn read(path: &Path) -> Result<Vec<User>, UsersError> {
    let failed = |source| UsersError::File { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    if file.metadata().map_err(failed)?.mode() & 0o022 != 0 {
        return Err(UsersError::Loose(path.to_owned()));
    }
    let text = io::read_to_string(file).map_err(failed)?;
    let damaged = |reason: String| UsersError::Damaged { path: path.to_owned(), reason };
    let users: Vec<User> = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    for (n, user) in users.iter().enumerate() {
        name(&user.name).map_err(|error| damaged(error.to_string()))?;
        if users[..n].iter().any(|other| other.name.eq_ignore_ascii_case(&user.name)) {
            return Err(damaged(format!("two users are called `{}`", user.name)));
        }
    }
    Ok(users)
}

/// Reads, changes and writes. Two that do so at once come one after the other.
pub(super) fn change<T>(
    path: &Path,
    change: impl FnOnce(&mut Vec<User>) -> Result<T, UsersError>,
) -> Result<T, UsersError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |source| UsersError::File { path: path.to_owned(), source };
    let folder = File::open(dir).map_err(|source| UsersError::File { path: dir.to_owned(), source })?;
    flock(&folder, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    let mut users = read(path)?;
    let changed = change(&mut users)?;
    if users.len() > USERS_MAX {
        return Err(UsersError::TooMany);
    }
    let mut text = serde_json::to_string_pretty(&users)
        .map_err(|error| UsersError::Damaged { path: path.to_owned(), reason: error.to_string() })?;
    text.push('\n');
    write(path, &folder, &text).map_err(failed)?;
    Ok(changed)
}

fn write(path: &Path, folder: &File, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    // Root writes it for a service that is not root: whoever owns the folder owns what is in it.
    let owner = folder.metadata()?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    folder.sync_all()
}

/// The file as `serve` sees it: read again when it has changed.
pub(super) struct Roll {
    path: PathBuf,
    held: Mutex<(Stamp, Arc<[User]>)>,
}

/// When, which file and how long: one that takes its place differs in at least one of them.
type Stamp = Option<(i64, i64, u64, u64)>;

impl Roll {
    pub(super) fn open(path: PathBuf) -> Result<Self, UsersError> {
        let stamp = stamp(&path);
        let users = read(&path)?.into();
        Ok(Self { path, held: Mutex::new((stamp, users)) })
    }

    /// Everybody who may use the page now. While the file cannot be read, nobody.
    pub(super) fn now(&self) -> Arc<[User]> {
        let stamp = stamp(&self.path);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 != stamp {
            let users = read(&self.path).unwrap_or_else(|error| {
                tracing::error!("nobody is let in, because the users cannot be read: {error}");
                Vec::new()
            });
            *held = (stamp, users.into());
        }
        held.1.clone()
    }
}

fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    Some((file.mtime(), file.mtime_nsec(), file.ino(), file.len()))
}

/// Whose token it is.
pub(super) fn by_token<'u>(users: &'u [User], token: &str) -> Option<&'u User> {
    let sum = Digest::of(token.as_bytes());
    // All of them are compared, each in the same time.
    users.iter().fold(None, |found, user| match &user.proof {
        Proof::Token(own) if bool::from(own.0.ct_eq(&sum.0)) => Some(user),
        _ => found,
    })
}

/// Who has this name and password. It takes as long for a name that nobody has.
pub(super) fn by_password(users: &[User], name: &str, password: &str) -> Option<User> {
    /// Of a password that nobody knows, with what Argon2 is used with here.
    const NOBODYS: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGlzIGhlcmU$\
                           6qb0ZcVVBiCs6Wn0uXm0Q0oOe5mJjmp3Vj0gG9YQv7A";
    let known = users.iter().find(|user| user.name == name && matches!(user.proof, Proof::Password(_)));
    let hash = match known.map(|user| &user.proof) {
        Some(Proof::Password(hash)) => hash,
        _ => NOBODYS,
    };
    let is_right = match PasswordHash::new(hash) {
        Ok(hash) => Argon2::default().verify_password(password.as_bytes(), &hash).is_ok(),
        Err(error) => {
            tracing::error!("the password of `{name}` cannot be read from the users file: {error}");
            false
        }
    };
    known.filter(|_| is_right).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ann(proof: Proof) -> User {
        User { name: "ann".to_owned(), role: Role::Viewer, proof }
    }

    #[test]
    fn a_password_is_known_again_by_its_hash_and_a_wrong_one_or_an_unknown_name_is_not() {
        let users = [ann(Proof::password("correct horse").expect("hashed"))];
        let Proof::Password(hash) = &users[0].proof else { panic!("no password") };
        assert!(hash.starts_with("$argon2id$") && !hash.contains("correct"), "{hash}");
        assert_eq!(by_password(&users, "ann", "correct horse").as_ref(), Some(&users[0]));
        for (name, password) in
            [("ann", "correct horsf"), ("ann", ""), ("bob", "correct horse"), ("Ann", "correct horse")]
        {
            assert_eq!(by_password(&users, name, password), None, "{name} {password}");
        }
        assert!(Proof::password("short").is_err());
        assert_eq!(by_password(&[ann(Proof::Proxy)], "ann", ""), None);
    }

    #[test]
    fn an_unknown_name_costs_as_much_as_a_wrong_password() {
        let hash = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGlzIGhlcmU$6qb0ZcVVBiCs6Wn0uXm0Q0oOe5mJjmp3Vj0gG9YQv7A";
        let nobodys = PasswordHash::new(hash).expect("a hash");
        let Proof::Password(own) = Proof::password("correct horse").expect("hashed") else { panic!("no password") };
        let own = PasswordHash::new(&own).expect("a hash");
        assert_eq!((nobodys.algorithm, &nobodys.params), (own.algorithm, &own.params));
    }

    #[test]
    fn a_token_is_known_by_its_sum_alone() {
        let (token, proof) = Proof::token().expect("drawn");
        let users = [ann(proof)];
        assert_eq!(by_token(&users, &token), Some(&users[0]));
        assert_eq!(by_token(&users, &token[..token.len() - 1]), None);
        assert!(!serde_json::to_string(&users).expect("written").contains(&token));
    }

    #[test]
    fn the_file_is_its_owners_alone_and_one_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(USERS_FILE);
        assert_eq!(read(&path).expect("nobody"), []);
        change(&path, |users| {
            users.push(ann(Proof::Proxy));
            Ok(())
        })
        .expect("written");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).expect("read"), [ann(Proof::Proxy)]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).expect("opened");
        assert!(matches!(read(&path), Err(UsersError::Loose(_))));
    }

    #[test]
    fn a_change_of_the_file_is_seen_and_a_damaged_one_lets_nobody_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(USERS_FILE);
        let roll = Roll::open(path.clone()).expect("opened");
        assert_eq!(roll.now().len(), 0);
        change(&path, |users| {
            users.push(ann(Proof::Proxy));
            Ok(())
        })
        .expect("written");
        assert_eq!(roll.now().len(), 1);
        fs::write(&path, "[{").expect("damaged");
        assert_eq!(roll.now().len(), 0);
    }

    #[test]
    fn names_are_plain() {
        for right in ["ann", "Ann.B-2_x", "ann+x@example.org", "7"] {
            assert_eq!(name(right).expect("valid"), right);
        }
        let long = "a".repeat(65);
        for wrong in ["", " ann", "an n", "../ann", ".ann", "ann\n", "änn", "<b>", long.as_str()] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
