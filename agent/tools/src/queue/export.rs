//! Writes cases out: `<id>.json` and, while it is there, `<id>.jpg`, `.png` or `.bin` beside it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::reach::Reach;
use hedge_agent::queue::{Id, Stage};

/// What an export did.
#[derive(Debug, Default, Serialize)]
pub(super) struct Exported {
    pub(super) cases: u64,
    pub(super) payload_bytes: u64,
    /// Cases that could not be read or written, and why.
    pub(super) problems: Vec<String>,
}

/// Writes every case of `stage`, or all. A case that is answered meanwhile is left out.
pub(super) async fn run(reach: &Reach, dir: &Path, stage: Option<Stage>) -> anyhow::Result<Exported> {
    // Samples are for nobody else's eyes.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    let mut exported = Exported::default();
    for id in reach.ids(stage).await? {
        match case(reach, dir, id).await {
            Ok(Some(bytes)) => {
                exported.cases += 1;
                exported.payload_bytes += bytes;
            }
            Ok(None) => {}
            Err(error) => exported.problems.push(format!("{id}: {}", hedge_proto::in_one_line(&*error))),
        }
    }
    Ok(exported)
}

/// Returns the payload's size; `None` if the case is no longer there.
async fn case(reach: &Reach, dir: &Path, id: Id) -> anyhow::Result<Option<u64>> {
    let Some(case) = reach.show(id).await? else { return Ok(None) };
    let payload = reach.payload(id).await?;
    let name = case.line.id.to_string();
    if let Some(payload) = &payload {
        write(&dir.join(format!("{name}.{}", ending(&case.case.content_type))), payload)?;
    }
    // Last, so that a case with its document is whole.
    write(&dir.join(format!("{name}.json")), &serde_json::to_vec_pretty(&case)?)?;
    Ok(Some(payload.map_or(0, |payload| payload.len() as u64)))
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = file.with_context(failed)?.write_all(bytes);
    if written.is_err() {
        // Half a document would look like a whole case.
        std::fs::remove_file(path).ok();
    }
    written.with_context(failed)
}

fn ending(content_type: &str) -> &'static str {
    match content_type {
        "image/jpeg" => "jpg",
        "image/png" => "png",
        _ => "bin",
    }
}

impl Exported {
    pub(super) fn text(&self, dir: &Path) -> String {
        let size = super::text::size(self.payload_bytes);
        let mut text = format!("{} cases with {size} of payload are in {}", self.cases, dir.display());
        for problem in &self.problems {
            text.push_str("\nnot exported: ");
            text.push_str(problem);
        }
        text
    }
}
