//! Files of what two models said of the same samples.
//!
//! CSV with a header, `.gz` or not: the label in `y` or `label`, the small model's answer in `s_pred` or `small_answer`, its
//! best two scores in `s_p1`, `s_p2` or `p1`, `p2`, the large model's answer in `l_pred` or `large_answer`. JSON lines of
//! boxes: `size`, `gt` of [x1, y1, x2, y2, label], `small` and `large` of [x1, y1, x2, y2, score, label].
//!
//! A file whose name goes on where another's ends (without its `_clean`) shows the same kind of sample under a shift,
//! but `_pool` is more of the same and is passed over.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use hedge_core::agree::agree;
use hedge_core::judge::{Asked, Limits, judge};
use hedge_inference::{Bundle, Model, Runtime, SessionOptions, Tensor};
use hedge_proto::{Doubt, Found, Measure, Output, Rect};
use serde::Deserialize;

use crate::Fallible;

/// One sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) doubt: Doubt,
    /// 1 − the score.
    pub(crate) unsure: f32,
    /// How much of the small model's answer the large one contradicts.
    pub(crate) loss: f32,
    /// How much of each is right.
    pub(crate) local: f32,
    pub(crate) cloud: f32,
}

pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) base: Vec<Row>,
    pub(crate) shifts: Vec<Shifted>,
}

pub(crate) struct Shifted {
    pub(crate) name: String,
    pub(crate) rows: Vec<Row>,
}

pub(crate) fn agreement(rows: &[Row]) -> f64 {
    rows.iter().map(|row| f64::from(1.0 - row.loss)).sum::<f64>() / rows.len() as f64
}

pub(crate) fn read(dir: &Path) -> Fallible<Vec<Trace>> {
    let mut files: Vec<_> = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Fallible<_>>()?;
    files.sort();
    let mut all: Vec<(String, Vec<Row>)> = Vec::new();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (stem, of) = match name.trim_end_matches(".gz").rsplit_once('.') {
            Some((stem, "csv")) => (stem, of_classes as fn(&str) -> Fallible<Vec<Row>>),
            Some((stem, "jsonl")) => (stem, of_boxes as fn(&str) -> Fallible<Vec<Row>>),
            _ => continue,
        };
        let text = text(&file)?;
        match of(&text) {
            Ok(rows) if !rows.is_empty() => all.push((stem.to_owned(), rows)),
            Ok(_) => println!("{}: passed over, it has no rows", file.display()),
            Err(error) => println!("{}: passed over, {error}", file.display()),
        }
    }
    let bare = |name: &str| name.trim_end_matches("_clean").to_owned();
    let names: Vec<String> = all.iter().map(|(name, _)| bare(name)).collect();
    let base_of = |name: &str| {
        let shorter =
            names.iter().filter(|other| name.strip_prefix(other.as_str()).is_some_and(|rest| rest.starts_with('_')));
        shorter.min_by_key(|other| other.len()).cloned()
    };
    let mut traces: Vec<Trace> = Vec::new();
    for (name, rows) in &all {
        if base_of(&bare(name)).is_none() {
            traces.push(Trace { name: bare(name), base: rows.clone(), shifts: Vec::new() });
        }
    }
    for (name, rows) in all {
        let Some(base) = base_of(&bare(&name)).filter(|_| !name.ends_with("_pool")) else { continue };
        if let Some(trace) = traces.iter_mut().find(|trace| trace.name == base) {
            trace.shifts.push(Shifted { name, rows });
        }
    }
    if traces.is_empty() {
        return Err(format!("{} holds no trace: *.csv or *.jsonl, as `trace.rs` describes them", dir.display()).into());
    }
    Ok(traces)
}

fn text(file: &Path) -> Fallible<String> {
    let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut text = String::new();
    if file.extension().is_some_and(|extension| extension == "gz") {
        GzDecoder::new(bytes.as_slice()).read_to_string(&mut text)?;
    } else {
        text = String::from_utf8(bytes)?;
    }
    Ok(text)
}

fn of_classes(text: &str) -> Fallible<Vec<Row>> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |names: &[&str]| {
        let at = header.iter().position(|word| names.contains(word));
        at.ok_or_else(|| format!("it has no column {}", names.join(" or ")))
    };
    let (truth, small, large) =
        (column(&["y", "label"])?, column(&["s_pred", "small_answer"])?, column(&["l_pred", "large_answer"])?);
    let (best, second) = (column(&["s_p1", "p1"])?, column(&["s_p2", "p2"])?);
    let entropy = header.iter().position(|word| ["s_entropy", "entropy"].contains(word));
    // Entropy is in nats; its share of the maximum needs to know of how many classes.
    let classes = |fields: &[&str]| fields.iter().filter_map(|field| field.parse::<u32>().ok()).max();
    let rows: Vec<Vec<&str>> =
        lines.filter(|line| !line.trim().is_empty()).map(|line| line.split(',').collect()).collect();
    let of = |at: usize| rows.iter().filter_map(|row| classes(&[row.get(at)?])).max();
    let classes = [truth, small, large].into_iter().filter_map(of).max().unwrap_or(1) + 1;
    let row = |fields: &Vec<&str>| -> Fallible<Row> {
        let field = |at: usize| fields.get(at).map(|field| field.trim()).ok_or("a row is too short");
        let number = |at: usize| -> Fallible<f32> { Ok(field(at)?.parse::<f32>()?) };
        let is =
            |one: usize, other: usize| -> Fallible<f32> { Ok(if field(one)? == field(other)? { 1.0 } else { 0.0 }) };
        let (first, second) = (number(best)?, number(second)?);
        let mut doubt = Doubt::NONE.with(Measure::Score, 1.0 - first).with(Measure::Margin, 1.0 - (first - second));
        if let Some(at) = entropy {
            doubt = doubt.with(Measure::Entropy, number(at)? / (classes as f32).ln());
        }
        Ok(Row {
            doubt,
            unsure: 1.0 - first,
            loss: 1.0 - is(small, large)?,
            local: is(small, truth)?,
            cloud: is(large, truth)?,
        })
    };
    rows.iter().map(row).collect()
}

