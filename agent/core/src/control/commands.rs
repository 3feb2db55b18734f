//! Decides whether a command runs, and what is said about it.
//!
//! ```text
//!  arrived ──▶ refused: retained, too old, too fast, not understood      its id is not used up
//!     ├──────▶ known: the kept result again
//!     └──▶ intent on disk ──▶ effect ──▶ result on disk ──▶ said, until the broker has it
//!                 └── the agent goes down ──▶ interrupted; only `restart` is done by that
//! ```
//!
//! Carrying a command out is up to the agent, and so is the disk: it writes the [`Record`]s down and brings them
//! back after a start.
//!
//! Invariant: as long as an id is kept, it begins once and has one result, in whatever order messages and crashes come.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use hedge_proto::{
    COMMAND_ID_BYTES_MAX, CommandMessage, CommandOutcome, DeviceId, Digest, Order, Reply, Topic, Topics, readable,
    to_json,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Moment;

/// Results that are kept and can be said again. At the highest rate they last three minutes, at a usual one weeks.
pub const RESULTS_MAX: usize = 1000;

/// What one reply may weigh: a broker that takes 20 KiB takes it, and a thousand fit into a device's memory.
pub const REPLY_BYTES_MAX: usize = 16 * 1024;

/// Commands that have begun and not ended. They run one after the other, so more only wait.
pub const UNDER_WAY_MAX: usize = 32;

/// A command given longer ago does not run: whoever gave it has done something else about it by now.
pub const AGE_MAX: Duration = Duration::from_secs(3600);

/// Commands a second, in the long run and at once. Each costs two writes that last.
const RATE: Rate = Rate { per_s: 5, burst: 30 };

/// Refusals that are answered. A flood of garbage gets an answer at first, and then none.
const REFUSAL_RATE: Rate = Rate { per_s: 1, burst: 60 };

/// Who is asked for the last decisions need not read a book.
const EXPLAIN_MAX: u16 = 100;

const LOG_LEVEL_S_MAX: u32 = 24 * 3600;

/// Of what a person reads in a reply.
const REASON_CHARS_MAX: usize = 1000;

/// A longer response topic is not honoured.
const TOPIC_BYTES_MAX: usize = 512;

const INTERRUPTED: &str = "the device went down between the command's beginning and its end; it is not run again";

/// A message on `down/command`, with what MQTT says beside it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrived<'a> {
    pub payload: &'a [u8],
    pub retained: bool,
    pub correlation: Option<&'a [u8]>,
    pub response_topic: Option<&'a str>,
    /// The user property `by`.
    pub by: Option<&'a str>,
    /// How long the device may have been out of reach by its own will: so much older a command may be.
    pub rest: Duration,
}

/// Where a reply goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTo {
    /// None for `up/reply`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Vec<u8>>,
}

/// A command that is about to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub id: String,
    pub command: String,
    /// Of the command and its arguments: another command must not pass for this one.
    digest: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(default)]
    pub reply_to: ReplyTo,
}

/// What is written down about commands, in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    Began(Intent),
    Ended {
        id: String,
        reply: Reply,
    },
    /// The broker has the reply.
    Said {
        id: String,
    },
}

/// A refused command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub id: Option<String>,
    pub command: Option<String>,
    pub by: Option<String>,
    pub reply_to: ReplyTo,
    pub reason: String,
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    /// Write it down, [`Book::begin`] it, carry it out, [`Book::end`] it.
    Begin {
        intent: Intent,
        order: Order,
    },
    /// Carry it out and say the result; it changes nothing, and nothing is kept.
    Look {
        order: Order,
        command: String,
        by: Option<String>,
        reply_to: ReplyTo,
    },
    /// The kept result is to be said again; it is in [`Book::unsaid`].
    Again {
        id: String,
    },
    Refuse(Refusal),
    /// Nothing is to be said. Why, for the log.
    Ignore(&'static str),
}

/// A command and what came of it.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    intent: Intent,
    reply: Option<Reply>,
    said: bool,
}

