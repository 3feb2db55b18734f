//! What must stay true, as plain functions. Each says what was broken.
//!
//! [`Ledger`] knows what really happened; `watch` knows what the device can know.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedge_core::clock::Moment;
use hedge_core::engine::{Engine, Event};
use hedge_core::link::RETRY_AFTER_MAX;
use hedge_core::uplink::{HELD_WAIT, HELD_WAIT_MAX, LIMIT_WAIT, NOBODY_WAIT, QUIET_MAX, SENDS_PER_HOUR_MAX, TRIES_MAX};
use hedge_proto::CaseKey;

use super::device::short;
use super::message::Form;
use super::plan::{Fault, Plan, WHOLE_WAIT_MAX};

/// A promise that does not hold, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub promise: &'static str,
    pub details: String,
    /// The case it is about, if the trace is better read for that one alone.
    pub case: Option<String>,
}

pub(super) type Checked = Result<(), Broken>;

pub(super) fn broken(promise: &'static str, details: String) -> Checked {
    Err(Broken { promise, details, case: None })
}

/// The engine's own bounds: window, owed, memory.
pub(super) fn engine_is_bounded(engine: &Engine) -> Checked {
    engine.broken_bound().map_or(Ok(()), |bound| broken("memory and window are bounded", bound.to_owned()))
}

/// A wake that is already over would turn the driver without end.
pub(super) fn never_spins(now: Moment, wake_at: Option<Moment>) -> Checked {
    match wake_at {
        Some(at) if at <= now => {
            broken("the driver sleeps until there is something to do", format!("woken at {}, wants {}", now.0, at.0))
        }
        _ => Ok(()),
    }
}

pub(super) fn acknowledged_is_durable(durable: bool) -> Checked {
    if durable {
        return Ok(());
    }
    broken("a verdict is durable before its acknowledgement", "it was acknowledged while its case is open".to_owned())
}

pub(super) fn held_back(now: Moment, until: Moment) -> Checked {
    if now >= until {
        return Ok(());
    }
    broken("busy and pace are obeyed", format!("it spoke {} ms too early", until.since(now).as_millis()))
}

/// Neither a dial nor a message.
pub(super) fn rests(closed: bool) -> Checked {
    if !closed {
        return Ok(());
    }
    broken("a radio that rests is left alone", "it was to be used between two windows".to_owned())
}

pub(super) fn in_window(flying: usize, window: usize) -> Checked {
    if flying <= window {
        return Ok(());
    }
    broken("in flight is at most the window", format!("{flying} in a window of {window}"))
}

/// `flying`: cases under way while no cloud is proven up.
pub(super) fn one_probe(flying: usize) -> Checked {
    if flying <= 1 {
        return Ok(());
    }
    broken("while no cloud is proven up, one case is the probe", format!("{flying} are under way"))
}

/// Where nobody takes a payload, the next one waits.
pub(super) fn not_poured_out(now: Moment, nobody_since: Option<Moment>) -> Checked {
    match nobody_since {
        Some(since) if now.since(since) < NOBODY_WAIT => {
            let text = format!("{} ms after the last one", now.since(since).as_millis());
            broken("while nobody listens, payloads are not poured out", text)
        }
        _ => Ok(()),
    }
}

/// One publish may go over the ceiling: nothing is sent once it is reached.
pub(super) fn under_ceiling(sent_within_hour: usize, ceiling: Option<u64>) -> Checked {
    match ceiling {
        Some(ceiling) if sent_within_hour as u64 >= ceiling => {
            broken("a ceiling holds in every hour", format!("{sent_within_hour} cases under a ceiling of {ceiling}"))
        }
        _ => Ok(()),
    }
}

/// Whoever asks for it.
pub(super) fn within_the_hour(key: CaseKey, times: usize) -> Checked {
    if times <= SENDS_PER_HOUR_MAX as usize {
        return Ok(());
    }
    broken("a payload travels only so often an hour, whoever asks", format!("{} travelled {times} times", short(key)))
}

pub(super) fn has_reader(readers: usize) -> Checked {
    if readers > 0 {
        return Ok(());
    }
    broken("nothing is sent while no reader of our wire version is known", "none is known".to_owned())
}

/// What a cloud says it holds is on its records.
pub(super) fn on_record(key: CaseKey, recorded: bool) -> Checked {
    if recorded {
        return Ok(());
    }
    broken("the cloud acknowledges a case only once it is on record", format!("{} is not", short(key)))
}

pub(super) fn made_of_enough(key: CaseKey, is_enough: bool) -> Checked {
    if is_enough {
        return Ok(());
    }
    let promise = "an answer is made of the whole, or of a thumbnail that is enough or must do";
    broken(promise, format!("{} was answered from a thumbnail", short(key)))
}

