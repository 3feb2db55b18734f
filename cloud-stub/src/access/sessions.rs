//! Who is logged in. Sessions are in memory: a restart ends them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hedge_proto::Digest;

use super::users::{User, UsersError, random};

/// A working day and what belongs to it. Who is still there then logs in again.
pub(super) const AGE_MAX: Duration = Duration::from_secs(12 * 60 * 60);

/// In several browsers, on a phone. One more ends the oldest of them.
const PER_USER_MAX: usize = 10;

/// Of all users together; one more ends the oldest.
const SESSIONS_MAX: usize = 1000;

/// By the sum of what the browser shows: what is in this memory opens nothing.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<Digest, Session>>);

struct Session {
    /// As it was when they logged in: once it has changed, the session is over.
    user: User,
    begun: Instant,
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, HashMap<Digest, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the browser shows from now on.
    pub(super) fn begin(&self, user: User, now: Instant) -> Result<String, UsersError> {
        let secret = hex::encode(random()?);
        let mut all = self.all();
        all.retain(|_, session| now - session.begun < AGE_MAX);
        let of_user = |session: &Session| session.user.name == user.name;
        while all.values().filter(|session| of_user(session)).count() >= PER_USER_MAX {
            end_oldest(&mut all, of_user);
        }
        if all.len() >= SESSIONS_MAX {
            end_oldest(&mut all, |_| true);
        }
        all.insert(Digest::of(secret.as_bytes()), Session { user, begun: now });
        Ok(secret)
    }

    /// Whose session it is, if it has not ended.
    pub(super) fn user(&self, key: &Digest, users: &[User], now: Instant) -> Option<User> {
        let mut all = self.all();
        let session = all.get(key)?;
        if now - session.begun < AGE_MAX && users.contains(&session.user) {
            return Some(session.user.clone());
        }
        all.remove(key);
        None
    }

    pub(super) fn end(&self, key: &Digest) {
        self.all().remove(key);
    }
}

fn end_oldest(all: &mut HashMap<Digest, Session>, which: impl Fn(&Session) -> bool) {
    let oldest = all.iter().filter(|(_, session)| which(session)).min_by_key(|(_, session)| session.begun);
    if let Some(key) = oldest.map(|(key, _)| *key) {
        all.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::users::{Proof, Role};

    fn user(name: &str, role: Role) -> User {
        User { name: name.to_owned(), role, proof: Proof::Proxy }
    }

    fn key(secret: &str) -> Digest {
        Digest::of(secret.as_bytes())
    }

    #[test]
    fn a_session_ends_with_its_time_its_user_or_a_change_of_the_user() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let ann = user("ann", Role::Operator);
        let begin = || key(&sessions.begin(ann.clone(), now).expect("begun"));
        let users = std::slice::from_ref(&ann);
        let session = begin();
        assert_eq!(sessions.user(&session, users, now), Some(ann.clone()));
        assert_eq!(sessions.user(&session, users, now + AGE_MAX), None);
        for others in [vec![], vec![user("ann", Role::Viewer)]] {
            let session = begin();
            assert_eq!(sessions.user(&session, &others, now), None);
            assert_eq!(sessions.user(&session, users, now), None, "for good");
        }
        let session = begin();
        sessions.end(&session);
        assert_eq!(sessions.user(&session, users, now), None);
    }

    #[test]
    fn one_more_session_than_a_user_may_have_ends_the_oldest() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let users = [user("ann", Role::Viewer), user("bob", Role::Viewer)];
        let bobs = key(&sessions.begin(users[1].clone(), now).expect("begun"));
        let second = |n| now + Duration::from_secs(n);
        let begun: Vec<Digest> =
            (0..=10).map(|n| key(&sessions.begin(users[0].clone(), second(n)).expect("begun"))).collect();
        let lives = |session: &Digest| sessions.user(session, &users, second(11)).is_some();
        assert_eq!(begun.iter().map(lives).collect::<Vec<_>>(), [[false].as_slice(), &[true; 10]].concat());
        assert!(lives(&bobs));
        for n in 0..2 * SESSIONS_MAX {
            sessions.begin(user(&format!("user-{n}"), Role::Viewer), now).expect("begun");
        }
        assert!(sessions.all().len() <= SESSIONS_MAX);
    }
}
