use alloc::vec;

use hedge_proto::Share;

use super::*;
use crate::chance::Chance;

fn target(risk: f32, confidence: f32) -> Target {
    let share = |value| Share::new(value).expect("a share");
    Target { risk: share(risk), confidence: share(confidence), of: RiskOf::All, fleet: true }
}

/// Doubt falls evenly into the steps from 100 on; those above `wrong_from` lose `loss`.
fn run(certificate: &mut Certificate, chance: &mut Chance, checks: usize, wrong: impl Fn(usize) -> f32) -> bool {
    certificate.aim(Some(target(0.1, 0.9)));
    (0..checks).any(|_| {
        let bin = 100 + usize::try_from(chance.next_u64() % 50).expect("small");
        certificate.checked(bin, wrong(bin))
    })
}

#[test]
fn nothing_stays_before_the_evidence_says_so_and_it_says_how_much_is_missing() {
    let mut certificate = Certificate::default();
    let strict = Some(target(0.02, 0.95));
    certificate.aim(strict);
    assert!(!certificate.keeps(0));
    let missing = certificate.missing(0).expect("some");
    for _ in 1..missing {
        assert!(!certificate.checked(BINS - 1, 1.0) && !certificate.keeps(0));
    }
    assert!(!certificate.checked(BINS - 1, 1.0));
    assert!(certificate.keeps(0), "an answer with the least doubt, after {missing}");
    assert!(!certificate.keeps(BINS - 1) && certificate.missing(0).is_none());
}

#[test]
fn a_threshold_grows_looser_and_never_so_loose_that_the_risk_is_passed() {
    let mut violated = 0;
    for seed in 0..100 {
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(seed));
        // From step 140 on all are wrong: a fifth. Up to 144 a tenth of all is kept and wrong.
        assert!(!run(&mut certificate, &mut chance, 1500, |bin| if bin >= 140 { 1.0 } else { 0.0 }));
        let certified = certificate.certified().expect("certified");
        assert!(certified >= 139, "{certified}");
        violated += u32::from(certified > 144);
    }
    assert!(violated <= 17, "{violated} of 100 at a confidence of .9");
}

#[test]
fn a_certificate_is_revoked_when_the_input_becomes_worse_and_seldom_otherwise() {
    let (mut false_ones, mut late) = (0, 0);
    for seed in 0..60 {
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(seed));
        false_ones += u32::from(run(&mut certificate, &mut chance, 3000, |bin| if bin >= 144 { 1.0 } else { 0.0 }));
        late += u32::from(!run(&mut certificate, &mut chance, 400, |bin| if bin >= 125 { 1.0 } else { 0.0 }));
    }
    assert!(false_ones <= 6 && late <= 3, "{false_ones} false, {late} not seen within 400, of 60");
}

#[test]
fn what_is_contradicted_in_part_counts_in_part() {
    let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(1));
    run(&mut certificate, &mut chance, 2000, |_| 0.05);
    assert_eq!(certificate.certified(), Some(BINS - 1), "a twentieth of each is half of the target");
    let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(1));
    run(&mut certificate, &mut chance, 2000, |_| 0.5);
    let certified = certificate.certified().expect("certified");
    assert!((105..=110).contains(&certified), "a fifth of all may lose half: {certified}");
}

fn model(name: &str) -> ModelRef {
    ModelRef { name: name.into(), version: "1".into() }
}

/// What so many devices have seen together, as it is told.
fn fleet(devices: u64, checks: usize, wrong: impl Fn(usize) -> f32) -> Evidence {
    let mut fleet = Evidence::default();
    for seed in 0..devices {
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(seed));
        run(&mut certificate, &mut chance, checks, &wrong);
        fleet.merge(&Evidence::heard(&certificate.own().told(model("small"), model("large"), 1)).expect("a count"));
    }
    fleet
}

#[test]
fn what_a_fleet_has_seen_certifies_a_device_that_has_seen_nothing() {
    let wrong = |bin: usize| if bin >= 140 { 1.0 } else { 0.0 };
    let fleet = fleet(20, 50, wrong);
    assert_eq!(fleet.checks(), 1000.0);
    let mut alone = Certificate::default();
    run(&mut alone, &mut Chance::from_seed(0), 10, wrong);
    assert_eq!(alone.certified(), None, "ten checks of its own");
    let (mut new, strict) = (Certificate::default(), target(0.1, 0.9));
    new.heard(fleet.clone());
    assert_eq!(new.certified(), None, "nothing is aimed at");
    new.aim(Some(strict));
    let certified = new.certified().expect("certified");
    assert!((139..=144).contains(&certified), "{certified}");
    new.aim(Some(Target { fleet: false, ..strict }));
    assert_eq!(new.certified(), None, "only its own evidence is wanted");
}

