//! A bundle that is not whole, or says what cannot be, is refused in words that help.

mod support;

use std::path::Path;

use hedge_inference::task::{OutputKind, Reading};
use hedge_inference::{Bundle, Model, ModelError, SessionOptions};
use hedge_proto::Digest;

/// A bundle whose model file holds seven bytes: enough to be opened, not to be run.
fn write_bundle(dir: &Path, change: impl Fn(String) -> String) {
    let model = b"weights";
    std::fs::write(dir.join("model.onnx"), model).expect("a file");
    std::fs::write(dir.join("labels.txt"), "cat\ndog\n").expect("a file");
    let manifest = format!(
        r#"name = "pets"
version = "1"
task = "pets"
kind = "classify"
labels = "labels.txt"

[input]
name = "input"
shape = [1, 3, 32, 32]

[input.picture]
layout = "nchw"
color = "rgb"
mean = [1, 2, 3]
std = 128.0

[output]
name = "logits"
kind = "logits"
temperature = 1.5

[threshold]
score_min = 0.6

[[variant]]
name = "fp32"
file = "model.onnx"
sha256 = "{}"
bytes = 7

[cloud_labels]
dog = "hound"
"#,
        Digest::of(model)
    );
    std::fs::write(dir.join("manifest.toml"), change(manifest)).expect("a file");
}

fn open(change: impl Fn(String) -> String) -> Result<Bundle, String> {
    let dir = tempfile::tempdir().expect("a folder");
    write_bundle(dir.path(), change);
    Bundle::open(dir.path()).map_err(|error| error.to_string())
}

#[track_caller]
fn check_refused(from: &str, to: &str, words: &str) {
    let error = open(|manifest| {
        assert!(manifest.contains(from), "{from}");
        manifest.replace(from, to)
    })
    .expect_err("refused");
    assert!(error.contains(words), "`{error}` does not say `{words}`");
}

#[test]
fn a_whole_bundle_is_opened_and_knows_its_words() {
    let bundle = open(|manifest| manifest).expect("a bundle");
    assert_eq!((bundle.task(), bundle.labels().len()), ("pets", 2));
    assert_eq!((bundle.cloud_label("cat"), bundle.cloud_label("dog")), ("cat", "hound"));
    assert_eq!(bundle.reading().labels, ["cat", "hound"]);
    assert_eq!(bundle.threshold().map(|threshold| threshold.score_min()), Some(0.6));
}

#[test]
fn a_wrong_field_is_named_with_its_line() {
    check_refused("task = \"pets\"", "tusk = \"pets\"", "manifest.toml:3: unknown field `tusk`");
    check_refused("[1, 3, 32, 32]", "[1, 32, 32, 3]", "has 32 channels");
    check_refused("[1, 3, 32, 32]", "[8, 3, 32, 32]", "must start with 1");
    check_refused("[1, 3, 32, 32]", "[1, 3, 99999999, 99999999]", "must hold");
    check_refused("[1, 2, 3]", "[1, 2]", "`mean` has 2 numbers for 3 channels");
    check_refused("128.0", "0.0", "`std` is divided by");
    check_refused("1.5", "-1.5", "temperature = -1.5");
    check_refused("0.6", "1.2", "score_min = 1.2");
    check_refused("\"model.onnx\"", "\"../model.onnx\"", "not the name of a file inside the bundle");
    check_refused("\"model.onnx\"", "\"/etc/passwd\"", "not the name of a file inside the bundle");
    check_refused("dog = \"hound\"", "fox = \"hound\"", "`[cloud_labels]` names `fox`");
    check_refused(
        "[cloud_labels]",
        "[[golden]]\nfile = \"labels.txt\"\nlabel = \"fox\"\nscores = {}\n[cloud_labels]",
        "fox",
    );
}