/// The commands that have begun.
#[derive(Debug, Clone)]
pub struct Book {
    device: DeviceId,
    topics: Topics,
    kept: BTreeMap<String, Kept>,
    /// In the order in which they began.
    oldest_first: VecDeque<String>,
    arriving: Bucket,
    refusing: Bucket,
}

/// What of a message is known before it is understood.
struct Sender {
    id: Option<String>,
    command: Option<String>,
    by: Option<String>,
    reply_to: ReplyTo,
}

impl Sender {
    fn refusal(&self, reason: String) -> Refusal {
        Refusal {
            id: self.id.clone(),
            command: self.command.clone(),
            by: self.by.clone(),
            reply_to: self.reply_to.clone(),
            reason: readable(&reason, REASON_CHARS_MAX),
        }
    }
}

impl Book {
    #[must_use]
    pub fn new(device: DeviceId, topics: Topics) -> Self {
        Self {
            device,
            topics,
            kept: BTreeMap::new(),
            oldest_first: VecDeque::new(),
            arriving: Bucket::full(RATE),
            refusing: Bucket::full(REFUSAL_RATE),
        }
    }

    /// Decides on a message. `wall_ms` is the time since 1970, if this device knows it.
    pub fn admit(&mut self, now: Moment, wall_ms: Option<u64>, arrived: &Arrived<'_>) -> Admission {
        if arrived.payload.is_empty() {
            return Admission::Ignore("a retained command was taken back");
        }
        let in_time = self.arriving.take(now);
        let mut sender =
            Sender { id: None, command: None, by: arrived.by.map(ToOwned::to_owned), reply_to: self.reply_to(arrived) };
        match self.weigh(wall_ms, arrived, in_time, &mut sender) {
            Ok(admission) => admission,
            Err(_) if !self.refusing.take(now) => Admission::Ignore("too many commands were refused to answer each"),
            Err(reason) => Admission::Refuse(sender.refusal(reason)),
        }
    }

    fn weigh(
        &mut self,
        wall_ms: Option<u64>,
        arrived: &Arrived<'_>,
        in_time: bool,
        sender: &mut Sender,
    ) -> Result<Admission, String> {
        let message = CommandMessage::read(arrived.payload).map_err(|error| error.to_string())?;
        sender.command = Some(readable(&message.command, COMMAND_ID_BYTES_MAX));
        sender.by = message.by.or(sender.by.take());
        sender.id = match message.id {
            Some(id) => Some(id),
            None => arrived.correlation.map(id_of).transpose()?,
        };
        if arrived.retained {
            return Err("a retained command is not run, because it would come again at every connect; publish it \
                        without the retain flag, and an empty retained message to take this one back"
                .to_owned());
        }
        let order = Order::read(&message.command, &message.args)?;
        check_ranges(&order)?;
        let digest = Digest::of(&to_json(&order));
        if let Some(known) = sender.id.as_ref().and_then(|id| self.kept.get_mut(id)) {
            return known.repeated(digest, in_time, &sender.reply_to);
        }
        if !in_time {
            return Err(format!("more than {} commands a second came; give it again later", RATE.per_s));
        }
        let age_max = AGE_MAX + arrived.rest;
        if let (Some(issued), Some(wall)) = (message.issued_ms, wall_ms)
            && u128::from(wall.saturating_sub(issued)) > age_max.as_millis()
        {
            return Err(format!("it was given more than {} minutes ago", age_max.as_secs() / 60));
        }
        let (command, by, reply_to) = (message.command, sender.by.clone(), sender.reply_to.clone());
        match sender.id.clone() {
            Some(_) if self.under_way() >= UNDER_WAY_MAX => {
                Err(format!("{UNDER_WAY_MAX} commands are under way; give it again later"))
            }
            Some(id) => Ok(Admission::Begin { intent: Intent { id, command, digest, by, reply_to }, order }),
            None if order.changes_nothing() => Ok(Admission::Look { order, command, by, reply_to }),
            None => Err(format!(
                "`{command}` changes something, so it needs an `id` (or MQTT 5 correlation data): a repeated message \
                 must not run it twice"
            )),
        }
    }

