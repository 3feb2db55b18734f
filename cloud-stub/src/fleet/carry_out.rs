//! Carries out errands for any number of devices over one connection, and says of each how it ended.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hedge_core::link::refusal;
use hedge_proto::DeviceId;
use rumqttc::mqttbytes::v5::PubAckReason;
use rumqttc::{PublishNoticeError, PublishResult};
use tokio::time::{Instant, sleep_until};

use super::board::Device;
use super::errand::{Ending, Errand, Report, Turn, What};
use super::operator::{Heard, Operator};
use crate::link::HearingError;

/// How many devices are waited for at once. A fleet that changes all at once also fails all at once.
const UNDER_WAY_MAX: usize = 64;

/// Reason codes from here on are refusals (MQTT 5.0, section 2.4).
const REFUSED: u8 = 0x80;

/// How long to wait for devices.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the first word on an errand.
    pub answer: Duration,
    /// For the end of a trial; none: a trial is reported as it begins.
    pub trial: Option<Duration>,
    /// Also for devices that are known to be away.
    pub offline: bool,
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Progress<'a> {
    Trial(&'a DeviceId),
    Ended(&'a Report),
}

struct UnderWay {
    errand: Errand,
    until: Instant,
    /// The device was away when this was sent. Settings on trial make it leave and come back.
    was_away: bool,
}

/// At most one errand a device. Returns the reports in the order in which they ended.
pub async fn carry_out(
    operator: &mut Operator,
    errands: Vec<Errand>,
    patience: Patience,
    tell: impl FnMut(Progress<'_>),
) -> Vec<Report> {
    let mut waiting = VecDeque::from(errands);
    let mut errands = Errands { under_way: BTreeMap::new(), reports: Vec::new(), patience, tell };
    let mut notices = FuturesUnordered::new();
    let broken = loop {
        while errands.under_way.len() < UNDER_WAY_MAX
            && let Some(errand) = waiting.pop_front()
        {
            match operator.publish(&errand) {
                Ok(notice) => {
                    let device = errand.device.clone();
                    errands.begin(errand, is_away(operator, &device));
                    notices.push(async move { (device, notice.wait_async().await) });
                }
                Err(error) => errands.end(errand.give_up(Ending::NotSent, error.to_string())),
            }
        }
        let Some(next) = errands.under_way.values().map(|errand| errand.until).min() else {
            return errands.reports;
        };
        tokio::select! {
            heard = operator.next() => match heard {
                Ok(heard) => errands.hear(&heard),
                Err(error) => break error,
            },
            Some((device, sent)) = notices.next() => errands.sent(&device, sent, is_away(operator, &device)),
            () = sleep_until(next) => errands.look_at_the_clock(operator),
        }
    };
    errands.stop(&broken, waiting);
    errands.reports
}

fn is_away(operator: &Operator, device: &DeviceId) -> bool {
    operator.board.devices.get(device).is_some_and(Device::is_offline)
}

struct Errands<T> {
    under_way: BTreeMap<DeviceId, UnderWay>,
    reports: Vec<Report>,
    patience: Patience,
    tell: T,
}

impl<T: FnMut(Progress<'_>)> Errands<T> {
    fn begin(&mut self, errand: Errand, was_away: bool) {
        let until = Instant::now() + self.patience.answer;
        self.under_way.insert(errand.device.clone(), UnderWay { errand, until, was_away });
    }

    fn end(&mut self, report: Report) {
        self.under_way.remove(&report.device);
        (self.tell)(Progress::Ended(&report));
        self.reports.push(report);
    }

    fn hear(&mut self, heard: &Heard) {
        let Some(UnderWay { errand, until, .. }) = self.under_way.get_mut(&heard.device) else { return };
        let was_on_trial = errand.is_on_trial();
        match (errand.hear(&heard.said), self.patience.trial) {
            (Turn::Wait, _) => {}
            (Turn::Trial, None) => {
                let report = errand.give_up(Ending::OnTrial, "kept if the device stays in reach, given back if not");
                self.end(report);
            }
            (Turn::Trial, Some(trial)) if !was_on_trial => {
                *until = Instant::now() + trial;
                (self.tell)(Progress::Trial(&heard.device));
            }
            (Turn::Trial, Some(_)) => {}
            (Turn::Ended(report), _) => self.end(*report),
        }
    }

    fn sent(&mut self, device: &DeviceId, sent: Result<PublishResult, PublishNoticeError>, is_away: bool) {
        let Some(UnderWay { errand, was_away, .. }) = self.under_way.get(device) else { return };
        let is_command = matches!(errand.what, What::Command(_));
        let report = match sent {
            // A refusal is an acknowledgement, too.
            Ok(PublishResult::Qos1(ack)) if ack.reason as u8 >= REFUSED => {
                errand.give_up(Ending::NotSent, format!("the broker refuses it: {}", refusal(ack.reason as u8)))
            }
            // The connection has ended; that ends everything.
            Err(_) => return,
            Ok(PublishResult::Qos1(ack)) if is_command && ack.reason == PubAckReason::NoMatchingSubscribers => {
                errand.give_up(Ending::Offline, "no device of this name listens, so the broker has dropped it")
            }
            Ok(_) if *was_away && is_away && !self.patience.offline => {
                let then = match is_command {
                    true => "it runs if the device connects within an hour, or in its radio's next window",
                    false => "the device takes the settings when it connects",
                };
                errand.give_up(Ending::Offline, then)
            }
            Ok(_) => return,
        };
        self.end(report);
    }

    fn look_at_the_clock(&mut self, operator: &Operator) {
        let now = Instant::now();
        let late: Vec<Report> = self
            .under_way
            .values()
            .filter(|errand| errand.until <= now)
            .map(|UnderWay { errand, .. }| errand.time_is_up(is_away(operator, &errand.device)))
            .collect();
        late.into_iter().for_each(|report| self.end(report));
    }

    fn stop(&mut self, broken: &HearingError, waiting: VecDeque<Errand>) {
        let under_way: Vec<Report> = self
            .under_way
            .values()
            .map(|UnderWay { errand, .. }| errand.give_up(Ending::NoAnswer, broken.to_string()))
            .collect();
        under_way.into_iter().for_each(|report| self.end(report));
        for errand in waiting {
            self.end(errand.give_up(Ending::NotSent, broken.to_string()));
        }
    }
}
