//! The way to the broker, step by step: name, port, TLS, login, topics, and a cloud behind it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hedge_core::link::Profile;
use hedge_proto::{CaseMessage, CloudState, CloudStatus, DOCUMENT_BYTES_MAX, DeviceId, Telemetry, Topic, WIRE_VERSION};
use hedge_proto::{LinkState, from_json, to_cbor};
use rumqttc::mqttbytes::v5::{Packet, SubscribeReasonCode};
use rumqttc::{AsyncClient, ConnectReturnCode, ConnectionError, Event, MqttOptions, PubAckReason};
use rumqttc::{PublishNoticeError, PublishOptions, PublishResult, QoS, SubscribeFilter, SubscribeNoticeError};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::report::Report;
use super::tls::{Seeing, explain};
use crate::daemon::config::{BrokerConfig, Config};
use crate::identity::CertificateClock;
use crate::uplink::{Meter, client_config, options, read_trouble, roots};

/// How long each step may take. A slow link needs some of it; a person waits for all of them.
const STEP_WAIT_MAX: Duration = Duration::from_secs(15);

/// How long retained statuses of the cloud may take to arrive after the subscription.
const STATUS_WAIT: Duration = Duration::from_secs(2);

/// A broker's certificate is to be replaced before so many days are left.
const DAYS_LEFT_MIN: u64 = 14;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Goes as far as it gets. `status` is the running agent's.
pub(super) async fn check(report: &mut Report, config: &Config, status: Option<&Telemetry>) {
    let Some(broker) = &config.broker else {
        return report.ok("broker", "none is configured: the device answers on its own");
    };
    let Ok(device) = config.device_id() else { return };
    let Some(socket) = reach(report, broker).await else { return };
    if broker.url.transport.is_plain() {
        let advice = "use mqtts:// with ca_file, certificate_file and key_file; see docs/identity.md";
        report.warning("TLS", "not used: anyone on the way can read samples and passwords", advice);
    } else if !handshake(report, broker, socket).await {
        return;
    }
    let away = |state| matches!(state, LinkState::Offline | LinkState::Connecting | LinkState::Resting);
    let online = status.is_some_and(|status| !away(status.link));
    let Some(own_id) = login(report, broker, &device, online).await else { return };
    topics(report, broker, &device, &own_id).await;
}

/// The name, then the port: of the proxy, if there is one.
async fn reach(report: &mut Report, broker: &BrokerConfig) -> Option<TcpStream> {
    let (what, host, port) = match &broker.proxy {
        Some(proxy) => ("proxy", &proxy.host, proxy.port),
        None => ("broker", &broker.url.host, broker.url.port),
    };
    let addresses: Vec<SocketAddr> = match timeout(STEP_WAIT_MAX, tokio::net::lookup_host((host.as_str(), port))).await
    {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            let advice = "check the name in `url`, then the network and its DNS server (`resolvectl status`)";
            report.failed("DNS", format!("the {what}'s name `{host}` is not known: {error}"), advice);
            return None;
        }
        Err(_) => {
            let text = format!("no answer on `{host}` within {} s", STEP_WAIT_MAX.as_secs());
            report.failed("DNS", text, "see that the network is up and its DNS server answers (`resolvectl status`)");
            return None;
        }
    };
    let shown: Vec<String> = addresses.iter().take(4).map(|address| address.ip().to_string()).collect();
    report.ok("DNS", format!("`{host}` is {}", shown.join(", ")));
    let begun = Instant::now();
    match timeout(STEP_WAIT_MAX, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(socket)) => {
            report.ok(what, format!("{host}:{port} takes connections, after {} ms", begun.elapsed().as_millis()));
            Some(socket)
        }
        Ok(Err(error)) => {
            let advice = "is the broker running, the port right, and open in every firewall on the way?";
            report.failed(what, format!("{host}:{port}: {error}"), advice);
            None
        }
        Err(_) => {
            let text = format!("{host}:{port} does not answer within {} s", STEP_WAIT_MAX.as_secs());
            report.failed(what, text, "a firewall on the way, or no route: see `ip route` and the broker's firewall");
            None
        }
    }
}

