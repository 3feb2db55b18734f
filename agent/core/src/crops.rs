//! Decides which things that one model has found in a picture another model is asked about.

use alloc::string::String;
use alloc::vec::Vec;

use hedge_proto::{Output, Rect};

/// The most crops of one picture: each is a sample of its own, and whoever sent the picture waits for all of them.
pub const CROPS_MAX: usize = 16;

/// The smallest share of a picture's side that a thing may have: of less there is nothing to be seen.
const SIDE_MIN: f32 = 0.01;

/// What another model is asked about.
#[derive(Debug, Clone, PartialEq)]
pub struct Pick {
    /// Only things with one of these labels; all of them if there are none.
    pub classes: Vec<String>,
    /// How sure whoever found it must be of each.
    pub score_min: f32,
    /// Of one picture, the surest ones; at most [`CROPS_MAX`].
    pub most: usize,
}

impl Pick {
    /// Their places, surest first, each inside the picture.
    #[must_use]
    pub fn of(&self, said: &Output) -> Vec<Rect> {
        let Output::Boxes(found) = said else { return Vec::new() };
        let wanted = found.iter().filter(|one| {
            one.score >= self.score_min && (self.classes.is_empty() || self.classes.contains(&one.label))
        });
        wanted.filter_map(|one| inside(&one.place)).take(self.most.min(CROPS_MAX)).collect()
    }
}

/// The part of it that is inside the picture, if there is enough to be seen.
fn inside(place: &Rect) -> Option<Rect> {
    let (left, top) = (place.left.clamp(0.0, 1.0), place.top.clamp(0.0, 1.0));
    let width = (place.left + place.width).clamp(0.0, 1.0) - left;
    let height = (place.top + place.height).clamp(0.0, 1.0) - top;
    // What is not a number is not enough either.
    (width >= SIDE_MIN && height >= SIDE_MIN).then_some(Rect { left, top, width, height })
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;
    use std::vec;

    use hedge_proto::{BOXES_MAX, Found};
    use proptest::prelude::*;

    use super::*;

    fn found(label: &str, score: f32, place: [f32; 4]) -> Found {
        let [left, top, width, height] = place;
        Found { label: label.to_string(), score, place: Rect { left, top, width, height } }
    }

    #[test]
    fn the_surest_things_of_the_wanted_classes_are_cut_out_and_no_more_than_allowed() {
        let pick = Pick { classes: vec!["person".to_string()], score_min: 0.5, most: 2 };
        let place = |at: f32| [at, 0.1, 0.2, 0.3];
        let said = Output::Boxes(vec![
            found("cat", 0.99, place(0.0)),
            found("person", 0.9, place(0.1)),
            found("person", 0.8, place(0.2)),
            found("person", 0.7, place(0.3)),
            found("person", 0.4, place(0.4)),
        ]);
        let lefts = |pick: &Pick| pick.of(&said).iter().map(|place| place.left).collect::<Vec<_>>();
        assert_eq!(lefts(&pick), [0.1, 0.2]);
        assert_eq!(lefts(&Pick { most: 9, ..pick.clone() }), [0.1, 0.2, 0.3]);
        assert_eq!(lefts(&Pick { classes: vec![], score_min: 0.0, most: 9 }), [0.0, 0.1, 0.2, 0.3, 0.4]);
        assert_eq!(pick.of(&Output::label("person")), [], "it has no place");
    }

    #[test]
    fn what_sticks_out_is_cut_off_and_what_shows_nothing_is_left_out() {
        let pick = Pick { classes: vec![], score_min: 0.0, most: 9 };
        let of = |place| pick.of(&Output::Boxes(vec![found("x", 0.9, place)]));
        assert_eq!(of([-0.5, 0.75, 1.0, 1.0]), [Rect { left: 0.0, top: 0.75, width: 0.5, height: 0.25 }]);
        for place in [[0.5, 0.5, 0.001, 0.5], [2.0, 0.0, 1.0, 1.0], [0.9, 0.9, -0.5, 0.1], [f32::NAN, 0.0, 1.0, 1.0]] {
            assert_eq!(of(place), [], "{place:?}");
        }
    }

    proptest! {
        #[test]
        fn every_crop_lies_inside_the_picture(places in proptest::collection::vec(any::<[f32; 4]>(), 0..BOXES_MAX)) {
            let found = places.into_iter().map(|place| found("x", 0.5, place)).collect();
            let crops = Pick { classes: vec![], score_min: 0.0, most: usize::MAX }.of(&Output::Boxes(found));
            prop_assert!(crops.len() <= CROPS_MAX);
            for Rect { left, top, width, height } in crops {
                prop_assert!(left >= 0.0 && top >= 0.0 && width > 0.0 && height > 0.0);
                prop_assert!(f64::from(left) + f64::from(width) <= 1.0 + 1e-6 && f64::from(top) + f64::from(height) <= 1.0 + 1e-6);
            }
        }
    }
}
