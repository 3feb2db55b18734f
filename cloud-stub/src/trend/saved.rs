//! What asking the cloud about doubtful answers only has cost and brought, beside sending everything and sending nothing.
//!
//! Counts are the device's own; what they would have cost otherwise follows from [`Assumptions`].

use hedge_proto::LinkState;
use serde::Serialize;

use super::{Bucket, STAGES};

/// Without a case to measure: a photo of a small camera.
const SAMPLE_BYTES: f64 = 50_000.0;

/// Without an answer to measure: a model and the way to it.
const CLOUD_MS: f64 = 500.0;

/// Money for a call, where nobody says otherwise: the order of a hosted vision model.
const CALL_PRICE: f64 = 0.001;

const BYTES_PER_GB: f64 = 1e9;

/// What cannot be counted. Each is given, measured or assumed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Assumptions {
    /// Money for one question to the cloud's model, and for a gigabyte over the link.
    pub call_price: f64,
    pub gb_price: f64,
    /// Bytes of a sample as it is sent.
    pub sample_bytes: f64,
    /// From sending a sample to the cloud's answer, in milliseconds.
    pub cloud_ms: f64,
}

/// What an operator says of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Given {
    pub call_price: Option<f64>,
    pub gb_price: Option<f64>,
    pub sample_bytes: Option<f64>,
    pub cloud_ms: Option<f64>,
}

impl Given {
    /// What is wrong with one of them, with its name.
    ///
    /// # Errors
    /// A sentence that names the first that is no amount.
    pub fn check(&self) -> Result<(), String> {
        let all = [
            ("call_price", self.call_price),
            ("gb_price", self.gb_price),
            ("sample_bytes", self.sample_bytes),
            ("cloud_ms", self.cloud_ms),
        ];
        match all.into_iter().find(|(_, value)| value.is_some_and(|value| !value.is_finite() || value < 0.0)) {
            Some((name, _)) => Err(format!("{name} is an amount: 0 or more")),
            None => Ok(()),
        }
    }

    /// With what is measured, or assumed, where nothing is given. `cloud_ms`: how long its latest answers took.
    #[must_use]
    pub fn over(self, passed: &Bucket, cloud_ms: Option<f64>) -> Assumptions {
        let measured = (passed.case_bytes > 0).then(|| passed.case_bytes as f64 / passed.cases as f64);
        Assumptions {
            call_price: self.call_price.unwrap_or(CALL_PRICE),
            gb_price: self.gb_price.unwrap_or(0.0),
            sample_bytes: self.sample_bytes.or(measured).unwrap_or(SAMPLE_BYTES),
            cloud_ms: self.cloud_ms.or(cloud_ms).unwrap_or(CLOUD_MS),
        }
    }
}

/// One way of answering.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Way {
    /// Samples that go to the cloud's model.
    pub calls: u64,
    /// Over the link.
    pub bytes: u64,
    pub money: f64,
    /// Mean milliseconds until there is an answer, and until the last word on it; absent where nothing tells.
    pub first_ms: Option<f64>,
    pub last_ms: Option<f64>,
    /// Answers that stay as the device gave them though the cloud says otherwise, as far as it was asked.
    pub wrong: u64,
    /// Answers that have to wait until the link is back.
    pub waiting: u64,
}

/// The three ways, for the same samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Saved {
    pub answered: u64,
    pub everything: Way,
    pub hybrid: Way,
    pub nothing: Way,
}

/// What came of `passed`, and what would have come of it.
#[must_use]
pub fn saved(passed: &Bucket, assumed: &Assumptions) -> Saved {
    let answered = passed.kept + passed.deferred;
    let money =
        |calls: u64, bytes: u64| calls as f64 * assumed.call_price + bytes as f64 / BYTES_PER_GB * assumed.gb_price;
    let (local_ms, asked_ms) = (mean_ms(passed, "kept"), mean_ms(passed, "deferred"));
    let mixed = |kept: Option<f64>, deferred: Option<f64>| match (kept, deferred) {
        _ if answered == 0 => None,
        (Some(kept), Some(deferred)) => {
            Some((kept * passed.kept as f64 + deferred * passed.deferred as f64) / answered as f64)
        }
        (one, other) => one.or(other),
    };
    let local = mixed(local_ms, asked_ms);
    let all_bytes = whole(answered as f64 * assumed.sample_bytes);
    let everything = Way {
        calls: answered,
        bytes: all_bytes,
        money: money(answered, all_bytes),
        first_ms: (answered > 0).then_some(assumed.cloud_ms),
        last_ms: (answered > 0).then_some(assumed.cloud_ms),
        wrong: 0,
        waiting: whole(answered as f64 * away(passed)),
    };
    let hybrid = Way {
        calls: passed.deferred,
        bytes: passed.link_bytes,
        money: money(passed.deferred, passed.link_bytes),
        first_ms: local,
        last_ms: mixed(local_ms.or(local), asked_ms.or(local).map(|ms| ms + assumed.cloud_ms)),
        wrong: 0,
        waiting: 0,
    };
    let nothing =
        Way { calls: 0, bytes: 0, money: 0.0, first_ms: local, last_ms: local, wrong: passed.corrected, waiting: 0 };
    Saved { answered, everything, hybrid, nothing }
}

