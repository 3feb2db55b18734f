//! The way to the broker, step by step: name, port, TLS, login, topics, and a cloud behind it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedge_core::link::{Profile, Trouble, refusal};
use hedge_proto::{CaseMessage, CloudState, CloudStatus, DeviceId, DeviceStatus, Telemetry, Topic, WIRE_VERSION};
use hedge_proto::{LinkState, Message as _, to_cbor};
use rumqttc::mqttbytes::v5::Packet;
use rumqttc::{AsyncClient, ConnectionError, Event, PubAckReason};
use rumqttc::{PublishOptions, PublishResult, QoS, SubscribeFilter};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::closer;
use super::report::Report;
use super::tls::{Seen, explain, seeing};
use hedge_agent::uplink::{
    Dialled, Meter, client_config, granted, options, read_trouble, refused_in_tls, roots, session_options, subscribed,
};
use hedge_config::{BrokerConfig, Config};
use hedge_identity::{CertificateClock, Verifier};

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
        return report.ok("broker", "none is configured: the device answers by itself");
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
    let dial = Dial { broker, device: &device, online };
    let Some(own_id) = login(report, &dial).await else { return };
    topics(report, &dial, &own_id).await;
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
    let (tls, seen) = match watched(broker) {
        Ok(made) => made,
        Err(error) => {
            report.failed("TLS", error, "put the file right");
            return false;
        }
    };
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
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(error) = &seen.refused {
        let (text, advice) = explain(error, &seen, &broker.url.host);
        report.failed("TLS", text, advice);
        return false;
    }
    match shaken {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            let told = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).map(refused_in_tls);
            let trouble = match told {
                Some(trouble) if trouble != Trouble::NoTls => trouble,
                told => closer::behind_no_tls(broker).await.or(told).unwrap_or(Trouble::ClosedInHandshake),
            };
            report.failed("TLS", format!("{} ({error})", trouble.what()), trouble.todo());
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

/// Dials as the agent does, and shows what was seen.
fn watched(broker: &BrokerConfig) -> Result<(rustls::ClientConfig, Arc<Mutex<Seen>>), String> {
    let mut tls = client_config(broker).map_err(|error| error.to_string())?;
    let roots = roots(broker.ca_file.as_deref()).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let strict = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build();
    let (strict, seen) = (strict.map_err(|error| error.to_string())?, Arc::<Mutex<Seen>>::default());
    let verifier = Verifier { provider, rule: seeing(strict, seen.clone()) };
    tls.dangerous().set_certificate_verifier(Arc::new(verifier));
    Ok((tls, seen))
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

/// What is dialled, and as whom.
struct Dial<'a> {
    broker: &'a BrokerConfig,
    device: &'a DeviceId,
    /// The running agent is connected.
    online: bool,
}

/// Logs in, and tells under which client id. Beside a running agent never under the device's own: the broker would
/// end the agent's connection for it.
async fn login(report: &mut Report, dial: &Dial<'_>) -> Option<String> {
    let own = dial.broker.client_id.clone().unwrap_or_else(|| dial.device.to_string());
    let beside = format!("{own}-check");
    let mut tried = connect(dial, &beside).await;
    let mut id = beside;
    let refused = |tried: &Result<Connection, Failure>| matches!(tried, Err(failure) if failure.refused);
    if refused(&tried) && dial.online {
        report.ok(
            "login",
            "the running agent is connected; the broker lets in no second client, so topics were not tried",
        );
        return None;
    }
    if refused(&tried) {
        id = own;
        tried = connect(dial, &id).await;
    }
    match tried {
        Ok(connection) => {
            connection.leave().await;
            report.ok("login", format!("the broker lets the device in (as client `{id}`)"));
            Some(id)
        }
        Err(Failure { mut trouble, detail, .. }) => {
            if trouble == Trouble::ClosedAtOnce {
                trouble = closer::behind_a_closed_door(dial.broker).await.unwrap_or(trouble);
            }
            report.failed("login", format!("{}{detail}", trouble.what()), trouble.todo());
            None
        }
    }
}

/// Why there is no connection that a device can use.
struct Failure {
    trouble: Trouble,
    /// The error's own words, in brackets, where they say more.
    detail: String,
    /// The broker has said no; another client id may fare better.
    refused: bool,
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self { trouble, detail: String::new(), refused: false }
    }
}

/// A connection that is served by a task until it is dropped.
struct Connection {
    client: AsyncClient,
    arrived: mpsc::Receiver<(String, Vec<u8>)>,
    served: JoinSet<()>,
}

