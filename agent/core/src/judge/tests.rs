use super::*;
use proptest::prelude::*;
use std::vec;

const LOGITS: OutputKind = OutputKind::Logits { temperature: Temperature::ONE };

fn threshold(score_min: f32, margin_min: f32, entropy_max: f32) -> Threshold {
    Threshold::new(score_min, margin_min, entropy_max).expect("valid")
}

#[track_caller]
fn check_reason(probabilities: &[f32], threshold: Threshold, expected: Option<Reason>) {
    let scores = Scores::read(probabilities, OutputKind::Probabilities).expect("usable");
    assert_eq!(judge(&scores, &threshold.into()).explain().reason, expected);
}

#[test]
fn each_limit_alone_defers_and_the_strongest_reason_is_named() {
    check_reason(&[0.9, 0.1], threshold(0.5, 0.0, 1.0), None);
    check_reason(&[0.4, 0.3, 0.3], threshold(0.5, 0.5, 0.1), Some(Reason::LowScore));
    check_reason(&[0.55, 0.45], threshold(0.5, 0.5, 0.1), Some(Reason::Margin));
    check_reason(&[0.8, 0.2], threshold(0.5, 0.5, 0.1), Some(Reason::Entropy));
}

#[test]
fn a_class_with_a_limit_of_its_own_is_judged_by_it() {
    let share = |value| Share::new(value).expect("valid");
    let classes = [(0, share(0.95)), (1, share(0.1))].into();
    let thresholds = Thresholds { classes, ..threshold(0.5, 0.0, 1.0).into() };
    let outcome = |probabilities: &[f32]| {
        let scores = Scores::read(probabilities, OutputKind::Probabilities).expect("usable");
        judge(&scores, &thresholds).explain()
    };
    assert_eq!(outcome(&[0.9, 0.05, 0.05]).reason, Some(Reason::LowScore));
    assert_eq!(outcome(&[0.9, 0.05, 0.05]).threshold, 0.95);
    assert_eq!(outcome(&[0.3, 0.4, 0.3]).reason, None);
    assert_eq!(outcome(&[0.3, 0.3, 0.4]).reason, Some(Reason::LowScore));
}

#[test]
fn a_class_that_is_worth_more_goes_first_also_when_it_is_less_in_doubt() {
    let weights = [(0, Weight::new(10.0).expect("valid"))].into();
    let thresholds = Thresholds { weights, ..threshold(0.9, 0.0, 1.0).into() };
    let priority = |probabilities: &[f32]| {
        let scores = Scores::read(probabilities, OutputKind::Probabilities).expect("usable");
        judge(&scores, &thresholds).priority()
    };
    assert!(priority(&[0.8, 0.2]) > priority(&[0.4, 0.6]));
    assert!(priority(&[0.7, 0.3]) > priority(&[0.8, 0.2]));
    let (least, most) = PRIORITY_RANGE;
    assert!((least..=most).contains(&priority(&[0.89, 0.11])) && (least..=most).contains(&priority(&[0.0, 1.0])));
}

#[test]
fn unusable_output_is_named_and_never_a_score() {
    for (output, kind, expected) in [
        (&[][..], LOGITS, UnusableOutput::Empty),
        (&[], OutputKind::Probabilities, UnusableOutput::Empty),
        (&[f32::NAN, 1.0], LOGITS, UnusableOutput::NotFinite),
        (&[f32::INFINITY, 1.0], LOGITS, UnusableOutput::NotFinite),
        (&[f32::NEG_INFINITY; 2], LOGITS, UnusableOutput::NotFinite),
        (&[f32::NAN], OutputKind::Probabilities, UnusableOutput::NotFinite),
        (&[0.0, 0.0], OutputKind::Probabilities, UnusableOutput::NotNormalised { sum: 0.0, whole: 1.0 }),
        (&[3.0, 4.0], OutputKind::Probabilities, UnusableOutput::NotNormalised { sum: 7.0, whole: 1.0 }),
        (&[2.0, -1.0], OutputKind::Probabilities, UnusableOutput::OutOfRange { score: 2.0, whole: 1.0 }),
    ] {
        assert_eq!(Scores::read(output, kind), Err(expected));
    }
}

#[test]
fn a_softmax_rounded_to_eight_bits_is_read_and_one_that_lost_a_quarter_is_not() {
    let read = |output: &[f32]| Scores::read(output, OutputKind::Probabilities);
    let mut rounded = [0.0; 64];
    (rounded[0], rounded[1], rounded[2]) = (125.0 / 256.0, 125.0 / 256.0, 2.0 / 256.0);
    let scores = read(&rounded).expect("usable");
    assert_eq!(std::format!("{:.3}", scores.top(1)[0].score), "0.496");
    // Two numbers cannot be rounded that far off, and of a thousand no more than a quarter may be missing.
    assert!(read(&[0.49, 0.49]).is_err());
    let mut thousand = [0.0; 1000];
    thousand[0] = 0.8;
    assert!(read(&thousand).is_ok());
    thousand[0] = 0.7;
    assert!(read(&thousand).is_err());
}

#[test]
fn percentages_are_read_and_named_as_such() {
    let scores = Scores::read(&[97.9, 2.1], OutputKind::Percent).expect("usable");
    assert_eq!(std::format!("{:.3}", scores.top(1)[0].score), "0.979");
    let error = Scores::read(&[0.5, 0.5], OutputKind::Percent).expect_err("not percentages");
    assert!(std::format!("{error}").starts_with("the output adds up to 1.000, not 100"));
}

