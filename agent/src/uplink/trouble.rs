//! Says why there is no connection: from the error of the dial, and from a probe of the way to the internet.
//!
//! The probe runs only while there is no connection and changes no decision; it finds words for people.

use std::io;
use std::time::Duration;

use hedge_core::link::Trouble;
use hedge_identity::http_body;
use hedge_proto::in_one_line;
use reqwest::redirect;
use rumqttc::mqttbytes::Error as MqttError;
use rumqttc::{ConnectReturnCode, ConnectionError, StateError};
use rustls::CertificateError;

use super::Meter;
use hedge_config::{BrokerConfig, BrokerTransport, ProbeConfig};

/// How long the probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest body that is compared with what is expected.
const PROBE_BODY_BYTES_MAX: usize = 4 * 1024;

/// What is known of a connection besides the error that ended it.
pub struct Dialled<'a> {
    pub broker: &'a BrokerConfig,
    /// Has the first bytes that came.
    pub meter: &'a Meter,
    /// CONNACK has come.
    pub greeted: bool,
}

/// What an ended connection or a failed dial tells by itself.
pub fn read(error: &ConnectionError, dialled: &Dialled<'_>) -> Trouble {
    match error {
        ConnectionError::ConnectionRefused(code) => return Trouble::Told(reason_code(*code)),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            return Trouble::Told(*reason_code as u8);
        }
        ConnectionError::Timeout(_) | ConnectionError::MqttState(StateError::AwaitPingResp) => {
            return Trouble::NoAnswer;
        }
        ConnectionError::Proxy(_) => return Trouble::ProxyRefuses,
        _ => {}
    }
    let io = io_error(error);
    if let Some(error) = rustls_error(error).or_else(|| io.and_then(|io| rustls_error(io))) {
        return read_tls(error, dialled);
    }
    if !dialled.greeted
        && let Some(trouble) = read_opening(dialled)
    {
        return trouble;
    }
    match (error, io) {
        (_, Some(io)) => read_io(io, dialled),
        (ConnectionError::MqttState(StateError::ConnectionAborted), _) => closed(dialled),
        (ConnectionError::Websocket(_) | ConnectionError::ResponseValidation(_), _) if !dialled.greeted => {
            Trouble::NoWebSocket
        }
        (ConnectionError::MqttState(StateError::Deserialization(MqttError::PayloadSizeLimitExceeded { .. })), _)
        | (ConnectionError::MqttState(StateError::IncomingPacketTooLarge { .. }), _) => Trouble::TooLarge,
        // A CONNACK that cannot be is MQTT all the same.
        (ConnectionError::MqttState(_), _) if !dialled.greeted && dialled.meter.opening().first() != Some(&0x20) => {
            Trouble::NotMqtt
        }
        (ConnectionError::MqttState(_) | ConnectionError::NotConnAck(_), _) => Trouble::BrokenProtocol,
        (ConnectionError::SessionStateMismatch { .. }, _) => Trouble::BrokenProtocol,
        (ConnectionError::Tls(_), _) => Trouble::NotTrusted,
        _ => Trouble::Lost,
    }
}

/// The code of a refusal as it travels; the library keeps no number.
fn reason_code(code: ConnectReturnCode) -> u8 {
    use ConnectReturnCode as Code;
    match code {
        Code::Success => 0x00,
        Code::UnspecifiedError => 0x80,
        Code::MalformedPacket => 0x81,
        Code::ProtocolError => 0x82,
        Code::ImplementationSpecificError => 0x83,
        Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => 0x84,
        Code::BadClientId | Code::ClientIdentifierNotValid => 0x85,
        Code::BadUserNamePassword => 0x86,
        Code::NotAuthorized => 0x87,
        Code::ServiceUnavailable | Code::ServerUnavailable => 0x88,
        Code::ServerBusy => 0x89,
        Code::Banned => 0x8A,
        Code::BadAuthenticationMethod => 0x8C,
        Code::TopicNameInvalid => 0x90,
        Code::PacketTooLarge => 0x95,
        Code::QuotaExceeded => 0x97,
        Code::PayloadFormatInvalid => 0x99,
        Code::RetainNotSupported => 0x9A,
        Code::QoSNotSupported => 0x9B,
        Code::UseAnotherServer => 0x9C,
        Code::ServerMoved => 0x9D,
        Code::ConnectionRateExceeded => 0x9F,
    }
}

/// Who answers at the broker's port, by the first bytes.
fn read_opening(dialled: &Dialled<'_>) -> Option<Trouble> {
    let opening = dialled.meter.opening();
    let plain = dialled.broker.url.transport.is_plain();
    // Through a proxy its own answer comes first, and a WebSocket begins as HTTP.
    let direct = dialled.broker.proxy.is_none()
        && matches!(dialled.broker.url.transport, BrokerTransport::Tcp | BrokerTransport::Tls);
    match opening.get(..) {
        _ if !direct => None,
        // Every CONNACK of MQTT 5 is longer.
        Some([0x20, 0x02, ..]) => Some(Trouble::OnlyMqtt3),
        Some([b'H', b'T', b'T', b'P', ..]) => Some(Trouble::HttpServer),
        Some([0x14..=0x17, 0x03, 0x00..=0x04, ..]) => plain.then_some(Trouble::TlsPort),
        Some([_, ..]) if !plain => Some(Trouble::NoTls),
        Some([first, ..]) => (*first != 0x20).then_some(Trouble::NotMqtt),
        _ => None,
    }
}

