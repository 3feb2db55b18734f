//! One connection, from dialling to its end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hedge_core::link::{Trouble, refusal};
use hedge_proto::{CloudState, CloudStatus, Message as _, Name, Topic, Topics};
use rumqttc::mqttbytes::v5::{Packet, PubAckReason, RetainForwardRule, SubscribeReasonCode};
use rumqttc::{
    AsyncClient, ConnectionError, Event as Mqtt, EventLoop, ManualAck, NetworkOptions, NoticeFailureReason,
    PublishNoticeError, PublishOptions, QoS, SubscribeFilterInput,
};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::kept::{self, Kept};
use super::sending::Sending;
use super::stale::Stale;
use super::unsent::{PassedOver, Unsent};
use super::{Dial, Ends, LinkNow};
use crate::intake::{Admission, Shut, Taking};
use crate::message::{Incoming, Receipt, Settled};
use crate::traces::Came;
use crate::wall_ms;

/// What messages may take of the memory between the broker and the records.
pub(super) const MEMORY_KIB_MAX: u32 = 256 * 1024;

/// How many replies may be under way to the broker.
const IN_FLIGHT_MAX: usize = 64;

/// How many requests may lie before the client: replies, acknowledgements and a status.
const REQUESTS_MAX: usize = 256;

/// How long unacknowledged bytes may be under way before the connection counts as cut. Keep-alive alone does
/// not notice it while we are sending.
const UNACKED_MAX: Duration = Duration::from_secs(30);

/// How long the broker may take to grant the subscriptions, and to acknowledge a status.
const SETUP_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a goodbye may take.
const GOODBYE_MAX: Duration = Duration::from_secs(3);

/// One shared name for all instances: each case goes to one of them.
const SHARE_GROUP: &str = "hedge";

/// Runs one connection until all replies are sent and nobody is left to send more, or until it breaks, and why.
pub(super) async fn run(
    dial: &Dial,
    generation: u64,
    ends: &mut Ends,
    unsent: &mut Unsent,
    stale: &mut Stale,
) -> Result<(), String> {
    ends.now.send_replace(LinkNow::Connecting);
    let (client, mut events) = AsyncClient::builder(dial.options()).capacity(REQUESTS_MAX).build();
    let mut sending = Sending::default();
    let (passed_over, mut passed) = mpsc::channel(PASSED_OVER_MAX);
    let (others, mut others_say) = mpsc::channel(OTHERS_MAX);
    let inbox = Inbox {
        generation,
        status_topic: dial.status_topic(),
        intake: ends.messages.clone(),
        passed_over,
        topics: dial.topics.clone(),
        shut: ends.shut.clone(),
        memory: ends.memory.clone(),
        others,
    };
    let contradicted = Notify::new();
    let from = From { passed: &mut passed, others_say: &mut others_say, stale };
    // Both sides run on this task and neither is dropped before the connection ends: a poll that is
    // dropped half-way would lose its place in a packet.
    let end = tokio::select! {
        error = receive(&client, &mut events, &inbox, &contradicted) => Err(error.to_string()),
        end = send(&client, dial, &inbox, &contradicted, from, ends, unsent, &mut sending) => end,
    };
    if end.is_ok() {
        say_goodbye(&client, &mut events, dial).await;
    }
    sending.left().for_each(|reply| unsent.put_back(reply));
    events.clean();
    events.drain_pending_as_failed(NoticeFailureReason::SessionReset);
    end
}

/// Lets time pass without a connection, dropping acknowledgements that no longer have one. `true`: the program
/// is stopping and there is nobody to tell.
pub(super) async fn idle(ends: &mut Ends, unsent: &mut Unsent, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return false,
            Some(_) = ends.settled.recv() => {}
            reply = ends.replies.recv() => match reply {
                Some(reply) => unsent.put(reply),
                None => return true,
            },
        }
    }
}

/// What the receiving side needs to know.
struct Inbox {
    generation: u64,
    status_topic: String,
    intake: mpsc::Sender<Incoming>,
    passed_over: mpsc::Sender<Incoming>,
    topics: Topics,
    shut: Shut,
    /// KiB that messages may take until they are on record.
    memory: Arc<Semaphore>,
    /// What other instances say.
    others: mpsc::Sender<(Name, Option<CloudState>)>,
}