#[test]
fn one_number_for_two_classes_speaks_of_the_second() {
    for (kind, number) in [(LOGITS, 2.0), (OutputKind::Probabilities, 0.880_797), (OutputKind::Percent, 88.0797)] {
        let scores = Scores::read(&kind.of_two(number), kind).expect("usable");
        let best = scores.top(1)[0];
        assert_eq!((best.class, std::format!("{:.4}", best.score)), (1, "0.8808".into()));
    }
}

#[test]
fn huge_logits_do_not_overflow_and_a_masked_class_scores_zero() {
    let scores = Scores::read(&[3e38, -3e38, f32::NEG_INFINITY], LOGITS).expect("usable");
    assert_eq!(scores.as_slice(), [1.0, 0.0, 0.0]);
}

#[test]
fn a_single_class_is_always_kept() {
    let scores = Scores::read(&[-7.0], LOGITS).expect("usable");
    assert!(matches!(judge(&scores, &threshold(1.0, 1.0, 0.0).into()).decision, Decision::Keep { .. }));
}

#[test]
fn a_limit_outside_its_range_is_refused_in_the_words_of_the_configuration() {
    let error = Threshold::new(1.2, 0.0, 1.0).expect_err("out of range");
    assert_eq!(std::format!("{error}"), "score_min = 1.2 is not a number from 0 to 1");
    assert!(Threshold::new(f32::NAN, 0.0, 1.0).is_err());
    assert!(Temperature::new(0.0).is_err());
}

#[test]
fn a_higher_temperature_is_less_sure() {
    let sharp = Scores::read(&[2.0, 1.0], LOGITS).expect("usable");
    let temperature = Temperature::new(2.0).expect("valid");
    let soft = Scores::read(&[2.0, 1.0], OutputKind::Logits { temperature }).expect("usable");
    assert!(soft.top(1)[0].score < sharp.top(1)[0].score);
}

#[test]
fn ties_and_short_lists_have_a_defined_order() {
    let scores = Scores::read(&[0.25; 4], OutputKind::Probabilities).expect("usable");
    let classes: Vec<usize> = scores.top(9).iter().map(|entry| entry.class).collect();
    assert_eq!(classes, vec![0, 1, 2, 3]);
}

#[test]
fn a_threshold_taken_at_nothing_keeps_every_usable_answer() {
    let none = ThresholdScale::new(0.0).expect("valid");
    check_reason(&[0.4, 0.3, 0.3], threshold(1.0, 1.0, 0.0).scaled(none), None);
    assert_eq!(threshold(0.7, 0.1, 0.4).scaled(ThresholdScale::ONE), threshold(0.7, 0.1, 0.4));
    assert!(ThresholdScale::new(-0.1).is_err() && ThresholdScale::new(f32::NAN).is_err());
}

/// Numbers of a range, both ends included. Now and then proptest's own ranges of `f32` break an assertion of theirs.
fn between(low: f32, high: f32) -> impl Strategy<Value = f32> {
    (0_u16..=u16::MAX).prop_map(move |step| low + (high - low) * (f32::from(step) / f32::from(u16::MAX)))
}

fn share() -> impl Strategy<Value = f32> {
    between(0.0, 1.0)
}

proptest! {
    #[test]
    fn a_threshold_taken_stricter_never_keeps_what_it_deferred_before(
        logits in prop::collection::vec(between(-10.0, 10.0), 1..12),
        (s, m, e) in (share(), share(), share()),
        (less, more) in (between(0.0, 10.0), between(0.0, 10.0)),
    ) {
        let scale = |value| ThresholdScale::new(value).expect("valid");
        let scores = Scores::read(&logits, LOGITS).expect("finite logits");
        let limits = threshold(s, m, e);
        let [loose, strict] = [less.min(more), less.max(more)].map(|value| judge(&scores, &limits.scaled(scale(value)).into()));
        if matches!(loose.decision, Decision::Defer { .. }) {
            prop_assert!(matches!(strict.decision, Decision::Defer { .. }), "{:?} {:?}", loose, strict);
        }
    }

    #[test]
    fn scores_always_add_up_to_one(logits in prop::collection::vec(between(-1e4, 1e4), 1..50), t in between(0.05, 20.0)) {
        let temperature = Temperature::new(t).expect("valid");
        let scores = Scores::read(&logits, OutputKind::Logits { temperature }).expect("finite logits");
        let sum: f32 = scores.as_slice().iter().sum();
        prop_assert!((sum - 1.0).abs() < 1e-4);
        prop_assert!((0.0..=1.0).contains(&scores.entropy()));
    }

    #[test]
    fn a_stricter_threshold_never_keeps_what_a_looser_one_deferred(
        logits in prop::collection::vec(between(-10.0, 10.0), 1..12),
        (s, m, e) in (share(), share(), share()),
        (ds, dm, de) in (share(), share(), share()),
    ) {
        let scores = Scores::read(&logits, LOGITS).expect("finite logits");
        let loose = judge(&scores, &threshold(s, m, e).into());
        let strict = threshold((s + ds).min(1.0), (m + dm).min(1.0), (e - de).max(0.0));
        let strict = judge(&scores, &strict.into());
        if matches!(loose.decision, Decision::Defer { .. }) {
            prop_assert!(matches!(strict.decision, Decision::Defer { .. }), "{:?} {:?}", loose, strict);
        }
    }
}
