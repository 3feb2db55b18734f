//! Every usual detector's outputs are read as the same boxes, and outputs that cannot be meant harm nobody.

use hedge_inference::features::Tensor;
use hedge_inference::task::{Reading, Task, Tensors, Unusable};
use hedge_proto::{BOXES_MAX, Doubt, Found, Measure, Output, Rect};

/// Of 64 × 64 pixels.
fn task(output: &str, labels: &[&str]) -> Task {
    let reading: Reading = toml::from_str(output).unwrap_or_else(|error| panic!("{output}: {error}"));
    Task {
        reading,
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        confidence: None,
        embedding: None,
        pixels: (64, 64),
    }
}

fn tensors(list: &[(&str, &[usize], &[f32])]) -> Tensors {
    let one = |(name, shape, data): &(&str, &[usize], &[f32])| {
        ((*name).to_owned(), Tensor::new(shape.to_vec(), data.to_vec()))
    };
    Tensors(list.iter().map(one).collect())
}

fn read(task: &Task, outputs: &Tensors) -> (Vec<Found>, Doubt) {
    match task.read(outputs, &Rect::WHOLE).expect("readable") {
        (Output::Boxes(found), doubt) => (found, doubt),
        other => panic!("{other:?}"),
    }
}

const LABELS: [&str; 2] = ["cat", "dog"];
const CORNERS: &str =
    "boxes = { name = \"b\", form = \"corners\" }\nscores = { name = \"s\" }\nshown_min = 0.3\niou_max = 0.6";

/// One dog of 0.9 in the middle half of the picture.
#[track_caller]
fn check_dog(output: &str, outputs: &[(&str, &[usize], &[f32])]) {
    let (found, _) = read(&task(output, &LABELS), &tensors(outputs));
    let [dog] = found.as_slice() else { panic!("{found:?}") };
    let near = |one: f32, other: f32| (one - other).abs() < 0.01;
    let Rect { left, top, width, height } = dog.place;
    assert!(dog.label == "dog" && near(dog.score, 0.9), "{dog:?}");
    assert!(near(left, 0.25) && near(top, 0.25) && near(width, 0.5) && near(height, 0.5), "{dog:?}");
}

#[test]
fn the_same_box_is_read_from_every_form() {
    const FRACTION: &str = "unit = \"fraction\"";
    let scores: (&str, &[usize], &[f32]) = ("s", &[1, 1, 2], &[0.1, 0.9]);
    let form = |form: &str, more: &str| {
        format!("boxes = {{ name = \"b\", form = \"{form}\"{more} }}\nscores = {{ name = \"s\" }}\nshown_min = 0.3")
    };
    check_dog(&form("corners", ""), &[("b", &[1, 1, 4], &[16.0, 16.0, 48.0, 48.0]), scores]);
    check_dog(&form("corners_yx", &format!(", {FRACTION}")), &[("b", &[1, 1, 4], &[0.25, 0.25, 0.75, 0.75]), scores]);
    check_dog(&form("corner_size", ""), &[("b", &[1, 1, 4], &[16.0, 16.0, 32.0, 32.0]), scores]);
    check_dog(&form("centre_size", ""), &[("b", &[1, 4], &[32.0, 32.0, 32.0, 32.0]), scores]);
    // A grid of 2 × 2 cells of 32 pixels: the last one's centre is at 48.
    let rows = |own: [f32; 4]| [[0.0; 12].as_slice(), &own].concat();
    let scores = [[0.0; 6].as_slice(), &[0.1, 0.9]].concat();
    let scores: (&str, &[usize], &[f32]) = ("s", &[1, 4, 2], &scores);
    check_dog(&form("distances", ", strides = [32]"), &[("b", &[1, 4, 4], &rows([1.0, 1.0, 0.0, 0.0])), scores]);
    check_dog(&form("grid", ", strides = [32]"), &[("b", &[1, 4, 4], &rows([0.0; 4])), scores]);
    // Two bins: all weight on the second is one stride.
    let bins = [[0.0; 24].as_slice(), &[0.0, 30.0, 0.0, 30.0, 30.0, 0.0, 30.0, 0.0]].concat();
    check_dog(&form("distances", ", strides = [32], bins = 2"), &[("b", &[1, 4, 8], &bins), scores]);
}

