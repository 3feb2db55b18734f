//! What a device's report says of the time since the one before it.

use hedge_proto::{LatencyFigures, LinkState, Telemetry};

use super::ladder::{AGE_MAX_S, Page, Place, step_of_age};
use super::{Bucket, STAGES, THROTTLING, WHY_BYTES_MAX};

/// Tenths of a kelvin at 0 °C.
const ICE: f64 = 2731.5;

/// What is told of a stretch of time, and of the moment at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    pub from_ms: u64,
    pub to_ms: u64,
    /// What happened in it. When exactly is not told: it is taken to have happened evenly.
    pub over: Bucket,
    /// What was so at its end.
    pub at: Bucket,
}

/// How often, and tenths of milliseconds in all.
fn took(latency: &LatencyFigures) -> [u64; 2] {
    [latency.count, whole(latency.mean_ms * latency.count as f64 * 10.0)]
}

/// What no number can be is 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float becomes what is nearest to it")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

fn at(now: &Telemetry) -> Bucket {
    let temperature = now.board.temperature_c.map(|celsius| whole(celsius * 10.0 + ICE));
    let held = now.board.throttling.as_ref().map_or(&[][..], |throttling| &throttling.now);
    let bit = |word: &String| THROTTLING.iter().position(|known| known == word).map_or(0, |bit| 1 << bit);
    let judges = || now.model_figures.values().filter_map(|figures| figures.judge.as_ref());
    let suspicion = judges().map(|judge| judge.shift_suspicion).fold(0.0, f32::max);
    Bucket {
        reports: 1,
        queue_max: now.queue.waiting,
        oldest_max_s: now.queue.oldest_s.unwrap_or(0),
        temperatures: u64::from(temperature.is_some()),
        temperature_sum: temperature.unwrap_or(0),
        temperature_max: temperature.unwrap_or(0),
        throttled: u64::from(!held.is_empty()),
        throttling: held.iter().map(bit).fold(0, |all, bit| all | bit),
        shifted: u64::from(judges().any(|judge| judge.shift.is_some())),
        suspicion_max: whole(f64::from(suspicion.clamp(0.0, 1.0)) * 1000.0),
        why: if now.link == LinkState::Online { String::new() } else { shortened(&now.link_reason) },
        ..Bucket::default()
    }
}

