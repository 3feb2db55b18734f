mod kept;
mod learned;

use alloc::vec;
use core::time::Duration;

use hedge_proto::{Allowance, CaseId, ClassPolicy, DeviceId, Epoch, LabelScore, Measure, RiskOf, Share, Target};
use proptest::prelude::*;

use super::*;
use crate::judge::{Limits, Past, ThresholdScale};

fn share(value: f32) -> Share {
    Share::new(value).expect("a share")
}

fn budget(of_all: f32) -> Rule {
    let allowance = Allowance { share: Some(share(of_all)), ..Allowance::default() };
    Rule { mode: ThresholdMode::Budget, allowance, ..Rule::FIXED }
}

fn target(risk: f32) -> Rule {
    let target = Some(Target { risk: share(risk), confidence: share(0.9), of: RiskOf::All, fleet: true });
    Rule { mode: ThresholdMode::Target, target, spot_checks: share(0.05), ..Rule::FIXED }
}

fn model(name: &str, version: &str) -> ModelRef {
    ModelRef { name: name.to_owned(), version: version.to_owned() }
}

fn experience() -> Experience {
    Experience::of(model("small", "1"))
}

fn doubt(value: f32) -> Doubt {
    Doubt::NONE.with(Measure::Score, value)
}

fn key(sequence: u64) -> CaseKey {
    CaseKey { epoch: Epoch(7), sequence }
}

fn label(label: &str) -> Output {
    Output::Classes(vec![LabelScore { label: label.to_owned(), score: 0.5 }])
}

fn verdict(sequence: u64, label_said: &str, by: &ModelRef, authority: Authority) -> Verdict {
    Verdict {
        v: 1,
        id: CaseId { device: DeviceId::new("d").expect("valid"), key: key(sequence) },
        revision: 1,
        authority,
        task: "t".to_owned(),
        said: label(label_said),
        model: by.clone(),
    }
}

/// A device whose answers are wrong as often as their doubt says, and a cloud that is right and answers at once.
struct World {
    experience: Experience,
    chance: Chance,
    rule: Rule,
    cloud: ModelRef,
    sequence: u64,
    /// More doubt for the same samples.
    shift: f32,
    /// Which share of the answers comes while those of its source flicker; then each second one is wrong.
    flickers: f64,
    deferred: u32,
    kept_wrong: u32,
    last: Doubt,
    news: Vec<News>,
    alarms: u32,
}

impl World {
    fn new(rule: Rule, seed: u64) -> Self {
        let (experience, chance) = (experience(), Chance::from_seed(seed));
        let cloud = model("large", "1");
        Self {
            experience,
            chance,
            rule,
            cloud,
            sequence: 0,
            shift: 1.0,
            flickers: 0.0,
            deferred: 0,
            kept_wrong: 0,
            last: Doubt::NONE,
            news: Vec::new(),
            alarms: 0,
        }
    }

    fn run(&mut self, samples: u32) -> &mut Self {
        (self.deferred, self.kept_wrong) = (0, 0);
        for _ in 0..samples {
            let now = Moment(self.sequence * 1000);
            #[expect(clippy::cast_possible_truncation, reason = "a share")]
            let drawn = self.chance.share() as f32;
            let mut doubt = doubt((drawn.powi(4) * self.shift).min(1.0));
            let mut probably_wrong = f64::from((drawn.powi(4) * self.shift * self.shift).min(1.0));
            if self.flickers > 0.0 && self.chance.share() < self.flickers {
                doubt = doubt.with(Measure::Flicker, 0.8);
                probably_wrong = probably_wrong.max(0.5);
            }
            self.last = doubt;
            let wrong = self.chance.share() < probably_wrong;
            let limits = Limits::NONE.at_most(Measure::Score, share(0.3));
            let asked = Asked { rule: &self.rule, ..Asked::of(limits) };
            let judgement = self.experience.judge(&doubt, asked, now, &mut self.chance);
            self.alarms += u32::from(judgement.alarm.is_some());
            self.sequence += 1;
            if judgement.reason.is_none() {
                self.kept_wrong += u32::from(wrong);
                continue;
            }
            self.deferred += 1;
            self.experience.opened(key(self.sequence), (&doubt, judgement.check), 1000, now);
            let verdict = verdict(self.sequence, if wrong { "dog" } else { "cat" }, &self.cloud, Authority::Model);
            self.news.extend(self.experience.learn(&verdict, (&label("cat"), &doubt), judgement.check));
        }
        self
    }