fn mean_ms(passed: &Bucket, stage: &str) -> Option<f64> {
    let at = STAGES.iter().position(|name| *name == stage)?;
    let [count, tenths] = passed.stages[at];
    (count > 0).then(|| tenths as f64 / count as f64 / 10.0)
}

/// Which part of the time the device could not have sent a sample: it dialled, rested, or was cut off.
fn away(passed: &Bucket) -> f64 {
    let all: u64 = passed.link_s.iter().sum();
    let states = LinkState::ALL.into_iter().zip(passed.link_s);
    let away =
        states.filter(|(state, _)| matches!(state, LinkState::Offline | LinkState::Connecting | LinkState::Resting));
    if all == 0 { 0.0 } else { away.map(|(_, seconds)| seconds).sum::<u64>() as f64 / all as f64 }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what is no amount becomes 0")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed() -> Bucket {
        let mut stages = [[0; 2]; STAGES.len()];
        // 20 ms a kept answer, 30 ms a deferred one.
        (stages[0], stages[1]) = ([900, 180_000], [100, 30_000]);
        Bucket {
            answered: 1000,
            kept: 900,
            deferred: 100,
            corrected: 40,
            link_bytes: 3_000_000,
            link_s: [10, 0, 70, 0, 0, 20],
            stages,
            cases: 100,
            case_bytes: 2_500_000,
            ..Bucket::default()
        }
    }

    #[test]
    fn hybrid_is_compared_with_sending_everything_and_sending_nothing() {
        let given = Given { call_price: Some(0.01), gb_price: Some(10.0), ..Given::default() };
        let assumed = given.over(&passed(), Some(200.0));
        assert_eq!(assumed, Assumptions { call_price: 0.01, gb_price: 10.0, sample_bytes: 25_000.0, cloud_ms: 200.0 });
        let Saved { answered, everything, hybrid, nothing } = saved(&passed(), &assumed);
        assert_eq!(answered, 1000);
        assert_eq!((everything.calls, everything.bytes, everything.waiting), (1000, 25_000_000, 300));
        assert_eq!((everything.money, everything.first_ms), (10.0 + 0.25, Some(200.0)));
        assert_eq!((hybrid.calls, hybrid.bytes, hybrid.money), (100, 3_000_000, 1.0 + 0.03));
        assert_eq!((hybrid.first_ms, hybrid.last_ms), (Some(21.0), Some(41.0)));
        assert_eq!((nothing.calls, nothing.bytes, nothing.money, nothing.wrong), (0, 0, 0.0, 40));
        assert_eq!(nothing.last_ms, Some(21.0));
    }

    #[test]
    fn what_is_not_known_is_assumed_and_what_did_not_happen_has_no_time() {
        let nothing = Bucket::default();
        let assumed = Given::default().over(&nothing, None);
        assert_eq!((assumed.sample_bytes, assumed.cloud_ms), (SAMPLE_BYTES, CLOUD_MS));
        let saved = saved(&nothing, &assumed);
        assert_eq!((saved.everything.calls, saved.everything.first_ms, saved.hybrid.last_ms), (0, None, None));
    }

    #[test]
    fn an_assumption_that_is_no_amount_is_named() {
        for wrong in [-1.0, f64::NAN, f64::INFINITY] {
            let given = Given { gb_price: Some(wrong), ..Given::default() };
            assert_eq!(given.check(), Err("gb_price is an amount: 0 or more".to_owned()));
        }
        assert_eq!(Given { cloud_ms: Some(0.0), ..Given::default() }.check(), Ok(()));
    }
}
