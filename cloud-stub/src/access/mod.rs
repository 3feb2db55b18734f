//! Decides who somebody is and what role they have: a session, a token, or a proxy that is trusted says so. What a role
//! may do stands beside each route; see `view::routes`.
//!
//! On loopback nobody is asked, unless there are users: whoever has an account on this machine may do everything. Where
//! others reach the page it does not start without TLS and users.

mod attempts;
pub mod audit;
pub mod cli;
mod sessions;
mod users;

pub use users::{PASSWORD_BYTES_MAX, Proof, Role, USERS_FILE, User, UsersError};

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::{HeaderMap, HeaderName};
use hedge_proto::Digest;
use tokio::sync::Semaphore;

use attempts::Attempts;
use sessions::Sessions;
use users::Roll;

/// A browser sends it back to this host only, over TLS only, and never for a page of elsewhere.
const COOKIE_NAME: &str = "__Host-hedge";

/// The addresses a request came through, of which a proxy adds the last.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How many passwords are checked at once: each takes 19 MiB and a good part of a second.
const CHECKS_MAX: usize = 2;

/// How long a login may wait for its turn.
const CHECK_WAIT_MAX: Duration = Duration::from_secs(10);

/// How the page is reached, as the command line says it.
#[derive(Debug, Clone)]
pub struct Entrance {
    pub users: PathBuf,
    /// Whose word on who is there is taken.
    pub proxies: Vec<IpAddr>,
    /// Which header has it.
    pub proxy_header: HeaderName,
}

/// Who is let in.
pub struct Access {
    asks: bool,
    users: Roll,
    sessions: Sessions,
    attempts: Attempts,
    checks: Semaphore,
    proxies: Vec<IpAddr>,
    proxy_header: HeaderName,
    watching: PagesOf,
}

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    pub role: Role,
    login: Option<Login>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Login {
    user: User,
    session: Option<Digest>,
}

