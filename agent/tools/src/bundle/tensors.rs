//! `bundle tensors`: samples as the model sees them, for tools that train or quantise it.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use hedge_inference::bundle::{Input, Layout};
use hedge_inference::task::Scores;
use hedge_inference::{Bundle, Model, Runtime, SessionOptions, Tensor};

use super::Size;
use super::compare::ensure_labels_known;
use crate::samples::{SampleArgs, Set, classes, means};

/// The most that is written: what training holds in memory.
const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Of a sample that could not be read: it stands in all files, so that they stay in step.
const UNREADABLE: i64 = -2;
/// Of one that nobody has labelled.
const UNKNOWN: i64 = -1;

/// Write samples as a bundle's model sees them, as .npy files for training tools.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Writes inputs.npy (float32), classes.npy (whole numbers; -1 is a sample without a label, -2 one that could not be read) and, with \
    --teacher, scores.npy (its probabilities, in the order of the bundle's labels)."
)]
pub struct TensorsArgs {
    /// The folder with the bundle's `manifest.toml`
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub samples: SampleArgs,
    /// Where the files go; a folder that does not exist yet
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Pictures of another size than the model's, WIDTHxHEIGHT
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Size>,
    /// The bundle of a bigger model for the same task, whose answers are to be learned
    #[arg(long, value_name = "DIR")]
    pub teacher: Option<PathBuf>,
    /// Only this many samples from the beginning
    #[arg(long, value_name = "COUNT")]
    pub first: Option<usize>,
    /// At most this many samples, evenly from these
    #[arg(long, value_name = "COUNT", default_value_t = 20_000)]
    pub samples_max: usize,
    /// The ONNX Runtime library [default: searched for]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
}

