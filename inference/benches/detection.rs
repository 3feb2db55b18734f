//! How well the detectors of `models/` do on a folder of labelled photos, alone and together at a budget.
//!
//! `--labelled DIR` holds the photos and either COCO's JSON (any `*.json` with `images`, `annotations` and `categories`) or
//! `boxes.csv` with the columns file, width, height, label, x1, y1, x2, y2 in pixels. mAP@50 is COCO's: precision at 101
//! steps of recall, mean over the labels that occur. F1 counts all photos together, of the boxes that are shown. The
//! hybrid takes the cloud's answer for the photos whose answer is most in doubt; `random` for any. Run it by
//! `cargo xtask bench detection -- --labelled DIR`.
#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hedge_core::agree::{IOU_MIN, iou, matched};
use hedge_inference::task::Reading;
use hedge_inference::{Bundle, ContentType, Model, Runtime, SessionOptions, Task};
use hedge_proto::{Doubt, Found, Output, Rect, Share};
use serde::Deserialize;
use serde_json::{Value, json};

/// Below it a detector's candidates are not looked at.
const CANDIDATES_FROM: f32 = 0.05;

/// COCO counts precision at so many steps of recall.
const RECALL_STEPS: usize = 101;

const BUDGETS: [usize; 3] = [10, 20, 30];

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// A photo and what is to be found in it.
struct Photo {
    file: PathBuf,
    truth: Vec<Found>,
}

/// What one model makes of a photo.
struct Answer {
    /// All that it nearly shows.
    candidates: Vec<Found>,
    shown: Vec<Found>,
    doubt: Doubt,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    right: usize,
    said: usize,
    there: usize,
}

impl Counts {
    fn of(shown: &[Found], truth: &[Found]) -> Self {
        Self { right: matched(shown, truth), said: shown.len(), there: truth.len() }
    }

    fn add(self, other: Self) -> Self {
        Self { right: self.right + other.right, said: self.said + other.said, there: self.there + other.there }
    }

