//! The device's engine in thousands of worlds made of numbers: whatever device, network, broker and cloud do, and
//! in whichever order, no stored case is lost, none is applied twice, and all are answered once it is calm.

use hedge_tests::sim::{Planted, run, sweep};

/// In CI. `cargo xtask sim` runs as many as one likes.
const SEEDS: u64 = 2_000;

/// A planted bug must show within so many worlds.
const SEEDS_TO_FIND: u64 = 400;

#[test]
fn in_any_interleaving_nothing_is_lost_and_nothing_is_stuck() {
    let report = sweep(1, SEEDS, 2, None);
    println!("{:.0} worlds/s: {:?}", report.seeds_per_s(), report.total);
    if let Some(failure) = report.failure {
        panic!("\n{failure}");
    }
    assert_eq!(report.seeds, SEEDS);
}

#[test]
fn each_kind_of_planted_bug_is_found() {
    for (planted, promise) in [
        (Planted::StoredBeforeDurable, "no case said to be stored is lost"),
        (Planted::PubackIsDone, "no case said to be stored is lost"),
        (Planted::AcksBeforeDurable, "a verdict is durable before its acknowledgement"),
        (Planted::AppliesTwice, "no verdict is applied twice"),
        (Planted::NeverAsks, "in calm every case is answered or dead in bounded time"),
        (Planted::DropsLeftovers, "in calm every case is answered or dead in bounded time"),
        (Planted::SendsOnSilence, "after one full publish a payload travels again only if the cloud lacks it"),
        (Planted::SendsAnswered, "an answered or dead case is not sent again"),
        (Planted::IgnoresWindow, "in flight is at most the window"),
        (Planted::TrustsRetained, "while no cloud is proven up, one case is the probe"),
        (Planted::DeadAtFirstFailure, "a dead letter has failed often enough, or the cloud said dead"),
        (Planted::SendsToAnyCloud, "nothing is sent while no reader of our wire version is known"),
        (Planted::IgnoresBusy, "busy and pace are obeyed"),
        (Planted::IgnoresCeilings, "a ceiling holds in every hour"),
        (Planted::CloudAcksFirst, "the cloud acknowledges a case only once it is on record"),
        (Planted::DialsAtOnce, "waits between dials grow until a connection has lasted"),
        (Planted::DialsWithoutEnd, "dials are bounded, whatever ends the connections"),
        (Planted::SendsWhenWanted, "a payload travels only so often an hour, whoever asks"),
        (Planted::CountsEachFailed, "a dead letter has failed often enough, or the cloud said dead"),
        (Planted::DeadAtLimit, "no state of the world makes a dead letter"),
        (Planted::NeverLooksAgain, "in calm every case is answered or dead in bounded time"),
        (Planted::TakesRevisionZero, "a verdict of revision 0 ends no case"),
        (Planted::SendsWhole, "where thumbnails go first, the whole goes when the cloud asks for it"),
        (Planted::AnswersUnsure, "an answer is made of the whole, or of a thumbnail that is enough or must do"),
        (Planted::ForgetsTheWanted, "in calm every case is answered or dead in bounded time"),
    ] {
        let report = sweep(1, SEEDS_TO_FIND, 1, Some(planted));
        let Some(failure) = report.failure else { panic!("{planted:?} lives unseen through {} worlds", report.seeds) };
        println!("{planted:?}: found in world {}", report.seeds);
        assert_eq!(failure.broken.promise, promise, "{planted:?}\n{failure}");
    }
}

#[test]
fn a_seed_fails_the_same_way_twice() {
    let seed = sweep(1, SEEDS_TO_FIND, 1, Some(Planted::SendsOnSilence)).failure.expect("found").seed;
    let [first, second] = [(); 2].map(|()| run(seed, Some(Planted::SendsOnSilence)).expect_err("fails again"));
    assert_eq!((&first.broken, &first.trace), (&second.broken, &second.trace));
    assert!(!first.trace.is_empty());
}