/// How many messages that are turned away may wait for their acknowledgement: far more than brokers were seen to send
/// beyond the window they were told.
const PASSED_OVER_MAX: usize = 4096;

/// How many words of other instances may lie unread. What does not fit is said again by whoever is there.
const OTHERS_MAX: usize = 256;

async fn receive(
    client: &AsyncClient,
    events: &mut EventLoop,
    inbox: &Inbox,
    contradicted: &Notify,
) -> ConnectionError {
    loop {
        let publish = match events.poll().await {
            Ok(Mqtt::Incoming(Packet::Publish(publish))) => publish,
            Ok(_) => continue,
            Err(error) => return error,
        };
        if publish.topic == inbox.status_topic {
            // Somebody else's words on our own topic: most likely the will of our last connection, or an instance
            // that took us for gone. Our own come back here, too.
            if state_of(&publish.payload) != Some(CloudState::Online) {
                contradicted.notify_one();
            }
            continue;
        }
        let about = std::str::from_utf8(&publish.topic).ok().and_then(|topic| inbox.topics.read(topic));
        if let Some(Topic::CloudStatus(other)) = about {
            drop(inbox.others.try_send((other, state_of(&publish.payload))));
            continue;
        }
        let receipt = client.prepare_ack(&publish).map(|ack| Receipt { generation: inbox.generation, ack });
        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
        let came = Came::now(publish.properties.as_ref().map_or(&[], |properties| &properties.user_properties));
        let message =
            Incoming { topic, payload: publish.payload, retained: publish.retain, receipt, share: None, came };
        let message =
            match about.as_ref().and_then(Topic::sender).map(|from| inbox.shut.way(from, std::time::Instant::now())) {
                None | Some(Admission::In) => message,
                Some(Admission::Away) => {
                    if let Some(message) = turn_away(client, message) {
                        inbox.pass_over(message);
                    }
                    continue;
                }
                Some(Admission::AwayAndTold) => {
                    inbox.pass_over(message);
                    continue;
                }
            };
        inbox.hand_over(message).await;
    }
}

impl Inbox {
    /// Waits until the intake has room for it. Meanwhile nothing more is read, and the broker keeps what it has; the
    /// intake never waits for this side, so that it is not for long.
    async fn hand_over(&self, message: Incoming) {
        let kib = u32::try_from(message.payload.len() / 1024 + 1).unwrap_or(u32::MAX).min(MEMORY_KIB_MAX);
        let share = self.memory.clone().acquire_many_owned(kib).await.ok();
        // The intake has gone only where the program is ending.
        if self.intake.send(Incoming { share, ..message }).await.is_err() {
            tracing::debug!("a message came after the intake's end");
        }
    }

    /// Has the sending side acknowledge it and tell its device.
    fn pass_over(&self, message: Incoming) {
        // What needs no acknowledgement is lost: its sender wanted it so. There is room for all the rest.
        if message.receipt.is_some() && self.passed_over.try_send(message).is_err() {
            tracing::error!("a message stays unacknowledged until the next connection");
        }
    }
}

/// Acknowledges a message that nothing follows from, at once; gives it back if the connection has no room for that.
fn turn_away(client: &AsyncClient, message: Incoming) -> Option<Incoming> {
    let ManualAck::PubAck(mut puback) = message.receipt.as_ref()?.ack.clone() else { return Some(message) };
    puback.reason = PubAckReason::QuotaExceeded;
    client.try_manual_ack(ManualAck::PubAck(puback)).is_err().then_some(message)
}

/// `None` for a topic that was emptied, and for what cannot be read.
fn state_of(payload: &[u8]) -> Option<CloudState> {
    CloudStatus::read(payload).ok().map(|status| status.state)
}

/// What the receiving side hands to the sending one.
struct From<'a> {
    passed: &'a mut mpsc::Receiver<Incoming>,
    others_say: &'a mut mpsc::Receiver<(Name, Option<CloudState>)>,
    stale: &'a mut Stale,
}