#[test]
fn yolo_with_and_without_objectness_and_turned_is_read() {
    let of = |objectness: &str, at: usize| {
        format!(
            "boxes = {{ name = \"o\", form = \"centre_size\" }}\nscores = {{ name = \"o\", at = {at}{objectness} }}\n\
             shown_min = 0.3\niou_max = 0.6"
        )
    };
    let row = [32.0, 32.0, 32.0, 32.0, 0.0, 0.9];
    check_dog(&of("", 4), &[("o", &[1, 1, 6], &row)]);
    // Columns first, as YOLOv8 is exported: 6 × 8 rows, all but one empty.
    let mut turned = vec![0.0; 6 * 8];
    for (column, number) in row.iter().enumerate() {
        turned[column * 8 + 3] = *number;
    }
    check_dog(&of("", 4), &[("o", &[1, 6, 8], &turned)]);
    check_dog(&of(", objectness = 4", 5), &[("o", &[1, 1, 7], &[32.0, 32.0, 32.0, 32.0, 0.95, 0.0, 0.947])]);
    let logit = |share: f32| (share / (1.0 - share)).ln();
    let logits = [32.0, 32.0, 32.0, 32.0, logit(0.01), logit(0.9)];
    check_dog(&of(", kind = \"sigmoid\"", 4), &[("o", &[1, 1, 6], &logits)]);
}

#[test]
fn rows_that_the_model_has_chosen_itself_are_read() {
    let chosen = "boxes = { name = \"o\", form = \"corners\" }\nscores = { name = \"o\", at = 4 }\n\
                  classes = { name = \"o\", at = 5 }\nshown_min = 0.3";
    check_dog(chosen, &[("o", &[1, 2, 6], &[16.0, 16.0, 48.0, 48.0, 0.9, 1.0, 0.0, 0.0, 9.0, 9.0, 0.01, 0.0])]);
    let tensorflow = "boxes = { name = \"b\", form = \"corners_yx\", unit = \"fraction\" }\nscores = { name = \"s\" }\n\
                      classes = { name = \"c\", first = 1 }\ncount = \"n\"\nshown_min = 0.3";
    let boxes = [0.25, 0.25, 0.75, 0.75, 0.0, 0.0, 1.0, 1.0];
    let rest: [(&str, &[usize], &[f32]); 3] =
        [("s", &[1, 2], &[0.9, 0.9]), ("c", &[1, 2], &[2.0, 1.0]), ("n", &[1], &[1.0])];
    check_dog(tensorflow, &[&[("b", [1, 2, 4].as_slice(), boxes.as_slice())], rest.as_slice()].concat());
    // Nothing chosen at all.
    let (found, doubt) = read(&task(chosen, &LABELS), &tensors(&[("o", &[1, 0, 6], &[])]));
    assert!(found.is_empty() && doubt.get(Measure::MeanShown) == Some(0.0), "{doubt:?}");
}

#[test]
fn an_ssd_with_a_background_is_read() {
    let output = "boxes = { name = \"b\", form = \"corners\", unit = \"fraction\" }\n\
                  scores = { name = \"s\", kind = \"softmax\", background = true }\nshown_min = 0.3\niou_max = 0.5";
    let logits = [0.0, 0.0, (0.9_f32 / 0.05).ln(), 9.0, 0.0, 0.0];
    check_dog(output, &[("b", &[1, 2, 4], &[0.25, 0.25, 0.75, 0.75, 0.0, 0.0, 1.0, 1.0]), ("s", &[1, 2, 3], &logits)]);
}

