//! The one table of what the page answers, and which role each of it needs.
//!
//! ```text
//! request ─► under a right name? ─► who is it? ─► has the role? ─► a change: made by this page? ─► noted ─► handler
//!              421                    401, /login   403              403                            503
//! ```
//! The role stands beside the path and is looked at once the route is found: there is no second reading of the path that
//! could see something else in it. A route cannot be added without a role.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{ConnectInfo, Request, State};
use axum::handler::Handler;
use axum::http::header::{ACCEPT, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde_json::json;

use super::{ApiError, View};
use crate::access::{NotIn, Role, Who};
use crate::store::Act;

/// Who may ask for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Whoever reaches the page, logged in or not.
    Nobody,
    Role(Role),
}

pub(super) const ANYONE: Needs = Needs::Nobody;
pub(super) const VIEWER: Needs = Needs::Role(Role::Viewer);
pub(super) const REVIEWER: Needs = Needs::Role(Role::Reviewer);
pub(super) const OPERATOR: Needs = Needs::Role(Role::Operator);

/// One row of the table.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) needs: Needs,
    /// What the audit calls it, if it is noted.
    act: Option<&'static str>,
    /// Programs that watch this one ask under any name for it: no device and no sample is named there.
    any_name: bool,
}

/// The table on its way into a router.
pub(super) struct Routes {
    view: View,
    router: Router<View>,
    pub(super) table: Vec<Route>,
}

impl Routes {
    pub(super) fn new(view: View) -> Self {
        Self { view, router: Router::new(), table: Vec::new() }
    }

    /// Answers a GET, which changes nothing.
    pub(super) fn get<H, T>(self, needs: Needs, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, View>,
        T: 'static,
    {
        self.add(Route { method: Method::GET, path, needs, act: None, any_name: false }, get(handler))
    }

    /// Likewise, under any name.
    pub(super) fn watched<H, T>(self, needs: Needs, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, View>,
        T: 'static,
    {
        self.add(Route { method: Method::GET, path, needs, act: None, any_name: true }, get(handler))
    }

    /// Answers a GET that takes much out, which is noted.
    pub(super) fn noted<H, T>(self, needs: Needs, act: &'static str, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, View>,
        T: 'static,
    {
        self.add(Route { method: Method::GET, path, needs, act: Some(act), any_name: false }, get(handler))
    }

    /// Answers a POST that changes something, which is noted, unless the handler notes it itself.
    pub(super) fn post<H, T>(
        self,
        needs: Needs,
        act: impl Into<Option<&'static str>>,
        path: &'static str,
        handler: H,
    ) -> Self
    where
        H: Handler<T, View>,
        T: 'static,
    {
        self.add(Route { method: Method::POST, path, needs, act: act.into(), any_name: false }, post(handler))
    }

    fn add(mut self, route: Route, handler: MethodRouter<View>) -> Self {
        let guard = (self.view.clone(), Arc::new(route.clone()));
        let guarded = handler.route_layer(middleware::from_fn_with_state(guard, admit));
        self.router = self.router.route(route.path, guarded);
        self.table.push(route);
        self
    }

    pub(super) fn finish(self) -> Router {
        let nothing = |method: Method, uri: Uri, status: StatusCode, what| {
            let why = format!("{method} {}: {what}", uri.path());
            (status, Json(json!({"error": why}))).into_response()
        };
        let unknown = move |method: Method, uri: Uri| async move {
            nothing(method, uri, StatusCode::NOT_FOUND, "there is nothing here")
        };
        let unmeant = move |method: Method, uri: Uri| async move {
            nothing(method, uri, StatusCode::METHOD_NOT_ALLOWED, "this method does nothing here")
        };
        self.router.fallback(unknown).method_not_allowed_fallback(unmeant).with_state(self.view)
    }
}

/// What the audit says of a request beside its path.
#[derive(Clone, Default)]
pub(super) struct Note(Arc<Mutex<String>>);

impl Note {
    pub(super) fn say(&self, detail: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = detail.into();
    }
}

async fn admit(
    State((view, route)): State<(View, Arc<Route>)>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    if !route.any_name {
        view.door.may_look(headers)?;
    }
    let Needs::Role(needs) = route.needs else { return Ok(next.run(request).await) };
    let who = match view.access.who(from, headers) {
        Ok(who) => who,
        Err(why) => return Ok(not_in(&request, why)),
    };
    if who.role < needs {
        let name = who.name().unwrap_or_default().to_owned();
        tracing::warn!(who = name, path = request.uri().path(), "it needs the role {}", needs.name());
        return Err(NotIn::Role { who: name, has: who.role, needs }.into());
    }
    if route.method == Method::POST {
        // A browser adds no token by itself, so a request with one was meant.
        if who.has_token() { view.door.may_act(headers)? } else { view.door.lets_act(headers)? }
    }
    let Some(act) = route.act else {
        request.extensions_mut().insert(who);
        return Ok(next.run(request).await);
    };
    let act = Act {
        who: who.name().unwrap_or_default().to_owned(),
        address: view.access.address(from, headers).to_string(),
        act,
        about: about(route.path, request.uri().path()),
    };
    let note = Note::default();
    request.extensions_mut().insert(who);
    request.extensions_mut().insert(note.clone());
    noted(&view, act, note, next.run(request)).await
}

/// Does what is noted before and after. What cannot be noted is not done.
pub(super) async fn noted(
    view: &View,
    act: Act,
    note: Note,
    doing: impl Future<Output = Response>,
) -> Result<Response, ApiError> {
    let audit = view.audit.clone();
    let begun = tokio::task::spawn_blocking(move || audit.begin(&act)).await.map_err(|_| ApiError::Stopping)?;
    let seq = begun.map_err(ApiError::NotNoted)?;
    let response = doing.await;
    let (audit, outcome) = (view.audit.clone(), response.status().as_u16().to_string());
    let detail = note.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // Whoever asked has not to wait for this: the act itself is on record.
    tokio::task::spawn_blocking(move || {
        if let Err(error) = audit.end(seq, &detail, &outcome) {
            tracing::error!("how an act ended is not on record: {error}");
        }
    });
    Ok(response)
}

/// What a path is about: what stands in it for `{…}`.
fn about(pattern: &str, path: &str) -> String {
    let parts = pattern.split('/').zip(path.split('/'));
    parts.filter(|(part, _)| part.starts_with('{')).map(|(_, given)| given).collect::<Vec<_>>().join(" ")
}

/// A person is led to the login, a program is told.
fn not_in(request: &Request, why: NotIn) -> Response {
    let headers = request.headers();
    let wants_page = |headers: &HeaderMap| {
        let accepts = headers.get(ACCEPT).and_then(|accepts| accepts.to_str().ok());
        accepts.is_some_and(|accepts| accepts.contains("text/html"))
    };
    if why == NotIn::Nobody && request.method() == Method::GET && wants_page(headers) {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        return Redirect::to(&super::login::address(path)).into_response();
    }
    let mut response = ApiError::from(why).into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Who asks, where it is known to be let in.
pub(super) type Admitted = axum::Extension<Who>;

#[cfg(test)]
mod tests;
