use super::*;
use axum::http::HeaderValue;

const PROXY: &str = "192.0.2.1:5000";
const OTHER: &str = "192.0.2.2:5000";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn with(users: &[(&str, Role, Proof)]) -> Self {
        let place = Self { dir: tempfile::tempdir().expect("a directory") };
        for (name, role, proof) in users {
            let user = User { name: (*name).to_owned(), role: *role, proof: proof.clone() };
            users::change(&place.entrance().users, |users| {
                users.push(user);
                Ok(())
            })
            .expect("written");
        }
        place
    }

    fn entrance(&self) -> Entrance {
        Entrance {
            users: self.dir.path().join(USERS_FILE),
            proxies: vec!["192.0.2.1".parse().expect("an address")],
            proxy_header: HeaderName::from_static("x-forwarded-user"),
        }
    }

    fn access(&self) -> Access {
        Access::open(&self.entrance(), "0.0.0.0:8080".parse().expect("an address"), true).expect("opened")
    }
}

fn from(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        headers.append(*name, HeaderValue::from_str(value).expect("a value"));
    }
    headers
}

fn shown(cookie: &str) -> HeaderMap {
    headers(&[("cookie", cookie.split(';').next().expect("a value"))])
}

#[test]
fn a_page_that_others_reach_starts_with_tls_and_a_login_only_and_says_what_to_do() {
    let (nobody, ann) = (Place::with(&[]), Place::with(&[("ann", Role::Viewer, Proof::Proxy)]));
    let open = |place: &Place, listen: &str, has_tls| {
        let entrance = Entrance { proxies: Vec::new(), ..place.entrance() };
        Access::open(&entrance, from(listen), has_tls)
    };
    for (listen, asks) in [("127.0.0.1:8080", false), ("[::1]:8080", false), ("[::ffff:127.0.0.1]:8080", false)] {
        assert_eq!(open(&nobody, listen, false).expect("opened").asks(), asks, "{listen}");
        assert!(open(&ann, listen, false).expect("opened").asks(), "{listen} with users");
    }
    for listen in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080", "[::ffff:192.0.2.1]:8080"] {
        let refused = |place: &Place, has_tls| open(place, listen, has_tls).err().expect("refused").to_string();
        let both = refused(&nobody, false);
        assert!(both.contains("TLS and a login") && both.contains("--page-cert"), "{both}");
        assert!(refused(&ann, false).contains("needs TLS: "));
        assert!(refused(&nobody, true).contains("needs a login: add a user with `hedge-cloud user add"));
        assert!(open(&ann, listen, true).expect("opened").asks());
    }
}

