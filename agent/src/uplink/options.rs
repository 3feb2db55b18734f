//! Turns `[broker]` into connection options: address, TLS, identity, proxy, will.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hedge_inference::read_text;
use hedge_proto::{DOCUMENT_BYTES_MAX, DOWN_BYTES_MAX, DeviceId, DeviceStatus, Topic, to_json};
use rumqttc::{
    AckMode, Broker, IncomingPacketSizeLimit, LastWill, LastWillProperties, MqttOptions, Proxy, ProxyAuth, ProxyType,
    QoS, SessionStore, SessionStoreError, SessionStoreKey, TlsConfiguration, Transport,
};
use tokio::net::TcpStream;

use super::Meter;
use super::credentials::client_config;
use hedge_config::{BrokerConfig, BrokerTransport};

/// How long dialling may take: a TLS handshake on a 20 kbit/s, 600 ms link needs most of it.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the broker keeps commands for a device that is away.
const SESSION_EXPIRY_S: u32 = 24 * 3600;

/// How long a lost connection is nobody's business: most come back within it.
const WILL_DELAY_S: u32 = 30;

/// Messages the broker may have on their way to us, unacknowledged.
pub(super) const RECEIVE_MAXIMUM: u16 = 64;

/// What the kernel takes from us beyond what is on its way. On a slow link everything in it is in front of the next
/// keep-alive: 32 KiB (the kernel doubles it) are 13 s at 20 kbit/s.
const SEND_BUFFER_BYTES: usize = 16 * 1024;

/// Data unacknowledged by the peer's kernel for so long means a cut link, however busy the sender.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(40);

/// Publishes without their acknowledgement: the window of cases and what else is said at once. The library keeps a
/// place for each, and by default 65,535 of them: 16 MiB a connection.
const UNACKNOWLEDGED_MAX: u16 = 64;
const _: () = assert!(hedge_core::uplink::WINDOW_MAX < UNACKNOWLEDGED_MAX as usize / 2);

/// The version of the library's session model.
const SESSION_FORMAT: u16 = 1;

/// The largest message that a device reads, with as much for the topic and properties around it. Brokers keep back what
/// is larger.
pub(super) const PACKET_BYTES_MAX: u32 = 128 * 1024;
const _: () = assert!(DOWN_BYTES_MAX <= DOCUMENT_BYTES_MAX && PACKET_BYTES_MAX as usize == 2 * DOCUMENT_BYTES_MAX);

/// Why a connection cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("{field} = {path}: {reason}")]
    File { field: &'static str, path: PathBuf, reason: String },
    #[error("[broker]: {0}")]
    Broker(String),
}

/// Options for one connection of the uplink. `offline` is the will.
pub(super) fn uplink_options(
    config: &BrokerConfig,
    device: &DeviceId,
    offline: &DeviceStatus,
    keep_alive: Duration,
    meter: &Meter,
) -> Result<MqttOptions, OptionsError> {
    let client_id = config.client_id.clone().unwrap_or_else(|| device.to_string());
    let mut options = session_options(config, device, &client_id, offline, keep_alive, meter)?;
    options.set_clean_start(false);
    options.set_session_expiry_interval(Some(SESSION_EXPIRY_S));
    options.set_session_store(NothingRemembered { client_id });
    Ok(options)
}

/// What the uplink asks of a broker, in a session that ends with its connection: whoever lets this in lets the uplink in.
pub fn session_options(
    config: &BrokerConfig,
    device: &DeviceId,
    client_id: &str,
    offline: &DeviceStatus,
    keep_alive: Duration,
    meter: &Meter,
) -> Result<MqttOptions, OptionsError> {
    let mut options = options(config, client_id, keep_alive, meter)?;
    options.set_ack_mode(AckMode::Manual);
    options.set_receive_maximum(Some(RECEIVE_MAXIMUM));
    options.set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(PACKET_BYTES_MAX));
    options.set_last_will(will(config, device, offline));
    Ok(options)
}

/// How to reach a broker and who we are, with a session that ends with its connection.
pub fn options(
    config: &BrokerConfig,
    client_id: &str,
    keep_alive: Duration,
    meter: &Meter,
) -> Result<MqttOptions, OptionsError> {
    let mut options = address(config, client_id)?;
    let keep_alive_s = u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX);
    options.set_keep_alive(config.keep_alive_s.unwrap_or(keep_alive_s));
    options.set_connect_timeout(CONNECT_TIMEOUT);
    options.set_outgoing_inflight_upper_limit(UNACKNOWLEDGED_MAX);
    let meter = meter.clone();
    options.set_socket_connector(move |host, network| {
        let meter = meter.clone();
        async move {
            let stream = rumqttc::default_socket_connect(host, network).await?;
            tune(&stream)?;
            Ok(meter.on(stream))
        }
    });
    if let Some(proxy) = &config.proxy {
        let (addr, port) = (proxy.host.clone(), proxy.port);
        options.set_proxy(Proxy { ty: ProxyType::Http, auth: ProxyAuth::None, addr, port });
    }
    credentials(config, &mut options)?;
    Ok(options)
}

/// As every connection to the cloud is: a cut is noticed, and little is on its way at once.
pub(super) fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)
}