#[expect(clippy::too_many_arguments, reason = "the two sides of one connection")]
async fn send(
    client: &AsyncClient,
    dial: &Dial,
    inbox: &Inbox,
    contradicted: &Notify,
    from: From<'_>,
    ends: &mut Ends,
    unsent: &mut Unsent,
    sending: &mut Sending,
) -> Result<(), String> {
    let From { passed, others_say, stale } = from;
    // Whatever is heard from here on is heard over this connection.
    let since_ms = wall_ms();
    let taking = *ends.taking.borrow_and_update();
    open(client, dial, taking).await?;
    let _kept = Kept::read(dial.way.clone(), dial.topics.clone(), inbox.intake.clone());
    stale.listen(client, &dial.topics).await;
    tracing::info!(broker = %dial.way.endpoint, "connected");
    ends.now.send_replace(LinkNow::Connected { since_ms });
    let mut live = interval(dial.status_every);
    live.set_missed_tick_behavior(MissedTickBehavior::Delay);
    live.reset();
    let mut notices = FuturesUnordered::new();
    let mut statuses = FuturesUnordered::new();
    let mut passed_over = PassedOver::default();
    let mut more = true;
    loop {
        if !more && notices.is_empty() && unsent.0.is_empty() {
            return Ok(());
        }
        while notices.len() < IN_FLIGHT_MAX
            && let Some(reply) = unsent.0.pop()
        {
            notices.push(sending.publish(client, dial, reply).await?);
        }
        tokio::select! {
            biased;
            Some(settled) = ends.settled.recv() => acknowledge(client, inbox.generation, settled).await?,
            Some((number, sent)) = notices.next() => {
                if let Some(reply) = sending.done(number, dial, &sent) {
                    unsent.put_back(reply);
                }
            }
            Some(told) = statuses.next() => told?,
            Some(message) = passed.recv() => {
                let device = dial.topics.read(&message.topic).and_then(|topic| topic.sender().cloned());
                if let Some(reply) = device.and_then(|device| passed_over.busy(device)) {
                    unsent.put(reply);
                }
                if let Some(receipt) = message.receipt {
                    acknowledge(client, inbox.generation, Settled { receipt, taken: false }).await?;
                }
            }
            Some((other, state)) = others_say.recv() => stale.hear(other, state),
            () = contradicted.notified() => {
                let taking = *ends.taking.borrow();
                statuses.push(publish_status(client, dial, taking).await?);
            }
            _ = live.tick() => {
                let taking = *ends.taking.borrow();
                statuses.push(publish_status(client, dial, taking).await?);
                stale.clear(client, &dial.topics).await;
            }
            Ok(()) = ends.taking.changed(), if more => {
                let taking = *ends.taking.borrow();
                statuses.push(publish_status(client, dial, taking).await?);
            }
            // What finds no place here holds up the answerers.
            reply = ends.replies.recv(), if more && unsent.has_room() => match reply {
                Some(reply) => unsent.put(reply),
                None => more = false,
            },
        }
    }
}

/// Subscribes, waits until everything is granted, and says that we are here.
async fn open(client: &AsyncClient, dial: &Dial, taking: Taking) -> Result<(), String> {
    let topics = &dial.topics;
    let cases = match Name::new(SHARE_GROUP) {
        Ok(group) if dial.shared => topics.shared_fleet_filter(&group, "case"),
        _ => topics.fleet_filter("case"),
    };
    let filters = [
        (cases, QoS::AtLeastOnce),
        (topics.fleet_filter("status"), QoS::AtLeastOnce),
        (topics.fleet_filter("telemetry"), QoS::AtMostOnce),
        (topics.fleet_filter("reported"), QoS::AtLeastOnce),
        (topics.fleet_filter("reply"), QoS::AtLeastOnce),
        (topics.fleet_down_filter("desired"), QoS::AtLeastOnce),
        (dial.status_topic(), QoS::AtMostOnce),
    ];
    let wanted: Vec<QoS> = filters.iter().map(|(_, qos)| *qos).collect();
    let (own, kept) = (dial.status_topic(), kept::filters(topics));
    let filters = filters.map(|(filter, qos)| {
        let no_local = filter == own;
        // What is kept of devices is more than this connection's window holds, and is read beside it.
        let rule = if kept.contains(&filter) { RetainForwardRule::Never } else { RetainForwardRule::default() };
        SubscribeFilterInput::new(filter, qos).no_local(no_local).retain_forward_rule(rule)
    });
    let notice = client.subscribe_many_tracked(filters).await.map_err(|error| error.to_string())?;
    let granted = timeout(SETUP_WAIT_MAX, notice.wait_async()).await;
    let granted =
        granted.map_err(|_| "the broker does not answer the subscription")?.map_err(|error| error.to_string())?;
    for (code, wanted) in granted.return_codes.iter().zip(wanted) {
        match code {
            SubscribeReasonCode::Success(qos) if *qos as u8 >= wanted as u8 => {}
            SubscribeReasonCode::Success(_) => {
                return Err("the broker grants QoS 0 only, and QoS 1 is needed".to_owned());
            }
            code => {
                let why = refusal(reason_code(*code));
                return Err(format!("the broker refuses a subscription: {why}; check its access list"));
            }
        }
    }
    publish_status(client, dial, taking).await?.await
}

