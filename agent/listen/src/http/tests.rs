//! Over real sockets: slow and silent peers of every kind, and good ones beside them.

use std::net::SocketAddr;

use axum::http::HeaderMap;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

const BOUNDS: Bounds = Bounds { what: "a test", connections_max: 8, address_max: 8, files_each: 1 };

/// More than the system keeps for a peer that does not read.
const LARGE: usize = 32 * 1024 * 1024;

async fn server() -> (SocketAddr, CancellationToken) {
    let routes = Router::new()
        .route("/", get(async || "good"))
        .route(
            "/host",
            get(async |headers: HeaderMap| format!("{:?}", headers.get_all(HOST).iter().collect::<Vec<_>>())),
        )
        .route("/whole", post(async |body: Bytes| body.len().to_string()))
        .route("/large", get(async || vec![0; LARGE]))
        .route("/slow", get(std::future::pending::<&str>));
    let listener = Listener::tcp(([127, 0, 0, 1], 0).into()).await.expect("a port");
    let (address, stop) = (listener.address().expect("TCP"), CancellationToken::new());
    tokio::spawn(serve(listener, BOUNDS, None, routes, stop.clone()));
    (address, stop)
}

async fn begin(address: SocketAddr, text: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("connected");
    socket.write_all(text.as_bytes()).await.expect("sent");
    socket
}

async fn is_served(address: SocketAddr) {
    let mut socket = begin(address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let mut text = String::new();
    let whole = timeout(Duration::from_secs(20), socket.read_to_string(&mut text)).await;
    whole.expect("in time").expect("read");
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("good"), "{text}");
}

#[tokio::test]
async fn slow_and_silent_peers_of_every_kind_keep_nobody_out() {
    for slow in [
        "",
        "GET / HTTP/1.1\r\nHost:",
        "POST /whole HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        "POST /whole HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "rubbish\r\n\r\n",
    ] {
        let (address, stop) = server().await;
        let mut held = Vec::new();
        for _ in 0..3 * BOUNDS.connections_max {
            held.push(begin(address, slow).await);
        }
        for _ in 0..3 {
            timeout(Duration::from_secs(30), is_served(address))
                .await
                .unwrap_or_else(|_| panic!("kept out by {slow:?}"));
        }
        stop.cancel();
    }
}

#[tokio::test]
async fn a_whole_url_in_the_first_line_says_who_is_asked() {
    let (address, _stop) = server().await;
    for (target, expected) in [("/host", "[\"localhost\"]"), ("http://evil.example/host", "[\"evil.example\"]")] {
        let asked = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let (mut socket, mut text) = (begin(address, &asked).await, String::new());
        socket.read_to_string(&mut text).await.expect("read");
        assert!(text.ends_with(expected), "{text}");
    }
}

#[tokio::test]
async fn a_caller_being_answered_is_not_closed_for_another() {
    let (address, _stop) = server().await;
    let mut waiting = begin(address, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut silent = Vec::new();
    for _ in 0..3 * BOUNDS.connections_max {
        silent.push(begin(address, "").await);
    }
    for _ in 0..BOUNDS.connections_max {
        is_served(address).await;
    }
    let ended = timeout(Duration::from_millis(1), waiting.read(&mut [0])).await;
    assert!(ended.is_err(), "it still waits for its answer: {ended:?}");
}

#[tokio::test(start_paused = true)]
async fn every_step_has_an_end() {
    for slow in [
        "",
        "GET / HTTP/1.1\r\nHost:",
        "POST /whole HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let (address, _stop) = server().await;
        let mut socket = begin(address, slow).await;
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.expect("closed");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_read_by_drops_is_given_up() {
    let (address, _stop) = server().await;
    let mut socket = begin(address, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut drop_of_it = vec![0; 1024];
    let mut read = 0;
    loop {
        tokio::time::advance(Duration::from_secs(10)).await;
        match socket.read(&mut drop_of_it).await {
            Ok(0) | Err(_) => break,
            Ok(count) => read += count,
        }
    }
    assert!(read < LARGE, "all of it was read");
}
