//! `bundle init` makes a bundle of a detector that nobody has described, or asks by the option's name.

mod support;

use std::path::PathBuf;

use support::onnx::{Attribute, INT64, Onnx, UINT8};
use support::{library_is_there, path, png, run};

const PICTURE: [i64; 4] = [1, 3, 64, 64];

/// One dog in the middle half of the picture, and rows of nothing.
const DOG: &str = "0.900  dog  at 0.250, 0.250, 0.500 wide, 0.500 high";

/// A model whose outputs are these tables whatever it sees.
fn saying(model: Onnx, tables: &[(&'static str, &[u64], &[f32])]) -> Onnx {
    let of_x = model
        .node("Cast", &["x"], "x-cast", &[Attribute::Int("to", 1)])
        .node("ReduceMean", &["x-cast"], "x-mean", &[Attribute::Int("keepdims", 0)])
        .floats("nothing", &[], &[0.0])
        .node("Mul", &["x-mean", "nothing"], "x-nothing", &[]);
    tables.iter().fold(of_x, |model, (name, shape, values)| {
        let constant = format!("{name}-constant");
        let open: Vec<i64> = shape.iter().map(|side| i64::try_from(*side).expect("small")).collect();
        model.floats(&constant, shape, values).node("Add", &[&constant, "x-nothing"], name, &[]).output(name, &open)
    })
}

struct Made {
    folder: tempfile::TempDir,
    said: Result<String, String>,
}

/// `None` where there is no ONNX Runtime.
fn init(model: &Onnx, labels: &str, more: &[&str]) -> Option<Made> {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for (name, bytes) in [("m.onnx", model.file()), ("labels.txt", labels.into()), ("p.png", png([230, 20, 20]))] {
        std::fs::write(at(name), bytes).expect("written");
    }
    let (model, labels, out): (PathBuf, PathBuf, PathBuf) = (at("m.onnx"), at("labels.txt"), at("b"));
    let arguments = ["bundle", "init", path(&model), "--labels", path(&labels), "--out", path(&out)];
    if !library_is_there() {
        return None;
    }
    let said = run(&[&arguments, more].concat()).map(|(_, text)| text);
    Some(Made { said: said.map_err(|error| hedge_proto::in_one_line(&*error)), folder })
}

/// The model is recognised, works as it is, and its manifest says so.
#[track_caller]
fn check(model: &Onnx, manifest: &[&str]) {
    let Some(Made { folder, said }) = init(model, "cat\ndog\n", &[]) else { return };
    let said = said.expect("a bundle");
    for line in manifest {
        assert!(said.contains(line), "`{said}` does not say `{line}`");
    }
    let (bundle, picture) = (folder.path().join("b"), folder.path().join("p.png"));
    let answer = run(&["infer", "--bundle", path(&bundle), path(&picture)]).expect("answers").1;
    assert!(answer.contains(DOG) && answer.matches(" at ").count() == 1, "{answer}");
}

#[track_caller]
fn check_asks(model: &Onnx, words: &[&str]) {
    let Some(Made { said, .. }) = init(model, "cat\ndog\n", &[]) else { return };
    let error = said.expect_err("asked");
    for word in words {
        assert!(error.contains(word), "`{error}` does not say `{word}`");
    }
}

fn plain() -> Onnx {
    Onnx::new(&PICTURE)
}

/// Eight rows: the dog's after these.
fn rows<const N: usize>(other: [f32; N], dog: [f32; N]) -> Vec<f32> {
    [other.repeat(7), dog.to_vec()].concat()
}

fn turned(rows: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| rows.iter().skip(column).step_by(columns).copied()).collect()
}

#[test]
fn one_table_of_boxes_and_scores_is_known_by_its_columns() {
    let v8 = rows([8.0, 8.0, 12.0, 12.0, 0.01, 0.02], [32.0, 32.0, 32.0, 32.0, 0.1, 0.9]);
    let expected = [
        "kind = \"detect\"",
        "form = \"centre_size\", unit = \"pixels\"",
        "at = 4",
        "fit = \"letterbox\"",
        "pad = 114",
    ];
    check(&saying(plain(), &[("o", &[1, 6, 8], &turned(&v8, 6))]), &expected);
    check(&saying(plain(), &[("o", &[1, 8, 6], &v8)]), &expected[..1]);
    let v5 = rows([8.0, 8.0, 12.0, 12.0, 0.01, 0.5, 0.5], [32.0, 32.0, 32.0, 32.0, 0.95, 0.0, 0.9474]);
    check(&saying(plain(), &[("o", &[1, 8, 7], &v5)]), &["objectness = 4", "at = 5"]);
    // Cells of 8, 16 and 32 pixels: 64 + 16 + 4. The dog's is the first of the last four.
    let mut grid = [0.0, 0.0, -9.0, -9.0, 0.0, 0.0, 0.0].repeat(84);
    grid[80 * 7..81 * 7].copy_from_slice(&[1.0, 1.0, 0.0, 0.0, 0.95, 0.0, 0.9474]);
    check(&saying(plain(), &[("o", &[1, 84, 7], &grid)]), &["form = \"grid\"", "strides = [8, 16, 32]"]);
}

#[test]
fn boxes_and_scores_in_tables_of_their_own_are_known_by_their_shapes_and_numbers() {
    let corners = rows([8.0, 8.0, 12.0, 12.0], [16.0, 16.0, 48.0, 48.0]);
    let scores = rows([0.01, 0.02], [0.1, 0.9]);
    let two = |boxes: &[f32], scores: &[f32]| saying(plain(), &[("b", &[1, 8, 4], boxes), ("s", &[1, 8, 2], scores)]);
    check(&two(&corners, &scores), &["form = \"corners\", unit = \"pixels\"", "kind = \"probabilities\""]);
    let shares: Vec<f32> = corners.iter().map(|side| side / 64.0).collect();
    check(&two(&shares, &scores), &["form = \"corners\", unit = \"fraction\""]);
    let logits: Vec<f32> = scores.iter().map(|share| (share / (1.0 - share)).ln()).collect();
    check(&two(&corners, &logits), &["kind = \"sigmoid\""]);
    let centres = rows([40.0, 40.0, 12.0, 12.0], [32.0, 32.0, 32.0, 32.0]);
    check(&two(&centres, &scores), &["form = \"centre_size\""]);
    let with_background = rows([9.0, 0.0, 0.0], [0.0, 0.0, (0.9_f32 / 0.05).ln()]);
    let ssd = saying(plain(), &[("loc", &[1, 8, 4], &shares), ("conf", &[1, 8, 3], &with_background)]);
    check(&ssd, &["background = true", "kind = \"softmax\""]);
}

#[test]
fn boxes_that_the_model_has_chosen_are_known() {
    let chosen = [[16.0, 16.0, 48.0, 48.0, 0.9, 1.0], [0.0, 0.0, 9.0, 9.0, 0.1, 0.0]].concat();
    check(&saying(plain(), &[("o", &[1, 2, 6], &chosen)]), &["classes = { name = \"o\", at = 5 }"]);
    let ssd = [[0.0, 1.0, 0.9, 0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.1, 0.0, 0.0, 0.2, 0.2]].concat();
    check(&saying(plain(), &[("o", &[1, 1, 2, 7], &ssd)]), &["at = 3", "unit = \"fraction\"", "at = 2"]);
    let tensorflow = saying(
        Onnx::new_of(UINT8, &[1, 64, 64, 3]),
        &[
            ("detection_boxes", &[1, 3, 4], &[0.25, 0.25, 0.75, 0.75, 0.0, 0.0, 0.2, 0.2, 0.0, 0.0, 1.0, 1.0]),
            ("detection_scores", &[1, 3], &[0.9, 0.1, 0.9]),
            ("detection_classes", &[1, 3], &[2.0, 1.0, 1.0]),
            ("num_detections", &[1], &[2.0]),
        ],
    );
    check(
        &tensorflow,
        &["corners_yx", "first = 1", "count = \"num_detections\"", "layout = \"nhwc\"", "fit = \"stretch\""],
    );
}

#[test]
fn a_row_that_begins_with_its_class_is_known_by_its_numbers() {
    let paddle = [[1.0, 0.9, 16.0, 16.0, 48.0, 48.0], [0.0, 0.1, 0.0, 0.0, 9.0, 9.0]].concat();
    check(
        &saying(plain(), &[("o", &[2, 6], &paddle)]),
        &["name = \"o\", at = 2, form = \"corners\"", "scores = { name = \"o\", at = 1", "classes = { name = \"o\" }"],
    );
}

#[test]
fn classes_that_are_counted_from_1_get_their_own_labels() {
    let corners = [[16.0, 16.0, 48.0, 48.0].as_slice(), &[0.0, 0.0, 9.0, 9.0].repeat(3)].concat();
    let torchvision = [
        ("boxes", &[4, 4][..], &corners[..]),
        ("labels", &[4], &[2.0, 1.0, 1.0, 1.0]),
        ("scores", &[4], &[0.9, 0.1, 0.1, 0.1]),
    ];
    check(&saying(plain(), &torchvision), &["first = 1", "class 1 is `cat`"]);
    let ssd = [[0.0, 2.0, 0.9, 0.25, 0.25, 0.75, 0.75], [0.0, 1.0, 0.1, 0.0, 0.0, 0.2, 0.2]].concat();
    check(&saying(plain(), &[("o", &[1, 1, 2, 7], &ssd)]), &["at = 1, first = 1", "class 1 is `cat`"]);
    let chosen = |class: f32| [[16.0, 16.0, 48.0, 48.0, 0.9, class], [0.0, 0.0, 9.0, 9.0, 0.1, 1.0]].concat();
    check(&saying(plain(), &[("o", &[1, 2, 6], &chosen(2.0))]), &["at = 5, first = 1"]);
    check_asks(
        &saying(plain(), &[("o", &[1, 2, 6], &chosen(7.0))]),
        &["classes from 1 to 7, but there are 2 labels", "--first-class"],
    );
    // A label of nothing at the beginning is class 0.
    let Some(Made { said, .. }) = init(&saying(plain(), &torchvision), "background\ncat\ndog\n", &[]) else { return };
    assert!(said.expect("a bundle").contains("class 0 is `background`"));
}

#[test]
fn tensorflow_lites_last_step_is_known_by_its_names() {
    let names: [&'static str; 4] = [
        "TFLite_Detection_PostProcess",
        "TFLite_Detection_PostProcess:1",
        "TFLite_Detection_PostProcess:2",
        "TFLite_Detection_PostProcess:3",
    ];
    let model = saying(
        Onnx::new_of(UINT8, &[1, 64, 64, 3]),
        &[
            (names[0], &[1, 4, 4], &[[0.25, 0.25, 0.75, 0.75].as_slice(), &[0.0, 0.0, 0.2, 0.2].repeat(3)].concat()),
            (names[1], &[1, 4], &[1.0, 0.0, 0.0, 0.0]),
            (names[2], &[1, 4], &[0.9, 0.1, 0.9, 0.9]),
            (names[3], &[1], &[2.0]),
        ],
    );
    check(&model, &["corners_yx", "count = \"TFLite_Detection_PostProcess:3\"", "class 0 is `cat`"]);
    let Some(Made { said, .. }) = init(&model, "???\ncat\ndog\n", &[]) else { return };
    assert!(said.expect_err("shifted by one").contains("the label `???` is of nothing"));
}

#[test]
fn the_score_of_nothing_is_found_at_either_end_and_has_no_label() {
    let shares = rows([0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5]);
    let logits = rows([0.0, 0.0, 9.0], [0.0, (0.9_f32 / 0.05).ln(), 0.0]);
    let detr = saying(plain(), &[("pred_boxes", &[1, 8, 4], &shares), ("logits", &[1, 8, 3], &logits)]);
    check(&detr, &["background = \"last\"", "kind = \"softmax\"", "the last of nothing"]);
    let Some(Made { said, .. }) = init(&detr, "background\ncat\ndog\n", &[]) else { return };
    assert!(said.expect_err("it would be found everywhere").contains("the label `background` is of nothing"));
}

#[test]
fn columns_that_are_neither_boxes_nor_labels_are_asked_about() {
    let odd = rows([8.0, 8.0, 12.0, 12.0, 0.01, 0.02, 0.5], [32.0, 32.0, 32.0, 32.0, 0.1, 0.9, -0.7]);
    let angle = saying(plain(), &[("o", &[1, 7, 8], &turned(&odd, 7))]);
    check_asks(&angle, &["its rows are longer by 1 than boxes and labels take", "an angle"]);
    let Some(Made { said, .. }) = init(&angle, "cat\ndog\nbird\nfish\nbee\n", &[]) else { return };
    assert!(said.expect_err("too many labels").contains("these are of 3 labels"));
}

#[test]
fn what_nobody_can_tell_is_asked_for_by_its_option() {
    let corners = rows([8.0, 8.0, 12.0, 12.0], [16.0, 16.0, 48.0, 48.0]);
    let scores = rows([0.01, 0.02], [0.1, 0.9]);
    let three = [("a", &[1, 8, 4][..], &corners[..]), ("b", &[1, 8, 4], &corners), ("s", &[1, 8, 2], &scores)];
    check_asks(&saying(plain(), &three), &["`a`", "`b`", "--boxes"]);
    let odd = rows([-8.0, 8.0, -12.0, 12.0], [16.0, 16.0, -48.0, -48.0]);
    check_asks(&saying(plain(), &[("b", &[1, 8, 4], &odd), ("s", &[1, 8, 2], &scores)]), &["--box-form", "--priors"]);
    let none = saying(plain(), &[("o", &[1, 5, 5, 3], &[0.0; 75])]);
    check_asks(&none, &["2 labels (one label per line), but", "--boxes and --scores"]);
    let Some(Made { said, .. }) = init(&none, "cat\ndog\n", &["--kind", "detect"]) else { return };
    assert!(said.expect_err("asked").contains("name them with --boxes and --scores"));
    let Some(Made { said, .. }) = init(&none, "cat\ndog\n", &["--boxes", "nowhere"]) else { return };
    assert!(said.expect_err("asked").contains("there is no output `nowhere`"));
}

#[test]
fn a_classifier_with_outputs_like_boxes_stays_a_classifier() {
    let model = saying(plain(), &[("y", &[1, 2], &[0.2, 0.8]), ("b", &[1, 8, 4], &[0.5; 32])]);
    let Some(Made { said, .. }) = init(&model, "cat\ndog\n", &["--output-kind", "probabilities"]) else { return };
    assert!(said.expect("a bundle").contains("kind = \"classify\""));
    // Whole numbers beside it are no scores.
    let model = saying(plain(), &[("y", &[1, 2], &[0.2, 0.8])]).int64s("n", &[1, 1]).output_of("n", INT64, &[2]);
    let Some(Made { said, .. }) = init(&model, "cat\ndog\n", &["--output", "y", "--output-kind", "probabilities"])
    else {
        return;
    };
    assert!(said.expect("a bundle").contains("name = \"y\""));
}