fn address(config: &BrokerConfig, client_id: &str) -> Result<MqttOptions, OptionsError> {
    let url = &config.url;
    let authority = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let broker = |error: rumqttc::OptionError| OptionsError::Broker(error.to_string());
    Ok(match url.transport {
        BrokerTransport::Tcp => MqttOptions::new(client_id, Broker::tcp(&url.host, url.port)),
        BrokerTransport::Tls => {
            let mut options = MqttOptions::new(client_id, Broker::tcp(&url.host, url.port));
            options.set_transport(Transport::tls_with_config(tls(config)?));
            options
        }
        BrokerTransport::WebSocket => {
            let address = format!("ws://{authority}:{}{}", url.port, url.path);
            MqttOptions::new(client_id, Broker::websocket(address).map_err(broker)?)
        }
        BrokerTransport::WebSocketTls => {
            let address = format!("wss://{authority}:{}{}", url.port, url.path);
            MqttOptions::websocket_with_tls_config(client_id, address, tls(config)?).map_err(broker)?
        }
    })
}

fn will(config: &BrokerConfig, device: &DeviceId, offline: &DeviceStatus) -> LastWill {
    let properties = LastWillProperties {
        delay_interval: Some(WILL_DELAY_S),
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    let topic = config.prefix.text(&Topic::UpStatus(device.clone()));
    LastWill::new(topic, to_json(offline), QoS::AtLeastOnce, true, Some(properties))
}

fn credentials(config: &BrokerConfig, options: &mut MqttOptions) -> Result<(), OptionsError> {
    let read = |path: &PathBuf| read_text(path).map_err(|error| unreadable("password_file", path, &error));
    let password = config.password_file.as_ref().map(read).transpose()?;
    let password = password.map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
    match (&config.username, password) {
        (Some(username), Some(password)) => options.set_credentials(username, password),
        // Brokers that go by tokens take a password alone, which MQTT 5 allows.
        (None, Some(password)) => options.set_password(password),
        (Some(username), None) => options.set_username(username),
        (None, None) => return Ok(()),
    };
    Ok(())
}

fn tls(config: &BrokerConfig) -> Result<TlsConfiguration, OptionsError> {
    Ok(TlsConfiguration::Rustls(Arc::new(client_config(config)?)))
}

pub(super) fn unreadable(field: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> OptionsError {
    OptionsError::File { field, path: path.to_owned(), reason: reason.to_string() }
}

/// Tells the library to go on with whatever session the broker kept.
///
/// Each connection starts with no packets of its own under way, because the outbox decides what is sent
/// again. Without a store the library refuses a kept session for ever.
#[derive(Debug)]
struct NothingRemembered {
    client_id: String,
}

/// As the library spells it.
type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

impl SessionStore for NothingRemembered {
    fn load<'a>(&'a self, _: &'a SessionStoreKey) -> StoreFuture<'a, Option<rumqttc::PersistedSession>> {
        let nothing = rumqttc::PersistedSession {
            format_version: SESSION_FORMAT,
            client_id: self.client_id.clone(),
            clean_start: false,
            session_expiry_interval: Some(SESSION_EXPIRY_S),
            outgoing_inflight_upper_limit: Some(UNACKNOWLEDGED_MAX),
            ack_mode: rumqttc::PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        };
        Box::pin(async move { Ok(Some(nothing)) })
    }

    fn save<'a>(&'a self, _: &'a SessionStoreKey, _: &'a rumqttc::PersistedSession) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn clear<'a>(&'a self, _: &'a SessionStoreKey) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use hedge_config::Config;

    #[test]
    fn credentials_that_an_editor_put_a_mark_before_are_the_same_credentials() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(["device".to_owned()]).and_then(|one| one.self_signed(&key));
        let certificate = certificate.expect("a certificate").pem();
        for (file, text) in [("cert", certificate), ("key", key.serialize_pem()), ("password", "gate 7\r\n".to_owned())]
        {
            std::fs::write(folder.path().join(file), format!("\u{feff}{text}")).expect("a file");
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "[broker]\nurl = \"mqtts://localhost\"\nusername = \"device\"\npassword_file = \"{}\"\nca_file = \"{}\"\n\
             certificate_file = \"{}\"\nkey_file = \"{}\"\n",
            at("password"),
            at("cert"),
            at("cert"),
            at("key")
        );
        let broker = Config::parse(&config, "agent.toml", std::iter::empty()).expect("valid").broker.expect("a broker");
        client_config(&broker).expect("certificate and key are read");
        let mut options = MqttOptions::new("device", Broker::tcp("localhost", 1883));
        credentials(&broker, &mut options).expect("the password is read");
        let password = rumqttc::ConnectAuth::UsernamePassword { username: "device".into(), password: "gate 7".into() };
        assert_eq!(options.auth(), &password);

        let utf16: Vec<u8> = "\u{feff}gate".encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(folder.path().join("password"), utf16).expect("a file");
        let error = credentials(&broker, &mut options).expect_err("refused").to_string();
        assert!(error.contains("password_file") && error.contains("saved as UTF-16"), "{error}");
    }
}
