//! What one world is like: drawn from the seed before it begins.
//!
//! Each world has only some kinds of faults: a rare interleaving of two is easier to meet where the other ten
//! are silent.

use std::time::Duration;

use hedge_core::budget::Ceilings;
use hedge_core::chance::Chance;
use hedge_core::link::{Profile, Windows};
use hedge_core::policy::Policies;
use hedge_proto::Payload;

use super::message::Form;

/// Everything random comes from here, so that the seed is the whole world.
#[derive(Debug, Clone)]
pub(super) struct Dice(Chance);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(Chance::from_seed(seed))
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// From `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high.saturating_sub(low) + 1)
    }

    /// True once in so many throws; never for 0.
    pub(super) fn one_in(&mut self, throws: u64) -> bool {
        throws > 0 && self.0.next_u64().is_multiple_of(throws)
    }

    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = usize::try_from(self.0.next_u64() % choices.len() as u64).unwrap_or(0);
        choices[index]
    }
}

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Both ends of a connection see it end; what was under way arrives at one of them or not.
    Reset(usize),
    /// Nothing gets through for a while; what was sent arrives late, or its end gives up first.
    Outage(usize),
    /// One connection swallows everything, and both ends find out by themselves.
    HalfOpen(usize),
    /// kill -9 of the agent: what is not on disk is gone.
    Kill,
    /// The device loses power: nobody says goodbye, the powered clock has lost some minutes.
    PowerCut,
    DiskFull,
    BrokerRestart,
    /// The broker comes back without sessions and retained messages.
    BrokerWiped,
    /// The cloud dies between any two steps and comes back with its records.
    CloudCrash,
    /// It comes back without its records.
    CloudWiped,
    /// It says goodbye and comes back.
    CloudStop,
    /// Its records cannot be written for a while.
    CloudUnhealthy,
    /// It comes back as a version that does not read our messages, for a while.
    CloudOther,
    /// Another client uses the device's client id.
    TakenOver,
    /// The device notices another network.
    NetworkChanged,
    /// Somebody drops an open case by hand, or it is evicted.
    Drop,
    /// Somebody makes the dead letters wait again.
    Requeue,
    /// An instance says what has no sense, or too often.
    Lies,
    /// Broker or cloud takes less for a while, said or unsaid.
    Limit,
    /// For a while each connection ends after the first good word.
    ShortLived,
}

/// These come on top, so that the other worlds stay as they are.
const HOSTILE: [Fault; 3] = [Fault::Lies, Fault::Limit, Fault::ShortLived];

const FAULTS: [Fault; 21] = [
    Fault::Reset(0),
    Fault::Reset(1),
    Fault::Reset(2),
    Fault::Outage(0),
    Fault::Outage(1),
    Fault::Outage(2),
    Fault::HalfOpen(0),
    Fault::HalfOpen(1),
    Fault::Kill,
    Fault::PowerCut,
    Fault::DiskFull,
    Fault::BrokerRestart,
    Fault::BrokerWiped,
    Fault::CloudCrash,
    Fault::CloudWiped,
    Fault::CloudStop,
    Fault::CloudUnhealthy,
    Fault::CloudOther,
    Fault::NetworkChanged,
    Fault::Drop,
    Fault::Requeue,
];

/// The shape of one world. Times are in milliseconds.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) instances: usize,
    /// Each case goes to one instance; without it to all of them.
    pub(super) shared_subscription: bool,
    /// The instances see each other's records.
    pub(super) shared_records: bool,
    /// What a lost instance had not acknowledged goes to another one.
    pub(super) hands_on: bool,
    /// The broker delivers a message twice now and then.
    pub(super) twice_one_in: u64,
    /// The cloud asks for payloads with `send` instead of saying `unknown`.
    pub(super) says_send: bool,
    /// Thumbnails go first.
    pub(super) thumbnails: bool,
    /// How long the cloud waits for the whole of what it wants.
    pub(super) whole_wait: u64,
    pub(super) latency: (u64, u64),
    pub(super) disk: (u64, u64),
    /// A task of the device is held up for seconds now and then.
    pub(super) slow_task_one_in: u64,
    pub(super) cases: u64,
    pub(super) arrivals: (u64, u64),
    /// New cases and faults end here; from then on everything must drain.
    pub(super) calm_at: u64,
    pub(super) fault_every: (u64, u64),
    pub(super) faults: Vec<Fault>,
    pub(super) accept_per_s: Option<f32>,
    /// How many cases may wait in the cloud before it is busy.
    pub(super) room: usize,
    pub(super) model: (u64, u64),
    pub(super) odd_one_in: u64,
    pub(super) second_opinion_one_in: u64,
    pub(super) status_every: u64,
    pub(super) turn_max: u64,
    pub(super) receive_maximum: u16,
    pub(super) payload_bytes: (u64, u64),
    pub(super) batch_bytes_max: u32,
    pub(super) urgent_one_in: u64,
    /// An unhealthy cloud says when to come back; otherwise only that it takes nothing.
    pub(super) says_retry: bool,
    pub(super) profile: Profile,
    /// A ceiling that will be reached.
    pub(super) cases_per_hour: Option<u64>,
    /// The cases of this number end the connection at the broker, for ever or until the calm.
    pub(super) poison: Option<u64>,
    pub(super) poison_lasts: bool,
}