/// Messages that may wait: retained ones of a few clouds, and what waits for the device.
const ARRIVED_MAX: usize = 256;

impl Connection {
    /// Says goodbye, so that the broker forgets the will, and waits until it is said.
    async fn leave(mut self) {
        if self.client.disconnect_now().await.is_ok() {
            drop(timeout(STEP_WAIT_MAX, self.served.join_next()).await);
        }
    }
}

/// Connects as the uplink does: with its will, its bounds, and its demands on what the broker grants. Beside a running
/// agent without the will: the broker grants that already, and a cut of this connection would say that the device is
/// offline.
async fn connect(dial: &Dial<'_>, client_id: &str) -> Result<Connection, Failure> {
    let (broker, meter) = (dial.broker, Meter::default());
    let keep_alive = Profile::LAN.keep_alive;
    let made = if dial.online {
        options(broker, client_id, keep_alive, &meter)
    } else {
        session_options(broker, dial.device, client_id, &DeviceStatus::offline(0), keep_alive, &meter)
    };
    let unusable = |error: &dyn std::fmt::Display| Failure { detail: format!(" ({error})"), ..Trouble::Lost.into() };
    let mut options = made.map_err(|error| unusable(&error))?;
    // Acknowledges nothing that waits for the device.
    options.set_ack_mode(rumqttc::AckMode::Manual);
    let (client, mut eventloop) = AsyncClient::builder(options).capacity(16).try_build().map_err(|e| unusable(&e))?;
    let connecting = async {
        loop {
            match eventloop.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(ack))) => return Ok(granted(&ack)?),
                Ok(_) => {}
                Err(error) => {
                    let trouble = read_trouble(&error, &Dialled { broker, meter: &meter, greeted: false });
                    let refused = matches!(error, ConnectionError::ConnectionRefused(_));
                    let detail = if refused { String::new() } else { format!(" ({error})") };
                    return Err(Failure { trouble, detail, refused });
                }
            }
        }
    };
    timeout(STEP_WAIT_MAX, connecting).await.map_err(|_| Failure::from(Trouble::NoAnswer))??;
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
    Ok(Connection { client, arrived, served })
}

/// Whether the device may read and write its topics, and whether a cloud is there.
async fn topics(report: &mut Report, dial: &Dial<'_>, client_id: &str) {
    let (broker, device) = (dial.broker, dial.device);
    let mut connection = match connect(dial, client_id).await {
        Ok(connection) => connection,
        Err(Failure { trouble, detail, .. }) => {
            return report.failed("topics", format!("{}{detail}", trouble.what()), trouble.todo());
        }
    };
    let filters = [broker.prefix.down_filter(device), broker.prefix.cloud_filter()];
    for filter in filters {
        match subscribe(&connection.client, &filter).await {
            Ok(()) => report.ok("topics", format!("may subscribe to {filter}")),
            Err(trouble) => {
                let advice =
                    format!("allow it in the broker's access rules: `topic read {filter}`; see docs/brokers.md");
                report.failed("topics", format!("may not subscribe to {filter}: {}", trouble.what()), advice);
            }
        }
    }
    publish(report, &connection.client, broker, device).await;
    clouds(report, &mut connection, broker).await;
    connection.leave().await;
}

async fn subscribe(client: &AsyncClient, filter: &str) -> Result<(), Trouble> {
    let filters = [SubscribeFilter::new(filter.to_owned(), QoS::AtLeastOnce)];
    let unanswered = Trouble::SubscriptionUnanswered;
    let notice = client.try_subscribe_many_tracked(filters).map_err(|_| unanswered)?;
    match timeout(STEP_WAIT_MAX, notice.wait_async()).await {
        Ok(Ok(ack)) => subscribed(&ack),
        _ => Err(unanswered),
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
        Ok(Ok(PublishResult::Qos1(ack))) if ack.reason != PubAckReason::Success => {
            refused(refusal(ack.reason as u8).to_owned())
        }
        Ok(Ok(_)) => return report.ok("topics", format!("may write {topic}")),
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
        match CloudStatus::read(&payload) {
            Ok(status) if status.state == CloudState::Offline => {}
            Ok(status) if status.wire.iter().any(|version| (1..=WIRE_VERSION).contains(version)) => {
                online += 1;
                report.ok("cloud", format!("instance `{instance}` is online"));
            }
            Ok(status) => {
                let versions = status.wire.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let text = format!(
                    "instance `{instance}` reads the versions {versions} of the wire, and this agent writes up to {WIRE_VERSION}"
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