    fn deferred(&mut self, samples: u32) -> f32 {
        self.run(samples).deferred as f32 / samples as f32
    }
}

#[test]
fn what_two_bundles_differ_about_is_asked_within_the_budget() {
    let mut experience = experience();
    let mut chance = Chance::from_seed(1);
    let sure = Doubt::NONE.with(Measure::Score, 0.001);
    let rule = Rule { allowance: Allowance { cases_per_day: Some(3), ..Allowance::NONE }, ..budget(0.001) };
    let mut ask = |rule: &Rule, policy, at| {
        let asked = Asked { contested: true, policy, rule, ..Asked::of(Limits::NONE) };
        experience.judge(&sure, asked, Moment(at), &mut chance).explain()
    };
    let fixed = ask(&Rule::FIXED, None, 1);
    assert_eq!(fixed.reason, Some(Reason::Policy));
    assert!(fixed.because.contains("compared with this one says otherwise"), "{}", fixed.because);
    assert_eq!(ask(&Rule::FIXED, Some(ClassPolicy::NeverLeave), 2).reason, None);
    let cases = (3..100).filter(|at| ask(&rule, None, *at).reason.is_some()).count();
    assert!((1..=3).contains(&cases), "{cases}");
}

#[test]
fn a_budget_holds_when_the_input_becomes_harder_and_a_fixed_threshold_does_not() {
    let mut world = World::new(budget(0.2), 1);
    world.run(1000);
    let mut fixed = World::new(Rule::FIXED, 1);
    let before = fixed.deferred(1000);
    (world.shift, fixed.shift) = (3.0, 3.0);
    for _ in 0..6 {
        let share = world.deferred(500);
        assert!((share - 0.2).abs() < 0.025, "{share}");
    }
    assert!(fixed.deferred(1000) > before + 0.1);
}

#[test]
fn a_budget_holds_when_answers_begin_to_flicker() {
    let mut world = World::new(budget(0.1), 1);
    world.run(1000);
    for flickers in [0.05, 0.5, 0.5, 0.5, 0.0, 0.0] {
        world.flickers = flickers;
        let share = world.deferred(500);
        assert!((share - 0.1).abs() < 0.025, "{share} with {flickers}");
    }
}

#[test]
fn a_certificate_holds_for_answers_that_flicker_and_these_are_sent_first() {
    let mut violated = 0;
    for seed in 0..8 {
        let mut world = World::new(target(0.05), seed);
        world.flickers = 0.1;
        world.run(2000);
        violated += u32::from(world.kept_wrong > 2000 / 20);
        let asked = Asked { rule: &Rule { spot_checks: Share::ZERO, ..world.rule }, ..Asked::of(Limits::NONE) };
        let mut reason = |doubt| world.experience.judge(&doubt, asked, Moment(1 << 40), &mut world.chance).reason;
        assert_ne!(reason(doubt(0.001)), Some(Reason::LowScore), "{seed}");
        assert_eq!(reason(doubt(0.001).with(Measure::Flicker, 0.8)), Some(Reason::Flicker), "{seed}");
    }
    assert!(violated <= 1, "{violated} of 8 at 90 %");
}

