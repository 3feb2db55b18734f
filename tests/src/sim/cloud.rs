//! A model of `hedge-cloud`: events share a commit, and nothing is acknowledged or answered before it.
//!
//! What becomes of a case follows its `intake::decide`.

use std::collections::{BTreeMap, VecDeque};

use hedge_proto::CaseKey;

use super::Planted;
use super::message::{Ack, Client, Down, End, Form, Message, Packet, Status};
use super::oracle::{made_of_enough, on_record};
use super::records::{Record, Records, Said, Standing};
use super::world::{Happening, World};

/// How long the cloud asks for rest: when it is full, when it does not read a message, when it cannot write.
const BUSY_S: u32 = 10;
const HOLD_S: u32 = 300;
const UNHEALTHY_RETRY_S: u32 = 60;

/// How many replies are on their way to the broker.
const REPLIES_UNDER_WAY_MAX: usize = 64;

const DIAL_WAIT: (u64, u64) = (1_000, 40_000);
const STABLE_MS: u64 = 60_000;

/// What goes on inside an instance's process. It dies with it.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Commit,
    Outcome(CaseKey),
    /// It has waited for the whole.
    MakeDo(CaseKey),
    SecondOpinion(CaseKey),
    SayOnline,
    Redial,
}

#[derive(Debug)]
pub(super) struct Cloud {
    pub(super) up: bool,
    pub(super) life: u32,
    pub(super) wire: Option<usize>,
    open: bool,
    inbox: Vec<(usize, u32, Message)>,
    replies: VecDeque<Down>,
    under_way: BTreeMap<u32, Down>,
    next_id: u32,
    dial_wait: u64,
    opened_at: u64,
    model_free_at: u64,
    pub(super) unhealthy_until: u64,
    pub(super) other_version_until: u64,
    /// It says that it lacks whatever it gets.
    pub(super) forgetful_until: u64,
    pub(super) payload_bytes_max: Option<u32>,
}

impl Cloud {
    pub(super) fn new() -> Self {
        Self {
            up: false,
            life: 0,
            wire: None,
            open: false,
            inbox: Vec::new(),
            replies: VecDeque::new(),
            under_way: BTreeMap::new(),
            next_id: 0,
            dial_wait: DIAL_WAIT.0,
            opened_at: 0,
            model_free_at: 0,
            unhealthy_until: 0,
            other_version_until: 0,
            forgetful_until: 0,
            payload_bytes_max: None,
        }
    }
}

/// What the cloud's model makes of a case; the same each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    Answerable,
    /// It fails so often, then it is answered.
    Fails(u32),
    Dead,
    /// It is refused as failed without being recorded.
    Refused,
}

impl World {
    fn nature(&self, key: CaseKey) -> Nature {
        let mut dice = super::plan::Dice::new(self.plan.seed ^ key.epoch.0 ^ key.sequence.rotate_left(17));
        if !dice.one_in(self.plan.odd_one_in) {
            return Nature::Answerable;
        }
        let often = Nature::Fails(u32::MAX);
        dice.pick(&[Nature::Fails(1), Nature::Fails(3), often, Nature::Dead, Nature::Refused])
    }

    fn store(&mut self, instance: usize) -> &mut Records {
        let number = if self.plan.shared_records { 0 } else { instance };
        &mut self.records[number]
    }

    fn cloud_waits_for_the_whole(&mut self, instance: usize, key: CaseKey) {
        self.cloud_after(instance, self.plan.whole_wait, Step::MakeDo(key));
    }

    /// Whether a model is not sure of what it makes of this case's thumbnail.
    fn needs_the_whole(&self, key: CaseKey) -> bool {
        super::plan::Dice::new(self.plan.seed ^ key.epoch.0.rotate_left(7) ^ key.sequence).one_in(2)
    }

    pub(super) fn wipe_records(&mut self, instance: usize) {
        self.store(instance).clear();
    }