#[test]
fn an_empty_picture_has_no_doubt_and_what_nearly_shows_does() {
    let detector = task(CORNERS, &LABELS);
    let one = |score: f32| {
        read(&detector, &tensors(&[("b", &[1, 1, 4], &[0.0, 0.0, 32.0, 32.0]), ("s", &[1, 1, 2], &[score, 0.0])]))
    };
    let (found, doubt) = one(0.0);
    assert!(found.is_empty() && doubt.iter().all(|(_, value)| value == 0.0), "{doubt:?}");
    let doubts: Vec<f32> = [0.1, 0.2, 0.29].map(|score| one(score).1.get(Measure::MeanShown).expect("boxes")).into();
    assert!(doubts.windows(2).all(|two| two[0] < two[1]) && doubts[2] > 0.9, "{doubts:?}");
    assert_eq!(one(0.9).1.score(), Some(0.9));
}

#[test]
fn boxes_beside_the_picture_or_without_an_area_are_nowhere_and_others_are_cut() {
    let boxes = [
        [-64.0, 0.0, -1.0, 64.0], // beside
        [5.0, 5.0, 5.0, 60.0],    // no width
        [40.0, 40.0, 10.0, 10.0], // turned inside out
        [-32.0, 32.0, 32.0, 96.0],
        [f32::NEG_INFINITY, 0.0, f32::INFINITY, 64.0],
    ];
    let scores = [0.9, 0.0].repeat(5);
    let outputs = tensors(&[("b", &[1, 5, 4], &boxes.concat()), ("s", &[1, 5, 2], &scores)]);
    let (found, _) = read(&task(CORNERS, &LABELS), &outputs);
    let places: Vec<Rect> = found.iter().map(|one| one.place).collect();
    assert_eq!(places, [Rect { left: 0.0, top: 0.5, width: 0.5, height: 0.5 }, Rect::WHOLE]);
}

#[test]
fn a_box_or_a_score_that_is_no_number_makes_the_answer_unusable() {
    let detector = task(CORNERS, &LABELS);
    let with = |boxes: [f32; 4], scores: [f32; 2]| {
        detector.read(&tensors(&[("b", &[1, 1, 4], &boxes), ("s", &[1, 1, 2], &scores)]), &Rect::WHOLE)
    };
    assert_eq!(with([0.0, f32::NAN, 9.0, 9.0], [0.9, 0.0]), Err(Unusable::NotFinite));
    assert_eq!(with([0.0, 0.0, 9.0, 9.0], [0.9, f32::NAN]), Err(Unusable::NotFinite));
    assert_eq!(with([0.0, 0.0, 9.0, 9.0], [7.0, 0.0]), Err(Unusable::OutOfRange { score: 7.0, whole: 1.0 }));
    // A box that nobody looks at may be anything.
    assert!(with([0.0, f32::NAN, 9.0, 9.0], [0.01, 0.0]).is_ok());
    let missing = detector.read(&tensors(&[("s", &[1, 1, 2], &[0.9, 0.0])]), &Rect::WHOLE);
    assert_eq!(missing, Err(Unusable::Missing { name: "b".to_owned() }));
    let fewer = tensors(&[("b", &[1, 1, 4], &[0.0; 4]), ("s", &[1, 2, 2], &[0.0, 0.0, 0.9, 0.0])]);
    assert!(matches!(detector.read(&fewer, &Rect::WHOLE), Err(Unusable::Shape { .. })));
}

#[test]
fn of_one_thing_found_many_times_the_surest_stays_and_two_labels_do_not_hide_each_other() {
    let boxes = [[10.0, 10.0, 50.0, 50.0], [11.0, 11.0, 51.0, 51.0], [12.0, 12.0, 52.0, 52.0]].concat();
    let scores = [0.8, 0.0, 0.9, 0.0, 0.0, 0.7];
    let (found, _) = read(&task(CORNERS, &LABELS), &tensors(&[("b", &[1, 3, 4], &boxes), ("s", &[1, 3, 2], &scores)]));
    let said: Vec<(&str, f32)> = found.iter().map(|one| (one.label.as_str(), one.score)).collect();
    assert_eq!(said, [("cat", 0.9), ("dog", 0.7)]);
}

