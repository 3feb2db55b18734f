//! A learned doubt: when it counts, what it is worth, and what becomes of it.

use super::*;

/// A device whose score says nothing, while the model itself says how probably its answer is wrong.
fn learns(rule: &Rule, seed: u64) -> (Experience, Chance, Vec<News>, Vec<(bool, bool)>) {
    let (mut experience, mut chance) = (experience(), Chance::from_seed(seed));
    let (mut news, mut answers) = (Vec::new(), Vec::new());
    for sequence in 0..10_000_u64 {
        #[expect(clippy::cast_possible_truncation, reason = "a share")]
        let [own, hidden] = [chance.share() as f32, (chance.share() as f32).powi(4)];
        let wrong = chance.share() < f64::from(hidden);
        let plain = doubt(own).with(Measure::Confidence, hidden);
        let asked = Asked { rule, ..Asked::of(Limits::NONE) };
        let judgement = experience.judge(&plain, asked, Moment(sequence * 1000), &mut chance);
        answers.push((judgement.reason.is_some(), wrong));
        if judgement.reason.is_some() {
            experience.opened(key(sequence), (&judgement.doubt, judgement.check), 1000, Moment(sequence * 1000));
            let verdict = verdict(sequence, if wrong { "dog" } else { "cat" }, &model("large", "1"), Authority::Model);
            news.extend(experience.learn(&verdict, (&label("cat"), &judgement.doubt), judgement.check));
        }
    }
    (experience, chance, news, answers)
}

#[test]
fn a_learned_doubt_counts_once_checks_have_shown_that_it_ranks_better_and_then_fewer_are_asked_about_at_the_same_risk()
{
    let plain = learns(&target(0.05), 1);
    let rule = Rule { learned: true, ..target(0.05) };
    let (mut experience, mut chance, news, answers) = learns(&rule, 1);
    assert!(news.contains(&News::OtherDoubt) && news.iter().filter(|news| **news == News::OtherDoubt).count() == 1);
    let late = |answers: &[(bool, bool)]| {
        let late = &answers[8000..];
        let asked = late.iter().filter(|(asked, _)| *asked).count();
        let kept_wrong = late.iter().filter(|(asked, wrong)| !asked && *wrong).count();
        (asked, kept_wrong)
    };
    let ((asked, kept_wrong), (plain_asked, _)) = (late(&answers), late(&plain.3));
    assert!(asked < plain_asked / 2 && kept_wrong <= 100, "{asked} of {plain_asked}, {kept_wrong} wrong of 2000");

    let sure = doubt(0.9).with(Measure::Confidence, 0.001);
    let mut ask = |experience: &mut Experience, rule: &Rule, doubt| {
        let asked = Asked { rule, ..Asked::of(Limits::NONE) };
        experience.judge(&doubt, asked, Moment(1 << 40), &mut chance).explain()
    };
    let quiet = Rule { spot_checks: Share::ZERO, ..rule };
    let unsure = ask(&mut experience, &quiet, doubt(0.001).with(Measure::Confidence, 0.9));
    assert_eq!((unsure.reason.as_ref(), unsure.score), (Some(&Reason::Learned), Some(0.999)));
    assert!(unsure.because.starts_with("score 0.999, which counts 0."), "{}", unsure.because);
    assert!(unsure.because.contains("by what verdicts have taught, is below"), "{}", unsure.because);
    assert_ne!(ask(&mut experience, &quiet, sure).reason, Some(Reason::Learned));

    let told = experience.figures(ThresholdMode::Target);
    let learned = told.learned.clone().expect("wanted");
    assert!(learned.used && learned.auroc > Some(0.8) && learned.plain_auroc < Some(0.6), "{learned:?}");
    assert_eq!(told.spot_checks, None, "a ranking of its own is no other device's evidence");

    // It is off at once where nobody wants it, and with it what is certified of it.
    let plain = ask(&mut experience, &Rule { learned: false, ..quiet }, sure);
    assert_eq!((plain.doubt.get(Measure::Learned), plain.reason), (None, Some(Reason::LowScore)));
    assert_eq!(ask(&mut experience, &Rule { learned: true, ..Rule::FIXED }, sure).reason, None);
}

#[test]
fn what_was_learned_survives_a_restart_and_not_another_cloud() {
    let rule = Rule { learned: true, ..target(0.05) };
    let (mut experience, _, news, _) = learns(&rule, 1);
    assert!(news.contains(&News::OtherDoubt) && experience.is_learned());
    let kept: Experience = hedge_proto::from_cbor(&hedge_proto::to_cbor(&experience), 1 << 20).expect("reads back");
    assert_eq!(Experience::resume(Some(kept), model("small", "1")), experience);
    let other = verdict(9000, "dog", &model("larger", "1"), Authority::Model);
    assert_eq!(experience.learn(&other, (&label("cat"), &doubt(0.5)), false), Some(News::OtherCloud));
    assert!(!experience.is_learned());
}

#[test]
fn what_a_version_with_other_measures_has_learned_is_forgotten_with_what_is_certified_of_it() {
    let (experience, _, _, _) = learns(&Rule { learned: true, ..target(0.05) }, 1);
    assert!(experience.is_learned() && experience.certificate.certified().is_some());
    let mut kept = serde_json::to_value(&experience).expect("written");
    kept["head"]["learning"].as_array_mut().expect("weights").pop();
    let kept: Experience = serde_json::from_value(kept).expect("reads back");
    let resumed = Experience::resume(Some(kept), model("small", "1"));
    assert_eq!((resumed.is_learned(), resumed.certificate.certified()), (false, None));
    assert_eq!(resumed.checks, experience.checks, "what does not depend on it is kept");
}

#[test]
fn a_learned_doubt_leaves_a_budget_as_it_is() {
    let (experience, _, news, answers) = learns(&Rule { learned: true, spot_checks: share(0.2), ..budget(0.3) }, 1);
    assert!(news.contains(&News::OtherDoubt) && experience.is_learned());
    for window in answers.chunks(500).skip(2) {
        let asked = window.iter().filter(|(asked, _)| *asked).count();
        assert!((125..=175).contains(&asked), "{asked} of 500");
    }
}