#[test]
fn of_an_answer_that_flickers_it_is_said_what_its_score_counts() {
    let flickers = doubt(0.1).with(Measure::Flicker, 0.5);
    let limits = Limits::NONE.at_most(Measure::Score, share(0.2));
    let fixed = Asked::of(limits);
    let said = crate::judge::judge(&flickers, &fixed).explain();
    assert_eq!((said.reason, said.score), (Some(Reason::Flicker), Some(0.9)));
    assert_eq!(
        said.because,
        "score 0.900, which counts 0.675 because the answers to the last frames flicker (0.500), is below score_min 0.800; \
         without that flicker it would have stayed"
    );
    assert_eq!(crate::judge::judge(&doubt(0.1), &fixed).reason, None);
    assert_eq!(crate::judge::judge(&doubt(0.3), &fixed).explain().reason, Some(Reason::LowScore));
    let own = Asked::of(Limits::NONE.at_most(Measure::Flicker, share(0.4)));
    assert!(crate::judge::judge(&flickers, &own).explain().because.contains("flicker 0.500 is above its limit 0.400"));

    let mut world = World::new(budget(0.2), 1);
    world.run(1000);
    let asked = Asked { rule: &world.rule, ..fixed };
    let flickers = doubt(0.1).with(Measure::Flicker, 0.9);
    let said = world.experience.judge(&flickers, asked, Moment(1 << 40), &mut world.chance).explain();
    assert_eq!(said.reason, Some(Reason::Flicker));
    assert!(
        said.because.contains("which counts 0.495") && said.because.contains("would have stayed"),
        "{}",
        said.because
    );
}

#[test]
fn spot_checks_are_part_of_a_budget() {
    let mut world = World::new(Rule { spot_checks: share(0.5), ..budget(0.1) }, 1);
    world.run(1000);
    let share = world.deferred(2000);
    assert!((share - 0.1).abs() < 0.02, "{share}");
    let drawn = world.experience.checks.drawn;
    assert!((40..=80).contains(&drawn), "a fifth of a tenth of 3000: {drawn}");
    assert_eq!(world.experience.checks.answered, drawn);
}

#[test]
fn under_a_target_nothing_stays_until_spot_checks_allow_it_and_then_the_risk_is_kept() {
    let mut world = World::new(target(0.05), 2);
    assert!((world.deferred(50) - 1.0).abs() < f32::EPSILON);
    world.run(1000);
    assert!(world.news.contains(&News::Certified));
    let deferred = world.deferred(4000);
    assert!(deferred < 0.5, "{deferred}");
    assert!(world.kept_wrong < 4000 / 20, "{} kept and wrong", world.kept_wrong);
}

#[test]
fn a_shift_raises_the_alarm_and_takes_the_certificate() {
    let asks_more = Rule { on_shift: OnShift::AskMore, ..target(0.05) };
    let mut world = World::new(asks_more, 3);
    world.run(3000);
    assert_eq!(world.alarms, 0);
    let certified = world.experience.certificate.certified();
    world.shift = 8.0;
    world.run(400);
    assert_eq!(world.alarms, 1);
    assert!(world.experience.certificate.certified() < certified);
    assert!(world.experience.alarm() == Some(Change::MoreDoubt));
}

#[test]
fn an_alarm_that_is_only_watched_changes_nothing() {
    let mut world = World::new(Rule { on_shift: OnShift::Watch, ..Rule::FIXED }, 3);
    world.run(3000);
    world.shift = 8.0;
    world.run(400);
    assert_eq!(world.alarms, 1);
    let limits = Limits::NONE.at_most(Measure::Score, share(0.3));
    let asked = Asked { rule: &world.rule, ..Asked::of(limits) };
    assert_eq!(world.experience.judge(&doubt(0.29), asked, Moment(0), &mut world.chance).reason, None);
    let rule = Rule { on_shift: OnShift::AskMore, ..Rule::FIXED };
    let asked = Asked { rule: &rule, ..Asked::of(limits) };
    let judgement = world.experience.judge(&doubt(0.29), asked, Moment(0), &mut world.chance);
    assert_eq!(judgement.reason, Some(Reason::LowScore));
    assert!(judgement.explain().because.contains("unlike what the model was checked on"));
}

