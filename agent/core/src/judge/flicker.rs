//! Decides how much an answer is in doubt because those to the frames before it were others.
//!
//! Of answers that contradict each other about one scene not all can be right, however sure each is. [`Frames`] tells how
//! often the answers of a source have changed lately; [`counted`] is the doubt that comes of it. A scene that changes once
//! does not flicker. Nor does a source whose frames always show something else, as on a belt: what counts is how much more
//! often than usual its answers change. Samples that are not frames of one camera or microphone are not shown to it. A source
//! that others send to may bring frames of several cameras, each by its name.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use hedge_proto::{Doubt, Measure, Output};

/// So many of the last changes from one frame to the next are looked at.
const CHANGES: usize = 8;

/// Before so many frames nobody knows how often a source's answers usually change; it is a mean over ten times as many.
const USUAL_FROM: u32 = 100;
const USUAL_OVER: u32 = 1000;

/// Sources that one model is remembered to have answered, each camera of one counted by itself. Beyond them the one that was
/// silent longest is forgotten: of the cameras that callers name if there is one, so that no number of names makes the
/// device forget its own.
const SOURCES_MAX: usize = 64;

/// What was answered to the last frames, by source.
#[derive(Debug, Clone, Default)]
pub struct Frames(Vec<Source>);

#[derive(Debug, Clone)]
struct Source {
    name: String,
    /// As a caller names it. None if all frames of the source are of one.
    camera: Option<String>,
    /// What the last frame was answered with: a hash of each label, in order. Places are not in it: things move.
    said: Vec<u32>,
    /// For the next frame, so that no answer waits for memory.
    spare: Vec<u32>,
    /// How much of the answer changed with each of the last frames: 0 to 1.
    changes: [f32; CHANGES],
    frames: u32,
    usual: f32,
}

impl Frames {
    /// Takes note of what the next frame of a source was answered with. Returns its doubt with that of the source's flicker,
    /// once that can be told.
    pub fn saw(&mut self, (source, camera): (&str, Option<&str>), said: &Output, doubt: &Doubt) -> Doubt {
        // The last one that was seen is the last in the list.
        match self.0.iter().position(|known| known.name == source && known.camera.as_deref() == camera) {
            Some(at) => self.0[at..].rotate_left(1),
            None => {
                if self.0.len() == SOURCES_MAX {
                    self.0.remove(self.0.iter().position(|known| known.camera.is_some()).unwrap_or(0));
                }
                self.0.push(Source::new(source, camera));
            }
        }
        let flicker = self.0.last_mut().and_then(|source| source.saw(said));
        flicker.map_or(*doubt, |flicker| doubt.with(Measure::Flicker, flicker))
    }
}

impl Source {
    fn new(name: &str, camera: Option<&str>) -> Self {
        let (said, spare) = (Vec::new(), Vec::new());
        let (name, camera) = (name.to_owned(), camera.map(ToOwned::to_owned));
        Self { name, camera, said, spare, changes: [0.0; CHANGES], frames: 0, usual: 0.0 }
    }

    fn saw(&mut self, said: &Output) -> Option<f32> {
        core::mem::swap(&mut self.said, &mut self.spare);
        self.said.clear();
        self.said.extend(said.labels().map(hashed));
        self.said.sort_unstable();
        let changed = if self.frames == 0 { 0.0 } else { difference(&self.spare, &self.said) };
        self.changes[self.frames as usize % CHANGES] = changed;
        self.frames = self.frames.saturating_add(1);
        let before = self.usual;
        self.usual += (changed - before) / self.frames.min(USUAL_OVER) as f32;
        // With what was usual before this frame; the first of the changes is no flicker, but a change.
        let often = (self.changes.iter().sum::<f32>() - 1.0).max(0.0) / (CHANGES as f32 - 1.0);
        (self.frames > USUAL_FROM).then(|| (often - before).clamp(0.0, 1.0))
    }
}

/// How much of two answers differs, by the labels that each names: 0 to 1. Both are in order.
fn difference(one: &[u32], other: &[u32]) -> f32 {
    let (mut left, mut right, mut shared) = (one, other, 0_usize);
    while let (Some((a, rest_left)), Some((b, rest_right))) = (left.split_first(), right.split_first()) {
        shared += usize::from(a == b);
        if a <= b {
            left = rest_left;
        }
        if b <= a {
            right = rest_right;
        }
    }
    let all = one.len() + other.len();
    if all == 0 { 0.0 } else { 1.0 - 2.0 * shared as f32 / all as f32 }
}