#[test]
fn a_proxy_that_is_named_says_who_is_there_and_nobody_else_does() {
    let place = Place::with(&[
        ("ann", Role::Reviewer, Proof::Proxy),
        ("bob", Role::Operator, Proof::password("long enough").expect("hashed")),
    ]);
    let access = place.access();
    let says = |address: &str, given: &[(&'static str, &str)]| access.who(from(address), &headers(given));
    let ann = says(PROXY, &[("x-forwarded-user", "ann")]).expect("let in");
    assert_eq!((ann.name(), ann.role), (Some("ann"), Role::Reviewer));
    assert_eq!(says("[::ffff:192.0.2.1]:1", &[("x-forwarded-user", "ann")]).expect("let in"), ann);
    assert_eq!(says(OTHER, &[("x-forwarded-user", "ann")]), Err(NotIn::Nobody));
    assert_eq!(says(PROXY, &[("x-forwarded-user", "eve")]), Err(NotIn::Stranger("eve".to_owned())));
    assert_eq!(says(PROXY, &[("x-forwarded-user", "bob")]), Err(NotIn::Stranger("bob".to_owned())), "has a password");
    assert_eq!(says(PROXY, &[("x-forwarded-user", "eve"), ("x-forwarded-user", "ann")]), Err(NotIn::Unclear));
    assert_eq!(says(PROXY, &[("x-forwarded-user", "")]), Err(NotIn::Unclear));
    assert_eq!(says(PROXY, &[]), Err(NotIn::Nobody));
    // What the proxy itself was shown, which nginx passes on.
    let shown = [("authorization", "Basic YW5uOnB3"), ("x-forwarded-user", "ann")];
    assert_eq!(says(PROXY, &shown).expect("let in"), ann);
    assert_eq!(says(OTHER, &shown), Err(NotIn::Token));
}

#[test]
fn tries_through_a_proxy_count_by_where_they_come_from() {
    let place = Place::with(&[("ann", Role::Viewer, Proof::Proxy)]);
    let access = place.access();
    let forwarded = [("x-forwarded-for", "203.0.113.9, 198.51.100.7")];
    let at = |address: &str| access.address(from(address), &headers(&forwarded)).to_string();
    assert_eq!((at(PROXY).as_str(), at(OTHER).as_str()), ("198.51.100.7", "192.0.2.2"));
}

#[test]
fn a_token_is_shown_whole_and_ends_with_its_user() {
    let (token, proof) = Proof::token().expect("drawn");
    let place = Place::with(&[("prometheus", Role::Viewer, proof), ("ann", Role::Viewer, Proof::Proxy)]);
    let access = place.access();
    let shows = |value: &str| access.who(from(OTHER), &headers(&[("authorization", value)]));
    let who = shows(&format!("Bearer {token}")).expect("let in");
    assert!(who.has_token() && access.is_still_in(&who));
    for wrong in [format!("Bearer {token}x"), token.clone(), format!("Basic {token}"), "Bearer ".to_owned()] {
        assert_eq!(shows(&wrong), Err(NotIn::Token), "{wrong}");
    }
    users::change(&place.entrance().users, |users| {
        users.retain(|user| user.name == "ann");
        Ok(())
    })
    .expect("written");
    assert_eq!(shows(&format!("Bearer {token}")), Err(NotIn::Token));
    assert!(!access.is_still_in(&who));
}

#[tokio::test]
async fn a_session_ends_when_its_user_logs_out_and_is_not_taken_again() {
    let place = Place::with(&[("ann", Role::Operator, Proof::password("correct horse").expect("hashed"))]);
    let access = place.access();
    let log_in = async |name: &str, password: &str, shown: &HeaderMap| {
        access.log_in(from(OTHER), shown, name, password.to_owned()).await
    };
    assert!(matches!(log_in("ann", "wrong horse", &HeaderMap::new()).await, Err(NotLoggedIn::Wrong)));
    let cookie = log_in("ann", "correct horse", &HeaderMap::new()).await.expect("logged in");
    for attribute in ["__Host-hedge=", "; Path=/;", "; Secure", "; HttpOnly", "; SameSite=Strict"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let who = access.who(from(OTHER), &shown(&cookie)).expect("let in");
    assert_eq!((who.name(), who.role), (Some("ann"), Role::Operator));
    let twice = headers(&[("cookie", "__Host-hedge=0"), ("cookie", cookie.split(';').next().expect("a value"))]);
    assert_eq!(access.who(from(OTHER), &twice), Err(NotIn::Nobody));

    // Logging in again ends the session that was shown: whoever planted it has nothing.
    let second = log_in("ann", "correct horse", &shown(&cookie)).await.expect("logged in");
    assert_eq!(access.who(from(OTHER), &shown(&cookie)), Err(NotIn::Nobody));
    let who = access.who(from(OTHER), &shown(&second)).expect("let in");
    let forget = access.log_out(&shown(&second));
    assert!(forget.contains("Max-Age=0"), "{forget}");
    assert_eq!(access.who(from(OTHER), &shown(&second)), Err(NotIn::Nobody), "replayed");
    assert!(!access.is_still_in(&who));
}

#[test]
fn one_user_does_not_take_all_places_before_the_pages() {
    let place = Place::with(&[("ann", Role::Viewer, Proof::Proxy), ("bob", Role::Viewer, Proof::Proxy)]);
    let access = place.access();
    let who = |name| access.who(from(PROXY), &headers(&[("x-forwarded-user", name)])).expect("let in");
    let mut anns: Vec<_> = (0..3).map(|_| access.watch(&who("ann"), 3).expect("a place")).collect();
    assert!(access.watch(&who("ann"), 3).is_none());
    assert!(access.watch(&who("bob"), 3).is_some());
    anns.pop();
    assert!(access.watch(&who("ann"), 3).is_some());
}
