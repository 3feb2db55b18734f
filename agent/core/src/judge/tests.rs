use alloc::borrow::ToOwned;

use hedge_proto::{LabelScore, Output, Share};
use proptest::prelude::*;

use super::*;

fn limits(score_min: f32, margin_min: f32, entropy_max: f32) -> Limits {
    Limits::new(score_min, margin_min, entropy_max).expect("valid")
}

fn doubt(score: f32, margin: f32, entropy: f32) -> Doubt {
    Doubt::NONE.with(Measure::Score, 1.0 - score).with(Measure::Margin, 1.0 - margin).with(Measure::Entropy, entropy)
}

#[track_caller]
fn check_reason(doubt: Doubt, limits: Limits, expected: Option<Reason>) {
    assert_eq!(judge(&doubt, &Asked::of(limits)).explain().reason, expected);
}

#[test]
fn each_limit_alone_defers_and_the_strongest_reason_is_named() {
    check_reason(doubt(0.9, 0.8, 0.47), limits(0.5, 0.0, 1.0), None);
    check_reason(doubt(0.4, 0.1, 0.99), limits(0.5, 0.5, 0.1), Some(Reason::LowScore));
    check_reason(doubt(0.55, 0.1, 0.99), limits(0.5, 0.5, 0.1), Some(Reason::Margin));
    check_reason(doubt(0.8, 0.6, 0.72), limits(0.5, 0.5, 0.1), Some(Reason::Entropy));
    check_reason(doubt(0.3, 0.0, 1.0), limits(0.3, 0.0, 1.0), None);
}

#[test]
fn a_measure_that_an_answer_does_not_have_asks_for_nothing() {
    let boxes = Doubt::NONE.with(Measure::MeanShown, 1.0 - 0.6).with(Measure::Errors, 0.7);
    check_reason(boxes, limits(0.6, 1.0, 0.0), None);
    check_reason(boxes, limits(0.61, 1.0, 0.0), Some(Reason::LowScore));
    let share = |value| Share::new(value).expect("valid");
    check_reason(boxes, limits(0.0, 0.0, 1.0).at_most(Measure::Errors, share(0.6)), Some(Reason::Errors));
    check_reason(boxes, limits(0.0, 0.0, 1.0).at_most(Measure::Errors, share(0.7)), None);
}

fn said(labels: &[&str]) -> Output {
    Output::Classes(labels.iter().map(|label| LabelScore { label: (*label).to_owned(), score: 0.5 }).collect())
}

#[test]
fn a_label_with_a_limit_of_its_own_is_judged_by_it() {
    let share = |value| Share::new(value).expect("valid");
    let labels = [("cat".to_owned(), share(0.95)), ("dog".to_owned(), share(0.1))].into();
    let thresholds = Thresholds { labels, ..limits(0.5, 0.0, 1.0).into() };
    let score_min = |label: &str| thresholds.of(&said(&[label, "cow"])).limits.score_min();
    assert_eq!(["cat", "dog", "cow"].map(score_min), [0.95, 0.1, 0.5]);
    let boxes = ["dog", "cat"].map(|label| hedge_proto::Found {
        label: label.to_owned(),
        score: 0.5,
        place: hedge_proto::Rect::WHOLE,
    });
    assert_eq!(thresholds.of(&Output::Boxes(boxes.to_vec())).limits.score_min(), 0.95, "the strictest of several");
}

#[test]
fn a_label_that_is_worth_more_goes_first_also_when_it_is_less_in_doubt() {
    let weights = [("cat".to_owned(), Weight::new(10.0).expect("valid"))].into();
    let thresholds = Thresholds { weights, ..limits(0.9, 0.0, 1.0).into() };
    let priority = |label: &str, score: f32| judge(&doubt(score, 1.0, 0.0), &thresholds.of(&said(&[label]))).priority();
    assert!(priority("cat", 0.8) > priority("dog", 0.4));
    assert!(priority("cat", 0.7) > priority("cat", 0.8));
    let (least, most) = PRIORITY_RANGE;
    assert!((least..=most).contains(&priority("cat", 0.89)) && (least..=most).contains(&priority("dog", 0.0)));
}

#[test]
fn a_limit_outside_its_range_is_refused_in_the_words_of_the_configuration() {
    let error = Limits::new(1.2, 0.0, 1.0).expect_err("out of range");
    assert_eq!(std::format!("{error}"), "score_min = 1.2 is not a number from 0 to 1");
    assert!(Limits::new(f32::NAN, 0.0, 1.0).is_err());
}

