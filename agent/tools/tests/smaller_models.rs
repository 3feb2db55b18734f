//! A model is made into another bundle, its samples are handed to training tools, and bundles are compared, on the models
//! of this repository.

mod support;

use std::path::{Path, PathBuf};

use hedge_inference::Bundle;
use support::{library_is_there, path, run};

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

/// A folder as `hedge-cloud export` writes one: the golden pictures of the fashion models, with labels or without.
fn exported(dir: &Path, with_labels: bool) {
    let golden = models().join("fashion-small/golden");
    let labels = [("test-0.png", "Ankle boot"), ("test-1.png", "Pullover"), ("test-2.png", "Trouser")];
    let mut lines = String::new();
    for (file, label) in labels {
        std::fs::copy(golden.join(file), dir.join(file)).expect("a copy");
        let label = if with_labels { format!("\"{label}\"") } else { "null".to_owned() };
        lines.push_str(&format!("{{\"file\": \"{file}\", \"label\": {label}}}\n"));
    }
    std::fs::write(dir.join("labels.jsonl"), lines).expect("a file");
}

fn words(arguments: &[&str]) -> String {
    format!("{:#}", run(arguments).expect_err("refused"))
}

#[test]
fn a_derived_bundle_is_whole_and_bundles_are_compared_side_by_side() {
    if !library_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (base, int8) = (models().join("fashion-small"), folder.path().join("int8"));
    let file = base.join("int8.onnx");
    let derive = ["bundle", "derive", path(&base), "--model", path(&file), "--version", "2", "--out", path(&int8)];
    run(&derive).expect("a bundle");
    let bundle = Bundle::open(&int8).expect("whole");
    assert_eq!((bundle.model_ref().version.as_str(), bundle.manifest().goldens.len()), ("2", 3));
    assert!(bundle.threshold().is_none(), "the old one's threshold is not the new one's");
    assert!(words(&derive).contains("cannot make"), "what is there is not overwritten");
    let (_, inspected) = run(&["bundle", "inspect", path(&int8)]).expect("inspected");
    assert_eq!(inspected.matches("golden     ok").count(), 3, "{inspected}");

    let samples = folder.path().join("samples");
    std::fs::create_dir(&samples).expect("a folder");
    exported(&samples, true);
    let cloud = models().join("fashion-large");
    let compare = ["bundle", "compare", path(&base), path(&int8), "--pictures", path(&samples), "--time", "3"];
    let (_, text) = run(&[&compare[..], &["--cloud", path(&cloud), "--json"]].concat()).expect("compared");
    let table: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&table["by_labels"], table["rows"].as_array().map(Vec::len)), (&true.into(), Some(2)), "{text}");
    for row in table["rows"].as_array().expect("rows") {
        assert_eq!(
            (&row["accuracy"], &row["agreement"], &row["asks"]),
            (&1.0.into(), &1.0.into(), &0.0.into()),
            "{text}"
        );
        assert_eq!(row["bytes"], 22689);
    }

    exported(&samples, false);
    assert!(words(&compare).contains("no labels: name the cloud's bundle with --cloud"));
    let (_, text) = run(&[&compare[..], &["--cloud", path(&cloud)]].concat()).expect("compared by agreement");
    assert!(text.contains("both together say in 99.5 % what it says"), "{text}");
    let calibrate = ["bundle", "calibrate", path(&int8), "--pictures", path(&samples)];
    assert!(words(&calibrate).contains("none of the samples has a label"));
}

#[test]
fn training_tools_get_what_the_model_sees_and_what_the_teacher_says() {
    if !library_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (base, samples, out) =
        (models().join("fashion-small"), folder.path().join("samples"), folder.path().join("out"));
    std::fs::create_dir(&samples).expect("a folder");
    exported(&samples, true);
    std::fs::write(samples.join("test-1.png"), "no picture").expect("a file");
    let teacher = models().join("fashion-large");
    let tensors = ["bundle", "tensors", path(&base), "--pictures", path(&samples), "--out", path(&out), "--size", "20"];
    let (_, said) = run(&[&tensors[..], &["--teacher", path(&teacher)]].concat()).expect("tensors");
    assert!(said.starts_with("3 samples, 1 of which could not be read"), "{said}");
    let rows = |name: &str| std::fs::read(out.join(name)).expect("a file").split_off(128);
    assert_eq!(rows("inputs.npy").len(), 3 * 20 * 20 * 4);
    let classes: Vec<i64> =
        rows("classes.npy").as_chunks::<8>().0.iter().map(|eight| i64::from_le_bytes(*eight)).collect();
    assert_eq!(classes, [9, -2, 1], "in the order of the model's labels; -2 is no picture");
    let scores: Vec<f32> = rows("scores.npy").as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    assert!((scores[9] - 0.9988).abs() < 0.001 && scores.len() == 30, "{scores:?}");
}

#[test]
fn a_teacher_of_other_labels_and_samples_of_other_names_are_refused_by_name() {
    if !library_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (base, photo, out) = (models().join("fashion-small"), models().join("photo-small"), folder.path().join("out"));
    let samples = folder.path().join("samples");
    std::fs::create_dir(&samples).expect("a folder");
    exported(&samples, true);
    let tensors = ["bundle", "tensors", path(&base), "--pictures", path(&samples), "--out", path(&out)];
    let error = words(&[&tensors[..], &["--teacher", path(&photo)]].concat());
    assert!(error.contains("does not know the label `T-shirt/top`") && error.contains("[cloud_labels]"), "{error}");
    let error = words(&["bundle", "compare", path(&base), path(&photo), "--pictures", path(&samples)]);
    assert!(error.contains("is for the task"), "{error}");
    std::fs::write(samples.join("labels.jsonl"), "{\"file\": \"test-0.png\", \"label\": \"Sandals\"}\n")
        .expect("a file");
    let error = words(&tensors);
    assert!(error.contains("test-0.png has the label `Sandals`, which is not a label of the model"), "{error}");
    std::fs::write(samples.join("labels.jsonl"), "{\"file\": \"../secret.png\", \"label\": null}\n").expect("a file");
    assert!(words(&tensors).contains("labels.jsonl:1: `../secret.png` is no file in the folder"));
    std::fs::remove_file(samples.join("labels.jsonl")).expect("removed");
    assert!(words(&tensors).contains("has no folders with samples"), "an empty folder");
}