impl Who {
    /// `None` where nobody is asked.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.login.as_ref().map(|login| login.user.name.as_str())
    }

    /// A browser shows a token for no page but the one that has it.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.login.as_ref().is_some_and(|login| matches!(login.user.proof, Proof::Token(_)))
    }

    /// They can log out here.
    #[must_use]
    pub fn has_session(&self) -> bool {
        self.login.as_ref().is_some_and(|login| login.session.is_some())
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotIn {
    #[error("log in first: at /login, or with the header `Authorization: Bearer TOKEN`")]
    Nobody,
    #[error("the token is not known, or no longer")]
    Token,
    #[error("the proxy says that this is `{0}`, who is no user here: hedge-cloud user add {0} --role viewer --proxy")]
    Stranger(String),
    #[error("the proxy gives no name of a user, or several")]
    Unclear,
    #[error("this needs the role {}, and {who} is {}", needs.name(), has.name())]
    Role { who: String, has: Role, needs: Role },
}

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum NotLoggedIn {
    #[error("That name and password do not belong together.")]
    Wrong,
    #[error("Too many tries. Try again in {} s.", .0.as_secs() + 1)]
    Wait(Duration),
    #[error("Many people log in just now. Try again in a moment.")]
    Busy,
    #[error(transparent)]
    Failed(#[from] UsersError),
}

/// Why the page does not start.
#[derive(Debug, thiserror::Error)]
pub enum Open {
    #[error(transparent)]
    Users(#[from] UsersError),
    #[error(
        "the dashboard on {listen} can be reached by others, so it needs {}: {}. Or let it listen on loopback, \
         --listen 127.0.0.1:{}, and put a proxy in front of it",
        needs.join(" and "), advice.join(", and "), listen.port()
    )]
    Needs { listen: SocketAddr, needs: Vec<&'static str>, advice: Vec<String> },
}

impl Access {
    /// Looks at who may use the page; refuses what would show samples to everybody.
    pub fn open(entrance: &Entrance, listen: SocketAddr, has_tls: bool) -> Result<Self, Open> {
        let users = Roll::open(entrance.users.clone())?;
        let (mut needs, mut advice) = (Vec::new(), Vec::new());
        let is_open = !listen.ip().to_canonical().is_loopback();
        if is_open && !has_tls {
            needs.push("TLS");
            advice.push("give it a certificate and its key with --page-cert and --page-key".to_owned());
        }
        if is_open && users.now().is_empty() {
            needs.push("a login");
            let file = entrance.users.display();
            advice.push(format!("add a user with `hedge-cloud user add NAME --role operator --users {file}`"));
        }
        if !needs.is_empty() {
            return Err(Open::Needs { listen, needs, advice });
        }
        let asks = is_open || !users.now().is_empty() || !entrance.proxies.is_empty();
        Ok(Self {
            asks,
            users,
            sessions: Sessions::default(),
            attempts: Attempts::default(),
            checks: Semaphore::new(CHECKS_MAX),
            proxies: entrance.proxies.clone(),
            proxy_header: entrance.proxy_header.clone(),
            watching: Arc::default(),
        })
    }

    /// Whether anybody is asked who they are.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// Who makes a request.
    pub fn who(&self, from: SocketAddr, headers: &HeaderMap) -> Result<Who, NotIn> {
        if !self.asks {
            return Ok(Who { role: Role::Operator, login: None });
        }
        let users = self.users.now();
        let known = |user: &User, session| Who { role: user.role, login: Some(Login { user: user.clone(), session }) };
        let given = only(headers, &AUTHORIZATION);
        // A proxy that asks for passwords itself passes them on, as nginx does. They are its own affair.
        let is_proxys = self.is_proxy(from) && given.is_some_and(|value| value.starts_with("Basic "));
        if headers.contains_key(AUTHORIZATION) && !is_proxys {
            let given = given.and_then(|value| value.strip_prefix("Bearer "));
            let user = given.and_then(|token| users::by_token(&users, token.trim())).ok_or(NotIn::Token)?;
            return Ok(known(user, None));
        }
        if self.is_proxy(from) && headers.contains_key(&self.proxy_header) {
            let name = only(headers, &self.proxy_header).and_then(|name| users::name(name.trim()).ok());
            let name = name.ok_or(NotIn::Unclear)?;
            let user = users.iter().find(|user| user.name == name && user.proof == Proof::Proxy);
            return user.map(|user| known(user, None)).ok_or(NotIn::Stranger(name));
        }
        let session = session(headers).ok_or(NotIn::Nobody)?;
        let user = self.sessions.user(&session, &users, Instant::now()).ok_or(NotIn::Nobody)?;
        Ok(known(&user, Some(session)))
    }

    /// Whether somebody who was let in would still be: what they watch ends with their login.
    #[must_use]
    pub fn is_still_in(&self, who: &Who) -> bool {
        let Some(Login { user, session }) = &who.login else { return true };
        let users = self.users.now();
        match session {
            Some(session) => self.sessions.user(session, &users, Instant::now()).is_some(),
            None => users.contains(user),
        }
    }

    /// Checks name and password. Returns what the browser keeps, as the value of `Set-Cookie`.
    pub async fn log_in(
        &self,
        from: SocketAddr,
        headers: &HeaderMap,
        name: &str,
        password: String,
    ) -> Result<String, NotLoggedIn> {
        let address = self.sender(from, headers);
        self.attempts.begin(address, name, Instant::now()).map_err(NotLoggedIn::Wait)?;
        let turn = tokio::time::timeout(CHECK_WAIT_MAX, self.checks.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(NotLoggedIn::Busy) };
        let (users, tried) = (self.users.now(), name.to_owned());
        let checked = tokio::task::spawn_blocking(move || {
            if password.len() > PASSWORD_BYTES_MAX { None } else { users::by_password(&users, &tried, &password) }
        });
        let user = checked.await.map_err(|_| NotLoggedIn::Busy)?.ok_or(NotLoggedIn::Wrong)?;
        self.attempts.succeeded(address, name);
        self.log_out(headers);
        let secret = self.sessions.begin(user, Instant::now())?;
        Ok(cookie(&secret, sessions::AGE_MAX))
    }

    /// Ends the session that a request shows. Returns what makes the browser forget it.
    pub fn log_out(&self, headers: &HeaderMap) -> String {
        if let Some(session) = session(headers) {
            self.sessions.end(&session);
        }
        cookie("", Duration::ZERO)
    }

    /// Where a request comes from: a proxy that is trusted says it.
    #[must_use]
    pub fn address(&self, from: SocketAddr, headers: &HeaderMap) -> IpAddr {
        let own = from.ip().to_canonical();
        if !self.is_proxy(from) {
            return own;
        }
        let last = headers.get_all(FORWARDED_FOR).iter().next_back().and_then(|value| value.to_str().ok());
        let last = last.and_then(|value| value.rsplit(',').next()?.trim().parse::<IpAddr>().ok());
        last.map_or(own, |address| address.to_canonical())
    }

    /// Whom tries to log in count against.
    fn sender(&self, from: SocketAddr, headers: &HeaderMap) -> Option<IpAddr> {
        hedge_listen::sender(SocketAddr::new(self.address(from, headers), 0))
    }

    fn is_proxy(&self, from: SocketAddr) -> bool {
        self.proxies.iter().any(|proxy| proxy.to_canonical() == from.ip().to_canonical())
    }

    /// A place among the pages that one user watches live, of so many. Where nobody is asked they share nothing.
    #[must_use]
    pub fn watch(&self, who: &Who, places: usize) -> Option<Watching> {
        let Some(name) = who.name() else { return Some(Watching(None)) };
        let mut watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        let count = watching.entry(name.to_owned()).or_default();
        if *count >= places {
            return None;
        }
        *count += 1;
        Some(Watching(Some((name.to_owned(), self.watching.clone()))))
    }
}

/// One page that a user watches live; free again when dropped.
pub struct Watching(Option<(String, PagesOf)>);

/// How many pages each user watches live.
type PagesOf = Arc<Mutex<HashMap<String, usize>>>;

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some((name, watching)) = &self.0 {
            let mut watching = watching.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = watching.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    watching.remove(name);
                }
            }
        }
    }
}

fn cookie(value: &str, age: Duration) -> String {
    format!("{COOKIE_NAME}={value}; Path=/; Max-Age={}; Secure; HttpOnly; SameSite=Strict", age.as_secs())
}

/// The session that a request shows, if it shows one.
fn session(headers: &HeaderMap) -> Option<Digest> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut ours = cookies
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='));
    let secret = ours.next()?;
    // A browser has one of this name.
    if ours.next().is_some() { None } else { Some(Digest::of(secret.as_bytes())) }
}

/// The header's value, if it is there once and is text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

#[cfg(test)]
mod tests;
