//! A target that is about the answers that stay.

use super::*;

#[test]
fn under_a_target_of_kept_answers_at_most_that_share_of_them_is_wrong_and_the_answers_say_so() {
    let of_kept = |rule: Rule| Rule { target: rule.target.map(|target| Target { of: RiskOf::Kept, ..target }), ..rule };
    let mut world = World::new(of_kept(target(0.05)), 2);
    world.run(2000);
    assert!(world.news.contains(&News::Certified));
    let deferred = world.deferred(4000);
    let kept = 4000.0 * (1.0 - deferred);
    assert!(deferred < 0.9 && world.kept_wrong as f32 <= kept / 20.0, "{} wrong of {kept}", world.kept_wrong);
    let mut of_all = World::new(target(0.05), 2);
    of_all.run(2000);
    assert!(of_all.deferred(4000) < deferred, "of all samples as much is shown sooner");

    let asked = Asked { rule: &world.rule, ..Asked::of(Limits::NONE) };
    let because = world.experience.judge(&doubt(0.9), asked, Moment(1 << 40), &mut world.chance).explain().because;
    let said = ["at most 5.0 % of the kept answers contradicted, 90 % sure, by ", " more of answers at least as sure"];
    assert!(said.iter().all(|part| because.contains(part)), "{because}");
}
