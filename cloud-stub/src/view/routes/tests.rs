use axum::body::Body;
use axum::http::{HeaderName, StatusCode};
use hedge_proto::{Name, Topics};
use tokio::sync::{mpsc, watch};
use tower_service::Service as _;

use super::*;
use crate::access::{Access, Entrance, Proof, User};
use crate::intake::Taking;
use crate::link::{Credentials, Endpoint, LinkNow, Way};
use crate::presence::Heard;
use crate::store::{RecordsAt, Writer};
use crate::view::{Operating, Shown, table};

const PROXY: &str = "192.0.2.1";
const USER: &str = "x-forwarded-user";

/// A page with a user of each role, whom a proxy names.
struct Page {
    routes: Vec<Route>,
    router: Router,
    _dir: tempfile::TempDir,
}

fn page() -> Page {
    let dir = tempfile::tempdir().expect("a directory");
    let users = [Role::Viewer, Role::Reviewer, Role::Operator].map(|role| User {
        name: role.name().to_owned(),
        role,
        proof: Proof::Proxy,
    });
    let file = dir.path().join("users.json");
    std::fs::write(&file, serde_json::to_string(&users).expect("written")).expect("written");
    let proxies = vec![PROXY.parse().expect("an address")];
    let entrance = Entrance { users: file, proxies, proxy_header: HeaderName::from_static(USER) };
    let listen = "192.0.2.9:443".parse().expect("an address");
    let access = Access::open(&entrance, listen, true).expect("users");
    let records = RecordsAt::file(dir.path().join("records.sqlite"));
    let instance = Name::new("cloud-1").expect("valid");
    drop(Writer::open(&records, &instance).expect("records"));
    let shown = Shown {
        instance: instance.clone(),
        broker: String::new(),
        tasks: Vec::new(),
        labels: Default::default(),
        link: watch::channel(LinkNow::Connecting).1,
        heard: Heard::default(),
        model_seconds: crate::model::seconds(),
        traces: crate::traces::Traces::default(),
        answerers: watch::channel(Vec::new()).1,
        taking: watch::channel(Taking::All).1,
        events: mpsc::channel(1).0,
        bundles: None,
    };
    let door = hedge_listen::Door { listen, names: Vec::new(), naming: "", look_only: false };
    let nowhere = Endpoint { host: "127.0.0.1".to_owned(), port: 1, tls: false };
    let way = Way::new(nowhere, &Credentials::default()).expect("a way");
    let rollouts = crate::fleet::rollouts::Rollouts::open(dir.path().join("rollouts.json"), 0);
    let operating = Operating::new(way, Topics::new("").expect("topics"), &instance, rollouts);
    let view = crate::view::view(&records, shown, door, access, operating, watch::channel(0).1).expect("a view");
    let routes = table(view);
    Page { routes: routes.table.clone(), router: routes.finish(), _dir: dir }
}

impl Page {
    async fn ask(&self, method: &Method, path: &str, headers: &[(&str, &str)]) -> StatusCode {
        self.answer(method, path, headers).await.status()
    }

    async fn answer(&self, method: &Method, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::builder().method(method).uri(path).header("host", "hedge.example");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).expect("a request");
        let from: SocketAddr = format!("{PROXY}:5000").parse().expect("an address");
        request.extensions_mut().insert(ConnectInfo(from));
        self.router.clone().call(request).await.expect("an answer")
    }

    async fn ask_as(&self, role: Role, method: &Method, path: &str, more: &[(&str, &str)]) -> StatusCode {
        self.ask(method, path, &[&[(USER, role.name())], more].concat()).await
    }
}

/// What the page itself says with a change.
const OWN: [(&str, &str); 2] = [("origin", "https://hedge.example"), ("hedge-operate", "yes")];

fn refuses(status: StatusCode) -> bool {
    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::MISDIRECTED_REQUEST].contains(&status)
}