#[derive(Deserialize)]
struct Photo {
    size: [f32; 2],
    gt: Vec<[f32; 5]>,
    small: Vec<[f32; 6]>,
    large: Vec<[f32; 6]>,
}

/// The demo's detectors show a box from this score on.
const SHOWN_MIN: f32 = 0.35;

fn of_boxes(text: &str) -> Fallible<Vec<Row>> {
    let row = |line: &str| -> Fallible<Row> {
        let photo: Photo = serde_json::from_str(line)?;
        let [width, height] = photo.size;
        let found = |corners: &[f32], score: f32, label: f32| Found {
            label: format!("{label}"),
            score,
            place: Rect {
                left: corners[0] / width,
                top: corners[1] / height,
                width: (corners[2] - corners[0]) / width,
                height: (corners[3] - corners[1]) / height,
            },
        };
        let shown = |boxes: &[[f32; 6]]| {
            let boxes = boxes.iter().filter(|found| found[4] >= SHOWN_MIN);
            Output::Boxes(boxes.map(|of| found(of, of[4], of[5])).collect())
        };
        let truth = Output::Boxes(photo.gt.iter().map(|of| found(of, 1.0, of[4])).collect());
        let (small, large) = (shown(&photo.small), shown(&photo.large));
        let best_hidden = photo.small.iter().map(|of| of[4]).filter(|score| *score < SHOWN_MIN).fold(0.0, f32::max);
        let unsure = match small.score() {
            Some(mean) => 1.0 - mean,
            // As a detector's own reading has it: how near the best hidden one came to being shown.
            None => best_hidden / SHOWN_MIN,
        };
        let doubt = Doubt::NONE.with(Measure::MeanShown, unsure);
        let (loss, local, cloud) = (1.0 - agree(&small, &large), agree(&small, &truth), agree(&large, &truth));
        Ok(Row { doubt, unsure, loss, local, cloud })
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(row).collect()
}

/// The demo's two models on Fashion-MNIST's test images.
pub(crate) fn of_bundles(models: &Path) -> Fallible<Trace> {
    let unpacked = |name: &str| -> Fallible<Vec<u8>> {
        let mut bytes = Vec::new();
        GzDecoder::new(std::fs::File::open(models.join("fashion-test").join(name))?).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // IDX: 16 and 8 bytes of header before one byte a pixel and a label.
    let (images, labels) = (unpacked("t10k-images-idx3-ubyte.gz")?, unpacked("t10k-labels-idx1-ubyte.gz")?);
    let runtime = Runtime::find(None)?;
    let said = |bundle: &str| -> Fallible<Vec<(Output, Doubt)>> {
        let bundle = Bundle::open(&models.join(bundle))?;
        let mut model = Model::load(&runtime, &bundle, None, &SessionOptions::default())?;
        let task = model.task().clone();
        let say = |pixels: &[u8]| -> Fallible<(Output, Doubt)> {
            let data = pixels.iter().map(|pixel| (f32::from(*pixel) / 255.0 - 0.2860) / 0.3530).collect();
            let tensor = Tensor { shape: model.input_shape().to_vec(), data, frame: Rect::WHOLE };
            let outputs = model.run(&tensor)?;
            Ok(task.read(&outputs, &Rect::WHOLE)?)
        };
        images[16..].chunks_exact(28 * 28).map(say).collect()
    };
    let names = Bundle::open(&models.join("fashion-small"))?.labels().to_vec();
    let (small, large) = (said("fashion-small")?, said("fashion-large")?);
    let row = |at: usize| {
        let ((small, doubt), (large, _)) = (&small[at], &large[at]);
        let truth = Output::label(&names[usize::from(labels[8 + at])]);
        Row {
            doubt: *doubt,
            unsure: 1.0 - doubt.score().unwrap_or_default(),
            loss: 1.0 - agree(small, large),
            local: agree(small, &truth),
            cloud: agree(large, &truth),
        }
    };
    Ok(Trace { name: "fashion-bundles".into(), base: (0..small.len()).map(row).collect(), shifts: Vec::new() })
}

/// Whether limits would ask the cloud.
pub(crate) fn asks(row: &Row, limits: &Limits) -> bool {
    judge(&row.doubt, &Asked::of(*limits)).reason.is_some()
}