#[test]
fn a_device_that_is_worse_than_its_fleet_is_revoked_by_its_own_checks_and_stays_alone() {
    let fleet = fleet(20, 200, |bin| if bin >= 140 { 1.0 } else { 0.0 });
    let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(7));
    certificate.heard(fleet.clone());
    let dark = |bin: usize| if bin >= 115 { 1.0 } else { 0.0 };
    assert!(run(&mut certificate, &mut chance, 300, dark), "not revoked by 300 checks");
    certificate.heard(fleet.clone());
    assert_eq!(certificate.certified(), None, "the others say nothing of it any more");
    assert!(certificate.missing(100).is_some());
    // Its own evidence counts.
    assert!(!run(&mut certificate, &mut chance, 300, dark));
    let certified = certificate.certified().expect("by its own checks");
    assert!(certified <= 120, "{certified}");
}

#[test]
fn what_is_no_count_is_not_heard() {
    let (small, large) = (model("small"), model("large"));
    let told = |checks, lost| SpotChecks {
        model: small.clone(),
        cloud: large.clone(),
        devices: 1,
        checks,
        lost,
        held: vec![],
    };
    assert!(Evidence::heard(&told(10.0, vec![(120, 3, 10.0)])).is_some());
    let wrong = [
        told(f64::NAN, vec![]),
        told(-0.5, vec![]),
        told(10.0, vec![(192, 3, 1.0)]),
        told(10.0, vec![(120, 4, 1.0)]),
        told(10.0, vec![(120, 3, f32::INFINITY)]),
        told(10.0, vec![(120, 3, -1.0)]),
        told(10.0, vec![(120, 3, 20.0)]),
    ];
    for told in wrong {
        assert!(Evidence::heard(&told).is_none(), "{told:?}");
    }
}

#[test]
fn what_was_known_survives_a_restart() {
    let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(1));
    run(&mut certificate, &mut chance, 500, |bin| if bin >= 140 { 1.0 } else { 0.0 });
    let kept = hedge_proto::to_cbor(&certificate);
    assert!(hedge_proto::from_cbor::<Certificate>(&kept, 1 << 16).expect("reads back") == certificate);
}

fn of_kept(risk: f32) -> Target {
    Target { of: RiskOf::Kept, ..target(risk, 0.9) }
}

/// A model that may be wrong where it is surest: how often answers have each doubt and are wrong, and the risk of those up
/// to each step. At all of the steps, or some, that risk is just above this one, at others well below.
struct World {
    steps: Vec<(usize, f64, f64)>,
    kept_risk: Vec<f64>,
}

impl World {
    fn around(risk: f64, chance: &mut Chance) -> Self {
        let bins: Vec<usize> = (0..BINS).filter(|_| chance.share() < 0.12).chain([BINS - 1]).collect();
        let often: Vec<f64> = bins.iter().map(|_| 0.05 + chance.share()).collect();
        let passed = if chance.share() < 0.5 { 1.0 } else { 0.5 * chance.share() };
        let all: f64 = often.iter().sum();
        let (mut steps, mut kept_risk) = (Vec::new(), alloc::vec![0.0; BINS]);
        let (mut kept, mut lost) = (0.0, 0.0);
        for (bin, often) in bins.into_iter().zip(often) {
            kept += often / all;
            let wanted = if chance.share() < passed { 1.01 } else { 0.9 * chance.share() };
            let wrong = ((wanted * risk * kept - lost) / (often / all)).clamp(0.0, 1.0);
            lost += wrong * often / all;
            steps.push((bin, often / all, wrong));
            kept_risk[bin..].fill(lost / kept);
        }
        Self { steps, kept_risk }
    }

    fn check(&self, chance: &mut Chance) -> (usize, f32) {
        let mut drawn = chance.share();
        let found = self.steps.iter().find(|(_, often, _)| {
            drawn -= often;
            drawn < 0.0
        });
        let (bin, _, wrong) = found.unwrap_or(&self.steps[0]);
        (*bin, if chance.share() < *wrong { 1.0 } else { 0.0 })
    }
}

#[test]
fn a_certificate_of_kept_answers_is_ever_false_in_no_more_streams_than_its_confidence_allows() {
    const STREAMS: u32 = 200;
    let (mut violated, mut certified) = (0, 0);
    for seed in 0..STREAMS {
        let mut chance = Chance::from_seed(u64::from(seed));
        let world = World::around(0.2, &mut chance);
        let mut certificate = Certificate::default();
        certificate.aim(Some(of_kept(0.2)));
        let (mut ever, mut any) = (false, false);
        for _ in 0..400 {
            let (bin, loss) = world.check(&mut chance);
            certificate.checked(bin, loss);
            any |= certificate.certified().is_some();
            ever |= certificate.certified().is_some_and(|certified| world.kept_risk[certified] > 0.2);
        }
        (violated, certified) = (violated + u32::from(ever), certified + u32::from(any));
    }
    assert!(violated <= STREAMS / 10, "{violated} of {STREAMS} at a confidence of .9");
    assert!(certified >= STREAMS / 5, "{certified} of {STREAMS} were certified at all");
}

