//! Says why there is no connection: from the error of the dial, and from a probe of the way to the internet.
//!
//! The probe runs only while there is no connection and changes no decision; it finds words for people.

use std::time::Duration;

use hedge_core::link::Trouble;
use reqwest::redirect;
use rumqttc::{ConnectReturnCode, ConnectionError};

use crate::daemon::config::ProbeConfig;

/// How long the probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest body that is compared with what is expected.
const PROBE_BODY_BYTES_MAX: u64 = 4 * 1024;

/// What an ended connection or a failed dial tells by itself.
pub(crate) fn read(error: &ConnectionError) -> Trouble {
    match error {
        ConnectionError::Timeout(_) => Trouble::NoAnswer,
        ConnectionError::Tls(_) => Trouble::NotTrusted,
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword
            | ConnectReturnCode::NotAuthorized
            | ConnectReturnCode::BadAuthenticationMethod,
        ) => Trouble::NotAllowed,
        ConnectionError::Io(error) => read_io(error),
        // With TLS 1.3 a broker refuses our certificate only after the handshake, as a broken connection.
        error if error.to_string().contains("received fatal alert") => Trouble::NotAllowed,
        _ => Trouble::Lost,
    }
}

fn read_io(error: &std::io::Error) -> Trouble {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => Trouble::NobodyListens,
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::NetworkDown => Trouble::NoRoute,
        ErrorKind::TimedOut => Trouble::NoAnswer,
        // The resolver's failures have no kind of their own.
        _ if error.to_string().contains("lookup") => Trouble::NoName,
        _ => Trouble::Lost,
    }
}

/// Asks the configured address, expecting exactly what the configuration pins. `None`: it could not be asked.
pub(super) async fn probe(config: &ProbeConfig) -> Option<Trouble> {
    // A redirect is what captive portals answer with, so none is followed.
    let client = reqwest::Client::builder().redirect(redirect::Policy::none()).timeout(PROBE_TIMEOUT).build();
    let client = client.inspect_err(|error| tracing::debug!(%error, "the link cannot be probed")).ok()?;
    let response = match client.get(&config.url).send().await {
        Ok(response) => response,
        Err(error) => return Some(read_http(&error)),
    };
    if response.status().as_u16() != config.status {
        return Some(Trouble::CaptivePortal);
    }
    let Some(expected) = &config.body else { return Some(Trouble::OnlyBroker) };
    if response.content_length().is_some_and(|bytes| bytes > PROBE_BODY_BYTES_MAX) {
        return Some(Trouble::CaptivePortal);
    }
    match response.text().await {
        Ok(body) if body.trim() == expected.trim() => Some(Trouble::OnlyBroker),
        Ok(_) => Some(Trouble::CaptivePortal),
        Err(_) => Some(Trouble::NoAnswer),
    }
}

fn read_http(error: &reqwest::Error) -> Trouble {
    // The causes are only told apart by their words.
    let mut words = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        words.push_str(&error.to_string());
        cause = error.source();
    }
    let words = words.to_lowercase();
    if error.is_timeout() {
        Trouble::NoAnswer
    } else if words.contains("not valid yet") || words.contains("notvalidyet") || words.contains("expired") {
        Trouble::WrongClock
    } else if words.contains("certificate") {
        Trouble::CaptivePortal
    } else if words.contains("dns") || words.contains("lookup") {
        Trouble::NoName
    } else {
        Trouble::NoRoute
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind, Read as _, Write as _};

    fn answering(answer: &'static str) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).expect("reads") > 0);
            stream.write_all(answer.as_bytes()).expect("writes");
        });
        format!("http://{address}/")
    }

    async fn check(answer: &'static str, expected: Trouble) {
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = ProbeConfig { url: answering(answer), status: 200, body: Some("hedge".to_owned()) };
        assert_eq!(probe(&config).await, Some(expected), "{answer}");
    }

    #[tokio::test]
    async fn only_the_pinned_answer_is_the_internet() {
        check("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhedge", Trouble::OnlyBroker).await;
        check("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlogin", Trouble::CaptivePortal).await;
        check("HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n", Trouble::CaptivePortal).await;
    }

    #[test]
    fn a_failed_dial_is_told_in_plain_words() {
        let io = |error| read(&ConnectionError::Io(error));
        assert_eq!(io(Error::from(ErrorKind::ConnectionRefused)), Trouble::NobodyListens);
        assert_eq!(io(Error::from(ErrorKind::NetworkUnreachable)), Trouble::NoRoute);
        assert_eq!(io(Error::other("failed to lookup address information")), Trouble::NoName);
        let refused = ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized);
        assert_eq!(read(&refused), Trouble::NotAllowed);
    }
}