/// Counted from the beginning of the calm, every case is answered or dead within this time: the longest quiets
/// between two questions, the longest rests a cloud or broker may ask for, and the drain itself.
pub(super) fn drain_within(plan: &Plan) -> Duration {
    let waits = if plan.is_peaceful() {
        Duration::from_secs(120)
    } else {
        // A case that fails may be quiet before each try, where words of two instances cross.
        let quiets = if plan.odd_one_in > 0 { 2 + TRIES_MAX } else { 2 };
        quiets * QUIET_MAX + plan.profile.dial_wait_max + Duration::from_secs(300 + 180 + 60 + 1_200)
    };
    // What was learnt from connections that ended holds for an hour; a limit that was said is looked at again sooner.
    let learns = plan.poison.is_some() || plan.faults.contains(&Fault::Limit);
    let limits = if learns { 2 * HELD_WAIT + LIMIT_WAIT } else { Duration::ZERO };
    // Each life of the device may have left a case that the broker never takes. They are found out one after the other,
    // and each time their size is held for twice as long.
    let poison = if plan.poison.is_some() && plan.poison_lasts { 3 * HELD_WAIT_MAX } else { Duration::ZERO };
    let lies = if plan.faults.contains(&Fault::Lies) { RETRY_AFTER_MAX + QUIET_MAX } else { Duration::ZERO };
    // Each whole that is too large waits; the cloud makes do after its time; and a word may be lost once more.
    let wholes = if plan.thumbnails { WHOLE_WAIT_MAX + LIMIT_WAIT + 2 * QUIET_MAX } else { Duration::ZERO };
    let waits = waits + limits + poison + lies + if plan.is_peaceful() { Duration::ZERO } else { wholes };
    #[expect(clippy::cast_precision_loss, reason = "a bound, not a count")]
    let paced = Duration::from_secs_f32(plan.cases as f32 * plan.accept_per_s.map_or(0.0, |per_s| 1.0 / per_s));
    // An hour for each time the ceiling is reached; a payload may travel twice and more.
    let hours = plan.cases_per_hour.map_or(0, |ceiling| 2 + 4 * plan.cases / ceiling);
    // One case after the other at worst: there and back twice, a handful of commits, a slow model.
    let each = Duration::from_millis(4 * plan.latency.1 + 5 * plan.disk.1 + plan.model.1 + 100);
    let all = waits
        + 2 * paced
        + Duration::from_secs(3_600 * hours)
        + 2 * each * u32::try_from(plan.cases).unwrap_or(u32::MAX);
    // Of each rest a little is lost to the dial and to what must be asked about.
    plan.profile
        .windows
        .map_or(all, |windows| all.mul_f64(2.0 * windows.every.div_duration_f64(windows.open)) + windows.every)
}

/// What happened to each case, as only somebody outside can know it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    stored: BTreeSet<CaseKey>,
    applied: BTreeSet<(CaseKey, u32)>,
    cases: BTreeMap<CaseKey, Account>,
    pub(super) payloads: u64,
}

#[derive(Debug, Default)]
struct Account {
    /// How often its payload went out, and how often only a thumbnail of it.
    travelled: u32,
    thumbnails: u32,
    /// How often more the whole may go: once each time that the cloud has asked for it, or nobody listened.
    whole: u32,
    /// How often more than once it was allowed to: the cloud lacks it, wants it, failed on it, or nobody listened.
    allowed: u32,
    /// How many sends and questions the cloud has called failed, and whether one is open to be.
    failed: u32,
    tried: bool,
    /// How often the connection ended when it was sent alone.
    cut: u32,
    dead: bool,
    answered: bool,
    /// By hand, or evicted and counted.
    dropped: bool,
}

impl Ledger {
    pub(super) fn said_stored(&mut self, key: CaseKey) {
        self.stored.insert(key);
        self.cases.entry(key).or_default();
    }

    pub(super) fn stored(&self) -> usize {
        self.stored.len()
    }

    fn account(&mut self, key: CaseKey) -> &mut Account {
        self.cases.entry(key).or_default()
    }

    fn allows(&mut self, key: CaseKey) {
        self.account(key).allowed += 1;
    }

    /// Nobody listened when it went out.
    pub(super) fn unheard(&mut self, key: CaseKey, form: Form) {
        self.allows(key);
        self.account(key).whole += u32::from(form == Form::Whole);
    }

    /// The device restarted and its disk does not say that these were sent.
    pub(super) fn progress_lost(&mut self, keys: Vec<CaseKey>) {
        for key in keys {
            let account = self.account(key);
            account.allowed = account.allowed.max(account.travelled);
        }
    }