/// The broker closed the connection, or reset it, without a word.
fn closed(dialled: &Dialled<'_>) -> Trouble {
    match dialled.broker.url.transport {
        _ if dialled.greeted => Trouble::Lost,
        BrokerTransport::Tls if dialled.meter.opening().is_empty() => Trouble::ClosedInHandshake,
        _ => Trouble::ClosedAtOnce,
    }
}

fn io_error(error: &ConnectionError) -> Option<&io::Error> {
    if let ConnectionError::MqttState(StateError::Deserialization(MqttError::Io(error))) = error {
        return Some(error); // the library does not name it as the source
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// TLS's own error, wherever in the chain it is.
fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

fn read_tls(error: &rustls::Error, dialled: &Dialled<'_>) -> Trouble {
    match error {
        rustls::Error::InvalidCertificate(error) => read_certificate(error),
        rustls::Error::InvalidMessage(_) if !dialled.greeted => read_opening(dialled).unwrap_or(Trouble::NoTls),
        error => refused_in_tls(error),
    }
}

/// What a peer's TLS has against ours. With TLS 1.3 it refuses our certificate only after the handshake.
pub fn refused_in_tls(error: &rustls::Error) -> Trouble {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::AlertReceived(
            Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity | Alert::IllegalParameter,
        )
        | rustls::Error::PeerIncompatible(_) => Trouble::NoCommonTls,
        rustls::Error::AlertReceived(Alert::UnrecognisedName) => Trouble::OtherName,
        rustls::Error::AlertReceived(_) => Trouble::OwnCertificate,
        rustls::Error::InvalidMessage(_) => Trouble::NoTls,
        _ => Trouble::NotTrusted,
    }
}

/// Why the broker's certificate is not trusted.
pub fn read_certificate(error: &CertificateError) -> Trouble {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Trouble::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Trouble::NotYetValid,
        // An authority of the same name with another key gives no other error than a wrong signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Trouble::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Trouble::OtherName,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Trouble::WrongPurpose,
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Trouble::UnknownSignature,
        // The verifier's own errors are of a crate that is not named here; its words are what there is.
        CertificateError::Other(error) => match format!("{error:?}") {
            words if words.contains("UnsupportedCertVersion") => Trouble::OldCertificate,
            words if words.contains("CaUsedAsEndEntity") => Trouble::AuthorityAsBroker,
            words if words.contains("Unsupported") => Trouble::UnknownSignature,
            _ => Trouble::NotTrusted,
        },
        _ => Trouble::NotTrusted,
    }
}

fn read_io(error: &io::Error, dialled: &Dialled<'_>) -> Trouble {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => Trouble::NobodyListens,
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::NetworkDown => Trouble::NoRoute,
        ErrorKind::TimedOut => Trouble::NoAnswer,
        // The resolver's failures have no kind of their own.
        _ if error.to_string().contains("lookup") => Trouble::NoName,
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof => closed(dialled),
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
    match http_body(response, PROBE_BODY_BYTES_MAX).await {
        Ok(Some(body)) if body.trim_ascii() == expected.trim().as_bytes() => Some(Trouble::OnlyBroker),
        Ok(_) => Some(Trouble::CaptivePortal),
        Err(_) => Some(Trouble::NoAnswer),
    }
}

fn read_http(error: &reqwest::Error) -> Trouble {
    // The causes are only told apart by their words.
    let words = in_one_line(error).to_lowercase();
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

    fn broker(url: &str) -> BrokerConfig {
        toml::from_str(&format!("url = \"{url}\"")).expect("valid")
    }

    /// What is said when the dial to `url` ends so, with nothing heard.
    fn said(url: &str, error: &ConnectionError) -> Trouble {
        read(error, &Dialled { broker: &broker(url), meter: &Meter::default(), greeted: false })
    }

    #[test]
    fn a_failed_dial_is_told_in_plain_words() {
        let io = |error| said("mqtt://b", &ConnectionError::Io(error));
        assert_eq!(io(Error::from(ErrorKind::ConnectionRefused)), Trouble::NobodyListens);
        assert_eq!(io(Error::from(ErrorKind::NetworkUnreachable)), Trouble::NoRoute);
        assert_eq!(io(Error::other("failed to lookup address information")), Trouble::NoName);
        let refused = ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized);
        assert_eq!(said("mqtt://b", &refused), Trouble::Told(0x87));
        let aborted = ConnectionError::MqttState(StateError::ConnectionAborted);
        assert_eq!(said("mqtt://b", &aborted), Trouble::ClosedAtOnce);
        assert_eq!(said("mqtts://b", &aborted), Trouble::ClosedInHandshake);
    }
}
