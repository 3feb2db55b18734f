//! A unix socket is made, found, and made again.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use hedge_config::Config;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::{JPEG, config, response};
use crate::capture::Capture;
use crate::capture::testing::Fake;
use crate::faults::Faults;

#[tokio::test]
async fn a_stop_answers_those_who_wait_and_removes_the_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let (fake, stop) = (Arc::new(Fake::default()), CancellationToken::new());
    let capture = Capture::start(&unix_config(&path), &BTreeSet::new(), &fake, &Faults::default(), &stop).await;
    assert_eq!(std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o660);
    let mut socket = UnixStream::connect(&path).await.expect("connected");
    let head =
        format!("POST /v1/samples?wait_ms=60000 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", JPEG.len());
    socket.write_all(&[head.as_bytes(), JPEG].concat()).await.expect("sent");
    fake.until("the sample", |fake| fake.sample_count() == 1).await;
    stop.cancel();
    assert_eq!(response(&mut socket).await.0, 200);
    capture.stopped().await;
    assert!(!path.exists());
}

#[tokio::test(start_paused = true)]
async fn a_socket_whose_file_was_deleted_or_replaced_is_made_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let (fake, faults, stop) = (Arc::new(Fake::default()), Faults::default(), CancellationToken::new());
    let capture = Capture::start(&unix_config(&path), &BTreeSet::new(), &fake, &faults, &stop).await;
    let mut now = faults.subscribe();
    let mut until_said = async |part: &str| {
        let says = |faults: &hedge_proto::Faults| faults.get("listen").is_some_and(|fault| fault.contains(part));
        drop(
            now.wait_for(|faults| if part.is_empty() { faults.is_empty() } else { says(faults) })
                .await
                .expect("it runs"),
        );
    };
    for replaced in [false, true] {
        std::fs::remove_file(&path).expect("deleted");
        if replaced {
            std::fs::write(&path, "somebody's").expect("replaced");
        }
        until_said("deleted or replaced").await;
        if replaced {
            until_said("not a socket").await;
            assert_eq!(std::fs::read(&path).expect("left alone"), b"somebody's");
            std::fs::remove_file(&path).expect("deleted");
        }
        until_said("").await;
        assert!(UnixStream::connect(&path).await.is_ok());
    }
    stop.cancel();
    capture.stopped().await;
    assert!(!path.exists());
}

fn unix_config(path: &Path) -> Config {
    let listen = format!("listen = [\"unix:{}\"]", path.display());
    config(&listen, "[[source]]\nname = \"cam\"\nkind = \"http\"")
}

#[tokio::test]
async fn only_a_dead_socket_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let (fake, stop) = (Arc::new(Fake::default()), CancellationToken::new());
    let start = async || {
        let faults = Faults::default();
        let capture = Capture::start(&unix_config(&path), &BTreeSet::new(), &fake, &faults, &stop).await;
        (capture, faults.now().remove("listen").unwrap_or_default())
    };

    std::fs::write(&path, "precious").expect("written");
    assert!(start().await.1.contains("not a socket"), "the file is left alone");
    std::fs::remove_file(&path).expect("removed");

    drop(std::os::unix::net::UnixListener::bind(&path).expect("what a killed process leaves"));
    let (running, fault) = start().await;
    assert_eq!(fault, "", "a dead socket is replaced");
    assert!(start().await.1.contains("another program answers there"));
    assert!(UnixStream::connect(&path).await.is_ok(), "the refused start left it alone");
    stop.cancel();
    running.stopped().await;
}
