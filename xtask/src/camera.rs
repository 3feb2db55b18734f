//! A camera for the demo: the pictures of a folder, one after the other, on standard output.
//!
//! Each with its length before it, because some are PNG; a camera that speaks MJPEG needs no such thing.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_tests::wait;

/// What a real camera reaches; the agent is not measured here.
const RATE_MAX: f64 = 60.0;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The pictures.
    dir: PathBuf,
    /// Pictures per second.
    #[arg(long, default_value_t = 2.0)]
    fps: f64,
    /// Which picture comes first.
    #[arg(long, default_value_t = 0)]
    first: usize,
    /// Stays silent while this file is absent.
    #[arg(long)]
    shutter: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.fps > 0.0 && arguments.fps <= RATE_MAX, "--fps must be above 0 and at most {RATE_MAX}");
    let pictures = pictures(&arguments.dir)?;
    let mut output = std::io::stdout().lock();
    for picture in pictures.iter().cycle().skip(arguments.first % pictures.len()) {
        wait::pause(Duration::from_secs_f64(1.0 / arguments.fps));
        if arguments.shutter.as_ref().is_some_and(|shutter| !shutter.exists()) {
            continue;
        }
        let length = u32::try_from(picture.len()).context("a picture over 4 GiB")?.to_be_bytes();
        match output.write_all(&length).and_then(|()| output.write_all(picture)).and_then(|()| output.flush()) {
            // The reader is gone, and with it the reason to take pictures.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            outcome => outcome.context("cannot write a picture")?,
        }
    }
    Ok(())
}

/// All pictures of a folder by name.
fn pictures(dir: &Path) -> Result<Vec<Vec<u8>>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "jpg" || ending == "png"));
    paths.sort();
    ensure!(!paths.is_empty(), "{} holds no .jpg or .png file", dir.display());
    paths.iter().map(|path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))).collect()
}
