//! `bundle init`, `calibrate` and `infer` read a model that nobody has described rightly, or ask.

mod support;

use std::path::PathBuf;
use std::process::ExitCode;

use hedge_inference::Bundle;

use support::onnx::{Attribute, INT64, Onnx, UINT8};
use support::{library_is_there, path, png, run};

const PICTURE: [i64; 4] = [1, 3, 32, 32];
const RGBZ: &str = "r\ng\nb\nz\n";

/// A folder with a model, its labels, and three pictures.
struct Workshop(tempfile::TempDir);

impl Workshop {
    /// `None` where there is no ONNX Runtime.
    fn new(model: &Onnx, labels: &str) -> Option<Self> {
        let workshop = Self(tempfile::tempdir().expect("a folder"));
        workshop.write("m.onnx", &model.file());
        workshop.write("labels.txt", labels.as_bytes());
        for (name, colour) in [("red.png", [230, 20, 20]), ("green.png", [20, 230, 20]), ("blue.png", [20, 20, 230])] {
            workshop.write(name, &png(colour));
        }
        library_is_there().then_some(workshop)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let file = self.at(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(file, bytes).expect("a file");
    }

    /// What `bundle init` says, or why it makes nothing.
    fn init(&self, more: &[&str]) -> Result<String, String> {
        let (model, labels, out) = (self.at("m.onnx"), self.at("labels.txt"), self.at("b"));
        let arguments = ["bundle", "init", path(&model), "--labels", path(&labels), "--out", path(&out)];
        let said = run(&[&arguments, more].concat()).map(|(_, text)| text);
        said.map_err(|error| hedge_proto::in_one_line(&*error))
    }

    fn infer(&self, more: &[&str], file: &str) -> String {
        let (bundle, file) = (self.at("b"), self.at(file));
        run(&[&["infer", "--bundle", path(&bundle)], more, &[path(&file)]].concat()).expect("answers").1
    }

    #[track_caller]
    fn refuses(&self, more: &[&str], words: &[&str]) {
        let error = self.init(more).expect_err("refused");
        for word in words {
            assert!(error.contains(word), "`{error}` does not say `{word}`");
        }
        assert!(!self.at("b").exists(), "nothing is left behind");
        let left = std::fs::read_dir(self.0.path())
            .expect("listed")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        assert_eq!(left.filter(|name| name.starts_with('.')).collect::<Vec<_>>(), Vec::<String>::new());
    }
}

fn softmax(model: Onnx, of: &str, output: &str) -> Onnx {
    model.node("Softmax", &[of], output, &[Attribute::Int("axis", 1)])
}

/// The model that tells colours apart, with `last` at its end, and what it makes of a red picture.
#[track_caller]
fn check_kind(model: &Onnx, kind: &str, score: &str) {
    let Some(workshop) = Workshop::new(model, RGBZ) else { return };
    let said = workshop.init(&["--preset", "raw"]).expect("a bundle");
    assert!(said.contains(&format!("kind = \"{kind}\"")), "{said}");
    let answer = workshop.infer(&[], "red.png");
    assert!(answer.contains(&format!("{score}  r\n")), "{answer}");
}

#[test]
fn an_output_is_read_as_what_it_is_however_it_looks_on_one_input() {
    let colours = || Onnx::colours(&PICTURE, 0.02);
    check_kind(&softmax(colours(), "l", "y").output("y", &[1, 4]), "probabilities", "0.961");
    let logarithms = colours().node("LogSoftmax", &["l"], "y", &[Attribute::Int("axis", 1)]).output("y", &[1, 4]);
    check_kind(&logarithms, "logits", "0.961");
    let percent = softmax(colours(), "l", "s").floats("h", &[1], &[100.0]).node("Mul", &["s", "h"], "y", &[]);
    check_kind(&percent.output("y", &[1, 4]), "percent", "0.961");
    // On zeros these logits are 1, 0, 0, 0.
    let biased = colours().floats("b", &[1, 4], &[1.0, 0.0, 0.0, 0.0]).node("Add", &["l", "b"], "y", &[]);
    check_kind(&biased.output("y", &[1, 4]), "logits", "0.985");
    // On zeros, and on any picture of one gray, this divides 0 by 0.
    let keep = || [Attribute::Int("keepdims", 1)];
    let standardised = Onnx::new(&PICTURE)
        .node("ReduceMean", &["x"], "mu", &keep())
        .node("Sub", &["x", "mu"], "d", &[])
        .node("Mul", &["d", "d"], "dd", &[])
        .node("ReduceMean", &["dd"], "v", &keep())
        .node("Sqrt", &["v"], "sd", &[])
        .node("Div", &["d", "sd"], "n", &[])
        .means("n")
        .scaled(5.0);
    check_kind(&softmax(standardised, "l", "y").output("y", &[1, 4]), "probabilities", "0.999");
    // The shape of a convolution's scores is as good as any.
    let shaped = softmax(colours(), "l", "s").int64s("shape", &[1, 4, 1, 1]).node("Reshape", &["s", "shape"], "y", &[]);
    check_kind(&shaped.output("y", &[1, 4, 1, 1]), "probabilities", "0.961");
}

#[test]
fn a_softmax_of_many_classes_in_eight_bits_is_probabilities() {
    // Red, green and blue speak for a class each, and black for none of the 64.
    let mut weights = [[-0.004_f32; 64]; 3];
    (0..3).for_each(|colour| weights[colour][colour] = 0.02);
    let model = softmax(
        Onnx::new(&PICTURE).means("x").floats("w", &[3, 64], weights.as_flattened()).node(
            "MatMul",
            &["m", "w"],
            "l",
            &[],
        ),
        "l",
        "s",
    );
    let model = model
        .floats("scale", &[], &[1.0 / 256.0])
        .byte("zero", 0)
        .node("QuantizeLinear", &["s", "scale", "zero"], "q", &[])
        .node("DequantizeLinear", &["q", "scale", "zero"], "y", &[])
        .output("y", &[1, 64]);
    let labels: String = (0..64).map(|class| format!("c{class}\n")).collect();
    let Some(workshop) = Workshop::new(&model, &labels) else { return };
    let said = workshop.init(&["--preset", "raw"]).expect("a bundle");
    assert!(said.contains("kind = \"probabilities\""), "{said}");
    let answer = workshop.infer(&[], "red.png");
    assert!(answer.contains("  c0\n") && !answer.contains("adds up"), "{answer}");
}

#[test]
fn logits_in_bytes_are_said_to_be_too_sure_until_they_are_calibrated() {
    let model = Onnx::colours(&PICTURE, 0.02).floats("scale", &[], &[0.05]).byte("zero", 128);
    let model = model.node("QuantizeLinear", &["l", "scale", "zero"], "y", &[]).output_of("y", UINT8, &[1, 4]);
    let Some(workshop) = Workshop::new(&model, RGBZ) else { return };
    let said = workshop.init(&["--preset", "raw"]).expect("a bundle");
    assert!(
        said.contains("logits in bytes, whose scale is not known: far too sure until `bundle calibrate`"),
        "{said}"
    );
}

#[test]
fn labels_that_do_not_exclude_each_other_are_asked_about() {
    let sigmoids = Onnx::colours(&PICTURE, 0.02).node("Sigmoid", &["l"], "y", &[]).output("y", &[1, 4]);
    let Some(workshop) = Workshop::new(&sigmoids, RGBZ) else { return };
    workshop.refuses(&["--preset", "raw"], &["the output `y`", "do not add up to 1", "--output-kind logits"]);
    workshop.refuses(&["--preset", "raw", "--output-kind", "percent"], &["it is no percent, as --output-kind says"]);
    let said = workshop.init(&["--preset", "raw", "--output-kind", "logits"]).expect("a person has said it");
    assert!(said.contains("kind = \"logits\"") && said.contains("as --output-kind says"), "{said}");
}

#[test]
fn a_bundle_that_could_not_read_its_own_model_is_not_made() {
    // Only for inputs far beyond any picture do these add up to 1.
    let sigmoids = Onnx::new(&PICTURE).means("x").floats("k", &[1], &[4.0]).node("Mul", &["m", "k"], "l", &[]);
    let sigmoids = sigmoids.node("Sigmoid", &["l"], "y", &[]).output("y", &[1, 3]);
    let Some(workshop) = Workshop::new(&sigmoids, "r\ng\nb\n") else { return };
    let told = ["--preset", "unit", "--output-kind", "probabilities"];
    workshop.refuses(&told, &["m.onnx gives what cannot be read so: the output adds up to"]);
}

#[test]
fn a_table_is_no_list_of_classes_without_labels_and_neither_is_one_number() {
    let table = Onnx::new(&PICTURE).means("x").floats("t", &[1, 84, 8], &[0.5; 672]);
    let table = table.node("ReduceMean", &["m"], "one", &[Attribute::Int("keepdims", 0)]);
    let table = table.node("Mul", &["t", "one"], "y", &[]).output("y", &[1, 84, 8]);
    let one = Onnx::new(&PICTURE).means("x").floats("w", &[3, 1], &[1.0; 3]).node("MatMul", &["m", "w"], "y", &[]);
    let rows = Onnx::new(&PICTURE).means("x").node("ReduceMean", &["m"], "one", &[Attribute::Int("keepdims", 0)]);
    let rows = rows.floats("t", &[1, 9, 7], &[0.3; 63]).node("Mul", &["t", "one"], "y", &[]).output("y", &[1, 9, 7]);
    for (model, words) in [
        (table, "`y` (1×84×8 numbers)"),
        (one.output("y", &[1, 1]), "the two lines of --labels"),
        (rows, "gives other numbers; give --labels"),
    ] {
        let Some(workshop) = Workshop::new(&model, "") else { return };
        let (model, out) = (workshop.at("m.onnx"), workshop.at("b"));
        let error = run(&["bundle", "init", path(&model), "--out", path(&out)]).expect_err("asked");
        let error = hedge_proto::in_one_line(&*error);
        assert!(error.contains(words) && error.contains("--labels"), "{error}");
    }
}

#[test]
fn pixels_that_a_model_of_whole_numbers_cannot_tell_apart_are_refused() {
    const INT8: u64 = 3;
    let model = |kind, bias: f32| {
        let of = Onnx::new_of(kind, &PICTURE).node("Cast", &["x"], "f", &[Attribute::Int("to", 1)]);
        let of = of.floats("bias", &[1], &[bias]).node("Add", &["f", "bias"], "g", &[]).means("g").scaled(0.02);
        softmax(of, "l", "y").output("y", &[1, 4])
    };
    for (model, mean) in [(model(UINT8, 0.0), "mean = 0.0"), (model(INT8, 128.0), "mean = 128.0")] {
        let Some(workshop) = Workshop::new(&model, RGBZ) else { return };
        for preset in ["unit", "imagenet", "minus-one-one"] {
            workshop.refuses(&["--preset", preset], &["takes whole numbers", "say --preset raw"]);
        }
        let said = workshop.init(&[]).expect("a bundle");
        assert!(said.contains(mean), "{said}");
        assert!(workshop.infer(&[], "red.png").contains("0.961  r\n"));
    }
}

#[test]
fn one_number_tells_two_labels_apart_and_one_label_is_refused() {
    let red = || {
        let weights = [0.025, 0.0, -0.025];
        Onnx::new(&PICTURE).means("x").floats("w", &[3, 1], &weights).node("MatMul", &["m", "w"], "l", &[])
    };
    let sigmoid = red().node("Sigmoid", &["l"], "y", &[]).output("y", &[1, 1]);
    let logit = red().node("Identity", &["l"], "y", &[]).output("y", &[1, 1]);
    for (model, kind) in [(sigmoid, "probabilities"), (logit, "logits")] {
        let Some(workshop) = Workshop::new(&model, "cat\n") else { return };
        workshop.refuses(&["--preset", "raw"], &["labels.txt: it holds one label, `cat`", "needs two"]);
        workshop.write("labels.txt", b"other\ncat\n");
        let said = workshop.init(&["--preset", "raw"]).expect("a bundle");
        assert!(said.contains(&format!("kind = \"{kind}\"")) && said.contains("of the second label"), "{said}");
        assert!(workshop.infer(&[], "red.png").contains("  0.995  cat\n  0.005  other\n"), "{kind}");
        assert!(workshop.infer(&[], "blue.png").contains("  0.995  other\n"), "{kind}");
        for (label, file) in [("cat", "red.png"), ("other", "blue.png")] {
            workshop.write(&format!("known/{label}/{file}"), &std::fs::read(workshop.at(file)).expect("a picture"));
        }
        let (bundle, known) = (workshop.at("b"), workshop.at("known"));
        let (_, text) = run(&["bundle", "calibrate", path(&bundle), "--pictures", path(&known)]).expect("calibrated");
        assert!(text.contains("as it is: accuracy 1.0000"), "{text}");
    }
}

#[test]
fn several_outputs_that_fit_are_listed_and_one_is_named() {
    let two = softmax(Onnx::colours(&PICTURE, 0.02), "l", "probs")
        .floats("n", &[1], &[-1.0])
        .node("Mul", &["l", "n"], "boxes", &[])
        .output("boxes", &[1, 4])
        .output("probs", &[1, 4]);
    let Some(workshop) = Workshop::new(&two, RGBZ) else { return };
    workshop.refuses(&["--preset", "raw"], &["`boxes` (1×4 numbers), `probs` (1×4 numbers)", "--output"]);
    workshop.refuses(&["--output", "scores"], &["has no output `scores`; it has `boxes`"]);
    let said = workshop.init(&["--preset", "raw", "--output", "probs"]).expect("a bundle");
    assert!(said.contains("name = \"probs\"") && said.contains("not read   `boxes` (1×4 numbers)"), "{said}");
    assert!(workshop.infer(&[], "blue.png").contains("0.961  b\n"));

    // As many numbers as there are labels in a row, but a hundred rows, are no class scores.
    let rows = softmax(Onnx::colours(&PICTURE, 0.02), "l", "scores")
        .floats("rows", &[1, 100, 4], &[0.5; 400])
        .node("Identity", &["rows"], "boxes", &[])
        .output("boxes", &[1, 100, 4])
        .output("scores", &[1, 4]);
    let Some(workshop) = Workshop::new(&rows, RGBZ) else { return };
    let said = workshop.init(&["--preset", "raw"]).expect("a bundle");
    assert!(said.contains("name = \"scores\"") && said.contains("`boxes` (1×100×4 numbers)"), "{said}");
}

#[test]
fn an_open_size_is_said_to_be_assumed_and_can_be_named() {
    let open = softmax(Onnx::colours(&[-1, 3, -1, -1], 0.02), "l", "y").output("y", &[-1, 4]);
    let Some(workshop) = Workshop::new(&open, RGBZ) else { return };
    let said = workshop.init(&["--preset", "raw", "--size", "48x16"]).expect("a bundle");
    assert!(said.contains("shape = [1, 3, 16, 48]") && !said.contains("assumed"), "{said}");
    std::fs::remove_dir_all(workshop.at("b")).expect("removed");
    let said = workshop.init(&["--preset", "raw"]).expect("a bundle");
    assert!(said.contains("shape = [1, 3, 224, 224]"), "{said}");
    assert!(said.contains("224x224 pixels are assumed") && said.contains("--size WIDTHxHEIGHT"), "{said}");
}

#[test]
fn what_a_model_has_instead_of_scores_is_said_in_plain_words() {
    let maps = Onnx::new(&[-1, 4]).floats("w", &[4, 2], &[0.1; 8]).node("MatMul", &["x", "w"], "l", &[]);
    let maps = softmax(maps, "l", "p")
        .node("ArgMax", &["p"], "label", &[Attribute::Int("axis", 1), Attribute::Int("keepdims", 0)])
        .node_of("ai.onnx.ml", "ZipMap", &["p"], "chances", &[Attribute::Ints("classlabels_int64s", &[0, 1])])
        .output_of("label", INT64, &[-1])
        .output_of_maps("chances");
    let Some(workshop) = Workshop::new(&maps, "no\nyes\n") else { return };
    workshop.refuses(&[], &["`label` (int64)", "`chances` (a list of maps", "zipmap=False"]);
    let best = Onnx::colours(&PICTURE, 0.02).node("ArgMax", &["l"], "y", &[Attribute::Int("axis", 1)]);
    let Some(workshop) = Workshop::new(&best.output_of("y", INT64, &[1, 1]), "no\nyes\n") else { return };
    for named in [&[][..], &["--output", "y"]] {
        workshop.refuses(named, &["`y` holds whole numbers, such as the number of the best class alone"]);
    }
    let five = softmax(Onnx::colours(&PICTURE, 0.02), "l", "y").output("y", &[1, 4]);
    let Some(workshop) = Workshop::new(&five, "background\nr\ng\nb\nz\n") else { return };
    workshop.refuses(&[], &["labels.txt holds 5 labels", "`y` (1×4 numbers)", "remove the line `background`"]);
    workshop.write("labels.txt", b"r\ng\nb\n");
    workshop.refuses(&[], &["labels.txt holds 3 labels", "One label is missing"]);
}

#[test]
fn a_bundle_that_cannot_be_made_leaves_nothing_and_says_what_it_needs() {
    let elsewhere = Onnx::colours(&PICTURE, 0.02)
        .elsewhere("w", &[4, 4], "m.onnx.data")
        .node("MatMul", &["l", "w"], "y", &[])
        .output("y", &[1, 4]);
    let Some(workshop) = Workshop::new(&elsewhere, RGBZ) else { return };
    workshop.refuses(&[], &["keeps its weights in m.onnx.data", "onnx.save"]);
    let weights: Vec<u8> = (0..16_u8).flat_map(|at| f32::from(at).to_le_bytes()).collect();
    workshop.write("m.onnx.data", &weights);
    workshop.refuses(&[], &["keeps its weights in m.onnx.data", "onnx.save"]);

    // It loads, and fails whenever it runs.
    let fixed = Onnx::colours(&PICTURE, 0.02).int64s("s", &[7, 3]).node("Reshape", &["l", "s"], "y", &[]);
    let Some(workshop) = Workshop::new(&fixed.output("y", &[-1, 4]), RGBZ) else { return };
    workshop.refuses(&[], &["ONNX Runtime failed"]);
    workshop.write("m.onnx", &softmax(Onnx::colours(&PICTURE, 0.02), "l", "y").output("y", &[1, 4]).file());
    workshop.write("b/other.txt", b"mine");
    assert!(workshop.init(&[]).expect_err("not empty").contains("is not empty; choose a new folder with --out"));
    std::fs::remove_dir_all(workshop.at("b")).expect("removed");
    workshop.init(&[]).expect("a bundle where one failed before");
    Bundle::open(&workshop.at("b")).expect("a bundle");
}

#[test]
fn an_error_of_init_brings_its_cause() {
    let model = softmax(Onnx::colours(&PICTURE, 0.02), "l", "y").output("y", &[1, 4]);
    let Some(workshop) = Workshop::new(&model, "R\u{f6}hr\n") else { return };
    workshop.write("labels.txt", b"R\xf6hr\ng\nb\nz\n");
    workshop.refuses(&[], &["labels.txt: line 1 is not UTF-8"]);
    std::fs::remove_file(workshop.at("labels.txt")).expect("removed");
    workshop.refuses(&[], &["labels.txt: No such file"]);
    workshop.refuses(&["--name", "my model"], &["choose another name with --name: "]);
    let open = Onnx::new(&[-1, -1, -1, -1]).means("x").output("m", &[-1, -1]);
    workshop.write("m.onnx", &open.file());
    workshop.write("labels.txt", RGBZ.as_bytes());
    workshop.refuses(&[], &["has the shape any×any×any×any: it leaves sizes open"]);
    workshop.write("m.onnx", b"<!DOCTYPE html><title>404</title>");
    workshop.refuses(&[], &["m.onnx: it is a web page, and no ONNX model"]);
}

#[test]
fn a_label_file_of_windows_and_a_name_that_two_classes_have_are_taken() {
    let model = Onnx::colours(&PICTURE, 0.04).node("Identity", &["l"], "y", &[]).output("y", &[1, 4]);
    let Some(workshop) = Workshop::new(&model, "\u{feff}r\r\ncrane\r\ncrane\r\nz\r\n\r\n") else { return };
    let said = workshop.init(&["--preset", "raw"]).expect("a bundle");
    assert!(said.contains("repeated   `crane`: a threshold"), "{said}");
    assert!(workshop.infer(&[], "red.png").contains("  r\n"));
    // A picture of the second crane is right, and a note among them is named and left out.
    for (folder, file) in [("r", "red.png"), ("crane", "green.png"), ("crane", "blue.png")] {
        let picture = std::fs::read(workshop.at(file)).expect("a picture");
        workshop.write(&format!("known/{folder}/{file}"), &picture);
    }
    workshop.write("known/r/notes.txt", b"taken on Monday");
    workshop.write("known/r/.DS_Store", b"hidden");
    let (bundle, known) = (workshop.at("b"), workshop.at("known"));
    let (code, text) = run(&["bundle", "calibrate", path(&bundle), "--pictures", path(&known)]).expect("calibrated");
    assert_eq!(code, ExitCode::SUCCESS);
    assert!(text.contains("samples    3\nleft out   1, for these say nothing:"), "{text}");
    assert!(text.contains("notes.txt: it is neither JPEG nor PNG, nor numbers"), "{text}");
    assert!(text.contains("as it is: accuracy 1.0000"), "{text}");
}

#[test]
fn infer_gives_the_labels_and_the_decision_of_the_device() {
    let model = Onnx::colours(&PICTURE, 0.04).node("Identity", &["l"], "y", &[]).output("y", &[1, 4]);
    let Some(workshop) = Workshop::new(&model, RGBZ) else { return };
    workshop.init(&["--preset", "raw"]).expect("a bundle");
    let manifest = std::fs::read_to_string(workshop.at("b/manifest.toml")).expect("a manifest");
    workshop.write("b/manifest.toml", format!("{manifest}\n[cloud_labels]\nr = \"rouge\"\n").as_bytes());
    let undecided = workshop.infer(&[], "red.png");
    assert!(undecided.contains("  rouge\n") && undecided.contains("would not answer: no threshold"), "{undecided}");
    assert!(!undecided.contains("keeps") && !undecided.contains("asks the cloud"), "{undecided}");
    let json: serde_json::Value = serde_json::from_str(&workshop.infer(&["--json"], "red.png")).expect("JSON");
    assert!(json.get("decision").is_none() && json["undecided"].is_string(), "{json}");
    assert!(workshop.infer(&["--score-min", "0.5"], "red.png").contains("keeps its answer"));
}

#[test]
fn a_model_of_numbers_is_calibrated_inferred_and_checked_like_one_of_pictures() {
    let weights: [[f32; 3]; 4] = [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0], [0.0; 3]];
    let model = Onnx::new(&[-1, 4]).floats("w", &[4, 3], weights.as_flattened()).node("MatMul", &["x", "w"], "y", &[]);
    let Some(workshop) = Workshop::new(&model.output("y", &[-1, 3]), "a\nb\nc\n") else { return };
    let said = workshop.init(&[]).expect("a bundle");
    assert!(said.contains("shape = [1, 4]") && said.contains("kind = \"logits\""), "{said}");
    let raw = |values: [f32; 4]| values.map(f32::to_le_bytes).concat();
    let header = b"\x93NUMPY\x01\x00\x37\x00{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}";
    let npy = |values: [f32; 4]| [header.as_slice(), &raw(values)].concat();
    workshop.write("known/a/one.bin", &raw([1.0, 0.0, 0.0, 0.5]));
    workshop.write("known/b/many.csv", b"f1,f2,f3,f4\n0,1,0,0.5\n0,0.9,0.1,0.5\n0.6,0.5,0,0.5\n");
    workshop.write("known/c/one.npy", &npy([0.0, 0.0, 1.0, 0.5]));
    let (bundle, known) = (workshop.at("b"), workshop.at("known"));
    let (_, text) = run(&["bundle", "calibrate", path(&bundle), "--samples", path(&known)]).expect("calibrated");
    assert!(text.contains("samples    5") && text.contains("accuracy 0.8000"), "{text}");
    let answers = workshop.infer(&[], "known/b/many.csv");
    assert!(answers.contains("many.csv, sample 1\n") && answers.contains("many.csv, sample 3\n"), "{answers}");
    let manifest = std::fs::read_to_string(workshop.at("b/manifest.toml")).expect("a manifest");
    let golden = "[[golden]]\nfile = \"one.npy\"\nlabel = \"c\"\nscores = { default = 0.965 }\n";
    workshop.write("b/manifest.toml", format!("{manifest}\n{golden}").as_bytes());
    workshop.write("b/one.npy", &npy([0.0, 0.0, 1.0, 0.5]));
    let (code, text) = run(&["bundle", "inspect", path(&bundle)]).expect("inspected");
    assert!(code == ExitCode::SUCCESS && text.contains("golden     ok: one.npy is c"), "{text}");
}