#[test]
fn a_threshold_taken_at_nothing_keeps_every_usable_answer() {
    let none = ThresholdScale::new(0.0).expect("valid");
    check_reason(doubt(0.4, 0.1, 0.99), limits(1.0, 1.0, 0.0).scaled(none), None);
    assert_eq!(limits(0.7, 0.1, 0.4).scaled(ThresholdScale::ONE), limits(0.7, 0.1, 0.4));
    assert!(ThresholdScale::new(-0.1).is_err() && ThresholdScale::new(f32::NAN).is_err());
}

/// Numbers of a range, both ends included. Now and then proptest's own ranges of `f32` break an assertion of theirs.
fn between(low: f32, high: f32) -> impl Strategy<Value = f32> {
    (0_u16..=u16::MAX).prop_map(move |step| low + (high - low) * (f32::from(step) / f32::from(u16::MAX)))
}

/// Doubt of any measures, NaN among its numbers.
fn any_doubt() -> impl Strategy<Value = Doubt> {
    let value = prop_oneof![9 => between(0.0, 1.0), 1 => Just(f32::NAN)];
    prop::collection::vec(prop::option::of(value), Measure::ALL.len()).prop_map(|values| {
        let given = Measure::ALL.iter().zip(values).filter_map(|(measure, value)| Some((*measure, value?)));
        given.fold(Doubt::NONE, |doubt, (measure, value)| doubt.with(measure, value))
    })
}

fn any_limits() -> impl Strategy<Value = Limits> {
    prop::collection::vec(between(0.0, 1.0), Measure::ALL.len()).prop_map(|values| {
        let given = Measure::ALL.iter().zip(values);
        given.fold(Limits::NONE, |limits, (measure, value)| limits.at_most(*measure, Share::new(value).expect("valid")))
    })
}

proptest! {
    #[test]
    fn limits_taken_stricter_never_keep_what_they_deferred_before(
        doubt in any_doubt(),
        limits in any_limits(),
        (less, more) in (between(0.0, 10.0), between(0.0, 10.0)),
    ) {
        let scale = |value| ThresholdScale::new(value).expect("valid");
        let [loose, strict] = [less.min(more), less.max(more)].map(|value| judge(&doubt, &Asked::of(limits.scaled(scale(value)))));
        prop_assert!(loose.reason.is_none() || strict.reason.is_some(), "{:?} {:?}", loose, strict);
    }

    #[test]
    fn a_stricter_limit_never_keeps_what_a_looser_one_deferred(
        doubt in any_doubt(),
        limits in any_limits(),
        (which, by) in (0..Measure::ALL.len(), between(0.0, 1.0)),
    ) {
        let measure = Measure::ALL[which];
        let strict = limits.at_most(measure, Share::new(limits.most(measure) * by).expect("valid"));
        let [loose, strict] = [limits, strict].map(|limits| judge(&doubt, &Asked::of(limits)));
        prop_assert!(loose.reason.is_none() || strict.reason.is_some(), "{:?} {:?}", loose, strict);
    }
}

#[test]
fn a_policy_for_a_class_decides_whatever_the_threshold_says() {
    let policies =
        [("cat", ClassPolicy::NeverAsk), ("dog", ClassPolicy::AlwaysAsk), ("person", ClassPolicy::NeverLeave)];
    let policies = policies.map(|(label, policy)| (label.to_owned(), policy)).into();
    let thresholds = Thresholds { policies, ..limits(0.5, 0.0, 1.0).into() };
    let judged = |label: &str, score| judge(&doubt(score, 1.0, 0.0), &thresholds.of(&said(&[label]))).explain();
    for (label, score, reason, part) in [
        ("cow", 0.4, Some(Reason::LowScore), "below score_min"),
        ("cat", 0.4, None, "never_ask"),
        ("dog", 0.99, Some(Reason::Policy), "always_ask"),
        ("person", 0.4, None, "never leaves this device"),
    ] {
        let explanation = judged(label, score);
        assert_eq!((explanation.outcome == Outcome::Defer, explanation.reason), (reason.is_some(), reason), "{label}");
        assert!(explanation.because.contains(part), "{}", explanation.because);
    }
    let boxes = ["dog", "person", "cat"].map(|label| hedge_proto::Found {
        label: label.to_owned(),
        score: 0.5,
        place: hedge_proto::Rect::WHOLE,
    });
    assert_eq!(thresholds.of(&Output::Boxes(boxes.to_vec())).policy, Some(ClassPolicy::NeverLeave), "one is enough");
}
