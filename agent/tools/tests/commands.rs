//! `infer` and `bundle` do what their help says, on the models of this repository.

mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hedge_inference::Bundle;

use support::{library_is_there, path, run};

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

#[test]
fn infer_prints_the_golden_answer_and_explains_itself() {
    if !library_is_there() {
        return;
    }
    let bundle = models().join("photo-small");
    let (cat, rocket) = (models().join("pictures/chelsea.png"), models().join("pictures/rocket.jpg"));
    let arguments = ["infer", "--bundle", path(&bundle), path(&cat), path(&rocket)];
    let (code, text) = run(&arguments).expect("answers");
    assert_eq!(code, ExitCode::SUCCESS);
    assert!(text.contains("  0.473  Egyptian cat\n"), "{text}");
    assert!(text.contains("asks the cloud: score 0.473 is below score_min 0.500"), "{text}");
    assert!(text.contains("drilling platform") && text.contains("keeps its answer: score 0.8"), "{text}");
}

#[test]
fn infer_decides_by_the_threshold_of_a_configuration() {
    if !library_is_there() {
        return;
    }
    let (bundle, cat) = (models().join("photo-small"), models().join("pictures/chelsea.png"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.toml");
    let model = |bundle: &Path| {
        let bundle = bundle.display();
        format!("[[model]]\nname = \"m\"\nbundle = \"{bundle}\"\nthreshold = {{ score_min = 0.4 }}\n")
    };
    std::fs::write(&file, model(&bundle)).expect("a file");
    let arguments = ["infer", "--bundle", path(&bundle), "--config", path(&file), path(&cat)];
    let (_, text) = run(&arguments).expect("answers");
    assert!(text.contains("keeps its answer: score 0.473 reached 0.400"), "{text}");

    std::fs::write(&file, model(Path::new("/elsewhere"))).expect("a file");
    let error = run(&arguments).expect_err("no such model").to_string();
    assert!(error.contains("agent.toml has no [[model]] with the bundle"), "{error}");
}

#[test]
fn infer_goes_on_after_a_file_that_is_no_picture_and_says_so_in_its_exit_code() {
    if !library_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let letter = folder.path().join("letter.jpg");
    std::fs::write(&letter, "dear camera").expect("a file");
    let (bundle, cat) = (models().join("photo-small"), models().join("pictures/chelsea.png"));
    let arguments = ["infer", "--json", "--bundle", path(&bundle), path(&letter), "missing.jpg", path(&cat)];
    let (code, text) = run(&arguments).expect("answers");
    assert_eq!(code, ExitCode::FAILURE);
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let error = lines[0]["error"].as_str().expect("a reason");
    assert!(error.starts_with("it is neither JPEG nor PNG, nor numbers"), "{error}");
    assert!(lines[1]["error"].as_str().is_some_and(|error| error.contains("cannot open missing.jpg")), "{text}");
    assert_eq!(lines[2]["result"]["classify"]["label"], "Egyptian cat");
    assert_eq!(lines[2]["decision"]["reason"], "low_score");
}

#[test]
fn bench_measures_each_stage_compares_the_variants_and_prints_a_line_of_the_readmes_table() {
    if !library_is_there() {
        return;
    }
    let bundle = models().join("photo-small");
    let (_, text) = run(&["bench", "--json", "--for", "2s", "--bundle", path(&bundle)]).expect("a measurement");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let variants = report["variants"].as_array().expect("a list");
    let names: Vec<_> = variants.iter().map(|variant| variant["variant"].as_str().expect("a name")).collect();
    assert!(names.contains(&"int8") && names.contains(&"fp32"), "{names:?}");
    for variant in variants {
        let stages = variant["stages_ms"].as_array().expect("a list");
        let took = |stage: &str| stages.iter().find(|one| one[0] == stage).and_then(|one| one[1].as_f64());
        for stage in ["decode", "resize", "normalise", "infer"] {
            assert!(took(stage).is_some_and(|ms| ms > 0.0), "{stage} in {text}");
        }
        assert!(took("judge").is_some() && variant["golden_agree"] == true, "{text}");
        let sum: f64 = stages.iter().filter_map(|stage| stage[1].as_f64()).sum();
        let total = variant["total_ms"].as_f64().expect("a number");
        assert!((sum - total).abs() < total * 0.5, "the stages are all there is: {text}");
    }
    assert!(names.contains(&report["recommended"].as_str().expect("a name")), "{text}");
    assert!(report["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    let (seconds, samples) = (&report["sustained"]["seconds"], &report["sustained"]["samples"]);
    assert!(
        seconds.as_f64().is_some_and(|s| (1.0..3.0).contains(&s)) && samples.as_u64().is_some_and(|n| n > 0),
        "{text}"
    );
    // The line fits the table it is for.
    let measurements = std::fs::read_to_string(models().join("../docs/measurements.md")).expect("the measurements");
    let head = measurements.lines().find(|line| line.starts_with("| board |")).expect("a table of boards");
    let line = report["table_line"].as_str().expect("a line");
    assert_eq!(line.matches('|').count(), head.matches('|').count(), "{line}");
    let (_, text) = run(&["bench", "--for", "1s", "--bundle", path(&bundle)]).expect("a measurement");
    assert!(text.contains("sustained") && text.contains("For the table of boards"), "{text}");
}

#[test]
fn every_bundle_of_the_repository_passes_its_inspection() {
    if !library_is_there() {
        return;
    }
    let pictures = ["photo-small", "photo-large", "fashion-small", "fashion-large"];
    for name in pictures.into_iter().chain(["digits-small", "digits-large", "speaker-small", "speaker-large"]) {
        let (code, text) = run(&["bundle", "inspect", path(&models().join(name))]).expect("an inspection");
        assert_eq!(code, ExitCode::SUCCESS, "{text}");
        assert!(text.contains("golden     ok"), "{text}");
    }
}

#[test]
fn init_makes_a_bundle_that_answers_from_a_bare_model() {
    if !library_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("mine");
    let (model, labels) = (models().join("photo-small/fp32.onnx"), models().join("photo-small/labels.txt"));
    let cat = models().join("pictures/chelsea.png");
    let arguments = [
        ["bundle", "init", path(&model), "--labels", path(&labels), "--preset", "minus-one-one"].as_slice(),
        &["--name", "mine", "--out", path(&out), "--picture", path(&cat)],
    ]
    .concat();
    let (_, text) = run(&arguments).expect("a bundle");
    assert!(text.contains("shape = [1, 3, 128, 128]") && text.contains("layout = \"nchw\""), "{text}");
    assert!(text.contains("kind = \"logits\"") && text.contains("Egyptian cat"), "{text}");
    assert_eq!(Bundle::open(&out).expect("a bundle").task(), "mine");
    let again = run(&arguments).expect_err("nothing is overwritten").to_string();
    assert!(again.contains("has a manifest already"), "{again}");
}

#[test]
fn init_says_what_is_wrong_with_a_model_it_cannot_take() {
    if !library_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("mine");
    let model = models().join("fashion-small/fp32.onnx");
    let labels = models().join("photo-small/labels.txt");
    let arguments = ["bundle", "init", path(&model), "--labels", path(&labels), "--out", path(&out)];
    let error = run(&arguments).expect_err("1000 labels for 10 classes").to_string();
    assert!(error.contains("holds 1000 labels"), "{error}");
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn calibrate_changes_what_it_has_found_and_keeps_the_rest_of_the_manifest() {
    if !library_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (models().join("fashion-small"), folder.path());
    std::fs::create_dir(to.join("golden")).expect("a folder");
    for file in ["int8.onnx", "fp32.onnx", "labels.txt", "manifest.toml"] {
        std::fs::copy(from.join(file), to.join(file)).expect("a copy");
    }
    for file in ["golden/test-0.png", "golden/test-1.png", "golden/test-2.png"] {
        std::fs::copy(from.join(file), to.join(file)).expect("a copy");
    }
    let data = models().join("fashion-calibration");
    let (images, labels) = (data.join("images-idx3-ubyte.gz"), data.join("labels-idx1-ubyte.gz"));
    let arguments = ["bundle", "calibrate", path(to), "--images", path(&images), "--labels", path(&labels)];
    let (_, text) = run(&[arguments.as_slice(), &["--defer-share", "0.1"]].concat()).expect("a calibration");
    assert!(text.contains("samples    2000") && text.contains("score_min"), "{text}");

    let read = |dir: &Path| std::fs::read_to_string(dir.join("manifest.toml")).expect("a manifest");
    let is_number = |line: &&str| line.starts_with("temperature") || line.starts_with("score_min");
    let (old, new) = (read(&from), read(to));
    let rest = |text: &str| text.lines().filter(|line| !is_number(line)).map(str::to_owned).collect::<Vec<_>>();
    let ranking = |text: &str| text.split_once("\n[ranking]\n").map(|(before, found)| (rest(before), found.to_owned()));
    let (before, found) = ranking(&new).expect("how well it ranks, at the end");
    assert_eq!(Some(&before), ranking(&old).as_ref().map(|(before, _)| before));
    assert!(found.starts_with("samples = 2000\nscore = { auroc = 0.9"), "{found}");
    let threshold = Bundle::open(to).expect("still a bundle").threshold().expect("a threshold");
    assert!(threshold.score_min() > 0.3, "{new}");

    // The same again finds the same: nothing random is in it.
    run(&[arguments.as_slice(), &["--defer-share", "0.1"]].concat()).expect("a calibration");
    assert_eq!(read(to), new);
}

#[test]
fn calibrate_fits_no_temperature_on_samples_that_say_nothing_of_it() {
    if !library_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to, known) = (models().join("fashion-small"), folder.path().join("b"), folder.path().join("known"));
    std::fs::create_dir_all(to.join("golden")).expect("a folder");
    std::fs::create_dir_all(known.join("Pullover")).expect("a folder");
    let goldens = [0, 1, 2].map(|n| format!("golden/test-{n}.png"));
    for file in ["int8.onnx", "fp32.onnx", "labels.txt", "manifest.toml"]
        .iter()
        .copied()
        .chain(goldens.iter().map(String::as_str))
    {
        std::fs::copy(from.join(file), to.join(file)).expect("a copy");
    }
    std::fs::copy(from.join("golden/test-1.png"), known.join("Pullover/1.png")).expect("a copy");
    let read = || std::fs::read_to_string(to.join("manifest.toml")).expect("a manifest");
    let temperature = |text: &str| text.lines().find(|line| line.starts_with("temperature")).map(str::to_owned);
    let before = temperature(&read());
    let (_, text) = run(&["bundle", "calibrate", path(&to), "--pictures", path(&known)]).expect("a calibration");
    assert!(text.contains("what 1 samples say of others is little"), "{text}");
    assert!(text.contains("temperature stays as it is: every sample is answered right"), "{text}");
    assert_eq!((temperature(&read()), before.is_some()), (before, true));
}

/// The tables below `[input]` in a manifest, as someone would write them for `--input`.
fn input_tables(bundle: &str) -> String {
    let manifest = std::fs::read_to_string(models().join(bundle).join("manifest.toml")).expect("a manifest");
    let (begin, end) = (manifest.find("[input.").expect("a table"), manifest.find("[output]").expect("a table"));
    manifest[begin..end].to_owned()
}

#[test]
fn init_and_calibrate_take_sound_and_series() {
    if !library_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (bundle, sample, label) in [("digits-large", "sure.wav", "eight"), ("speaker-large", "sure.csv", "speaker4")] {
        let (from, out) = (models().join(bundle), folder.path().join(bundle));
        let (model, labels, sample) =
            (from.join("fp32.onnx"), from.join("labels.txt"), from.join("golden").join(sample));
        let input = folder.path().join("input.toml");
        std::fs::write(&input, input_tables(bundle)).expect("written");
        let arguments = ["bundle", "init", path(&model), "--labels", path(&labels), "--input", path(&input)];
        let more = ["--out", path(&out), "--sample", path(&sample)];
        let (_, text) = run(&[arguments.as_slice(), &more].concat()).expect("a bundle");
        assert!(text.contains("kind = \"logits\"") && text.contains(&format!("  {label}")), "{text}");
        let samples = folder.path().join("samples").join(label);
        std::fs::create_dir_all(&samples).expect("a folder");
        std::fs::copy(&sample, samples.join("one")).expect("a copy");
        let samples = samples.parent().expect("its folder");
        let (_, text) = run(&["bundle", "calibrate", path(&out), "--samples", path(samples)]).expect("calibrated");
        assert!(text.contains("samples    1"), "{text}");
        std::fs::remove_dir_all(samples).expect("removed");
        // What is no such table, or is one of the model's that it does not fit.
        std::fs::write(&input, "[input.picture]\nlayout = \"nchw\"").expect("written");
        let other = folder.path().join("other");
        let more = ["--out", path(&other)];
        let error = run(&[arguments.as_slice(), &more].concat()).expect_err("refused").to_string();
        assert!(error.contains("must hold `[input.audio]` or `[input.series]`"), "{error}");
    }
}