    fn f1(self) -> f64 {
        2.0 * self.right as f64 / (self.said + self.there).max(1) as f64
    }
}

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let folder = arguments.iter().position(|word| word == "--labelled").and_then(|at| arguments.get(at + 1));
    let folder = PathBuf::from(folder.ok_or("say --labelled DIR: a folder of photos with boxes.csv or COCO's JSON")?);
    let photos = labelled(&folder)?;
    let boxes: usize = photos.iter().map(|photo| photo.truth.len()).sum();
    println!("{} photos, {boxes} boxes", photos.len());

    let (local, cloud) = (answers("objects-small", &photos)?, answers("objects-large", &photos)?);
    let of = |answers: &[Answer]| {
        photos.iter().zip(answers).map(|(photo, answer)| Counts::of(&answer.shown, &photo.truth)).collect::<Vec<_>>()
    };
    let (small, large) = (of(&local), of(&cloud));
    let total = |counts: &[Counts]| counts.iter().copied().fold(Counts::default(), Counts::add).f1();

    // The least sure first.
    let mut order: Vec<usize> = (0..photos.len()).collect();
    let sure = |at: usize| local[at].doubt.score().unwrap_or(1.0);
    order.sort_by(|a, b| sure(*a).total_cmp(&sure(*b)));
    let at = |percent: usize| {
        let asked = &order[..photos.len() * percent / 100];
        let both: Vec<Counts> =
            (0..photos.len()).map(|at| if asked.contains(&at) { large[at] } else { small[at] }).collect();
        total(&both)
    };
    let random = |percent: usize| total(&small) + (total(&large) - total(&small)) * percent as f64 / 100.0;
    let by_budget = |f1: &dyn Fn(usize) -> f64| -> Value {
        BUDGETS
            .iter()
            .map(|percent| (percent.to_string(), json!(rounded(f1(*percent)))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let report = json!({
        "map50": { "local": rounded(map50(&photos, &local)), "cloud": rounded(map50(&photos, &cloud)) },
        "f1": {
            "local": rounded(total(&small)),
            "cloud": rounded(total(&large)),
            "hybrid": by_budget(&at),
            "random": by_budget(&random),
        },
    });
    println!("{report}");
    Ok(())
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn answers(bundle: &str, photos: &[Photo]) -> Fallible<Vec<Answer>> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let bundle = Bundle::open(&models.join(bundle))?;
    let mut model = Model::load(&Runtime::find(None)?, &bundle, None, &SessionOptions::default())?;
    let task = model.task().clone();
    let wide = wide(&task)?;
    let answer = |photo: &Photo| -> Fallible<Answer> {
        let bytes = std::fs::read(&photo.file).map_err(|error| format!("{}: {error}", photo.file.display()))?;
        let content_type =
            ContentType::sniff(&bytes).ok_or_else(|| format!("{} is no picture", photo.file.display()))?;
        let tensor = model.tensor(&content_type, &bytes, None)?;
        let outputs = model.run(&tensor)?;
        let (shown, doubt) = task.read(&outputs, &tensor.frame)?;
        let (candidates, _) = wide.read(&outputs, &tensor.frame)?;
        match (shown, candidates) {
            (Output::Boxes(shown), Output::Boxes(candidates)) => Ok(Answer { candidates, shown, doubt }),
            _ => Err("the model finds nothing: it is no detector".into()),
        }
    };
    photos.iter().map(answer).collect()
}

/// The same reading, showing every candidate.
fn wide(task: &Task) -> Fallible<Task> {
    let mut task = task.clone();
    if let Reading::Boxes(detect) = &mut task.reading {
        detect.shown_min = Share::new(CANDIDATES_FROM)?;
        detect.shown.clear();
    }
    Ok(task)
}

fn map50(photos: &[Photo], answers: &[Answer]) -> f64 {
    let mut labels: Vec<&str> = photos.iter().flat_map(|photo| &photo.truth).map(|one| one.label.as_str()).collect();
    labels.sort_unstable();
    labels.dedup();
    labels.iter().map(|label| average_precision(label, photos, answers)).sum::<f64>() / labels.len().max(1) as f64
}

fn average_precision(label: &str, photos: &[Photo], answers: &[Answer]) -> f64 {
    let there: usize = photos.iter().map(|photo| photo.truth.iter().filter(|one| one.label == label).count()).sum();
    let mut said: Vec<(usize, &Found)> = Vec::new();
    for (photo, answer) in answers.iter().enumerate() {
        said.extend(answer.candidates.iter().filter(|one| one.label == label).map(|one| (photo, one)));
    }
    said.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
    let mut taken: Vec<Vec<bool>> = photos.iter().map(|photo| vec![false; photo.truth.len()]).collect();
    let mut right = 0;
    let mut curve = Vec::with_capacity(said.len());
    for (rank, (photo, one)) in said.into_iter().enumerate() {
        let free =
            photos[photo].truth.iter().enumerate().filter(|(at, truth)| truth.label == label && !taken[photo][*at]);
        let best = free.map(|(at, truth)| (at, iou(&truth.place, &one.place))).max_by(|(_, a), (_, b)| a.total_cmp(b));
        if let Some((at, _)) = best.filter(|(_, share)| *share >= IOU_MIN) {
            taken[photo][at] = true;
            right += 1;
        }
        curve.push((f64::from(right) / there as f64, f64::from(right) / (rank + 1) as f64));
    }
    // The best precision from each recall on.
    let mut best = 0.0_f64;
    for (_, precision) in curve.iter_mut().rev() {
        best = best.max(*precision);
        *precision = best;
    }
    let at = |step: usize| {
        let recall = step as f64 / (RECALL_STEPS - 1) as f64;
        curve.iter().find(|(reached, _)| *reached >= recall).map_or(0.0, |(_, precision)| *precision)
    };
    (0..RECALL_STEPS).map(at).sum::<f64>() / RECALL_STEPS as f64
}

/// The photos of a folder with their boxes.
fn labelled(folder: &Path) -> Fallible<Vec<Photo>> {
    let table = folder.join("boxes.csv");
    if table.is_file() {
        return from_table(folder, &std::fs::read_to_string(&table)?);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Fallible<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let file = files.first().ok_or_else(|| format!("{} holds neither boxes.csv nor COCO's JSON", folder.display()))?;
    from_coco(folder, &std::fs::read(file)?).map_err(|error| format!("{}: {error}", file.display()).into())
}

#[expect(clippy::cast_possible_truncation, reason = "shares of a photo")]
fn found(label: &str, [left, top, right, bottom]: [f64; 4], [width, height]: [f64; 2]) -> Found {
    let place = Rect {
        left: (left / width) as f32,
        top: (top / height) as f32,
        width: ((right - left) / width) as f32,
        height: ((bottom - top) / height) as f32,
    };
    Found { label: label.to_owned(), score: 1.0, place }
}

fn from_table(folder: &Path, text: &str) -> Fallible<Vec<Photo>> {
    let mut photos: BTreeMap<&str, Vec<Found>> = BTreeMap::new();
    for (at, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split(',').map(str::trim).collect();
        let wrong = || format!("boxes.csv, line {}: not file, width, height, label, x1, y1, x2, y2", at + 1);
        let [file, width, height, label, corners @ ..] = words.as_slice() else { return Err(wrong().into()) };
        let number = |word: &&str| word.parse::<f64>().map_err(|_| wrong());
        let truth = photos.entry(file).or_default();
        // A photo without anything has a line without a box.
        if label.is_empty() {
            continue;
        }
        let corners: Vec<f64> = corners.iter().map(number).collect::<Result<_, _>>()?;
        let corners: [f64; 4] = corners.try_into().map_err(|_| wrong())?;
        truth.push(found(label, corners, [number(width)?, number(height)?]));
    }
    Ok(photos.into_iter().map(|(file, truth)| Photo { file: folder.join(file), truth }).collect())
}

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<CocoBox>,
    categories: Vec<CocoLabel>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
    width: f64,
    height: f64,
}

#[derive(Deserialize)]
struct CocoBox {
    image_id: u64,
    category_id: u64,
    /// Left, top, width, height.
    bbox: [f64; 4],
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct CocoLabel {
    id: u64,
    name: String,
}

fn from_coco(folder: &Path, json: &[u8]) -> Fallible<Vec<Photo>> {
    let Coco { images, annotations, categories } = serde_json::from_slice(json)?;
    let names: BTreeMap<u64, String> = categories.into_iter().map(|label| (label.id, label.name)).collect();
    let mut photos: BTreeMap<u64, (Photo, [f64; 2])> = BTreeMap::new();
    for CocoImage { id, file_name, width, height } in images {
        let beside = [folder.join(&file_name), folder.join("images").join(&file_name)];
        let file = beside.iter().find(|file| file.is_file()).ok_or_else(|| format!("there is no photo {file_name}"))?;
        photos.insert(id, (Photo { file: file.clone(), truth: Vec::new() }, [width, height]));
    }
    // A crowd is no single thing: nobody is asked to find it.
    for CocoBox { image_id, category_id, bbox: [left, top, width, height], .. } in
        annotations.into_iter().filter(|one| one.iscrowd == 0)
    {
        let (photo, size) = photos.get_mut(&image_id).ok_or_else(|| format!("there is no image {image_id}"))?;
        let label = names.get(&category_id).ok_or_else(|| format!("there is no category {category_id}"))?;
        photo.truth.push(found(label, [left, top, left + width, top + height], *size));
    }
    Ok(photos.into_values().map(|(photo, _)| photo).collect())
}