/// The code of a refused subscription as it travels; the library keeps no number.
fn reason_code(code: SubscribeReasonCode) -> u8 {
    use SubscribeReasonCode as Code;
    match code {
        Code::Success(qos) => qos as u8,
        Code::Failure | Code::Unspecified => 0x80,
        Code::ImplementationSpecific => 0x83,
        Code::NotAuthorized => 0x87,
        Code::TopicFilterInvalid => 0x8F,
        Code::PkidInUse => 0x91,
        Code::QuotaExceeded => 0x97,
        Code::SharedSubscriptionsNotSupported => 0x9E,
        Code::SubscriptionIdNotSupported => 0xA1,
        Code::WildcardSubscriptionsNotSupported => 0xA2,
    }
}

/// Publishes the status. What comes back says, in time, whether the broker has taken it: without it no device would know
/// that we are here.
async fn publish_status(
    client: &AsyncClient,
    dial: &Dial,
    taking: Taking,
) -> Result<impl Future<Output = Result<(), String>> + use<>, String> {
    let options = PublishOptions::new(QoS::AtLeastOnce).retained();
    let status = dial.status(CloudState::Online, taking);
    let notice =
        client.publish_tracked(dial.status_topic(), status, options).await.map_err(|error| error.to_string())?;
    Ok(async move {
        match timeout(SETUP_WAIT_MAX, notice.wait_completion_async()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(PublishNoticeError::V5PubAck(reason))) => {
                Err(format!("the broker refuses this cloud's status: {}", refusal(reason as u8)))
            }
            Ok(Err(PublishNoticeError::RetainNotSupported)) => Err(Trouble::NoRetained.text().to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the broker does not acknowledge this cloud's status".to_owned()),
        }
    })
}

async fn acknowledge(client: &AsyncClient, generation: u64, settled: Settled) -> Result<(), String> {
    let Settled { receipt, taken } = settled;
    if receipt.generation != generation {
        return Ok(());
    }
    let mut ack = receipt.ack;
    if let (false, ManualAck::PubAck(puback)) = (taken, &mut ack) {
        puback.reason = PubAckReason::QuotaExceeded;
    }
    client.manual_ack(ack).await.map_err(|error| error.to_string())
}

async fn say_goodbye(client: &AsyncClient, events: &mut EventLoop, dial: &Dial) {
    let goodbye = async {
        let said = async {
            let status = dial.status(CloudState::Offline, Taking::All);
            // Whoever is there hears it; whoever comes later finds nothing of an instance that has gone.
            for (payload, retained) in [(status, false), (Vec::new(), true)] {
                let options = PublishOptions::new(QoS::AtLeastOnce).retain(retained);
                if let Ok(notice) = client.publish_tracked(dial.status_topic(), payload, options).await {
                    // The disconnect follows all the same.
                    if let Err(error) = notice.wait_completion_async().await {
                        tracing::warn!("the broker did not take our goodbye: {error}");
                    }
                }
            }
            client.disconnect().await
        };
        tokio::join!(said, async { while events.poll().await.is_ok() {} })
    };
    if timeout(GOODBYE_MAX, goodbye).await.is_err() {
        tracing::warn!("the broker did not confirm the goodbye in time");
    }
}

/// Dials with a bound on how long sent bytes may stay unacknowledged.
pub(super) async fn connect(address: String, options: NetworkOptions) -> io::Result<TcpStream> {
    let stream = rumqttc::default_socket_connect(address, options).await?;
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKED_MAX))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
