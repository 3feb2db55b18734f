//! Lets devices into the embedded broker only with a certificate, and only to their own topics.
//!
//! The library's TLS would bring a second cryptography, so TLS ends here: each connection is carried to the broker's
//! loopback port, and what the broker asks about it is answered by the address it came from. Nobody else who reaches
//! that port knows the cloud's password, which is drawn at every start.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use hedge_listen::Accepted;
use hedge_proto::{DeviceId, Topics};
use rmqtt::codec::v5::SubscribeAckReason;
use rmqtt::context::ServerContext;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::types::{AuthResult, ConnectInfo, LastWill, PublishAclResult, SubscribeReturn};
use tokio::io::copy_bidirectional;
use tokio::net::TcpSocket;

use crate::identity::{Registry, common_name};

/// As whom the cloud itself connects.
pub(super) const CLOUD_USER: &str = "hedge-cloud";

/// Who is behind each connection at the loopback port.
#[derive(Clone)]
pub(super) struct Guard {
    devices: Arc<Mutex<HashMap<SocketAddr, DeviceId>>>,
    topics: Topics,
    password: String,
}

impl Guard {
    pub(super) fn new(topics: Topics, password: String) -> Self {
        Self { devices: Arc::default(), topics, password }
    }

    /// Asks this guard about everything that connects, subscribes or publishes.
    pub(super) async fn stand_before(&self, context: &ServerContext) {
        let register = context.extends.hook_mgr().register();
        for what in [Type::ClientAuthenticate, Type::ClientSubscribeCheckAcl, Type::MessagePublishCheckAcl] {
            register.add(what, Box::new(self.clone())).await;
        }
        register.start().await;
    }

    /// Carries one connection to the broker until it ends.
    pub(super) async fn carry(self, mut accepted: Accepted, broker: SocketAddr, registry: Registry) {
        let from = accepted.from;
        let Some(device) = accepted.certificates.first().and_then(|own| common_name(own)) else {
            tracing::warn!(?from, "refused: the certificate names no device");
            return;
        };
        if matches!(registry.device(&device), Ok(Some(known)) if known.revoked) {
            tracing::warn!(?from, %device, "refused: the device is revoked");
            return;
        }
        let Ok((mut inside, address)) = self.reach(broker, device.clone()).await else { return };
        if let Err(error) = copy_bidirectional(&mut accepted.socket, &mut inside).await {
            tracing::debug!(%device, "a device's connection ended: {error}");
        }
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }

    /// The address is known before the broker sees the connection, so it is never asked about a stranger.
    async fn reach(
        &self,
        broker: SocketAddr,
        device: DeviceId,
    ) -> std::io::Result<(tokio::net::TcpStream, SocketAddr)> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let address = socket.local_addr()?;
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).insert(address, device);
        let connected = socket.connect(broker).await;
        let stream = connected.inspect_err(|error| {
            tracing::error!("the embedded broker cannot be reached: {error}");
            self.devices.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        })?;
        stream.set_nodelay(true)?;
        Ok((stream, address))
    }

    fn device_at(&self, address: Option<SocketAddr>) -> Option<DeviceId> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).get(&address?).cloned()
    }

    fn authenticate(&self, info: &ConnectInfo) -> AuthResult {
        if let Some(device) = self.device_at(info.ipaddress()) {
            // Under another's client id it would take over that one's session.
            let itself = *info.client_id() == device.as_str();
            let will = info.last_will().is_none_or(|will| match will {
                LastWill::V3(will) => self.may_write(&device, &will.topic),
                LastWill::V5(will) => self.may_write(&device, &will.topic),
            });
            return if itself && will { AuthResult::Allow(false, None) } else { AuthResult::NotAuthorized };
        }
        let user = info.username().is_some_and(|user| *user == CLOUD_USER);
        let password = info.password().is_some_and(|password| password.as_ref() == self.password.as_bytes());
        if user && password { AuthResult::Allow(true, None) } else { AuthResult::NotAuthorized }
    }

    fn may_write(&self, device: &DeviceId, topic: &str) -> bool {
        topic.starts_with(&format!("{}/{device}/up/", self.topics))
    }

    fn may_read(&self, device: &DeviceId, filter: &str) -> bool {
        filter == self.topics.cloud_filter() || filter.starts_with(&format!("{}/{device}/down/", self.topics))
    }
}

#[async_trait]
impl Handler for Guard {
    async fn hook(&self, asked: &Parameter, before: Option<HookResult>) -> ReturnType {
        let answer = match asked {
            Parameter::ClientAuthenticate(info) => HookResult::AuthResult(self.authenticate(info)),
            // The client id is the device's name: that was checked when it connected.
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let device = DeviceId::new(&session.id.client_id);
                let granted = device.is_ok_and(|device| self.may_read(&device, &subscribe.topic_filter));
                HookResult::SubscribeAclResult(if granted {
                    SubscribeReturn::new_success(subscribe.opts.qos(), None)
                } else {
                    SubscribeReturn::new_failure(SubscribeAckReason::NotAuthorized)
                })
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let device = DeviceId::new(&session.id.client_id);
                let granted = device.is_ok_and(|device| self.may_write(&device, &publish.topic));
                HookResult::PublishAclResult(if granted {
                    PublishAclResult::allow()
                } else {
                    PublishAclResult::rejected(false, None)
                })
            }
            _ => return (true, before),
        };
        (false, Some(answer))
    }
}