    /// A command whose intent is on disk.
    pub fn begin(&mut self, intent: Intent) {
        while self.kept.len() >= RESULTS_MAX {
            let ended = self.oldest_first.iter().position(|id| self.kept.get(id).is_none_or(|old| old.reply.is_some()));
            let Some(id) = ended.and_then(|place| self.oldest_first.remove(place)) else { break };
            self.kept.remove(&id);
        }
        self.oldest_first.push_back(intent.id.clone());
        self.kept.insert(intent.id.clone(), Kept { intent, reply: None, said: false });
    }

    /// A command that has begun has ended so; the first end counts.
    pub fn end(&mut self, id: &str, reply: Reply) {
        if let Some(kept) = self.kept.get_mut(id) {
            kept.reply.get_or_insert(reply);
        }
    }

    /// The broker has the reply.
    pub fn said(&mut self, id: &str) {
        if let Some(kept) = self.kept.get_mut(id) {
            kept.said = true;
        }
    }

    /// Replies that the broker is not known to have, oldest first.
    pub fn unsaid(&self) -> impl Iterator<Item = (&str, &ReplyTo, &Reply)> {
        self.oldest_first.iter().filter_map(|id| {
            let kept = self.kept.get(id).filter(|kept| !kept.said)?;
            Some((id.as_str(), &kept.intent.reply_to, kept.reply.as_ref()?))
        })
    }

    /// Takes back what was written down, in the order in which it was.
    pub fn replay(&mut self, record: Record) {
        match record {
            Record::Began(intent) if !self.kept.contains_key(&intent.id) => self.begin(intent),
            Record::Began(_) => {}
            Record::Ended { id, reply } => self.end(&id, reply),
            Record::Said { id } => self.said(&id),
        }
    }

    /// After a start: ends what an earlier run had begun, and returns it.
    pub fn interrupt(&mut self) -> Vec<(Intent, Reply)> {
        let mut ended = Vec::new();
        for kept in self.oldest_first.iter().filter_map(|id| self.kept.get(id)).filter(|kept| kept.reply.is_none()) {
            let intent = &kept.intent;
            let restarted = intent.command == "restart";
            let reply = Reply {
                id: Some(intent.id.clone()),
                command: Some(intent.command.clone()),
                outcome: if restarted { CommandOutcome::Done } else { CommandOutcome::Interrupted },
                reason: (!restarted).then(|| INTERRUPTED.to_owned()),
                result: Value::Null,
            };
            ended.push((intent.clone(), reply));
        }
        for (intent, reply) in &ended {
            self.end(&intent.id, reply.clone());
        }
        ended
    }

    /// What must be on disk to come back to this book.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for kept in self.oldest_first.iter().filter_map(|id| self.kept.get(id)) {
            let id = kept.intent.id.clone();
            records.push(Record::Began(kept.intent.clone()));
            records.extend(kept.reply.clone().map(|reply| Record::Ended { id: id.clone(), reply }));
            records.extend(kept.said.then_some(Record::Said { id }));
        }
        records
    }

    /// How many [`Self::records`] there are at most.
    #[must_use]
    pub fn records_max(&self) -> usize {
        3 * self.kept.len()
    }

    fn under_way(&self) -> usize {
        self.kept.values().filter(|kept| kept.reply.is_none()).count()
    }

    /// A response topic is honoured below the device's own `up`, where its access rules let it write, and where no
    /// message of another kind is expected.
    fn reply_to(&self, arrived: &Arrived<'_>) -> ReplyTo {
        let own = self.topics.text(&Topic::UpReply(self.device.clone()));
        let up = own.strip_suffix("reply").unwrap_or(&own);
        let honoured = |topic: &&str| {
            topic.len() <= TOPIC_BYTES_MAX
                && topic.strip_prefix(up).is_some_and(|rest| !rest.is_empty())
                && !topic.contains(['+', '#', '\0'])
                && self.topics.read(topic).is_none()
        };
        ReplyTo {
            topic: arrived.response_topic.filter(honoured).map(ToOwned::to_owned),
            correlation: arrived.correlation.filter(|data| data.len() <= COMMAND_ID_BYTES_MAX).map(<[u8]>::to_vec),
        }
    }
}