/// Whether the broker is who it should be, and for how long it can show that.
async fn handshake(report: &mut Report, broker: &BrokerConfig, socket: TcpStream) -> bool {
    let (mut tls, seeing) = match seeing(broker) {
        Ok(made) => made,
        Err(error) => {
            report.failed("TLS", error, "put the file right");
            return false;
        }
    };
    tls.dangerous().set_certificate_verifier(seeing.clone());
    let Ok(name) = ServerName::try_from(broker.url.host.clone()) else {
        report.failed("TLS", "the host in `url` cannot be in a certificate", "use the broker's name");
        return false;
    };
    let socket = match through_proxy(broker, socket).await {
        Ok(socket) => socket,
        Err(error) => {
            report.failed("proxy", error, "see that the proxy allows CONNECT to the broker's port");
            return false;
        }
    };
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, socket);
    let shaken = timeout(STEP_WAIT_MAX, connecting).await;
    let seen = seeing.seen();
    if let Some(error) = &seen.refused {
        let (text, advice) = explain(error);
        report.failed("TLS", text, advice);
        return false;
    }
    match shaken {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            let advice = "the broker speaks no TLS there, or refuses this device's certificate; see its log";
            report.failed("TLS", error, advice);
            return false;
        }
        Err(_) => {
            report.failed("TLS", "the broker does not answer the handshake", "is this its TLS port?");
            return false;
        }
    }
    // The first to end is what counts: the broker's own, or an authority's on the way to it.
    let now_ms = CertificateClock::since(None).now_ms();
    let left = seen.chain.iter().map(|held| held.validity.to_ms.saturating_sub(now_ms) / DAY_MS).min();
    let days = left.unwrap_or_default();
    let text = format!("the broker is who it should be; its {} certificates hold {days} more days", seen.chain.len());
    if days < DAYS_LEFT_MIN {
        report.warning("TLS", text, "renew the broker's certificate");
    } else {
        report.ok("TLS", text);
    }
    true
}

fn seeing(broker: &BrokerConfig) -> Result<(rustls::ClientConfig, Arc<Seeing>), String> {
    let tls = client_config(broker).map_err(|error| error.to_string())?;
    let roots = roots(broker.ca_file.as_deref()).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
    Ok((tls, Seeing::new(inner.map_err(|error| error.to_string())?)))
}

async fn through_proxy(broker: &BrokerConfig, mut socket: TcpStream) -> Result<TcpStream, String> {
    if broker.proxy.is_some() {
        let (host, port) = (&broker.url.host, broker.url.port);
        let connecting = async_http_proxy::http_connect_tokio(&mut socket, host, port);
        let connected = timeout(STEP_WAIT_MAX, connecting).await.map_err(|_| "the proxy does not answer".to_owned())?;
        connected.map_err(|error| error.to_string())?;
    }
    Ok(socket)
}

/// Logs in, and tells under which client id. Beside a running agent never under the device's own: the broker would
/// end the agent's connection for it.
async fn login(report: &mut Report, broker: &BrokerConfig, device: &DeviceId, online: bool) -> Option<String> {
    let own = broker.client_id.clone().unwrap_or_else(|| device.to_string());
    let beside = format!("{own}-check");
    let mut tried = connect(broker, &beside).await;
    let mut id = beside;
    let refused = |tried: &Result<Connection, Failure>| matches!(tried, Err(Failure::Refused(_)));
    if refused(&tried) && online {
        report.ok(
            "login",
            "the running agent is connected; the broker lets in no second client, so topics were not tried",
        );
        return None;
    }
    if refused(&tried) {
        id = own;
        tried = connect(broker, &id).await;
    }
    match tried {
        Ok(_) => {
            report.ok("login", format!("the broker lets the device in (as client `{id}`)"));
            Some(id)
        }
        Err(Failure::Refused(code)) => {
            let advice = match code {
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                    "check username and password_file, or the certificate, against the broker's list; its log says more"
                }
                ConnectReturnCode::BadClientId | ConnectReturnCode::ClientIdentifierNotValid => {
                    "set client_id in [broker] to what the broker allows"
                }
                _ => "see the broker's log",
            };
            report.failed("login", format!("the broker refuses the device: {code:?}"), advice);
            None
        }
        Err(Failure::Other(text)) => {
            report.failed("login", text, "see the broker's log; it names the device's client id");
            None
        }
    }
}

