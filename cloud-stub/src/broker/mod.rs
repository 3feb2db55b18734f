//! A broker in this process, for demos and development. It keeps everything in memory.
//!
//! Open, it asks nobody for a password and has no access list: bind it to loopback. Guarded, it listens with TLS, and
//! lets in devices of our authority, each to its own topics.
//!
//! Shared subscriptions need a plugin it does not have, so the link subscribes plainly when this one is used.

mod guard;

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hedge_listen::{Bounds, CancellationToken, Listener};
use hedge_proto::Topics;
use rmqtt::codec::v5::RetainHandling;
use rmqtt::context::ServerContext;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::net::Builder;
use rmqtt::retain::{DefaultRetainStorage, RetainStorage};
use rmqtt::server::MqttServer;
use rmqtt::session::Session;
use rmqtt::types::{Retain, Subscribe, TopicFilter, TopicName};

use self::guard::{CLOUD_USER, Guard};
use crate::identity::{AuthorityError, Registry};
use crate::link::{PACKET_BYTES_MAX, RECEIVE_MAX};

/// How many clients may connect: a demo's devices many times over.
const CLIENTS_MAX: usize = 1000;

/// Devices may all be behind one address; each has shown its certificate. Each is carried over a second connection.
const BOUNDS: Bounds = Bounds {
    what: "--guarded-broker",
    connections_max: CLIENTS_MAX,
    address_max: CLIENTS_MAX,
    files_each: 3, // and the broker's end of it
};

/// How many messages wait for one client before the broker drops some.
const QUEUE_MAX: usize = 10_000;

/// How long a session of a device that is away is kept, at most: what a device asks for.
const SESSION_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why the broker cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the embedded broker cannot listen on {addr}: {reason}; is another broker there?")]
    Listen { addr: SocketAddr, reason: String },
    #[error("the embedded broker: {0}")]
    Outside(#[from] hedge_listen::ListenError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// What the guarded broker needs.
pub struct Guarded {
    pub listen: SocketAddr,
    pub tls: Arc<rustls::ServerConfig>,
    pub topics: Topics,
    pub registry: Registry,
}

/// Starts a broker that devices reach with TLS only; returns where, and how the cloud itself connects to it.
pub async fn start_guarded(setup: Guarded) -> Result<(SocketAddr, SocketAddr, (String, Vec<u8>)), BrokerError> {
    let outside = Listener::tcp(setup.listen).await?;
    let addr = outside.address().unwrap_or(setup.listen);
    let mut password = [0; 32];
    getrandom::fill(&mut password).map_err(|error| AuthorityError::Crypto(error.to_string()))?;
    let password = hex::encode(password);
    let guard = Guard::new(setup.topics, password.clone());
    let inside = open(([127, 0, 0, 1], 0).into(), Some(&guard)).await?;
    let carry = move |accepted| guard.clone().carry(accepted, inside, setup.registry.clone());
    tokio::spawn(hedge_listen::accept(outside, BOUNDS, Some(setup.tls), CancellationToken::new(), carry));
    Ok((addr, inside, (CLOUD_USER.to_owned(), password.into_bytes())))
}

/// Starts a broker on `addr` (port 0: a free one) inside the current runtime, and returns where it listens.
pub async fn start(addr: SocketAddr) -> Result<SocketAddr, BrokerError> {
    open(addr, None).await
}

async fn open(addr: SocketAddr, guard: Option<&Guard>) -> Result<SocketAddr, BrokerError> {
    let addr = with_port(addr)?;
    let context = ServerContext::new().busy_check_enable(false).build().await;
    Retained::new().keep_for(&context).await;
    if let Some(guard) = guard {
        guard.stand_before(&context).await;
    }
    let listener = Builder::new()
        .allow_anonymous(guard.is_none())
        .name("embedded")
        .laddr(addr)
        .nodelay(true)
        .reuseaddr(Some(true))
        .max_connections(CLIENTS_MAX)
        .max_packet_size(PACKET_BYTES_MAX)
        .max_inflight(NonZeroU16::new(RECEIVE_MAX).unwrap_or(NonZeroU16::MIN))
        .max_mqueue_len(QUEUE_MAX)
        .message_retry_interval(Duration::from_secs(60))
        .max_session_expiry_interval(SESSION_AGE_MAX)
        .bind()
        .and_then(rmqtt::net::Listener::tcp)
        .map_err(|error| BrokerError::Listen { addr, reason: error.to_string() })?;
    let server = MqttServer::new(context).listener_by_id(listener, addr.port()).build();
    tokio::spawn(async move {
        if let Err(error) = server.run().await {
            tracing::error!("the embedded broker has stopped: {error}");
        }
    });
    Ok(addr)
}

/// The library cannot tell which port it was given, so a free one is chosen before.
fn with_port(addr: SocketAddr) -> Result<SocketAddr, BrokerError> {
    if addr.port() != 0 {
        return Ok(addr);
    }
    let chosen = TcpListener::bind(addr).and_then(|listener| listener.local_addr());
    chosen.map_err(|error| BrokerError::Listen { addr, reason: error.to_string() })
}

/// The library's store of retained messages, switched on: by itself it keeps none.
///
/// By itself the library also sends them in the background, so that a subscriber's own message, published after its
/// subscription was granted, may come back before them, and whoever takes that for the end has missed some. Here they
/// are on their way before the subscription is granted.
#[derive(Clone)]
struct Retained(Arc<DefaultRetainStorage>);

impl Retained {
    fn new() -> Self {
        Self(Arc::new(DefaultRetainStorage::new()))
    }

    async fn keep_for(self, context: &ServerContext) {
        *context.extends.retain_mut().await = Box::new(self.clone());
        let register = context.extends.hook_mgr().register();
        register.add(Type::SessionSubscribed, Box::new(self)).await;
        register.start().await;
    }

    async fn send(&self, session: &Session, subscribe: &Subscribe) -> rmqtt::Result<()> {
        let opts = &subscribe.opts;
        if opts.shared_group().is_some() || opts.retain_handling() == Some(RetainHandling::NoAtSubscribe) {
            return Ok(());
        }
        for (topic, Retain { from, mut publish, .. }) in self.0.get_message(&subscribe.topic_filter).await? {
            publish.dup = false;
            publish.retain = true;
            publish.qos = publish.qos.less_value(opts.qos());
            publish.topic = topic;
            publish.packet_id = None;
            let shared = session.scx.extends.shared().await;
            if let Err((from, publish, why)) = shared.entry(session.id.clone()).publish(from, publish).await {
                session.scx.extends.hook_mgr().message_dropped(Some(session.id.clone()), from, publish, why).await;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Handler for Retained {
    async fn hook(&self, asked: &Parameter, before: Option<HookResult>) -> ReturnType {
        if let Parameter::SessionSubscribed(session, subscribe) = asked
            && let Err(error) = self.send(session, subscribe).await
        {
            tracing::error!("the embedded broker cannot read what it keeps: {error}");
        }
        (true, before)
    }
}

#[async_trait]
impl RetainStorage for Retained {
    fn enable(&self) -> bool {
        true
    }

    async fn set(&self, topic: &TopicName, retain: Retain, expiry: Option<Duration>) -> rmqtt::Result<()> {
        self.0.set_with_timeout(topic, retain, expiry).await
    }

    /// Asked in the background, when all has been sent.
    async fn get(&self, _: &TopicFilter) -> rmqtt::Result<Vec<(TopicName, Retain)>> {
        Ok(Vec::new())
    }

    async fn count(&self) -> isize {
        self.0.count().await
    }

    async fn max(&self) -> isize {
        self.0.max().await
    }
}