impl Plan {
    pub(super) fn draw(seed: u64, dice: &mut Dice) -> Self {
        let calm_at = dice.between(200, 2_000) * 1_000;
        // Most worlds are small: they are fast and easy to read. A few are larger than the device's memory.
        let cases = match dice.between(0, 99) {
            0..75 => dice.between(1, 40),
            75..96 => dice.between(40, 200),
            _ => dice.between(300, 900),
        };
        let share = dice.between(1, 6);
        let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| dice.between(0, 5) < share).collect();
        if dice.one_in(20) {
            faults.push(Fault::TakenOver);
        }
        if dice.one_in(10) {
            faults.clear();
        }
        let mut hostile = Dice::new(seed.rotate_left(32) ^ 0x1107);
        let is_hostile = hostile.one_in(2);
        faults.extend(HOSTILE.into_iter().filter(|_| is_hostile && hostile.one_in(2)));
        let poison = (is_hostile && hostile.one_in(4)).then(|| hostile.between(0, cases - 1));
        let per_case = if dice.one_in(3) { 50 } else { calm_at / (cases + 1) };
        Self {
            seed,
            instances: if dice.one_in(2) { 2 } else { 1 },
            shared_subscription: !dice.one_in(4),
            shared_records: dice.one_in(2),
            hands_on: dice.one_in(2),
            twice_one_in: dice.pick(&[0, 0, 10, 100]),
            says_send: dice.one_in(4),
            // Not by the dice: other worlds stay as they are.
            thumbnails: seed % 5 == 2,
            whole_wait: if seed.is_multiple_of(2) { 20_000 } else { WHOLE_WAIT_MAX.as_secs() * 1_000 },
            latency: dice.pick(&[(1, 5), (5, 80), (100, 700)]),
            disk: dice.pick(&[(1, 3), (1, 50), (20, 2_000)]),
            slow_task_one_in: dice.pick(&[0, 10, 100]),
            cases,
            arrivals: (0, 2 * per_case),
            calm_at,
            fault_every: dice.pick(&[(1_000, 15_000), (5_000, 60_000), (20_000, 200_000)]),
            faults,
            accept_per_s: dice.pick(&[None, None, None, Some(0.5), Some(5.0), Some(50.0)]),
            room: dice.pick(&[3, 50, usize::MAX, usize::MAX]),
            model: dice.pick(&[(1, 20), (20, 400), (500, 4_000)]),
            odd_one_in: dice.pick(&[0, 3, 20]),
            second_opinion_one_in: dice.pick(&[0, 5, 30]),
            status_every: dice.pick(&[10_000, 30_000, 60_000]),
            turn_max: dice.pick(&[5_000, 30_000]),
            receive_maximum: dice.pick(&[u16::MAX, 20, 10, 1]),
            payload_bytes: dice.pick(&[(28_000, 28_000), (100, 4_000), (100, 20_000)]),
            batch_bytes_max: dice.pick(&[0, 10_000, 64 * 1024]),
            urgent_one_in: dice.pick(&[0, 0, 3, 20]),
            says_retry: dice.one_in(2),
            profile: Profile { windows: windows(seed), ..dice.pick(&[Profile::LAN, Profile::LAN, Profile::METERED]) },
            cases_per_hour: dice.one_in(20).then(|| dice.between(cases / 4 + 1, cases + 1)),
            poison,
            poison_lasts: hostile.one_in(2),
        }
    }

    /// Nothing goes wrong, and the cloud takes and answers whatever comes.
    pub(super) fn is_peaceful(&self) -> bool {
        let one_memory = self.instances == 1 || (self.shared_records && self.shared_subscription);
        self.faults.is_empty() && self.poison.is_none() && one_memory && self.room == usize::MAX && self.odd_one_in == 0
    }

    /// In which form payloads go first.
    pub(super) fn first_form(&self) -> Form {
        if self.thumbnails { Form::Thumbnail } else { Form::Whole }
    }

    pub(super) fn policies(&self) -> Policies {
        let mut policies = Policies::DEFAULT;
        if self.thumbnails {
            policies.online.payload = Payload::ThumbnailFirst(320);
            policies.degraded.payload = Payload::ThumbnailFirst(320);
        }
        policies
    }

    pub(super) fn ceilings(&self) -> Ceilings {
        Ceilings { cases_per_hour: self.cases_per_hour.unwrap_or(u64::MAX / 2), ..Ceilings::LAN }
    }
}

/// The longest that the cloud waits for the whole of what it has a thumbnail of.
pub(super) const WHOLE_WAIT_MAX: Duration = Duration::from_secs(600);

/// Every eighth world has a radio that rests. Not by the dice: other worlds stay as they are.
fn windows(seed: u64) -> Option<Windows> {
    let seconds = |(every, open)| Windows { every: Duration::from_secs(every), open: Duration::from_secs(open) };
    seed.is_multiple_of(8).then(|| Dice::new(!seed).pick(&[(120, 60), (300, 30), (600, 120)])).map(seconds)
}