enum Failure {
    Refused(ConnectReturnCode),
    Other(String),
}

/// A connection that is served by a task until it is dropped.
struct Connection {
    client: AsyncClient,
    arrived: mpsc::Receiver<(String, Vec<u8>)>,
    _served: JoinSet<()>,
}

/// Messages that may wait: retained ones of a few clouds, and what waits for the device.
const ARRIVED_MAX: usize = 256;

async fn connect(broker: &BrokerConfig, client_id: &str) -> Result<Connection, Failure> {
    let other = |error: &dyn std::fmt::Display| Failure::Other(error.to_string());
    let mut options = options(broker, client_id, Profile::LAN.keep_alive, &Meter::default()).map_err(|e| other(&e))?;
    as_a_guest(&mut options);
    let (client, mut eventloop) = AsyncClient::builder(options).capacity(16).try_build().map_err(|e| other(&e))?;
    let connecting = async {
        loop {
            match eventloop.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => return Ok(()),
                Ok(_) => {}
                Err(ConnectionError::ConnectionRefused(code)) => return Err(Failure::Refused(code)),
                Err(error) => return Err(Failure::Other(format!("{} ({error})", read_trouble(&error).text()))),
            }
        }
    };
    let late = || Failure::Other("the broker does not answer the login".to_owned());
    timeout(STEP_WAIT_MAX, connecting).await.map_err(|_| late())??;
    let (say, arrived) = mpsc::channel(ARRIVED_MAX);
    let mut served = JoinSet::new();
    served.spawn(async move {
        while let Ok(event) = eventloop.poll().await {
            if let Event::Incoming(Packet::Publish(publish)) = event {
                // What does not fit is not needed.
                drop(say.try_send((String::from_utf8_lossy(&publish.topic).into_owned(), publish.payload.to_vec())));
            }
        }
    });
    Ok(Connection { client, arrived, _served: served })
}

/// Leaves nothing behind, and acknowledges nothing that waits for the device.
fn as_a_guest(options: &mut MqttOptions) {
    options.set_ack_mode(rumqttc::AckMode::Manual);
    options.set_incoming_packet_size_limit(rumqttc::IncomingPacketSizeLimit::Bytes(PACKET_BYTES_MAX));
}

/// A retained document may be as large as one of ours may be.
const PACKET_BYTES_MAX: u32 = 17 * 1024 * 1024;

/// Whether the device may read and write its topics, and whether a cloud is there.
async fn topics(report: &mut Report, broker: &BrokerConfig, device: &DeviceId, client_id: &str) {
    let mut connection = match connect(broker, client_id).await {
        Ok(connection) => connection,
        Err(Failure::Refused(code)) => return report.failed("topics", format!("{code:?}"), "try again"),
        Err(Failure::Other(text)) => return report.failed("topics", text, "try again"),
    };
    let filters = [broker.prefix.down_filter(device), broker.prefix.cloud_filter()];
    for filter in filters {
        match subscribe(&connection.client, &filter).await {
            Ok(()) => report.ok("topics", format!("may subscribe to {filter}")),
            Err(why) => {
                let advice =
                    format!("allow it in the broker's access rules: `topic read {filter}`; see docs/brokers.md");
                report.failed("topics", format!("may not subscribe to {filter}: {why}"), advice);
            }
        }
    }
    publish(report, &connection.client, broker, device).await;
    clouds(report, &mut connection, broker).await;
    // The connection ends with this in any case.
    drop(connection.client.disconnect_now().await);
}

