//! What is on its way to the broker: replies to devices, and the spans of verdicts among them.

use std::collections::BTreeMap;

use hedge_core::link::refusal;
use hedge_proto::{DownMessage, TRACEPARENT, Topic, TraceContext, to_cbor};
use rumqttc::mqttbytes::v5::PublishProperties;
use rumqttc::{AsyncClient, PublishNoticeError, PublishOptions, QoS};

use super::Dial;
use crate::reply::Reply;
use crate::wall_ms;

/// Replies the broker has not acknowledged yet.
#[derive(Default)]
pub(super) struct Sending {
    under_way: BTreeMap<u64, (Reply, Option<Publishing>)>,
    next: u64,
}

/// The span of a verdict that is on its way to the broker, and since when it is.
type Publishing = (TraceContext, u64);

pub(super) type Sent = Result<(), PublishNoticeError>;

impl Sending {
    pub(super) async fn publish(
        &mut self,
        client: &AsyncClient,
        dial: &Dial,
        reply: Reply,
    ) -> Result<impl Future<Output = (u64, Sent)> + use<>, String> {
        let topic = dial.topics.text(&Topic::DownVerdict(reply.device.clone()));
        let message = to_cbor(&reply.message);
        let number = self.next;
        self.next += 1;
        let mut options = PublishOptions::new(QoS::AtLeastOnce);
        let publishing = match &reply.message {
            DownMessage::Verdict(verdict) => dial.traces.of(&verdict.id).map(|trace| (trace.begin(), wall_ms())),
            _ => None,
        };
        if let Some((context, _)) = publishing {
            let user_properties = vec![(TRACEPARENT.to_owned(), context.to_string())];
            options = options.properties(PublishProperties { user_properties, ..PublishProperties::default() });
        }
        self.under_way.insert(number, (reply, publishing));
        let notice = client.publish_tracked(topic, message, options).await.map_err(|error| error.to_string())?;
        Ok(async move { (number, notice.wait_completion_async().await) })
    }

    /// The broker has answered, or will not. Gives back what should be sent again.
    pub(super) fn done(&mut self, number: u64, dial: &Dial, sent: &Sent) -> Option<Reply> {
        let (reply, publishing) = self.under_way.remove(&number)?;
        if let (DownMessage::Verdict(verdict), Some((context, begun_ms))) = (&reply.message, publishing)
            && let Some(trace) = dial.traces.of(&verdict.id)
        {
            trace.published(context, begun_ms, sent.as_ref().err().map(ToString::to_string));
        }
        worth_repeating(&reply, sent).then_some(reply)
    }

    /// What the broker has not answered.
    pub(super) fn left(&mut self) -> impl Iterator<Item = Reply> {
        std::mem::take(&mut self.under_way).into_values().map(|(reply, _)| reply)
    }
}

/// Whether a reply the broker did not take should be sent again. One that nobody listens for is not: the
/// device asks when it is back.
fn worth_repeating(reply: &Reply, sent: &Sent) -> bool {
    match sent {
        Ok(()) => false,
        Err(PublishNoticeError::V5PubAck(reason)) => {
            tracing::warn!(device = %reply.device, "the broker refuses a reply: {}", refusal(*reason as u8));
            false
        }
        Err(_) => true,
    }
}
