//! What was said of the pictures of one half, as each format has it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use hedge_proto::{Found, Output, PayloadForm, Rect};
use serde_json::{Value, json};
use tempfile::tempfile_in;

use super::{Format, Half, boxes};
use crate::store::CaseRow;

/// One picture of the archive.
pub(super) struct Picture {
    /// Below its half's folder.
    pub(super) file: String,
    pub(super) bytes: Vec<u8>,
    /// Width and height of the upright picture, where boxes are told in pixels.
    pub(super) size: Option<(u32, u32)>,
}

/// Labels on their way into the archive.
pub(super) enum Labels {
    Lines { name: &'static str, format: Format, file: BufWriter<File> },
    Coco(Box<Coco>),
}

/// Pictures and boxes stand in two lists of one document.
pub(super) struct Coco {
    scratch: PathBuf,
    images: BufWriter<File>,
    boxes: BufWriter<File>,
    count: (u64, u64),
    /// Numbered from 1, as they came.
    labels: BTreeMap<String, usize>,
}

const COLUMNS: &str = "file,id,device,source,task,label,score,left,top,width,height,authority,by,revision,given_ms,device_label,device_score,form\n";

impl Labels {
    pub(super) fn new(format: Format, scratch: &Path) -> io::Result<Self> {
        let lines = |name, head: &str| {
            let mut file = BufWriter::new(tempfile_in(scratch)?);
            file.write_all(head.as_bytes())?;
            Ok(Self::Lines { name, format, file })
        };
        match format {
            Format::Jsonl => lines("labels.jsonl", ""),
            Format::Csv => lines("labels.csv", COLUMNS),
            Format::Coco => Ok(Self::Coco(Box::new(Coco {
                scratch: scratch.to_owned(),
                images: BufWriter::new(tempfile_in(scratch)?),
                boxes: BufWriter::new(tempfile_in(scratch)?),
                count: (0, 0),
                labels: BTreeMap::new(),
            }))),
        }
    }

    pub(super) fn add(&mut self, row: &CaseRow, picture: &Picture) -> io::Result<()> {
        match self {
            Self::Coco(coco) => coco.add(row, picture),
            Self::Lines { format: Format::Csv, file, .. } => csv_lines(row, picture, file),
            Self::Lines { file, .. } => writeln!(file, "{}", line(row, picture)),
        }
    }