#[test]
fn another_model_in_the_cloud_and_another_version_here_begin_with_nothing() {
    let mut world = World::new(target(0.05), 4);
    world.run(1500);
    assert!(world.experience.certificate.certified().is_some());
    let kept = world.experience.clone();
    world.cloud = model("larger", "1");
    world.run(100);
    assert!(world.news.contains(&News::OtherCloud));
    assert!(world.experience.certificate.evidence().checks() < 200.0);
    assert_eq!(Experience::resume(Some(kept.clone()), model("small", "1")), kept);
    assert_eq!(Experience::resume(Some(kept), model("small", "2")), Experience::of(model("small", "2")));
}

#[test]
fn a_spot_check_that_is_lost_counts_as_contradicted_and_a_case_that_is_lost_is_given_back() {
    let allowance = Allowance { cases_per_hour: Some(1), ..Allowance::default() };
    let rule = Rule { mode: ThresholdMode::Budget, allowance, ..Rule::FIXED };
    let (mut experience, mut chance) = (experience(), Chance::from_seed(5));
    let asked = |rule| Asked { rule, ..Asked::of(Limits::NONE) };
    let judgement = experience.judge(&doubt(0.9), asked(&rule), Moment(1), &mut chance);
    assert!(judgement.reason.is_some());
    experience.opened(key(1), (&doubt(0.9), true), 500, Moment(1));
    let spent = experience.judge(&doubt(0.9), asked(&rule), Moment(1), &mut chance);
    assert!(spent.reason.is_none() && spent.explain().because.contains("cases_per_hour is spent"));
    assert_eq!(experience.open_since_before(Moment(2)).count(), 1);
    assert_eq!(experience.ended_unanswered(key(1)), None);
    assert_eq!(experience.open_since_before(Moment(2)).count(), 0);
    assert_eq!(experience.account.of_the_last_day(), (0, 0));
    let checks = (experience.checks.lost, experience.certificate.evidence().checks());
    assert_eq!(checks, (1, 1.0));
    assert_eq!(experience.ended_unanswered(key(1)), None, "once");
    assert_eq!(experience.checks.lost, 1);
    experience.account.case(Moment(1));
    experience.opened(key(2), (&doubt(0.9), false), 500, Moment(1));
    experience.sent(key(2));
    experience.ended_unanswered(key(2));
    assert_eq!(experience.account.of_the_last_day(), (1, 500), "what was sent has been spent");
}

#[test]
fn of_too_many_open_cases_the_oldest_is_waited_for_no_longer_and_costs_what_it_did() {
    let mut experience = experience();
    let more = 3;
    for sequence in 0..OPEN_MAX as u64 + more {
        experience.account.case(Moment(0));
        experience.opened(key(sequence), (&doubt(0.9), sequence == 0), 1, Moment(0));
    }
    assert_eq!(experience.open_since_before(Moment(1)).count(), OPEN_MAX);
    assert_eq!(experience.account.of_the_last_day().0, OPEN_MAX as u64 + more);
    assert_eq!(experience.checks.lost, 1);
}

#[test]
fn a_case_that_a_crash_made_forget_is_counted_once() {
    let (mut experience, mut chance) = (experience(), Chance::from_seed(5));
    let asked = Asked { rule: &budget(1.0), ..Asked::of(Limits::NONE) };
    experience.judge(&doubt(0.9), asked, Moment(1000), &mut chance);
    experience.opened(key(1), (&doubt(0.9), false), 500, Moment(1000));
    for (known, at) in [(key(1), 1000), (key(2), 1500), (key(2), 1500)] {
        experience.recalled(known, (&doubt(0.5), true), 500, Moment(at));
    }
    assert_eq!(experience.account.of_the_last_day(), (2, 1000));
    assert_eq!(experience.open_since_before(Moment(9000)).count(), 2);
}