#[test]
fn of_kept_answers_wrong_ones_among_the_surest_hold_up_no_looser_threshold_and_what_is_certified_is_revoked() {
    // The surest fiftieth is always wrong, and so are the least sure: a tenth of those up to step 142.
    let wrong = |from: usize| move |bin: usize| if bin == 100 || bin >= from { 1.0 } else { 0.0 };
    let (mut false_ones, mut violated, mut late) = (0, 0, 0);
    for seed in 0..12 {
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(seed));
        let mut run = |certificate: &mut Certificate, checks: usize, from| {
            certificate.aim(Some(of_kept(0.1)));
            (0..checks).any(|_| {
                let bin = 100 + usize::try_from(chance.next_u64() % 50).expect("small");
                certificate.checked(bin, wrong(from)(bin))
            })
        };
        if run(&mut certificate, 1500, 140) {
            false_ones += 1;
            continue;
        }
        let certified = certificate.certified().expect("certified");
        assert!(certified >= 128, "{certified}");
        violated += u32::from(certified > 142);
        late += u32::from(!run(&mut certificate, 400, 120));
    }
    assert!(
        false_ones <= 2 && violated <= 2 && late == 0,
        "{false_ones} false, {violated} too loose, {late} late, of 12"
    );
}

#[test]
fn of_kept_answers_it_says_how_many_checks_of_these_are_missing_at_least() {
    let fresh = || {
        let mut certificate = Certificate::default();
        certificate.aim(Some(of_kept(0.02)));
        certificate
    };
    let mut certificate = fresh();
    let missing = certificate.missing(100).expect("some");
    assert_eq!(certificate.missing_to_half(100), Some(2 * missing));
    (0..1000).for_each(|_| _ = certificate.checked(150, 1.0));
    assert_eq!(certificate.missing(100), Some(missing), "checks of less sure answers say nothing of surer ones");
    let mut took = 0;
    while !certificate.keeps(100) {
        let before = certificate.missing(100).expect("it is not kept");
        assert!(before + took >= missing, "{before} after {took}");
        certificate.checked(15, 0.0);
        took += 1;
    }
    assert!((missing..=2 * missing).contains(&took), "{took} instead of {missing}");
}

#[test]
fn checks_whose_doubt_nobody_tells_win_nothing_for_kept_answers_and_their_losses_count() {
    let counted = |held, lost| SpotChecks { held, ..told_of(lost) };
    fn told_of(lost: Vec<(u8, u8, f32)>) -> SpotChecks {
        let (model, cloud) = (model("small"), model("large"));
        SpotChecks { model, cloud, devices: 2, checks: 1000.0, lost, held: Vec::new() }
    }
    let by = |told: &SpotChecks, target| {
        let mut certificate = Certificate::default();
        certificate.aim(Some(target));
        certificate.heard(Evidence::heard(told).expect("a count"));
        certificate.certified()
    };
    let earlier = told_of(vec![(120, 3, 10.0)]);
    assert_eq!(by(&earlier, target(0.1, 0.9)), Some(BINS - 1));
    assert_eq!(by(&earlier, of_kept(0.1)), None);
    assert_eq!(by(&counted(vec![(110, 500.0)], Vec::new()), of_kept(0.1)), Some(BINS - 1));
    assert_eq!(by(&counted(vec![(110, 500.0)], vec![(120, 3, 200.0)]), of_kept(0.1)), Some(119));
    assert!(Evidence::heard(&counted(vec![(110, 1500.0)], Vec::new())).is_none(), "more than were checked");
    assert!(Evidence::heard(&counted(vec![(192, 1.0)], Vec::new())).is_none(), "no step");

    // What an earlier version has kept on the disk.
    let mut certificate = Certificate::default();
    run(&mut certificate, &mut Chance::from_seed(1), 500, |_| 0.0);
    let mut kept = serde_json::to_value(&certificate).expect("written");
    kept["evidence"].as_object_mut().expect("counts").remove("held");
    let mut read: Certificate = serde_json::from_value(kept).expect("reads on");
    assert_eq!((read.certified(), read.own().checks()), (Some(BINS - 1), 500.0));
    read.aim(Some(of_kept(0.1)));
    assert_eq!((read.certified(), read.checks()), (None, 0.0));
}