    pub(super) fn cloud_starts(&mut self, instance: usize) {
        if self.clouds[instance].up {
            return;
        }
        self.note(|| format!("instance {instance} starts"));
        let cloud = &mut self.clouds[instance];
        cloud.up = true;
        cloud.dial_wait = DIAL_WAIT.0;
        cloud.model_free_at = 0;
        let life = cloud.life;
        self.dial(Client::Cloud(instance), life);
        let mine = |record: &Record| record.standing == Standing::Waiting(instance);
        let left: Vec<CaseKey> =
            self.store(instance).cases.iter().filter(|(_, record)| mine(record)).map(|(key, _)| *key).collect();
        left.into_iter().for_each(|key| self.cloud_infers(instance, key));
        let wanted = |record: &Record| record.standing == Standing::Wanted(instance);
        let wanted: Vec<CaseKey> =
            self.store(instance).cases.iter().filter(|(_, record)| wanted(record)).map(|(key, _)| *key).collect();
        if self.planted != Some(Planted::ForgetsTheWanted) {
            wanted.into_iter().for_each(|key| self.cloud_waits_for_the_whole(instance, key));
        }
    }

    /// Ends between any two steps; `polite` says goodbye first.
    pub(super) fn cloud_stops(&mut self, instance: usize, polite: bool) {
        let cloud = &mut self.clouds[instance];
        if !cloud.up {
            return;
        }
        cloud.up = false;
        cloud.life += 1;
        let (wire, open) = (cloud.wire.take(), std::mem::replace(&mut cloud.open, false));
        cloud.inbox.clear();
        cloud.replies.clear();
        cloud.under_way.clear();
        let Some(wire) = wire else { return };
        if polite && open {
            let status = Status {
                online: false,
                reads: false,
                accept_per_s: None,
                retry_after_s: None,
                payload_bytes_max: None,
            };
            let message = Message::Status(instance, status);
            self.transmit(wire, End::Client, Packet::Publish { id: 0, message, retained: true });
        } else if self.dice.one_in(3) {
            self.swallow(wire);
        }
        self.hang_up(wire, End::Client);
    }

    pub(super) fn cloud_gets(&mut self, instance: usize, wire: usize, packet: Packet) {
        let cloud = &mut self.clouds[instance];
        if cloud.wire != Some(wire) {
            return;
        }
        match packet {
            Packet::ConnAck => self.transmit(wire, End::Client, Packet::Subscribe),
            Packet::SubAck => {
                cloud.open = true;
                cloud.opened_at = self.now;
                self.cloud_step_now(instance, Step::SayOnline);
                self.cloud_replies(instance);
            }
            Packet::PubAck { id, .. } => {
                // Nobody to hear it: the device asks when it is back.
                cloud.under_way.remove(&id);
                self.cloud_replies(instance);
            }
            Packet::Publish { id, message: Message::Status(_, status), .. } => {
                self.transmit(wire, End::Client, Packet::PubAck { id, ack: Ack::Taken });
                if !status.online {
                    self.cloud_says(instance, self.cloud_status(instance));
                }
            }
            Packet::Publish { id, message, .. } => {
                if self.planted == Some(Planted::CloudAcksFirst) {
                    self.cloud_acks_first(instance, wire, id, &message);
                }
                let idle = self.clouds[instance].inbox.is_empty();
                self.clouds[instance].inbox.push((wire, id, message));
                if idle {
                    let wait = self.dice.between(1, 40);
                    self.cloud_after(instance, wait, Step::Commit);
                }
            }
            Packet::Connect | Packet::Subscribe => {}
        }
    }

    fn cloud_acks_first(&mut self, instance: usize, wire: usize, id: u32, message: &Message) {
        if let Message::Cases(keys, _) = message {
            self.cloud_acknowledges(instance, wire, id, keys, false);
        }
    }

