//! `hedge-agent infer` sees in the golden photos what the models' makers saw, through another library's pixels.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use hedge_tests::{places, skip};
use serde_json::Value;

/// Scores come from another decoder and another resizer.
const SCORE_DISTANCE_MAX: f64 = 0.03;

#[test]
fn the_small_photo_model() -> Result<()> {
    agrees_with_golden("photo-small")
}

#[test]
fn the_large_photo_model() -> Result<()> {
    agrees_with_golden("photo-large")
}

fn agrees_with_golden(bundle: &str) -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let pictures = places::model("pictures");
    let golden: Value = serde_json::from_slice(&std::fs::read(pictures.join("golden.json"))?)?;
    let photos = golden["photos"].as_array().context("golden.json lists photos")?;
    let files = photos.iter().map(|photo| Ok(pictures.join(photo["file"].as_str().context("a file name")?)));
    let mut infer = Command::new(places::program("hedge-agent")?);
    infer.args(["infer", "--json", "--bundle"]).arg(places::model(bundle)).args(files.collect::<Result<Vec<_>>>()?);
    let output = infer.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> =
        output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!(lines.len(), photos.len(), "one line per photo");
    for (photo, line) in photos.iter().zip(&lines) {
        let (wanted, best) = (&photo[bundle][0], &line["result"]["classify"]["scores"][0]);
        assert_eq!(best["label"], wanted["label"], "{}", photo["file"]);
        let distance = best["score"].as_f64().zip(wanted["score"].as_f64()).map(|(a, b)| (a - b).abs());
        assert!(distance.is_some_and(|distance| distance < SCORE_DISTANCE_MAX), "{}: {best}", photo["file"]);
    }
    Ok(())
}
