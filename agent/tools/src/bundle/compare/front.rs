//! What a candidate needs of the cloud, and which candidates no other beats in everything. No IO.

/// One sample's answer: how sure the device was, and whether its answer and the cloud's count as good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Answered {
    pub(super) score: f32,
    pub(super) here: bool,
    pub(super) there: bool,
}

/// The least share of samples, the least sure first, that must be answered by the cloud so that the share of good answers
/// is at least `target`. None if no share is enough.
///
/// A threshold cannot send one of two equally sure answers, so only shares that a threshold can cut are looked at.
pub(super) fn deferral_needed(answers: &[Answered], target: f64) -> Option<f64> {
    let mut answers = answers.to_vec();
    answers.sort_by(|one, other| one.score.total_cmp(&other.score));
    let count = answers.len() as f64;
    let is_enough = |good: f64| good >= target * count - 1e-9;
    let mut good = answers.iter().filter(|answer| answer.here).count() as f64;
    if is_enough(good) {
        return Some(0.0);
    }
    for (at, answer) in answers.iter().enumerate() {
        good += f64::from(u8::from(answer.there)) - f64::from(u8::from(answer.here));
        let is_cut = answers.get(at + 1).is_none_or(|next| next.score > answer.score);
        if is_cut && is_enough(good) {
            return Some((at + 1) as f64 / count);
        }
    }
    None
}

/// Whether each candidate is on the Pareto front: no other costs at most as much in everything and less in something.
/// What is infinite was not reached, and such a candidate is never on it.
pub(super) fn front(costs: &[Vec<f64>]) -> Vec<bool> {
    let beats = |one: &[f64], other: &[f64]| {
        one.iter().zip(other).all(|(one, other)| one <= other) && one.iter().zip(other).any(|(one, other)| one < other)
    };
    let is_reached = |own: &[f64]| own.iter().all(|cost| cost.is_finite());
    costs.iter().map(|own| is_reached(own) && !costs.iter().any(|other| beats(other, own))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the least to the most sure: whether the device, and whether the cloud, is right.
    fn answers(of: &[(bool, bool)]) -> Vec<Answered> {
        let answer =
            |(at, (here, there)): (usize, &(bool, bool))| Answered { score: at as f32, here: *here, there: *there };
        of.iter().enumerate().map(answer).collect()
    }

    #[test]
    fn the_least_share_that_reaches_the_target_is_found() {
        let four = answers(&[(false, true), (true, true), (false, true), (true, false)]);
        for (target, share) in [(0.5, Some(0.0)), (0.75, Some(0.25)), (1.0, Some(0.75)), (1.01, None)] {
            assert_eq!(deferral_needed(&four, target), share, "{target}");
        }
    }

    #[test]
    fn a_cloud_that_is_wrong_where_the_device_is_right_may_never_be_enough() {
        assert_eq!(deferral_needed(&answers(&[(true, false), (false, false)]), 0.75), None);
    }

    #[test]
    fn answers_that_are_equally_sure_are_sent_together() {
        let mut equal = answers(&[(false, true), (false, true), (true, true), (true, true)]);
        equal.iter_mut().for_each(|answer| answer.score = 0.5);
        assert_eq!(deferral_needed(&equal, 0.75), Some(1.0));
    }

    #[test]
    fn the_front_holds_what_nothing_else_beats() {
        let costs =
            [vec![1.0, 9.0], vec![5.0, 5.0], vec![6.0, 5.0], vec![0.5, f64::INFINITY], vec![9.0, 1.0], vec![9.0, 1.0]];
        assert_eq!(front(&costs), [true, true, false, false, true, true]);
    }
}
