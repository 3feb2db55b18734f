//! The page that asks who is there. It is a plain form: no script is needed to get in.

use std::net::SocketAddr;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, LOCATION, REFERRER_POLICY, RETRY_AFTER, SET_COOKIE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::routes::{Admitted, Note, noted};
use super::{ApiError, HTML, View, file};
use crate::access::NotLoggedIn;
use crate::store::Act;

/// As the other pages', but the form goes to this program.
const LOGIN_POLICY: &str = "default-src 'none'; img-src 'self'; style-src 'self'; base-uri 'none'; form-action 'self'; \
     frame-ancestors 'none'";

/// Whoever uses this browser next sees no sample that it has kept.
const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");

/// How long the address is at most that somebody is led back to.
const NEXT_CHARS_MAX: usize = 1000;

/// Where one logs in who wanted to see something.
pub(super) fn address(wanted: &str) -> String {
    if wanted == "/" {
        return "/login".to_owned();
    }
    let next: String = form_urlencoded::byte_serialize(wanted.as_bytes()).collect();
    format!("/login?next={next}")
}

/// A path of this page to be led back to; the first page for anything else.
fn next_path(text: &str) -> &str {
    let is_plain = |one: char| one.is_ascii_alphanumeric() || "/._~%?=&:,+*-".contains(one);
    // `//elsewhere` is another host.
    let is_path = text.starts_with('/') && !text.starts_with("//") && text.len() <= NEXT_CHARS_MAX;
    if is_path && text.chars().all(is_plain) { text } else { "/" }
}

#[derive(Deserialize)]
pub(super) struct Next {
    next: Option<String>,
}

/// `GET /login`
pub(super) async fn page(State(view): State<View>, Query(Next { next }): Query<Next>) -> Response {
    if !view.access.asks() {
        return Redirect::to("/").into_response();
    }
    form(next_path(next.as_deref().unwrap_or("/")), "")
}

fn form(next: &str, said: &str) -> Response {
    // Neither has anything that is markup: `next` by `next_path`, what is said is ours.
    let html = include_str!("login.html").replace("{next}", &next.replace('&', "&amp;")).replace("{said}", said);
    let mut response = file(HTML, html);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(LOGIN_POLICY));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // With `no-referrer` a browser keeps the origin of a form to itself, and it could be anybody's.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// `POST /login`: the form.
pub(super) async fn log_in(
    State(view): State<View>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    // A page of elsewhere logs nobody in, as somebody else.
    view.door.lets_ask(&headers)?;
    let (mut name, mut password, mut next) = (String::new(), String::new(), String::new());
    for (field, value) in form_urlencoded::parse(&body) {
        match &*field {
            "name" => name = value.trim().to_owned(),
            "password" => password = value.into_owned(),
            "next" => next = value.into_owned(),
            _ => {}
        }
    }
    let next = next_path(&next).to_owned();
    let address = view.access.address(from, &headers).to_string();
    let cookie = match view.access.log_in(from, &headers, &name, password).await {
        Ok(cookie) => cookie,
        Err(why) => {
            // One that was not looked at is not noted: who floods must not push out what others did.
            if matches!(why, NotLoggedIn::Wrong) {
                let act = Act { who: name, address, act: "failed login", about: String::new() };
                note(&view, act, StatusCode::UNAUTHORIZED).await;
            }
            return Ok(refused(&next, &why));
        }
    };
    let act = Act { who: name, address, act: "login", about: String::new() };
    note(&view, act, StatusCode::SEE_OTHER).await;
    Ok((StatusCode::SEE_OTHER, [(SET_COOKIE, cookie), (LOCATION, next)]).into_response())
}

fn refused(next: &str, why: &NotLoggedIn) -> Response {
    let (status, said) = match why {
        NotLoggedIn::Wrong => (StatusCode::UNAUTHORIZED, why.to_string()),
        NotLoggedIn::Wait(_) => (StatusCode::TOO_MANY_REQUESTS, why.to_string()),
        NotLoggedIn::Busy => (StatusCode::SERVICE_UNAVAILABLE, why.to_string()),
        NotLoggedIn::Failed(error) => {
            tracing::error!("nobody can log in: {error}");
            (StatusCode::INTERNAL_SERVER_ERROR, "This program cannot let anybody in now; its log says why.".to_owned())
        }
    };
    let mut response = form(next, &said);
    *response.status_mut() = status;
    if let NotLoggedIn::Wait(wait) = why {
        response.headers_mut().insert(RETRY_AFTER, (wait.as_secs() + 1).into());
    }
    response
}

/// Who comes and goes does so whether or not it can be noted: on a full disk somebody must be able to look.
async fn note(view: &View, act: Act, status: StatusCode) {
    if let Err(error) = noted(view, act, Note::default(), async { status.into_response() }).await {
        tracing::error!("a login or logout is not on record: {error}");
    }
}

/// `POST /logout`
pub(super) async fn log_out(
    State(view): State<View>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    axum::Extension(who): Admitted,
    headers: HeaderMap,
) -> Response {
    let forget = view.access.log_out(&headers);
    let who = who.name().unwrap_or_default().to_owned();
    let address = view.access.address(from, &headers).to_string();
    note(&view, Act { who, address, act: "logout", about: String::new() }, StatusCode::OK).await;
    ([(SET_COOKIE, forget), (CLEAR_SITE_DATA, "\"cache\"".to_owned())], Json(json!({"outcome": "done"})))
        .into_response()
}

/// `GET /api/me`
pub(super) async fn me(axum::Extension(who): Admitted) -> Json<Value> {
    Json(json!({"name": who.name(), "role": who.role, "session": who.has_session()}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_led_elsewhere_after_the_login() {
        for own in ["/", "/cases/hall-1.00.1", "/cases?device=a&order=newest", "/devices/a%20b"] {
            assert_eq!(next_path(own), own);
        }
        let long = format!("/{}", "a".repeat(NEXT_CHARS_MAX));
        for wrong in
            ["", "//evil.example", "/\\evil.example", "https://evil.example", "/\">", "/a b", "/\r\nSet-Cookie", &long]
        {
            assert_eq!(next_path(wrong), "/", "{wrong}");
        }
        assert_eq!(address("/cases?device=a&x=1"), "/login?next=%2Fcases%3Fdevice%3Da%26x%3D1");
    }
}
