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

/// Writes the archive. `scratch` is a folder on a disk with room for the labels.
pub fn write(
    reader: &Reader,
    mut sought: Sought,
    format: Format,
    out: impl Write,
    scratch: &Path,
) -> Result<Counts, ExportError> {
    let mut archive = tar::Builder::new(BufWriter::new(out));
    let mut labels = Half::BOTH.map(|half| (half, None::<Labels>));
    let mut counts = Counts::default();
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
            append(
                &mut archive,
                &format!("{}/{}", half.name(), picture.file),
                picture.bytes.len() as u64,
                &*picture.bytes,
            )?;
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
            append(&mut archive, &format!("{}/{name}", half.name()), bytes, file)?;
        }
    }
    let told = serde_json::to_vec_pretty(&counts).map_err(io::Error::from)?;
    append(&mut archive, "counts.json", told.len() as u64, &*told)?;
    archive.into_inner()?.flush()?;
    Ok(counts)
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