#[test]
fn a_persons_word_counts_more_for_calibration_and_is_no_second_spot_check() {
    let mut experience = experience();
    let by = model("large", "1");
    experience.learn(&verdict(1, "cat", &by, Authority::Model), (&label("cat"), &doubt(0.4)), true);
    let person = Verdict { revision: 2, ..verdict(1, "dog", &model("anna", ""), Authority::Person) };
    assert_eq!(experience.learn(&person, (&label("cat"), &doubt(0.4)), true), None);
    assert_eq!(experience.calibration.labels(), 1.0 + PERSON_COUNTS);
    assert_eq!(experience.checks.answered, 1);
}

#[test]
fn frames_that_hardly_change_are_checked_seldom() {
    let drawn = |still: bool| {
        let rule = Rule { spot_checks: share(0.5), ..Rule::FIXED };
        let (mut experience, mut chance) = (experience(), Chance::from_seed(6));
        for frame in 0_u32..4000 {
            #[expect(clippy::cast_possible_truncation, reason = "a share")]
            let value = if still { (frame / 400) as f32 / 20.0 + 0.01 } else { chance.share() as f32 };
            let asked = Asked { rule: &rule, ..Asked::of(Limits::NONE) };
            experience.judge(&doubt(value), asked, Moment(0), &mut chance);
        }
        experience.checks.drawn
    };
    let (still, moving) = (drawn(true), drawn(false));
    assert!(still * 10 < moving, "{still} of frames that stand still, {moving} of others");
}