pub(super) fn write(args: &TensorsArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let bundle = Bundle::open(&args.dir)?;
    classes(&bundle)?;
    let input = match args.size {
        Some(size) => size.of(bundle.input())?,
        None => bundle.input().clone(),
    };
    let set = args.samples.open(bundle.labels())?;
    set.check_labels(&bundle)?;
    ensure!(args.samples_max > 0, "--samples-max 0 leaves no sample");
    let count = args.first.map_or(set.len(), |first| first.min(set.len()));
    let numbers: Vec<usize> = (0..count).step_by(count.div_ceil(args.samples_max).max(1)).collect();
    ensure!(!numbers.is_empty(), "--first 0 leaves no sample");
    let values: usize = input.shape.iter().product();
    let bytes = (values * 4) as u64 * numbers.len() as u64;
    ensure!(
        bytes <= BYTES_MAX,
        "{} samples of {values} numbers are more than the {BYTES_MAX} bytes that training may hold; take fewer samples or smaller pictures",
        numbers.len()
    );
    let mut teacher =
        args.teacher.as_deref().map(|dir| Teacher::open(dir, &bundle, args.library.as_deref())).transpose()?;
    std::fs::create_dir(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut inputs = Npy::create(&args.out.join("inputs.npy"), "<f4", &input.shape[1..])?;
    let mut wanted = Npy::create(&args.out.join("classes.npy"), "<i8", &[])?;
    let mut taught = match &teacher {
        Some(_) => Some(Npy::create(&args.out.join("scores.npy"), "<f4", &[bundle.labels().len()])?),
        None => None,
    };
    let mut unreadable = 0;
    for number in numbers {
        let class =
            set.label(number).and_then(|label| bundle.labels().iter().position(|own| means(&bundle, own, label)));
        let class = class.and_then(|class| i64::try_from(class).ok()).unwrap_or(UNKNOWN);
        let seen = set.tensors(&input, number).and_then(|tensors| {
            let said = teacher.as_mut().map(|teacher| teacher.say(&set, number)).transpose()?;
            ensure!(
                said.as_ref().is_none_or(|said| said.len() == tensors.len()),
                "the teacher sees another number of samples"
            );
            Ok((tensors, said))
        });
        let (tensors, said, class) = match seen {
            Ok((tensors, said)) => (tensors, said, class),
            Err(error) => {
                unreadable += 1;
                eprintln!("left out: {error:#}");
                let nothing = Tensor::new(input.shape.clone(), vec![0.0; values]);
                (vec![nothing], teacher.as_ref().map(|_| vec![vec![0.0; bundle.labels().len()]]), UNREADABLE)
            }
        };
        for tensor in &tensors {
            inputs.floats(&tensor.data)?;
            wanted.row(&class.to_le_bytes())?;
        }
        if let (Some(file), Some(said)) = (&mut taught, said) {
            said.iter().try_for_each(|scores| file.floats(scores))?;
        }
    }
    let rows = inputs.finish()?;
    wanted.finish()?;
    taught.map(Npy::finish).transpose()?;
    ensure!(unreadable < rows, "none of the samples can be read");
    writeln!(out, "{rows} samples, {unreadable} of which could not be read, in {}", args.out.display())?;
    Ok(ExitCode::SUCCESS)
}

impl Size {
    /// What a model takes of pictures of this size.
    pub(super) fn of(self, input: &Input) -> anyhow::Result<Input> {
        let mut input = input.clone();
        let picture = input.picture.as_mut().context("--size is for models of pictures")?;
        let (width, height) = (u32::from(self.width), u32::from(self.height));
        let down = if picture.layout == Layout::Nhwc { 1 } else { 2 };
        for (at, side) in [(down, self.height), (down + 1, self.width)] {
            *input.shape.get_mut(at).context("a picture has four dimensions")? = usize::from(side);
        }
        (picture.width, picture.height) = (width, height);
        Ok(input)
    }
}

/// The bigger model.
struct Teacher {
    bundle: Bundle,
    model: Model,
    /// For each label of the smaller one, the classes of this one that mean it.
    columns: Vec<Vec<usize>>,
}

impl Teacher {
    fn open(dir: &Path, device: &Bundle, library: Option<&Path>) -> anyhow::Result<Self> {
        let bundle = Bundle::open(dir)?;
        classes(&bundle)?;
        ensure_labels_known(device, &bundle)?;
        let model = Model::load(&Runtime::find(library)?, &bundle, None, &SessionOptions::default())?;
        let of = |own: &String| {
            let there = bundle.labels().iter().enumerate().filter(|(_, there)| *there == device.cloud_label(own));
            there.map(|(class, _)| class).collect()
        };
        let columns = device.labels().iter().map(of).collect();
        Ok(Self { bundle, model, columns })
    }

    /// Its probabilities, over the smaller model's labels only.
    fn say(&mut self, set: &Set, number: usize) -> anyhow::Result<Vec<Vec<f32>>> {
        let reading = classes(&self.bundle)?;
        let tensors = set.tensors(self.model.input(), number)?;
        let mut one = |tensor: &Tensor| {
            let output = reading.numbers(&self.model.run(tensor)?, self.bundle.labels().len())?;
            let scores = Scores::read(&output, reading.kind)?;
            let of = |classes: &Vec<usize>| classes.iter().map(|class| scores.as_slice()[*class]).sum();
            let known: Vec<f32> = self.columns.iter().map(of).collect();
            let sum = known.iter().sum::<f32>().max(f32::MIN_POSITIVE);
            Ok(known.into_iter().map(|score| score / sum).collect())
        };
        tensors.iter().map(&mut one).collect()
    }
}

/// A .npy file that is written row by row. How many there are is known at the end.
struct Npy {
    file: BufWriter<File>,
    kind: &'static str,
    row: Vec<usize>,
    rows: usize,
}

/// Of the header, which numpy wants to be a multiple of 64.
const HEADER_BYTES: usize = 128;

impl Npy {
    fn create(path: &Path, kind: &'static str, row: &[usize]) -> anyhow::Result<Self> {
        let file = File::create_new(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut npy = Self { file: BufWriter::new(file), kind, row: row.to_vec(), rows: 0 };
        npy.file.write_all(&npy.header())?;
        Ok(npy)
    }

    fn header(&self) -> Vec<u8> {
        let sizes: String = self.row.iter().map(|size| format!("{size}, ")).collect();
        let kind = self.kind;
        let fields = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({}, {sizes}), }}", self.rows);
        let length = HEADER_BYTES - 10;
        let mut header = b"\x93NUMPY\x01\x00".to_vec();
        header.extend(u16::try_from(length).unwrap_or(0).to_le_bytes());
        header.extend(format!("{fields:<width$}\n", width = length - 1).bytes());
        header
    }

    fn row(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.rows += 1;
        self.file.write_all(bytes)
    }

    fn floats(&mut self, values: &[f32]) -> std::io::Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.row(&bytes)
    }

    fn finish(mut self) -> anyhow::Result<usize> {
        self.file.seek(SeekFrom::Start(0))?;
        let header = self.header();
        self.file.write_all(&header)?;
        self.file.flush()?;
        Ok(self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_rows_says_at_its_end_how_many_there_are() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("rows.npy");
        let mut npy = Npy::create(&path, "<f4", &[1, 2]).expect("a file");
        npy.floats(&[1.0, 2.0]).expect("a row");
        npy.floats(&[3.0, 4.0]).expect("a row");
        assert_eq!(npy.finish().expect("written"), 2);
        let bytes = std::fs::read(&path).expect("read");
        let (header, data) = bytes.split_at(HEADER_BYTES);
        assert!(String::from_utf8_lossy(header).contains("'shape': (2, 1, 2, )") && header.ends_with(b"\n"));
        assert_eq!(data.len(), 16);
    }
}
