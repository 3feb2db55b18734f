//! `bundle derive`: a bundle like another, around another file of the same model: retrained, quantised, made smaller.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use hedge_inference::bundle::{MANIFEST, sum_of};
use hedge_inference::{Bundle, Model, Runtime, SessionOptions, read_text};
use hedge_proto::{Name, Output};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, value};

use super::Size;

/// The file in the new bundle, and its variant's name.
const FILE: &str = "model.onnx";
const VARIANT: &str = "model";

/// Make a bundle like another around a new model file: retrained, quantised or made smaller.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Labels, preprocessing and golden samples are the old bundle's; golden samples that the new model gives another label are left out. \
    Calibrate the new bundle before it is used: `hedge-agent bundle calibrate`."
)]
pub struct DeriveArgs {
    /// The folder with the old bundle's `manifest.toml`
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The new model
    #[arg(long, value_name = "FILE.onnx")]
    pub model: PathBuf,
    /// The new bundle's version
    #[arg(long, value_name = "VERSION")]
    pub version: Name,
    /// Where the new bundle goes; a folder that does not exist yet
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The new model takes pictures of this size, WIDTHxHEIGHT
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Size>,
    /// The new model gives logits, whatever the old one gave
    #[arg(long)]
    pub logits: bool,
    /// The ONNX Runtime library [default: searched for]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
}

pub(super) fn write(args: &DeriveArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let old = Bundle::open(&args.dir)?;
    std::fs::create_dir(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let made = make(args, &old);
    if made.is_err() {
        // Half a bundle helps nobody, and it was not there before.
        std::fs::remove_dir_all(&args.out).ok();
    }
    let lost = made?;
    for file in lost {
        writeln!(out, "left out   {file}: the new model says something else")?;
    }
    writeln!(out, "written    {}", args.out.display())?;
    Ok(ExitCode::SUCCESS)
}

/// The golden samples that the new model answers otherwise.
fn make(args: &DeriveArgs, old: &Bundle) -> anyhow::Result<Vec<String>> {
    let target = args.out.join(FILE);
    std::fs::copy(&args.model, &target).with_context(|| format!("cannot copy {}", args.model.display()))?;
    let manifest = old.manifest();
    let goldens = manifest.goldens.iter().map(|golden| golden.file.as_path());
    for file in manifest.labels.iter().map(|labels| labels.as_path()).chain(goldens) {
        let to = args.out.join(file);
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::copy(args.dir.join(file), &to).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    let path = args.dir.join(MANIFEST);
    let text = read_text(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut document: DocumentMut = text.parse().with_context(|| path.display().to_string())?;
    change(&mut document, args, old)?;
    let new = args.out.join(MANIFEST);
    std::fs::write(&new, document.to_string()).with_context(|| format!("cannot write {}", new.display()))?;
    let lost = keep_goldens(&mut document, args)?;
    std::fs::write(&new, document.to_string()).with_context(|| format!("cannot write {}", new.display()))?;
    Ok(lost)
}

fn change(document: &mut DocumentMut, args: &DeriveArgs, old: &Bundle) -> anyhow::Result<()> {
    let target = args.out.join(FILE);
    let known = old.model_ref();
    let heading = format!("# Made from {} {} by `hedge-agent bundle derive`.\n", known.name, known.version);
    document["version"] = value(args.version.as_str());
    let first = document.iter().next().map(|(key, _)| key.to_owned()).unwrap_or_default();
    if let Some(mut key) = document.key_mut(&first) {
        key.leaf_decor_mut().set_prefix(heading);
    }
    let mut variant = Table::new();
    variant["name"] = value(VARIANT);
    variant["file"] = value(FILE);
    variant["sha256"] = value(sum_of(&target)?.to_string());
    variant["bytes"] = value(i64::try_from(target.metadata()?.len())?);
    let mut variants = ArrayOfTables::new();
    variants.push(variant);
    document["variant"] = Item::ArrayOfTables(variants);
    // What the old one's answers had to reach says nothing of the new one's.
    document.remove("threshold");
    if let Some(size) = args.size {
        let shape = size.of(old.input())?.shape;
        let sizes = shape.iter().map(|side| i64::try_from(*side)).collect::<Result<Array, _>>()?;
        document["input"]["shape"] = value(sizes);
    }
    if args.logits {
        document["output"]["kind"] = value("logits");
    }
    let goldens = document.get_mut("golden").and_then(Item::as_array_of_tables_mut);
    for golden in goldens.into_iter().flat_map(ArrayOfTables::iter_mut) {
        golden.remove("scores");
    }
    Ok(())
}

/// Notes how sure the new model is of each golden sample.
fn keep_goldens(document: &mut DocumentMut, args: &DeriveArgs) -> anyhow::Result<Vec<String>> {
    let bundle = Bundle::open(&args.out)?;
    let mut model = Model::load(&Runtime::find(args.library.as_deref())?, &bundle, None, &SessionOptions::default())?;
    let variant = bundle.variant(None)?;
    let mut lost = Vec::new();
    let mut scores = Vec::new();
    for golden in &bundle.manifest().goldens {
        ensure!(golden.label.is_some(), "{} finds things; derive is for models that classify", args.dir.display());
        let outcome = model.check_golden(&bundle, variant, golden)?;
        let score = match &outcome.said {
            Output::Classes(said) if outcome.passed() => said.first().map(|best| best.score),
            _ => None,
        };
        if score.is_none() {
            let file = golden.file.as_path();
            lost.push(file.display().to_string());
            // A sample that is not named is no part of the bundle.
            std::fs::remove_file(args.out.join(file))
                .with_context(|| format!("cannot leave out {}", file.display()))?;
        }
        scores.push(score);
    }
    if let Some(goldens) = document.get_mut("golden").and_then(Item::as_array_of_tables_mut) {
        for (golden, score) in goldens.iter_mut().zip(&scores) {
            let mut by_variant = InlineTable::new();
            // Four decimals, as people write them.
            let score = (f64::from(score.unwrap_or(0.0)) * 10_000.0).round() / 10_000.0;
            by_variant.insert(VARIANT, score.into());
            golden["scores"] = value(by_variant);
        }
        let mut left = scores.iter().map(Option::is_some);
        goldens.retain(|_| left.next().unwrap_or(true));
    }
    Ok(lost)
}
