//! Writes cases as a training set: their pictures, and what was said of them, in one tar archive.
//!
//! Only what is on record goes in: cases that a model or a person has answered and whose picture is still kept. What is
//! left out is counted, by reason, in `counts.json`. Each device is either in `train/` or in `test/`, by its name alone, so
//! that a model is never tested on the surroundings it has seen, and later exports put it where the first did.
//!
//! One picture is in memory at a time; the labels wait in files without a name and follow the pictures.

pub mod cli;
mod labels;

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::mem::ManuallyDrop;
use std::path::Path;

use hedge_inference::{ContentType, upright_size};
use hedge_proto::{Authority, Digest, Found, Output, PayloadForm};
use serde::{Deserialize, Serialize};

use self::labels::{Labels, Picture};
use crate::store::{CaseList, CaseRow, Place, Reader, Sought, Standing, StoreError};

/// Why there is no whole archive.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Records(#[from] StoreError),
    #[error("the archive cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// How labels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `labels.jsonl`: a JSON object for each picture
    #[default]
    Jsonl,
    /// `annotations.json`: boxes as COCO has them; pictures without boxes are left out
    Coco,
    /// `labels.csv`: a line for each label or box
    Csv,
}

/// Which half a device is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    Train,
    Test,
}

impl Half {
    const BOTH: [Self; 2] = [Self::Train, Self::Test];

    /// About a fifth of all devices are for tests.
    #[must_use]
    pub fn of(device: &str) -> Self {
        let Digest([first, ..]) = Digest::of(device.as_bytes());
        if first < u8::MAX / 5 { Self::Test } else { Self::Train }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// What is in the archive, and how many cases are not, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub train: u64,
    pub test: u64,
    pub left_out: BTreeMap<&'static str, u64>,
}

/// How many cases are looked up at once.
const CHUNK: u32 = 200;

/// Writes the archive. `scratch` is a folder on a disk with room for the labels. Where that fails after a part of it was
/// written, its last file says why and breaks off: a reader of archives sees that it is not whole.
pub fn write(
    reader: &Reader,
    sought: Sought,
    format: Format,
    out: impl Write,
    scratch: &Path,
) -> Result<Counts, ExportError> {
    let (mut out, mut counts) = (BufWriter::new(out), Counts::default());
    // Dropped, it would write the end of an archive also where it has none.
    let mut archive = ManuallyDrop::new(tar::Builder::new(&mut out));
    match fill(&mut archive, reader, sought, format, scratch, &mut counts) {
        Ok(()) => {
            ManuallyDrop::into_inner(archive).into_inner()?.flush()?;
            Ok(counts)
        }
        Err(error) => {
            if counts.train + counts.test > 0 {
                let why = error.to_string();
                // Whoever took it may be why, and does not hear of it.
                drop(append(&mut archive, "incomplete.txt", why.len() as u64 + MISSING, why.as_bytes()));
            }
            Err(error)
        }
    }
}

/// More than a block: what fills the last one up is no content.
const MISSING: u64 = 1024;

fn fill(
    archive: &mut tar::Builder<impl Write>,
    reader: &Reader,
    mut sought: Sought,
    format: Format,
    scratch: &Path,
    counts: &mut Counts,
) -> Result<(), ExportError> {
    let mut labels = Half::BOTH.map(|half| (half, None::<Labels>));
    loop {
        let CaseList { rows, more_after } = reader.find(&sought, CHUNK)?.unwrap_or_default();
        for row in rows.into_iter().map(as_shown) {
            let picture = match picture(reader, &row, format)? {
                Ok(picture) => picture,
                Err(why) => {
                    *counts.left_out.entry(why).or_default() += 1;
                    continue;
                }
            };
            let half = Half::of(row.case.id.device.as_str());
            let path = format!("{}/{}", half.name(), picture.file);
            append(archive, &path, picture.bytes.len() as u64, &*picture.bytes)?;
            let index = usize::from(half == Half::Test);
            let labels = match &mut labels[index].1 {
                Some(labels) => labels,
                none => none.insert(Labels::new(format, scratch)?),
            };
            labels.add(&row, &picture)?;
            *if half == Half::Test { &mut counts.test } else { &mut counts.train } += 1;
        }
        let Some(last) = more_after else { break };
        sought.place = Place::After(last);
    }
    for (half, labels) in labels {
        if let Some(labels) = labels {
            let (name, mut file) = labels.finish()?;
            let bytes = file.seek(io::SeekFrom::End(0))?;
            file.rewind()?;
            append(archive, &format!("{}/{name}", half.name()), bytes, file)?;
        }
    }
    let told = serde_json::to_vec_pretty(&counts).map_err(io::Error::from)?;
    Ok(append(archive, "counts.json", told.len() as u64, &*told)?)
}

fn append(archive: &mut tar::Builder<impl Write>, path: &str, bytes: u64, from: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    archive.append_data(&mut header, path, from)
}

/// Boxes have their places in the whole picture, and where only a part of it came, in the training set in that.
fn as_shown(mut row: CaseRow) -> CaseRow {
    if let Some(around) = row.case.view.filter(|_| row.case.form == PayloadForm::Crop).map(|view| view.around()) {
        row.case.said = row.case.said.map(|said| said.within(&around));
        if let Standing::Answered(verdict) = &mut row.standing {
            verdict.said = verdict.said.clone().within(&around);
        }
    }
    row
}

/// The picture of a case, or why the case is no part of a training set.
fn picture(reader: &Reader, row: &CaseRow, format: Format) -> Result<Result<Picture, &'static str>, StoreError> {
    let Some(verdict) = row.verdict() else { return Ok(Err("not_answered")) };
    if verdict.authority == Authority::Device {
        return Ok(Err("answered_by_the_device_alone"));
    }
    if format == Format::Coco && boxes(&verdict.said).is_none() {
        return Ok(Err("no_boxes"));
    }
    let known = ContentType::parse(&row.case.content_type);
    let Some((content_type, ending)) = known.and_then(|known| known.ending().map(|ending| (known, ending))) else {
        return Ok(Err("no_picture"));
    };
    let folder = if content_type.is_picture() { "pictures" } else { "samples" };
    let Some((_, bytes)) = reader.payload(&row.case.id)? else { return Ok(Err("picture_no_longer_kept")) };
    if bytes.is_empty() {
        return Ok(Err("no_picture"));
    }
    let size = if format == Format::Coco {
        let Ok(size) = upright_size(&content_type, &bytes) else { return Ok(Err("picture_cannot_be_read")) };
        Some(size)
    } else {
        None
    };
    Ok(Ok(Picture { file: format!("{folder}/{}.{ending}", row.case.id), bytes, size }))
}