#[test]
fn a_label_may_have_a_bar_of_its_own() {
    let output = format!("{CORNERS}\nshown = {{ dog = 0.8 }}");
    let boxes = [[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 60.0, 60.0]].concat();
    let outputs = tensors(&[("b", &[1, 2, 4], &boxes), ("s", &[1, 2, 2], &[0.5, 0.0, 0.0, 0.5])]);
    let (found, _) = read(&task(&output, &LABELS), &outputs);
    assert_eq!(found.iter().map(|one| one.label.as_str()).collect::<Vec<_>>(), ["cat"]);
}

#[test]
fn a_model_that_says_everything_everywhere_gives_a_bounded_answer_in_bounded_time() {
    let rows = 4000;
    let boxes: Vec<f32> = (0..rows).flat_map(|row| [row as f32 % 60.0, (row / 60) as f32 % 60.0, 64.0, 64.0]).collect();
    let labels: Vec<String> = (0..80).map(|label| format!("l{label}")).collect();
    let detector = task(CORNERS, &labels.iter().map(String::as_str).collect::<Vec<_>>());
    let outputs = tensors(&[("b", &[1, rows, 4], &boxes), ("s", &[1, rows, 80], &vec![0.9; rows * 80])]);
    let (found, doubt) = read(&detector, &outputs);
    assert!(!found.is_empty() && found.len() <= BOXES_MAX, "{}", found.len());
    assert!(doubt.iter().all(|(_, value)| (0.0..=1.0).contains(&value)), "{doubt:?}");
    // A hundred boxes that do not cover each other are a hundred boxes.
    let small: Vec<f32> = (0..120)
        .flat_map(|at| [at as f32 % 12.0 * 5.0, (at / 12) as f32 * 6.0].map(|at| [at, at + 4.0]))
        .collect::<Vec<_>>()
        .chunks(2)
        .flat_map(|pair| [pair[0][0], pair[1][0], pair[0][1], pair[1][1]])
        .collect();
    let outputs = tensors(&[("b", &[1, 120, 4], &small), ("s", &[1, 120, 2], &[0.9, 0.0].repeat(120))]);
    assert_eq!(read(&task(CORNERS, &LABELS), &outputs).0.len(), BOXES_MAX);
}

#[test]
fn places_are_those_in_the_picture_not_in_its_letterbox() {
    let detector = task(CORNERS, &LABELS);
    let outputs = tensors(&[("b", &[1, 1, 4], &[0.0, 16.0, 64.0, 48.0]), ("s", &[1, 1, 2], &[0.9, 0.0])]);
    // A picture twice as wide as high, in the middle of a square.
    let frame = Rect { left: 0.0, top: -0.5, width: 1.0, height: 2.0 };
    let (Output::Boxes(found), _) = detector.read(&outputs, &frame).expect("readable") else { panic!("boxes") };
    assert_eq!(found[0].place, Rect::WHOLE);
}

#[test]
fn an_output_table_that_cannot_be_meant_is_refused_with_the_field() {
    for (output, words) in [
        ("name = \"o\"", "`name` and `kind`"),
        ("boxes = { name = \"b\", form = \"grid\" }\nscores = { name = \"s\" }\nshown_min = 0.3", "`boxes.strides`"),
        ("boxes = { name = \"b\", form = \"deltas\" }\nscores = { name = \"s\" }\nshown_min = 0.3", "`boxes.priors`"),
        (
            "boxes = { name = \"b\", form = \"corners\", bins = 8 }\nscores = { name = \"s\" }\nshown_min = 0.3",
            "`boxes.bins`",
        ),
        ("boxes = { name = \"b\", form = \"corners\" }\nscores = { name = \"s\" }", "`shown_min` is missing"),
        ("boxes = { name = \"b\", form = \"corners\" }\nscores = { name = \"s\" }\nshown_min = 0.01", "below 0.05"),
        (
            "boxes = { name = \"b\", form = \"corners\" }\nscores = { name = \"s\" }\nshown_min = 1.5",
            "not a number from 0 to 1",
        ),
    ] {
        let error = toml::from_str::<Reading>(output).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}