#[tokio::test]
async fn each_route_lets_in_its_role_and_those_above_it_and_nobody_else() {
    let page = page();
    assert!(page.routes.len() > 40, "the table is whole");
    for Route { method, path, needs, .. } in &page.routes {
        let path = path.replace("{name}", "hall-1").replace("{id}", "hall-1.0000000000000001.0");
        let nobody = page.ask(method, &path, &OWN).await;
        let Needs::Role(needs) = *needs else {
            // Whoever tries a wrong password is let in to try.
            let is_tried = method == Method::POST && path == "/login" && nobody == StatusCode::UNAUTHORIZED;
            assert!(is_tried || !refuses(nobody), "{method} {path}: {nobody}");
            continue;
        };
        assert_eq!(nobody, StatusCode::UNAUTHORIZED, "{method} {path}");
        for role in [Role::Viewer, Role::Reviewer, Role::Operator] {
            let status = page.ask_as(role, method, &path, &OWN).await;
            let wanted = role < needs;
            assert_eq!(status == StatusCode::FORBIDDEN, wanted, "{method} {path} as {}: {status}", role.name());
            assert!(wanted || !refuses(status), "{method} {path} as {}: {status}", role.name());
        }
    }
}

#[tokio::test]
async fn what_needs_no_login_is_a_short_list() {
    let open: Vec<&str> = page().routes.iter().filter(|route| route.needs == ANYONE).map(|route| route.path).collect();
    assert_eq!(open, ["/icon.svg", "/page.css", "/login.css", "/login", "/login", "/healthz"]);
}

#[tokio::test]
async fn a_page_of_elsewhere_changes_nothing_with_the_right_role() {
    let page = page();
    let changes = page.routes.iter().filter(|route| route.method == Method::POST && route.needs != ANYONE);
    for Route { method, path, .. } in changes {
        let path = path.replace("{name}", "hall-1").replace("{id}", "hall-1.0000000000000001.0");
        for headers in [
            vec![("origin", "https://evil.example"), ("hedge-operate", "yes")],
            vec![("origin", "https://hedge.example")],
            vec![("hedge-operate", "yes")],
            vec![("origin", "null"), ("hedge-operate", "yes")],
        ] {
            assert_eq!(page.ask_as(Role::Operator, method, &path, &headers).await, StatusCode::FORBIDDEN, "{path}");
        }
    }
    let login = |site| [("origin", "https://evil.example"), ("sec-fetch-site", site)];
    assert_eq!(page.ask(&Method::POST, "/login", &login("cross-site")).await, StatusCode::FORBIDDEN);
    assert_eq!(page.ask(&Method::POST, "/login", &login("same-origin")).await, StatusCode::FORBIDDEN);
}

#[test]
fn an_act_is_about_what_its_path_names() {
    assert_eq!(about("/api/devices/{name}/commands", "/api/devices/hall-1/commands"), "hall-1");
    assert_eq!(about("/api/export", "/api/export"), "");
}

#[tokio::test]
async fn what_nobody_can_mean_is_refused_with_an_error_in_json_that_names_it() {
    let page = page();
    for (method, path, status, named) in [
        (Method::GET, "/api/devices?wher=link%3Donline", 400, "`wher`"),
        (Method::GET, "/api/devices/hall-1/trend?spam=hour", 400, "`spam`"),
        (Method::GET, "/api/devices/hall-1/saved?call_pric=1", 400, "`call_pric`"),
        (Method::GET, "/api/saved?span=hour&call_price=-1", 400, "call_price"),
        (Method::GET, "/api/labels?task=shoes&limit=3", 400, "`limit`"),
        (Method::GET, "/api/review?label=boot", 400, "`label`"),
        (Method::GET, "/api/cases?limit=-1", 400, "limit"),
        (Method::GET, "/api/casis", 404, "/api/casis"),
        (Method::PUT, "/api/cases", 405, "PUT"),
    ] {
        let answer = page.answer(&method, path, &[(USER, Role::Viewer.name())]).await;
        assert_eq!(answer.status().as_u16(), status, "{path}");
        let body = axum::body::to_bytes(answer.into_body(), 4096).await.expect("a body");
        let said: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let error = said["error"].as_str().unwrap_or_default();
        assert!(error.contains(named), "{path}: {error}");
    }
}