fn boxes(said: &Output) -> Option<&[Found]> {
    if let Output::Boxes(found) = said { Some(found) } else { None }
}

#[cfg(test)]
mod tests {
    use hedge_proto::{ModelRef, Name, Verdict, WIRE_VERSION};

    use super::*;
    use crate::store::testing::case;
    use crate::store::{FILE_NAME, Objects, RecordsAt, Writer};

    #[test]
    fn an_archive_that_is_not_whole_says_why_and_breaks_off() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("payloads");
        let objects = Objects::open(&format!("file://{}", folder.display()), &|_| None).expect("opened");
        let at = RecordsAt::file(dir.path().join(FILE_NAME)).with_objects(objects);
        let mut writer = Writer::open(&at, &Name::new("one").expect("valid")).expect("records");
        for sequence in 0..3 {
            let case = case(sequence);
            let batch = writer.batch().expect("a batch");
            batch.record(&case, b"p", sequence).expect("recorded");
            let (said, authority) = (Output::label("a"), Authority::Model);
            let model = ModelRef { name: "m".to_owned(), version: "1".to_owned() };
            let (id, task) = (case.id, case.task);
            let verdict = Verdict { v: WIRE_VERSION, id, revision: 1, authority, task, said, model };
            batch.answer(&verdict, None, sequence).expect("answered");
            batch.commit().expect("committed");
        }
        let reader = Reader::open(&at).expect("records");
        let export = || {
            let mut out = Vec::new();
            (write(&reader, Sought::default(), Format::Jsonl, &mut out, dir.path()), out)
        };
        let (whole, archive) = export();
        let whole = whole.expect("whole");
        assert_eq!(whole.train + whole.test, 3);
        let names = |archive: &[u8]| -> Vec<String> {
            let mut read = tar::Archive::new(archive);
            let entries = read.entries().expect("an archive").map_while(Result::ok);
            entries.map(|entry| entry.path().expect("a path").display().to_string()).collect()
        };
        assert_eq!(names(&archive).last().map(String::as_str), Some("counts.json"));

        let sum = case(0).payload_sha256.to_string();
        let payload = folder.join(&sum[..2]).join(format!("{}_{sum}", case(0).id));
        std::fs::remove_file(&payload).expect("there");
        std::fs::create_dir(&payload).expect("in its place");
        let (broken, archive) = export();
        let why = broken.expect_err("the store cannot be used").to_string();
        let [first, second, incomplete] = &names(&archive)[..] else { panic!("{:?}", names(&archive)) };
        assert!(first.ends_with(".2.png") && second.ends_with(".1.png") && incomplete == "incomplete.txt");
        let mut read = tar::Archive::new(&*archive);
        let mut last = read.entries().expect("an archive").nth(2).expect("the reason").expect("an entry");
        let mut said = Vec::new();
        let end = last.read_to_end(&mut said);
        assert!(said.starts_with(why.as_bytes()));
        assert!(end.is_err() || (said.len() as u64) < last.size(), "its end is missing");

        std::fs::rename(&folder, dir.path().join("away")).expect("moved");
        let (away, archive) = export();
        assert!(away.is_err() && archive.is_empty(), "what has not begun is not sent");
    }
}