fn shortened(reason: &str) -> String {
    let end = (0..=WHY_BYTES_MAX.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
    reason[..end.unwrap_or(0)].to_owned()
}

impl Stretch {
    /// What came between two reports. Figures of a device count from its start: one that has started since, or that nothing
    /// is known of, has done all that it tells since then.
    #[must_use]
    pub fn between(before: Option<(&Telemetry, u64)>, now: &Telemetry, now_ms: u64) -> Self {
        let start_ms = now_ms.saturating_sub(now.uptime_s.saturating_mul(1000));
        let same_run = before.filter(|(before, _)| before.uptime_s <= now.uptime_s);
        let before_ms = before.map_or(0, |(_, at_ms)| at_ms);
        let from_ms = if same_run.is_some() { before_ms } else { start_ms.max(before_ms) };
        let nothing = Telemetry::new(LinkState::Offline);
        let then = same_run.map_or(&nothing, |(before, _)| before);
        let since = |value: &dyn Fn(&Telemetry) -> u64| value(now).saturating_sub(value(then));
        let over = Bucket {
            answered: since(&|all| all.samples.answered),
            kept: since(&|all| all.samples.kept),
            deferred: since(&|all| all.samples.deferred),
            corrected: since(&|all| all.samples.corrected),
            link_bytes: since(&|all| all.link_bytes),
            link_s: LinkState::ALL.map(|state| since(&|all| all.link_s.get(state.name()).copied().unwrap_or(0))),
            stages: STAGES.map(|stage| {
                let of = |all: &Telemetry| all.latency.get(stage).map_or([0; 2], took);
                [since(&|all| of(all)[0]), since(&|all| of(all)[1])]
            }),
            ..Bucket::default()
        };
        Self {
            from_ms: from_ms.clamp(now_ms.saturating_sub(AGE_MAX_S * 1000), now_ms),
            to_ms: now_ms,
            over,
            at: at(now),
        }
    }

    /// Of one moment, as cases and answers are.
    #[must_use]
    pub fn at(now_ms: u64, at: Bucket) -> Self {
        Self { from_ms: now_ms, to_ms: now_ms, over: Bucket::default(), at }
    }

    /// Into the buckets it falls in, each as fine as is kept for its age. Whole seconds are told apart.
    #[must_use]
    pub fn spread(&self) -> Vec<(Place, Page)> {
        let (from_s, now_s) = (self.from_ms / 1000, self.to_ms / 1000);
        let whole = now_s - from_s;
        let mut pages: Vec<(Place, Page)> = Vec::new();
        let mut add = |second: u64, bucket: &Bucket| {
            let bucket_s = step_of_age(now_s - second).bucket_s;
            let mut page = Page::default();
            page.add(second / bucket_s * bucket_s, bucket);
            pages.push((Place::of(second, bucket_s), page));
        };
        let mut second = from_s;
        while second < now_s {
            let bucket_s = step_of_age(now_s - second).bucket_s;
            let end = ((second / bucket_s + 1) * bucket_s).min(now_s);
            add(second, &self.over.part(second - from_s, end - from_s, whole));
            second = end;
        }
        let mut last = self.at.clone();
        if whole == 0 {
            last.merge(&self.over);
        }
        add(now_s, &last);
        pages
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{STEPS, series};
    use super::*;
    use hedge_proto::{BoardFigures, QueueFigures, SampleFigures, Throttling};
    use proptest::prelude::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn report(uptime_s: u64, answered: u64) -> Telemetry {
        Telemetry {
            uptime_s,
            samples: SampleFigures { answered, ..SampleFigures::default() },
            link_s: BTreeMap::from([("online".to_owned(), uptime_s / 2), ("offline".to_owned(), uptime_s / 2)]),
            ..Telemetry::new(LinkState::Degraded)
        }
    }

    fn all_of(told: &Stretch) -> Bucket {
        let mut all = Bucket::default();
        series(told.spread(), 0, 60).iter().for_each(|shown| all.merge(&shown.bucket));
        all
    }

    #[test]
    fn a_report_tells_what_came_since_the_one_before() {
        let (before, now) = (report(100, 1000), report(160, 1030));
        let told = Stretch::between(Some((&before, NOW_MS - 60_000)), &now, NOW_MS);
        assert_eq!((told.from_ms, told.over.answered, told.over.link_s[0]), (NOW_MS - 60_000, 30, 30));
    }

    #[test]
    fn a_device_that_has_started_since_has_done_all_it_tells() {
        let (before, now) = (report(100, 1000), report(20, 5));
        let told = Stretch::between(Some((&before, NOW_MS - 60_000)), &now, NOW_MS);
        assert_eq!((told.from_ms, told.over.answered), (NOW_MS - 20_000, 5), "it was not there before");
    }

    #[test]
    fn a_clock_that_goes_back_loses_no_count() {
        let (before, now) = (report(100, 1000), report(160, 1030));
        let told = Stretch::between(Some((&before, NOW_MS + 3_600_000)), &now, NOW_MS);
        assert_eq!(all_of(&told).answered, 30);
    }

    #[test]
    fn the_board_and_the_queue_are_told_as_they_are_at_the_end() {
        let throttling = Throttling { now: vec!["throttled".to_owned(), "new".to_owned()], since_boot: vec![] };
        let board =
            BoardFigures { temperature_c: Some(-12.5), throttling: Some(throttling), ..BoardFigures::default() };
        let queue = QueueFigures { waiting: 7, oldest_s: Some(90), ..QueueFigures::default() };
        let link_reason = "é".repeat(100);
        let told = Stretch::between(None, &Telemetry { board, queue, link_reason, ..report(0, 0) }, NOW_MS);
        let Bucket { temperature_sum, throttled, throttling, queue_max, oldest_max_s, why, .. } = told.at;
        assert_eq!((temperature_sum, throttled, throttling, queue_max, oldest_max_s), (2607, 1, 4, 7, 90));
        assert_eq!(why.len(), WHY_BYTES_MAX);
    }

    proptest! {
        /// However long a device was away: what it counted is counted once, in buckets that are kept for their age.
        #[test]
        fn what_is_spread_and_folded_adds_up(
            away_s in 0_u64..100 * 86_400, answered in 0_u64..1_000_000, later_s in 0_u64..30 * 86_400,
        ) {
            let now = report(away_s, answered);
            let told = Stretch::between(None, &now, NOW_MS);
            let now_s = NOW_MS / 1000;
            prop_assert_eq!(all_of(&told).answered, answered);
            prop_assert_eq!(all_of(&told).link_s[0], away_s / 2);
            let mut pages: BTreeMap<Place, Page> = BTreeMap::new();
            for (place, page) in told.spread() {
                prop_assert!(STEPS.iter().any(|step| step.bucket_s == place.bucket_s));
                pages.entry(place).or_default().merge(&page);
            }
            // Folded for as long as there is something old.
            while let Some(place) = pages.keys().find(|place| place.is_old(now_s + later_s)).copied() {
                let page = pages.remove(&place).expect("there");
                let Some((next, folded)) = page.folded(place) else { return Ok(()) };
                pages.entry(next).or_default().merge(&folded);
            }
            prop_assert!(pages.len() <= 60, "{}", pages.len());
            let mut all = Bucket::default();
            series(pages, 0, 60).iter().for_each(|shown| all.merge(&shown.bucket));
            prop_assert_eq!(all.answered, answered);
        }
    }
}