/// Doubts that break things: no number, ties, none at all.
fn any_doubt() -> impl Strategy<Value = Doubt> {
    prop_oneof![
        6 => (0.0_f32..1.0).prop_map(doubt),
        1 => Just(doubt(f32::NAN)),
        2 => Just(doubt(0.0)),
        1 => Just(Doubt::NONE),
        1 => Just(Doubt::NONE.with(Measure::MeanShown, 0.5)),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let rules = prop_oneof![Just(Rule::FIXED), (0.0_f32..=1.0).prop_map(budget), (0.0_f32..=1.0).prop_map(target)];
    (rules, 0.0_f32..10.0, 0.0_f32..=1.0, any::<bool>()).prop_map(|(rule, scale, checks, ask_more)| Rule {
        scale: ThresholdScale::new(scale).expect("valid"),
        spot_checks: share(checks),
        on_shift: if ask_more { OnShift::AskMore } else { OnShift::Watch },
        ..rule
    })
}

proptest! {
    /// Whatever is said, lost, repeated or restarted: every number stays one, and what is kept reads back as it was.
    #[test]
    fn nothing_that_is_said_breaks_what_was_learned(
        steps in prop::collection::vec((any_doubt(), any_rule(), 0_u8..6, 0_u64..100_000), 1..120),
    ) {
        let (mut experience, mut chance, mut now) = (experience(), Chance::from_seed(1), Moment(0));
        for (at, (doubt, rule, what, step)) in steps.into_iter().enumerate() {
            now = now + Duration::from_millis(step);
            let asked = Asked { weight: Weight::MAX, rule: &rule, ..Asked::of(Limits::NONE) };
            let judgement = experience.judge(&doubt, asked, now, &mut chance);
            let explained = judgement.explain();
            prop_assert!(explained.threshold.is_finite() && judgement.priority() > 0.0);
            experience.opened(key(at as u64), (&doubt, judgement.check), u64::MAX, now);
            match what {
                0 => drop(experience.ended_unanswered(key(at as u64 / 2))),
                1 => {
                    let kept = hedge_proto::to_cbor(&experience);
                    let read: Experience = hedge_proto::from_cbor(&kept, 1 << 20).expect("reads back");
                    let read = Experience::resume(Some(read), experience.model().clone());
                    prop_assert!(read == experience);
                    experience = read;
                }
                _ => {
                    let verdict = verdict(at as u64, "dog", &model("large", "1"), Authority::Model);
                    experience.learn(&verdict, (&label("cat"), &doubt), what == 2);
                }
            }
            prop_assert!((0.0..=1.0).contains(&experience.recent.bins().rank(0.5)));
        }
    }

    /// For each way a threshold is set: what a stricter one keeps, a looser one keeps as well.
    #[test]
    fn a_stricter_threshold_never_keeps_what_a_looser_one_deferred(
        seed in any::<u64>(),
        doubts in prop::collection::vec(0.0_f32..1.0, 60),
        (one, other) in (0.05_f32..1.0, 0.05_f32..1.0),
        asked_of in 0.0_f32..1.0,
    ) {
        let mut world = World::new(target(0.2), seed);
        world.run(200);
        for value in &doubts {
            world.experience.recent.saw(*value);
        }
        let decide = |rule: &Rule| {
            let (mut experience, mut chance) = (world.experience.clone(), Chance::from_seed(seed));
            experience.account = Account::default();
            let asked = Asked { rule, ..Asked::of(Limits::NONE) };
            experience.judge(&doubt(asked_of), asked, Moment(0), &mut chance).reason.is_some()
        };
        let unchecked = |rule| Rule { spot_checks: Share::ZERO, ..rule };
        let (less, more) = (one.min(other), one.max(other));
        prop_assert!(!decide(&unchecked(budget(less))) || decide(&unchecked(budget(more))), "a larger budget asks more");
        prop_assert!(!decide(&unchecked(target(more))) || decide(&unchecked(target(less))), "a smaller risk asks more");
    }
}

#[test]
fn a_class_that_always_asks_spends_the_budget_and_no_more_and_one_that_never_asks_is_no_spot_check() {
    let rule = Rule { spot_checks: share(1.0), ..budget(1.0) };
    let rule = Rule { allowance: Allowance { share: None, cases_per_hour: Some(3), ..rule.allowance }, ..rule };
    let (mut experience, mut chance) = (experience(), Chance::from_seed(1));
    let mut judged = |policy| {
        let asked = Asked { policy: Some(policy), rule: &rule, ..Asked::of(Limits::NONE) };
        experience.judge(&doubt(0.0), asked, Moment(1), &mut chance)
    };
    for _ in 0..100 {
        let kept = judged(ClassPolicy::NeverAsk);
        assert_eq!((kept.reason, kept.check), (None, false));
    }
    let asked = (0..10).filter(|_| judged(ClassPolicy::AlwaysAsk).reason == Some(Reason::Policy)).count();
    assert_eq!(asked, 3, "the ceiling stands behind it");
    assert!(judged(ClassPolicy::AlwaysAsk).explain().because.contains("waits for that"));
}

#[test]
fn a_forecast_comes_true_for_numbers_a_budget_and_a_target() {
    let mut world = World::new(Rule { spot_checks: share(0.2), ..Rule::FIXED }, 11);
    let mut past = Past::default();
    for sequence in 0..6000 {
        let doubt = world.run(1).last;
        past.saw(&doubt, Moment(sequence * 1000));
    }
    let now = Moment(world.sequence * 1000);
    let fixed = Rule::FIXED;
    for (rule, tolerance) in [(fixed, 0.02), (budget(0.15), 0.02), (target(0.1), 0.05)] {
        let limits = Limits::NONE.at_most(Measure::Score, share(0.3));
        let asked = Asked { rule: &rule, ..Asked::of(limits) };
        let forecast = world.experience.forecast(&past, &asked, now).expect("answers");
        assert!((5950..=6000).contains(&forecast.answers), "{forecast:?}");
        // It begins with what the forecast knew.
        let mut then = World { experience: world.experience.clone(), rule, ..World::new(rule, 12) };
        then.sequence = world.sequence;
        then.run(2000).run(4000);
        let (deferred, wrong) = (then.deferred as f32 / 4000.0, then.kept_wrong as f32 / 4000.0);
        let told = (forecast.deferred, forecast.contradicted.expect("labels"));
        assert!((told.0 - deferred).abs() < tolerance, "{:?}: {told:?} and {deferred}", rule.mode);
        assert!((told.1 - wrong).abs() < 0.02, "{:?}: {told:?} and {wrong}", rule.mode);
        assert!(forecast.bytes_per_day.is_some_and(|bytes| (bytes / forecast.cases_per_day - 1000.0).abs() < 1.0));
    }
}