    fn cloud_acknowledges(&mut self, instance: usize, wire: usize, id: u32, keys: &[CaseKey], told: bool) {
        for key in keys {
            let recorded = told || self.store(instance).cases.contains_key(key);
            self.check(on_record(*key, recorded));
        }
        self.transmit(wire, End::Client, Packet::PubAck { id, ack: Ack::Taken });
    }

    fn cloud_after(&mut self, instance: usize, wait: u64, step: Step) {
        let life = self.clouds[instance].life;
        self.after(wait, Happening::Cloud { instance, life, step });
    }

    pub(super) fn cloud_step(&mut self, instance: usize, life: u32, step: Step) {
        if self.clouds[instance].up && self.clouds[instance].life == life {
            self.cloud_step_now(instance, step);
        }
    }

    fn cloud_step_now(&mut self, instance: usize, step: Step) {
        match step {
            Step::Commit => self.cloud_commits(instance),
            Step::Outcome(key) => self.cloud_outcome(instance, key),
            Step::MakeDo(key) => self.cloud_makes_do(instance, key),
            Step::SecondOpinion(key) => self.cloud_second_opinion(instance, key),
            Step::SayOnline => {
                if self.clouds[instance].open {
                    self.cloud_says(instance, self.cloud_status(instance));
                    let opened_at = self.clouds[instance].opened_at;
                    // One timer a connection: the first of it starts the next ones.
                    if opened_at == self.now || (self.now - opened_at).is_multiple_of(self.plan.status_every) {
                        self.cloud_after(instance, self.plan.status_every, Step::SayOnline);
                    }
                }
            }
            Step::Redial => self.dial(Client::Cloud(instance), self.clouds[instance].life),
        }
    }

    fn cloud_status(&self, instance: usize) -> Status {
        let cloud = &self.clouds[instance];
        let healthy = cloud.unhealthy_until <= self.now;
        Status {
            online: true,
            reads: cloud.other_version_until <= self.now,
            accept_per_s: if healthy { self.plan.accept_per_s } else { Some(0.0) },
            retry_after_s: (!healthy && self.plan.says_retry).then_some(UNHEALTHY_RETRY_S),
            payload_bytes_max: cloud.payload_bytes_max.filter(|_| !self.calm()),
        }
    }

    pub(super) fn cloud_speaks_up(&mut self, instance: usize) {
        if self.clouds[instance].up && self.clouds[instance].open {
            self.cloud_says(instance, self.cloud_status(instance));
        }
    }

    fn cloud_says(&mut self, instance: usize, status: Status) {
        if let Some(wire) = self.clouds[instance].wire {
            let message = Message::Status(instance, status);
            self.transmit(wire, End::Client, Packet::Publish { id: 0, message, retained: true });
        }
    }

    /// One commit, then acknowledgements, replies and work for the model.
    fn cloud_commits(&mut self, instance: usize) {
        let inbox = std::mem::take(&mut self.clouds[instance].inbox);
        if self.clouds[instance].unhealthy_until > self.now {
            for (wire, id, _) in inbox {
                self.transmit(wire, End::Client, Packet::PubAck { id, ack: Ack::Refused });
            }
            return self.cloud_answers(instance, vec![Down::Busy { after_s: BUSY_S }]);
        }
        let mut said = Said::default();
        let mut work = Vec::new();
        for (_, _, message) in &inbox {
            match message {
                Message::Cases(keys, form) => {
                    keys.iter().for_each(|key| self.cloud_takes(instance, (*key, *form), &mut said, &mut work));
                }
                Message::Ask(keys) => {
                    keys.iter().for_each(|key| self.cloud_is_asked(instance, *key, &mut said, &mut work))
                }
                Message::Status(..) | Message::Down(_) => {}
            }
        }
        for (wire, id, message) in inbox {
            let Message::Cases(keys, _) = &message else {
                self.transmit(wire, End::Client, Packet::PubAck { id, ack: Ack::Taken });
                continue;
            };
            self.cloud_acknowledges(instance, wire, id, keys, said.refused(keys));
        }
        for key in &said.received {
            let recorded = self.store(instance).cases.contains_key(key);
            self.check(on_record(*key, recorded));
        }
        self.cloud_answers(instance, said.into_messages());
        work.into_iter().for_each(|key| self.cloud_infers(instance, key));
    }