/// FNV-1a.
fn hashed(label: &str) -> u32 {
    label.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The doubt that counts: what was learned, if that is there. Otherwise that of the score: where the answer changes with
/// every frame, at least each second one is wrong, so that the score counts half. Never less than the score's own doubt.
#[must_use]
pub(super) fn counted(doubt: &Doubt) -> Option<(Measure, f32)> {
    let (measure, own) = own(doubt)?;
    // Flicker is among what it was learned from.
    if let Some(learned) = doubt.get(Measure::Learned) {
        return Some((Measure::Learned, learned));
    }
    let counted = match doubt.get(Measure::Flicker) {
        Some(flicker) if flicker > 0.0 => 1.0 - (1.0 - own) * (1.0 - flicker / 2.0),
        _ => own,
    };
    Some((measure, counted.max(own)))
}

/// The same without the flicker.
#[must_use]
pub(super) fn own(doubt: &Doubt) -> Option<(Measure, f32)> {
    Measure::OF_SCORE.into_iter().find_map(|measure| Some((measure, doubt.get(measure)?)))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use hedge_proto::{Found, Rect};

    use super::*;

    fn boxes(labels: &[&str], left: f32) -> Output {
        let place = Rect { left, top: 0.0, width: 0.1, height: 0.1 };
        Output::Boxes(labels.iter().map(|label| Found { label: (*label).to_owned(), score: 0.9, place }).collect())
    }

    /// The flicker of the last of these answers of one source.
    fn of(frames: &mut Frames, source: &str, answers: impl IntoIterator<Item = Output>) -> Option<f32> {
        let last = answers.into_iter().map(|said| frames.saw((source, None), &said, &Doubt::NONE)).last();
        last.expect("answers").get(Measure::Flicker)
    }

    fn labels<'a>(labels: impl IntoIterator<Item = &'a str>) -> Vec<Output> {
        labels.into_iter().map(Output::label).collect()
    }

    #[test]
    fn answers_that_come_and_go_flicker_and_a_scene_that_changes_does_not() {
        let mut frames = Frames::default();
        assert_eq!(of(&mut frames, "cam", labels(vec!["cat"; 100])), None, "nobody knows yet what is usual");
        assert_eq!(of(&mut frames, "cam", labels(["cat", "dog", "dog", "dog"])), Some(0.0), "it changed once");
        let twice = of(&mut frames, "cam", labels(["cat"])).expect("known");
        assert!((0.1..0.2).contains(&twice), "{twice}");
        let always = of(&mut frames, "cam", labels(["dog", "cat", "dog", "cat", "dog", "cat", "dog"])).expect("known");
        assert!(always > 0.9, "{always}");
        assert_eq!(of(&mut frames, "cam", labels(vec!["dog"; 8])), Some(0.0), "it is over");
    }

    #[test]
    fn things_that_move_do_not_flicker_and_those_that_come_and_go_do() {
        let mut frames = Frames::default();
        let moving = (0_u8..120).map(|at| boxes(&["car", "dog"], f32::from(at) / 200.0));
        assert_eq!(of(&mut frames, "cam", moving), Some(0.0));
        let coming = (0_u8..12).map(|at| if at % 2 == 0 { boxes(&["car"], 0.1) } else { boxes(&[], 0.1) });
        let flicker = of(&mut frames, "cam", coming).expect("known");
        assert!(flicker > 0.9, "{flicker}");
        let in_part = (0_u8..12).map(|at| if at % 2 == 0 { boxes(&["car", "dog"], 0.1) } else { boxes(&["car"], 0.1) });
        let less = of(&mut frames, "cam", in_part).expect("known");
        assert!(less > 0.1 && less < flicker / 2.0, "{less}");
    }

    #[test]
    fn a_source_that_always_shows_something_else_does_not_flicker() {
        let mut frames = Frames::default();
        let belt = (0_usize..500).map(|at| Output::label(["nut", "bolt", "screw", "washer"][at * at % 7 % 4]));
        let most = belt.map(|said| of(&mut frames, "belt", [said]).unwrap_or_default()).fold(0.0, f32::max);
        assert!(most < 0.4, "{most}");
    }

    #[test]
    fn sources_do_not_make_each_other_flicker_and_their_number_is_bounded() {
        let mut frames = Frames::default();
        for _ in 0..200 {
            assert_eq!(of(&mut frames, "a", labels(["cat"])).unwrap_or_default(), 0.0);
            assert_eq!(of(&mut frames, "b", labels(["dog"])).unwrap_or_default(), 0.0);
        }
        for at in 0..2 * SOURCES_MAX {
            of(&mut frames, &alloc::format!("cam {at}"), labels(["cat"]));
        }
        assert_eq!(frames.0.len(), SOURCES_MAX);
        let known: Vec<bool> = ["a", "cam 127"].map(|source| frames.0.iter().any(|one| one.name == source)).into();
        assert_eq!(known, [false, true], "the one that was silent longest is forgotten");
    }

    #[test]
    fn a_camera_that_a_caller_names_is_never_the_device_s_own_and_makes_it_forget_none_of_these() {
        let mut frames = Frames::default();
        let mut saw = |camera: Option<&str>, label: &str| {
            frames.saw(("porch", camera), &Output::label(label), &Doubt::NONE).get(Measure::Flicker)
        };
        for at in 0..200 {
            assert_eq!(saw(None, "cat").unwrap_or_default(), 0.0, "its own answers never change");
            saw(Some("porch"), if at % 2 == 0 { "cat" } else { "dog" });
        }
        for at in 0..2 * SOURCES_MAX {
            saw(Some(&alloc::format!("cam {at}")), "cat");
        }
        assert_eq!(saw(None, "cat"), Some(0.0), "it is still known what is usual for it");
        assert_eq!(saw(Some("porch"), "cat"), None, "this one was silent longest");
        assert_eq!(frames.0.len(), SOURCES_MAX);
    }

    #[test]
    fn flicker_only_ever_adds_doubt_and_changes_nothing_where_there_is_none() {
        for step in 0_u8..=100 {
            let plain = Doubt::NONE.with(Measure::Score, f32::from(step) / 100.0);
            let with = |flicker| counted(&plain.with(Measure::Flicker, flicker)).expect("a score").1;
            let own = plain.get(Measure::Score).expect("given");
            assert_eq!((counted(&plain), with(0.0)), (Some((Measure::Score, own)), own));
            let more = [0.1, 0.5, 1.0].map(with);
            assert!(more[0] >= own && more.is_sorted() && more[2] <= 1.0, "{own}: {more:?}");
        }
        assert_eq!(counted(&Doubt::NONE.with(Measure::Flicker, 1.0)), None);
    }
}