    /// The file and its name below its half's folder.
    pub(super) fn finish(self) -> io::Result<(&'static str, File)> {
        match self {
            Self::Lines { name, file, .. } => Ok((name, whole(file)?)),
            Self::Coco(coco) => Ok(("annotations.json", coco.finish()?)),
        }
    }
}

fn whole(file: BufWriter<File>) -> io::Result<File> {
    file.into_inner().map_err(io::IntoInnerError::into_error)
}

fn line(row: &CaseRow, picture: &Picture) -> Value {
    let case = &row.case;
    let verdict = row.verdict();
    json!({
        "file": picture.file,
        "form": case.form,
        "view": labelled_part(row),
        "id": case.id.to_string(),
        "device": case.id.device,
        "half": Half::of(case.id.device.as_str()),
        "source": case.source,
        "task": case.task,
        "label": verdict.and_then(|verdict| boxes(&verdict.said).is_none().then(|| verdict.said.headline())),
        "found": verdict.and_then(|verdict| boxes(&verdict.said)),
        "authority": verdict.map(|verdict| verdict.authority),
        "by": verdict.map(|verdict| &verdict.model),
        "revision": verdict.map(|verdict| verdict.revision),
        "given_ms": row.given_ms,
        "device_said": case.said,
        "device_model": case.model,
    })
}

/// A line for each box, or one for the label.
fn csv_lines(row: &CaseRow, picture: &Picture, file: &mut impl Write) -> io::Result<()> {
    let Some(verdict) = row.verdict() else { return Ok(()) };
    let case = &row.case;
    let (id, given_ms) = (case.id.to_string(), row.given_ms.unwrap_or_default().to_string());
    let word = |word: serde_json::Result<Value>| {
        word.map(|word| word.as_str().unwrap_or_default().to_owned()).map_err(io::Error::from)
    };
    let authority = word(serde_json::to_value(verdict.authority))?;
    let form = word(serde_json::to_value(case.form))?;
    let own = case.said.as_ref().map_or_else(String::new, Output::headline);
    let own_score = case.said.as_ref().and_then(Output::score).map_or_else(String::new, |score| score.to_string());
    let mut put = |label: &str, score: Option<f32>, place: [String; 4]| {
        let score = score.map_or_else(String::new, |score| score.to_string());
        let mut fields = vec![&*picture.file, &id, case.id.device.as_str(), &case.source, &case.task, label, &score];
        fields.extend(place.iter().map(String::as_str));
        let revision = verdict.revision.to_string();
        fields.extend([&*authority, &verdict.model.name, &revision, &given_ms, &own, &own_score, &form]);
        let fields: Vec<String> = fields.into_iter().map(quoted).collect();
        writeln!(file, "{}", fields.join(","))
    };
    let edges = |place: Rect| [place.left, place.top, place.width, place.height].map(|edge| edge.to_string());
    match boxes(&verdict.said) {
        None => {
            let place = labelled_part(row).map(edges).unwrap_or_default();
            put(&verdict.said.headline(), verdict.said.score(), place)
        }
        Some(found) => {
            found.iter().try_for_each(|Found { label, score, place }| put(label, Some(*score), edges(*place)))
        }
    }
}

/// The part of the picture that the label is about, where that is not all of it. Boxes say themselves where they are.
fn labelled_part(row: &CaseRow) -> Option<Rect> {
    let is_label = row.verdict().is_some_and(|verdict| boxes(&verdict.said).is_none());
    row.case.view.filter(|_| is_label && row.case.form != PayloadForm::Crop)
}

/// As RFC 4180 has it; a table program must not take it for a formula.
fn quoted(text: &str) -> String {
    let is_formula = text.starts_with(['=', '+', '@', '\t']) || (text.starts_with('-') && text.parse::<f64>().is_err());
    let text = if is_formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

impl Coco {
    fn add(&mut self, row: &CaseRow, picture: &Picture) -> io::Result<()> {
        let found = row.verdict().and_then(|verdict| boxes(&verdict.said));
        let (Some(found), Some((width, height))) = (found, picture.size) else { return Ok(()) };
        let (images, annotations) = &mut self.count;
        let comma = |count: u64| if count == 0 { "" } else { ",\n" };
        let image = json!({
            "id": *images + 1, "file_name": picture.file, "width": width, "height": height,
            "hedge": {"id": row.case.id.to_string(), "device": row.case.id.device},
        });
        write!(self.images, "{}{image}", comma(*images))?;
        *images += 1;
        for Found { label, score, place } in found {
            let next = self.labels.len() + 1;
            let category = *self.labels.entry(label.clone()).or_insert(next);
            let (w, h) = (f64::from(width), f64::from(height));
            let [left, top] = [f64::from(place.left) * w, f64::from(place.top) * h];
            let [wide, high] = [f64::from(place.width) * w, f64::from(place.height) * h];
            let one = json!({
                "id": *annotations + 1, "image_id": *images, "category_id": category, "bbox": [left, top, wide, high],
                "area": wide * high, "iscrowd": 0, "score": score,
            });
            write!(self.boxes, "{}{one}", comma(*annotations))?;
            *annotations += 1;
        }
        Ok(())
    }

    fn finish(self) -> io::Result<File> {
        let mut labels: Vec<_> = self.labels.into_iter().collect();
        labels.sort_by_key(|(_, number)| *number);
        let categories: Vec<Value> = labels.iter().map(|(name, number)| json!({"id": number, "name": name})).collect();
        let (mut images, mut boxes) = (whole(self.images)?, whole(self.boxes)?);
        let mut file = tempfile_in(&self.scratch)?;
        file.write_all(b"{\"images\":[")?;
        images.rewind()?;
        io::copy(&mut images, &mut file)?;
        file.write_all(b"],\n\"annotations\":[")?;
        boxes.rewind()?;
        io::copy(&mut boxes, &mut file)?;
        write!(file, "],\n\"categories\":{}}}\n", Value::from(categories))?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::as_shown;
    use crate::store::Standing;
    use crate::store::testing::case;
    use hedge_proto::{Authority, Case, Verdict};

    #[test]
    fn boxes_are_in_pixels_of_their_picture_and_each_label_has_one_number() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut labels = Labels::new(Format::Coco, dir.path()).expect("files");
        let found = |label: &str| Found {
            label: label.to_owned(),
            score: 1.0,
            place: Rect { left: 0.5, top: 0.25, width: 0.25, height: 0.5 },
        };
        for sequence in 0..2 {
            let mut case = case(sequence);
            // Of the second only the right half came.
            if sequence == 1 {
                let view = Some(Rect { left: 0.5, width: 0.5, ..Rect::WHOLE });
                case = Case { form: PayloadForm::Crop, view, ..case };
            }
            let verdict = Verdict {
                v: 2,
                id: case.id.clone(),
                revision: 2,
                authority: Authority::Person,
                task: case.task.clone(),
                said: Output::Boxes(vec![found("cat"), found("dog")]),
                model: case.model.clone(),
            };
            let row = CaseRow {
                case,
                received_ms: 0,
                standing: Standing::Answered(verdict),
                given_ms: Some(1),
                agrees: None,
                payload_bytes: 1,
                payload_kept: true,
            };
            let picture =
                Picture { file: format!("pictures/{sequence}.png"), bytes: Vec::new(), size: Some((200, 100)) };
            labels.add(&as_shown(row), &picture).expect("added");
        }
        let (name, mut file) = labels.finish().expect("finished");
        file.rewind().expect("from its beginning");
        let coco: Value = serde_json::from_reader(file).expect("JSON");
        assert_eq!(name, "annotations.json");
        assert_eq!((&coco["images"][1]["id"], &coco["images"][1]["width"]), (&json!(2), &json!(200)));
        assert_eq!(coco["categories"], json!([{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]));
        let boxes = coco["annotations"].as_array().expect("boxes");
        let numbers: Vec<_> = boxes.iter().map(|one| (&one["id"], &one["image_id"], &one["category_id"])).collect();
        let wanted = [(1, 1, 1), (2, 1, 2), (3, 2, 1), (4, 2, 2)].map(|(a, b, c)| (json!(a), json!(b), json!(c)));
        assert_eq!(numbers, wanted.iter().map(|(a, b, c)| (a, b, c)).collect::<Vec<_>>());
        assert_eq!(boxes[0]["bbox"], json!([100.0, 25.0, 50.0, 50.0]));
        assert_eq!(boxes[2]["bbox"], json!([0.0, 25.0, 100.0, 50.0]));
    }

    #[test]
    fn a_field_of_a_table_is_neither_two_nor_a_formula() {
        for (text, written) in
            [("cat", "cat"), ("a,b", "\"a,b\""), ("=1+1", "'=1+1"), ("-0.5", "-0.5"), ("\"", "\"\"\"\"")]
        {
            assert_eq!(quoted(text), written);
        }
    }
}