    fn cloud_takes(&mut self, instance: usize, arrived: (CaseKey, Form), said: &mut Said, work: &mut Vec<CaseKey>) {
        let (key, form) = arrived;
        if self.clouds[instance].other_version_until > self.now {
            said.busy_s = said.busy_s.max(Some(HOLD_S));
            return;
        }
        if self.clouds[instance].forgetful_until > self.now {
            return if self.plan.says_send { said.single.push(Down::Send(key)) } else { said.unknown.push(key) };
        }
        if let Some(record) = self.store(instance).cases.get_mut(&key) {
            let record = match record.standing {
                // The whole takes the thumbnail's place.
                Standing::Wanted(_) if form == Form::Whole => {
                    record.form = form;
                    self.store(instance).set(key, Standing::Waiting(instance));
                    said.received.push(key);
                    return work.push(key);
                }
                Standing::Wanted(_) if form == Form::Last => {
                    record.makes_do = true;
                    self.store(instance).set(key, Standing::Waiting(instance));
                    said.received.push(key);
                    return work.push(key);
                }
                _ => *record,
            };
            return self.cloud_repeats(instance, key, record.standing, said, work);
        }
        let room = if self.calm() { usize::MAX } else { self.plan.room };
        if self.nature(key) == Nature::Refused {
            said.single.push(Down::Failed(key));
        } else if self.store(instance).waiting >= room {
            said.busy_s = said.busy_s.max(Some(BUSY_S));
        } else {
            self.store(instance).take(key, form, Standing::Waiting(instance));
            said.received.push(key);
            work.push(key);
        }
    }

    fn cloud_is_asked(&mut self, instance: usize, key: CaseKey, said: &mut Said, work: &mut Vec<CaseKey>) {
        match self.store(instance).cases.get(&key).copied() {
            Some(record) => self.cloud_repeats(instance, key, record.standing, said, work),
            None if self.plan.says_send => said.single.push(Down::Send(key)),
            None => said.unknown.push(key),
        }
    }

    fn cloud_repeats(
        &mut self,
        instance: usize,
        key: CaseKey,
        standing: Standing,
        said: &mut Said,
        work: &mut Vec<CaseKey>,
    ) {
        match standing {
            Standing::Waiting(_) => said.received.push(key),
            Standing::Wanted(_) if self.planted == Some(Planted::ForgetsTheWanted) => said.received.push(key),
            Standing::Wanted(_) => said.single.push(Down::Send(key)),
            Standing::Answered(revision) => said.single.push(Down::Verdict { key, revision }),
            Standing::Dead => said.single.push(Down::Dead(key)),
            Standing::Failed => {
                self.store(instance).set(key, Standing::Waiting(instance));
                said.received.push(key);
                work.push(key);
            }
        }
    }

    fn cloud_infers(&mut self, instance: usize, key: CaseKey) {
        let (low, high) = self.plan.model;
        let takes = self.dice.between(low, high);
        let cloud = &mut self.clouds[instance];
        cloud.model_free_at = cloud.model_free_at.max(self.now) + takes;
        let wait = cloud.model_free_at - self.now;
        self.cloud_after(instance, wait, Step::Outcome(key));
    }