#[test]
fn what_a_model_says_of_its_own_being_right_is_a_measure_and_it_is_told_how_well_it_ranks() {
    let weights: [[f32; 3]; 4] = [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0], [0.0; 3]];
    let model = Onnx::new(&[-1, 4])
        .floats("w", &[4, 3], weights.as_flattened())
        .floats("last", &[4, 1], &[0.0, 0.0, 0.0, 1.0])
        .node("MatMul", &["x", "w"], "y", &[])
        .node("MatMul", &["x", "last"], "sure", &[])
        .output("sure", &[-1, 1])
        .output("y", &[-1, 3]);
    let Some(workshop) = Workshop::new(&model, "a\nb\nc\n") else { return };
    workshop.refuses(&["--confidence", "shure"], &["there is no output `shure` for --confidence", "`sure`"]);
    workshop.refuses(&["--confidence", "y"], &["--confidence takes an output of one number, but this is `y`"]);
    workshop.refuses(&["--embedding", "shure"], &["there is no output `shure` for --embedding", "`sure`"]);
    let said = workshop.init(&["--confidence", "sure"]).expect("a bundle");
    assert!(said.contains("confidence = \"sure\"") && said.contains("name = \"y\""), "{said}");

    // The score is as sure of what is wrong as of what is right; the model itself knows better.
    workshop.write("known/a/some.csv", b"x,y,z,sure\n1,0,0,0.9\n1,0,0,0.8\n0,1,0,0.1\n1,0,0,0.95\n");
    workshop.write("known/b/some.csv", b"x,y,z,sure\n0,1,0,0.7\n1,0,0,0.2\n0,0,1,0.3\n0,1,0,1.0\n");
    let (bundle, known) = (workshop.at("b"), workshop.at("known"));
    let (_, text) = run(&["bundle", "calibrate", path(&bundle), "--samples", path(&known)]).expect("calibrated");
    assert!(text.contains("ranking    of 8 samples, by the score: AUROC 0.500"), "{text}");
    assert!(text.contains("by the model's own confidence: AUROC 1.000"), "{text}");
    let (_, text) = run(&["bundle", "inspect", path(&bundle)]).expect("inspected");
    assert!(text.contains("confidence sure: how probably the answer is right"), "{text}");
    assert!(text.contains("own confidence: AUROC 1.000 (95 %: 1.000 to 1.000)"), "{text}");
    let answers = workshop.infer(&["--json"], "known/a/some.csv");
    let doubts = answers.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let doubts: Vec<_> = doubts.map(|answer| answer["decision"]["doubt"]["confidence"].as_f64()).collect();
    assert!(doubts[2].is_some_and(|doubt| (doubt - 0.9).abs() < 1e-6), "{doubts:?}");

    // Calibrated again on samples that are all right, it says nothing of how it ranks.
    workshop.write("easy/a/some.csv", b"x,y,z,sure\n1,0,0,0.9\n1,0,0,0.8\n");
    run(&["bundle", "calibrate", path(&bundle), "--samples", path(&workshop.at("easy"))]).expect("calibrated");
    let (_, text) = run(&["bundle", "inspect", path(&bundle)]).expect("inspected");
    assert!(text.contains("ranking    not measured"), "{text}");

    workshop.write("odd.csv", b"x,y,z,sure\n1,0,0,1.7\n");
    let said = workshop.infer(&[], "odd.csv");
    assert!(said.contains("the output `sure` gave 1.700; `confidence` must be one number from 0 to 1"), "{said}");
}