impl Kept {
    fn repeated(&mut self, digest: Digest, in_time: bool, reply_to: &ReplyTo) -> Result<Admission, String> {
        if self.intent.digest != digest {
            let (id, command) = (&self.intent.id, &self.intent.command);
            return Err(format!(
                "the id `{id}` was used for `{command}` with other arguments; give this one another id"
            ));
        }
        if self.reply.is_none() {
            return Ok(Admission::Ignore("a command that is under way was repeated"));
        }
        if !in_time {
            return Ok(Admission::Ignore("a command was repeated too fast to say its result each time"));
        }
        self.said = false;
        self.intent.reply_to = reply_to.clone();
        Ok(Admission::Again { id: self.intent.id.clone() })
    }
}

/// Correlation data as an id: text as it is, anything else in hexadecimal.
fn id_of(correlation: &[u8]) -> Result<String, String> {
    let bytes = correlation.len();
    if bytes == 0 || bytes > COMMAND_ID_BYTES_MAX {
        return Err(format!(
            "the correlation data has {bytes} bytes; as an id it takes 1 to {COMMAND_ID_BYTES_MAX}: give an `id` instead"
        ));
    }
    Ok(match core::str::from_utf8(correlation) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => correlation.iter().fold("hex:".to_owned(), |id, byte| id + &format!("{byte:02x}")),
    })
}

fn check_ranges(order: &Order) -> Result<(), String> {
    match order {
        Order::Explain(args) if !(1..=EXPLAIN_MAX).contains(&args.last) => {
            Err(format!("args.last = {}: it takes 1 to {EXPLAIN_MAX}", args.last))
        }
        Order::LogLevel(args) if !(1..=LOG_LEVEL_S_MAX).contains(&args.for_s) => {
            Err(format!("args.for_s = {}: it takes 1 to {LOG_LEVEL_S_MAX} seconds", args.for_s))
        }
        // Nothing named is not everything.
        Order::Forget(args) if args.all != args.ids.is_empty() => {
            Err("args: give either `ids` or `all` = true".to_owned())
        }
        _ => Ok(()),
    }
}

/// Makes a reply small enough to be kept and sent: leaves out the end of its longest list, or else its result, and
/// says so.
#[must_use]
pub fn bounded(mut reply: Reply) -> Reply {
    reply.reason = reply.reason.map(|reason| reason.chars().take(REASON_CHARS_MAX).collect());
    let bytes = to_json(&reply).len();
    if bytes <= REPLY_BYTES_MAX {
        return reply;
    }
    shorten(&mut reply.result, bytes + 64 - REPLY_BYTES_MAX);
    if to_json(&reply).len() > REPLY_BYTES_MAX {
        reply.result = Value::Null;
        reply.reason = Some(format!("the result has {bytes} bytes, more than the {REPLY_BYTES_MAX} that are sent"));
    }
    reply
}

fn shorten(result: &mut Value, mut excess: usize) {
    let Some(object) = result.as_object_mut() else { return };
    let longest = object.values_mut().filter_map(Value::as_array_mut).max_by_key(|list| list.len());
    let Some(list) = longest else { return };
    let mut left_out = 0_u64;
    while excess > 0
        && let Some(last) = list.pop()
    {
        excess = excess.saturating_sub(to_json(&last).len() + 1);
        left_out += 1;
    }
    object.insert("left_out".to_string(), left_out.into());
}

/// So many in the long run, and so many at once.
#[derive(Debug, Clone, Copy)]
struct Rate {
    per_s: u32,
    burst: u32,
}

/// A token bucket, as the moment at which it will be full again.
#[derive(Debug, Clone)]
struct Bucket {
    rate: Rate,
    full_at: Moment,
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self { rate, full_at: Moment(0) }
    }

    fn take(&mut self, now: Moment) -> bool {
        let one = Duration::from_secs(1) / self.rate.per_s;
        let full_at = self.full_at.max(now) + one;
        let in_time = full_at.since(now) <= one * self.rate.burst;
        if in_time {
            self.full_at = full_at;
        }
        in_time
    }
}

#[cfg(test)]
mod tests;