    fn cloud_outcome(&mut self, instance: usize, key: CaseKey) {
        if self.clouds[instance].unhealthy_until > self.now {
            return self.cloud_after(instance, 1_000, Step::Outcome(key));
        }
        let (nature, unsure, planted) = (self.nature(key), self.needs_the_whole(key), self.planted);
        let store = self.store(instance);
        let Some(record) = store.cases.get_mut(&key) else { return };
        if !matches!(record.standing, Standing::Waiting(_)) {
            return;
        }
        let is_enough = record.form == Form::Whole || record.makes_do || !unsure;
        if !is_enough && planted != Some(Planted::AnswersUnsure) && nature == Nature::Answerable {
            store.set(key, Standing::Wanted(instance));
            self.cloud_waits_for_the_whole(instance, key);
            return self.cloud_answers(instance, vec![Down::Send(key)]);
        }
        let (standing, message) = match nature {
            Nature::Fails(times) if record.failures < times => {
                record.failures += 1;
                (Standing::Failed, Down::Failed(key))
            }
            Nature::Dead => (Standing::Dead, Down::Dead(key)),
            _ => (Standing::Answered(1), Down::Verdict { key, revision: 1 }),
        };
        store.set(key, standing);
        if nature == Nature::Answerable {
            self.check(made_of_enough(key, is_enough));
        }
        self.cloud_answers(instance, vec![message]);
        if standing == Standing::Answered(1) && self.dice.one_in(self.plan.second_opinion_one_in) {
            let wait = self.dice.between(100, 100_000);
            self.cloud_after(instance, wait, Step::SecondOpinion(key));
        }
    }

    /// The whole has not come in time, and another instance has not got it.
    fn cloud_makes_do(&mut self, instance: usize, key: CaseKey) {
        if self.clouds[instance].unhealthy_until > self.now {
            return self.cloud_after(instance, 1_000, Step::MakeDo(key));
        }
        let store = self.store(instance);
        if let Some(record) = store.cases.get_mut(&key).filter(|record| record.standing == Standing::Wanted(instance)) {
            record.makes_do = true;
            store.set(key, Standing::Waiting(instance));
            self.cloud_infers(instance, key);
        }
    }

    /// A person looks at it again.
    fn cloud_second_opinion(&mut self, instance: usize, key: CaseKey) {
        let store = self.store(instance);
        if store.cases.get(&key).is_some_and(|record| record.standing == Standing::Answered(1)) {
            store.set(key, Standing::Answered(2));
            self.cloud_answers(instance, vec![Down::Verdict { key, revision: 2 }]);
        }
    }

    pub(super) fn cloud_answers(&mut self, instance: usize, messages: Vec<Down>) {
        self.clouds[instance].replies.extend(messages);
        self.cloud_replies(instance);
    }

    fn cloud_replies(&mut self, instance: usize) {
        while let cloud = &mut self.clouds[instance]
            && cloud.open
            && cloud.under_way.len() < REPLIES_UNDER_WAY_MAX
            && let (Some(wire), Some(reply)) = (cloud.wire, cloud.replies.pop_front())
        {
            cloud.next_id += 1;
            let id = cloud.next_id;
            cloud.under_way.insert(id, reply.clone());
            self.trace.note(self.now, || format!("instance {instance} says {}", super::device::shown(&reply)));
            self.transmit(wire, End::Client, Packet::Publish { id, message: Message::Down(reply), retained: false });
        }
    }

    /// The instance's end of a connection is closed.
    pub(super) fn cloud_lost(&mut self, instance: usize, wire: usize) {
        let cloud = &mut self.clouds[instance];
        if cloud.wire != Some(wire) {
            return;
        }
        cloud.wire = None;
        cloud.open = false;
        for (_, reply) in std::mem::take(&mut cloud.under_way) {
            cloud.replies.push_back(reply);
        }
        if self.now - cloud.opened_at >= STABLE_MS {
            cloud.dial_wait = DIAL_WAIT.0;
        }
        self.cloud_redials(instance);
    }

    pub(super) fn cloud_redials(&mut self, instance: usize) {
        if !self.clouds[instance].up {
            return;
        }
        let most = self.clouds[instance].dial_wait;
        self.clouds[instance].dial_wait = (2 * most).min(DIAL_WAIT.1);
        let wait = self.dice.between(most / 2, most);
        self.cloud_after(instance, wait, Step::Redial);
    }
}