async fn subscribe(client: &AsyncClient, filter: &str) -> Result<(), String> {
    let filters = [SubscribeFilter::new(filter.to_owned(), QoS::AtLeastOnce)];
    let notice = client.try_subscribe_many_tracked(filters).map_err(|error| error.to_string())?;
    match timeout(STEP_WAIT_MAX, notice.wait_async()).await {
        Ok(Ok(ack)) => match ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_))) {
            None => Ok(()),
            Some(code) => Err(format!("{code:?}")),
        },
        Ok(Err(SubscribeNoticeError::V5SubAckFailure(codes))) => Err(format!("{codes:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the broker does not answer".to_owned()),
    }
}

/// A question about no case: it says nothing, and shows who hears it.
async fn publish(report: &mut Report, client: &AsyncClient, broker: &BrokerConfig, device: &DeviceId) {
    let topic = broker.prefix.text(&Topic::UpCase(device.clone()));
    let nothing = to_cbor(&CaseMessage::Ask { ids: Vec::new() });
    let Ok(notice) = client.try_publish_tracked(topic.clone(), nothing, PublishOptions::new(QoS::AtLeastOnce)) else {
        return report.failed("topics", "the connection was lost", "try again");
    };
    let refused = |why: String| {
        let advice = format!("allow it in the broker's access rules: `topic write {topic}`; see docs/brokers.md");
        (format!("may not write {topic}: {why}"), advice)
    };
    let (text, advice) = match timeout(STEP_WAIT_MAX, notice.wait_async()).await {
        Ok(Ok(PublishResult::Qos1(ack))) if ack.reason == PubAckReason::NoMatchingSubscribers => {
            report.ok("topics", format!("may write {topic}"));
            let advice = "start hedge-cloud at this broker; cases wait on the device until then";
            return report.warning("cloud", "nobody listens for this device's cases", advice);
        }
        Ok(Ok(PublishResult::Qos1(ack))) if ack.reason != PubAckReason::Success => refused(format!("{:?}", ack.reason)),
        Ok(Ok(_)) => return report.ok("topics", format!("may write {topic}")),
        Ok(Err(PublishNoticeError::V5PubAck(reason))) => refused(format!("{reason:?}")),
        Ok(Err(error)) => refused(format!("the broker ended the connection ({error})")),
        Err(_) => refused("the broker does not answer".to_owned()),
    };
    report.failed("topics", text, advice);
}

/// Which clouds say that they are there, and whether they read what this version sends.
async fn clouds(report: &mut Report, connection: &mut Connection, broker: &BrokerConfig) {
    let until = Instant::now() + STATUS_WAIT;
    let mut online = 0;
    while let Ok(Some((topic, payload))) = tokio::time::timeout_at(until, connection.arrived.recv()).await {
        let Some(Topic::CloudStatus(instance)) = broker.prefix.read(&topic) else { continue };
        match from_json::<CloudStatus>(&payload, DOCUMENT_BYTES_MAX) {
            Ok(status) if status.state == CloudState::Offline => {}
            Ok(status) if status.wire.contains(&WIRE_VERSION) => {
                online += 1;
                report.ok("cloud", format!("instance `{instance}` is online"));
            }
            Ok(status) => {
                let text = format!(
                    "instance `{instance}` reads wire versions {:?}, and this agent writes {WIRE_VERSION}",
                    status.wire
                );
                report.failed("cloud", text, "update the cloud, or install an older agent; cases wait until then");
            }
            Err(error) => report.warning("cloud", format!("the status of `{instance}`: {error}"), "update this agent"),
        }
    }
    if online == 0 {
        let advice = "start hedge-cloud, and let the device read hedge/v1/cloud/+/status in the broker's access rules; some brokers \
                      grant a subscription and then keep silent. Cases wait on the device until then";
        report.warning("cloud", "no instance says that it is online", advice);
    }
}
