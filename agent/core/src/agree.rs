//! Decides whether two say the same of one sample.
//!
//! Labels are compared by name. Boxes are matched by label and place: two detectors never give the same numbers, and
//! on real photos hardly one answer in six has all its boxes in another's.

use alloc::vec;
use alloc::vec::Vec;

use hedge_proto::{Found, Output, Rect};

/// Two boxes of one label are the same thing if they share this much of what they cover together: the measure that
/// detectors are compared by (PASCAL VOC).
pub const IOU_MIN: f32 = 0.5;

/// From here on two say the same, where only yes or no is asked.
pub const AGREES_MIN: f32 = 0.5;

/// How much of what one says the other says, too: 1 is all, 0 is nothing. Of boxes it is the F1 of one list as the
/// truth about the other.
#[must_use]
pub fn agree(one: &Output, other: &Output) -> f32 {
    match (one, other) {
        (Output::Classes(one), Output::Classes(other)) => {
            let same = one.first().zip(other.first()).is_some_and(|(one, other)| one.label == other.label);
            if same { 1.0 } else { 0.0 }
        }
        (Output::Boxes(one), Output::Boxes(other)) => {
            let all = one.len() + other.len();
            if all == 0 { 1.0 } else { 2.0 * matched(one, other) as f32 / all as f32 }
        }
        (Output::Classes(_), Output::Boxes(_)) | (Output::Boxes(_), Output::Classes(_)) => 0.0,
    }
}

/// How many of the boxes are in both lists. The surest chooses first, and takes the one that it covers best.
#[must_use]
pub fn matched(one: &[Found], other: &[Found]) -> usize {
    pairs(one, other).iter().flatten().count()
}

/// For each of `one`, which of `other` is the same thing. Each is taken once.
#[must_use]
pub fn pairs(one: &[Found], other: &[Found]) -> Vec<Option<usize>> {
    let mut taken = vec![false; other.len()];
    let mut order: Vec<usize> = (0..one.len()).collect();
    order.sort_by(|a, b| one[*b].score.total_cmp(&one[*a].score));
    let mut pairs = vec![None; one.len()];
    for at in order {
        let free = other.iter().enumerate().filter(|(index, theirs)| !taken[*index] && theirs.label == one[at].label);
        let best = free
            .map(|(index, theirs)| (index, iou(&one[at].place, &theirs.place)))
            .filter(|(_, iou)| *iou >= IOU_MIN)
            .max_by(|(_, a), (_, b)| a.total_cmp(b));
        if let Some((index, _)) = best {
            taken[index] = true;
            pairs[at] = Some(index);
        }
    }
    pairs
}

/// What two rectangles share, as a part of what they cover together: 0 to 1. One without an area, or whose sides are
/// no numbers, shares nothing.
#[must_use]
pub fn iou(one: &Rect, other: &Rect) -> f32 {
    // `min` and `max` below pass over what is no number.
    if !(one.is_finite() && other.is_finite()) {
        return 0.0;
    }
    let shared = |start: f32, size: f32, other_start: f32, other_size: f32| {
        ((start + size).min(other_start + other_size) - start.max(other_start)).max(0.0)
    };
    let both =
        shared(one.left, one.width, other.left, other.width) * shared(one.top, one.height, other.top, other.height);
    let either = one.width * one.height + other.width * other.height - both;
    if both > 0.0 && either > 0.0 { (both / either).min(1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned;

    use super::*;

    fn found(label: &str, score: f32, left: f32, width: f32) -> Found {
        Found { label: label.to_owned(), score, place: Rect { left, top: 0.0, width, height: 1.0 } }
    }

    #[test]
    fn boxes_agree_by_label_and_place_not_by_their_numbers() {
        let one = [found("cat", 0.9, 0.0, 0.4), found("dog", 0.5, 0.5, 0.4)];
        let other = [found("dog", 0.8, 0.52, 0.4), found("cat", 0.4, 0.05, 0.4)];
        assert_eq!(agree(&Output::Boxes(one.to_vec()), &Output::Boxes(other.to_vec())), 1.0);
        let renamed = [found("cow", 0.9, 0.0, 0.4), one[1].clone()];
        assert_eq!(agree(&Output::Boxes(renamed.to_vec()), &Output::Boxes(other.to_vec())), 0.5);
        let moved = [found("cat", 0.9, 0.3, 0.4)];
        assert_eq!(matched(&moved, &other), 0);
    }

    #[test]
    fn one_thing_is_matched_once_and_two_empty_pictures_agree() {
        let twice = [found("cat", 0.9, 0.0, 0.4), found("cat", 0.8, 0.01, 0.4)];
        assert_eq!(matched(&twice, &twice[..1]), 1);
        assert_eq!(pairs(&twice, &twice[1..]), [Some(0), None], "the surest chooses first");
        let none = Output::Boxes(Vec::new());
        assert_eq!(agree(&none, &none), 1.0);
        assert_eq!(agree(&none, &Output::Boxes(twice.to_vec())), 0.0);
        assert_eq!(agree(&none, &Output::label("cat")), 0.0);
    }

    #[test]
    fn rectangles_without_an_area_or_without_numbers_share_nothing() {
        let rect = |left: f32, width: f32| Rect { left, top: 0.0, width, height: 1.0 };
        assert_eq!(iou(&rect(0.0, 0.0), &rect(0.0, 0.0)), 0.0);
        assert_eq!(iou(&rect(f32::NAN, 1.0), &Rect::WHOLE), 0.0);
        assert_eq!(iou(&Rect::WHOLE, &Rect::WHOLE), 1.0);
        assert!((iou(&rect(0.0, 0.5), &rect(0.25, 0.5)) - 1.0 / 3.0).abs() < 1e-6);
    }
}