#[test]
fn a_file_that_is_not_the_described_one_is_named() {
    check_refused("bytes = 7", "bytes = 8", "has 7 bytes where the manifest says 8");
    check_refused("sha256 = \"", "sha256 = \"00", "64 hexadecimal digits");
    let other = Digest::of(b"other").to_string();
    check_refused(&Digest::of(b"weights").to_string(), &other, "is not the file the manifest describes");
    check_refused("labels.txt", "lables.txt", "cannot read");
}

#[test]
fn files_that_an_editor_put_a_mark_before_are_the_same_files() {
    let dir = tempfile::tempdir().expect("a folder");
    write_bundle(dir.path(), |manifest| format!("\u{feff}{manifest}"));
    std::fs::write(dir.path().join("labels.txt"), "\u{feff}cat\r\ndog\r\n\r\n").expect("a file");
    assert_eq!(Bundle::open(dir.path()).expect("a bundle").labels(), ["cat", "dog"]);
    let utf16: Vec<u8> = "\u{feff}cat\ndog".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (labels, words) in [
        (utf16.as_slice(), "labels.txt: it is saved as UTF-16"),
        (b"cat\nk\xe4fer\n", "labels.txt: line 2 is not UTF-8"),
        (b"cat\n", "one label, `cat`"),
        (b"[\"cat\", \"dog\"]", "it is JSON; a bundle's labels stand one per line"),
    ] {
        std::fs::write(dir.path().join("labels.txt"), labels).expect("a file");
        let error = Bundle::open(dir.path()).expect_err("refused").to_string();
        assert!(error.contains(words), "`{error}` does not say `{words}`");
    }
}

#[test]
fn percentages_are_an_output_of_their_own_and_have_no_temperature() {
    let percent = |rest: &str| open(|manifest| manifest.replace("kind = \"logits\"\ntemperature = 1.5", rest));
    let bundle = percent("kind = \"percent\"").expect("a bundle");
    assert!(matches!(&bundle.manifest().output, Reading::Classes(classes) if classes.kind == OutputKind::Percent));
    let error = percent("kind = \"percent\"\ntemperature = 1.5").expect_err("refused");
    assert!(error.contains("`temperature` divides logits"), "{error}");
}

#[test]
fn a_file_that_is_no_model_is_refused_by_name() {
    let Some(runtime) = support::runtime() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    write_bundle(dir.path(), |manifest| manifest);
    let bundle = Bundle::open(dir.path()).expect("a bundle");
    let error = Model::load(&runtime, &bundle, None, &SessionOptions::default()).expect_err("no model");
    assert!(matches!(&error, ModelError::Load { path, .. } if path.ends_with("model.onnx")), "{error}");
    let error = Model::load(&runtime, &bundle, Some("int4"), &SessionOptions::default()).expect_err("no variant");
    assert!(error.to_string().contains("no variant `int4`; it has: fp32"), "{error}");
}

#[test]
fn a_manifest_that_contradicts_its_model_is_refused_at_load() {
    let Some(runtime) = support::runtime() else { return };
    let fashion = support::models().join("fashion-small");
    let manifest = std::fs::read_to_string(fashion.join("manifest.toml")).expect("a manifest");
    for (from, to, words) in [
        ("name = \"input\"", "name = \"image\"", "`input.name` is \"image\" in the manifest"),
        ("name = \"logits\"", "name = \"scores\"", "`output.name` is \"scores\""),
        ("[1, 1, 28, 28]", "[1, 1, 32, 32]", "`input.shape` is [1, 1, 32, 32]"),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        for file in ["int8.onnx", "fp32.onnx", "labels.txt"] {
            std::fs::copy(fashion.join(file), dir.path().join(file)).expect("a copy");
        }
        let without_goldens = manifest.split("[[golden]]").next().unwrap_or_default();
        std::fs::write(dir.path().join("manifest.toml"), without_goldens.replacen(from, to, 1)).expect("a file");
        let bundle = Bundle::open(dir.path()).expect("a bundle");
        let error = Model::load(&runtime, &bundle, None, &SessionOptions::default()).expect_err(words).to_string();
        assert!(error.contains(words), "`{error}` does not say `{words}`");
    }
}