    pub(super) fn dropped(&mut self, key: CaseKey) {
        self.account(key).dropped = true;
    }

    /// A dead letter begins anew. Words about its first life may still come and end the second one.
    pub(super) fn requeued(&mut self, key: CaseKey) {
        let account = self.account(key);
        account.allowed = account.allowed.max(account.travelled);
    }

    /// What the device hears may allow a payload to travel again; returns the case it allows last.
    pub(super) fn hears(&mut self, event: &Event) -> Option<CaseKey> {
        match event {
            Event::Unknown { keys } => {
                keys.iter().for_each(|key| self.allows(*key));
                keys.last().copied()
            }
            Event::Wanted { key, .. } => {
                self.allows(*key);
                self.account(*key).whole += 1;
                Some(*key)
            }
            Event::Failed { key, .. } => {
                let account = self.account(*key);
                account.failed += u32::from(std::mem::take(&mut account.tried));
                self.allows(*key);
                Some(*key)
            }
            Event::Dead { key, .. } => {
                self.account(*key).dead = true;
                None
            }
            _ => None,
        }
    }

    /// In a peaceful world, however slow the cloud, each payload goes out once; where thumbnails go first, the whole at most
    /// once after it.
    pub(super) fn sent_once(&self) -> Checked {
        let is_once = |account: &Account| match account.thumbnails {
            0 => account.travelled == 1,
            thumbnails => thumbnails == 1 && account.travelled <= 2,
        };
        match self.cases.iter().find(|(_, account)| !is_once(account)) {
            None => Ok(()),
            Some((key, account)) => {
                let text = format!("{} went out {} times", short(*key), account.travelled);
                broken("in a peaceful world each payload goes out once", text)
            }
        }
    }

    /// A payload goes out on a connection.
    pub(super) fn travels(&mut self, key: CaseKey, open: bool, form: Form, thumbnails_first: bool) -> Checked {
        self.payloads += 1;
        let account = self.account(key);
        account.travelled += 1;
        account.thumbnails += u32::from(form != Form::Whole);
        if thumbnails_first && form == Form::Whole {
            let Some(left) = account.whole.checked_sub(1) else {
                let text = format!("nobody has asked for the whole of {}", short(key));
                return broken("where thumbnails go first, the whole goes when the cloud asks for it", text);
            };
            account.whole = left;
        }
        if !open {
            return broken("an answered or dead case is not sent again", format!("{} was", short(key)));
        }
        if account.travelled > 1 + account.allowed {
            let Account { travelled, allowed, .. } = *account;
            let text = format!("{} travelled {travelled} times, allowed once and {allowed} times more", short(key));
            return broken("after one full publish a payload travels again only if the cloud lacks it", text);
        }
        Ok(())
    }

    /// The cloud is to be sent these, or to be asked about them.
    pub(super) fn tries(&mut self, keys: &[CaseKey]) {
        keys.iter().for_each(|key| self.account(*key).tried = true);
    }

    /// The connection ended when it was sent alone.
    pub(super) fn cut(&mut self, key: CaseKey) {
        self.account(key).cut += 1;
    }

    pub(super) fn applied(&mut self, key: CaseKey, revision: u32) -> Checked {
        if revision == 0 {
            return broken("a verdict of revision 0 ends no case", format!("it ended {}", short(key)));
        }
        self.account(key).answered = true;
        if self.applied.insert((key, revision)) {
            return Ok(());
        }
        broken("no verdict is applied twice", format!("revision {revision} of {}", short(key)))
    }

    pub(super) fn buries(&mut self, key: CaseKey, poison: bool) -> Checked {
        let account = self.account(key);
        let blamed = account.failed > 0 || poison;
        if account.dead || (blamed && account.failed + account.cut >= TRIES_MAX) {
            return Ok(());
        }
        if !blamed {
            let text = format!("nobody has found {} to blame", short(key));
            return broken("no state of the world makes a dead letter", text);
        }
        let text = format!("{} failed {} times", short(key), account.failed);
        broken("a dead letter has failed often enough, or the cloud said dead", text)
    }

    /// Each case said to be stored is on disk, or was answered.
    pub(super) fn nothing_is_lost(&self, on_disk: impl Fn(CaseKey) -> bool) -> Checked {
        let answered = |key: &CaseKey| self.cases.get(key).is_some_and(|account| account.answered || account.dropped);
        match self.stored.iter().find(|key| !on_disk(**key) && !answered(key)) {
            None => Ok(()),
            Some(key) => {
                broken("no case said to be stored is lost", format!("{} is neither on disk nor answered", short(*key)))
            }
        }
    }
}
