//! `bundle update`: fetches a signed bundle, tries it, and makes it the one that is run, or first lets it look on. `bundle
//! promote` makes one that looks on the one that is run, `bundle back` undoes it.
//!
//! ```text
//! root, next roots, list ─▶ the entry ─▶ model.sig ─▶ each file, by its sum ─▶ the folder as a whole
//!      (core decides)       (pinned)     (a release key)    (into NAME-….part)      │ synced, renamed
//!                                                                                   ▼
//!                        shelf.json and the link ◀── golden samples in a child of limited means
//! ```
//! Whatever fails, the bundle that is run stays. What was fetched stays, too, and is gone on with the next time.

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use hedge_agent::bundles::Shelves;
use hedge_agent::clock::Clock;
use hedge_agent::state::StateFile;
use hedge_config::{BundlesConfig, BundlesUrl, Config, ModelConfig, ThresholdConfig};
use hedge_core::clock::Moment;
use hedge_core::release::shelf::{Held, NotTried, Shelf};
use hedge_core::release::{Dates, Entry, Root, Trusted, name_and_version};
use hedge_identity::{Certificate, built_ms, wall_ms};
use hedge_inference::Bundle;
use hedge_inference::signing::{Envelope, Payload, SIGNATURE, Verified, self_contained, verify_folder};
use hedge_outbox::files::replace;
use hedge_proto::Name;

use super::fetch::Server;
use super::proof;
use crate::{ConfigArgument, read_file};

/// Fetch a signed bundle, try it, and make it the one a model runs from the agent's next reload on.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// The model, as the configuration names it
    #[arg(value_name = "MODEL")]
    pub model: Name,
    /// The bundle, as the list on the server names it
    #[arg(value_name = "NAME/VERSION", value_parser = name_and_version)]
    pub wanted: (Name, Name),
    /// The folder of published bundles: http://… or https://… [default: `[bundles] url` of the configuration]
    #[arg(long, value_name = "URL", value_parser = url)]
    pub from: Option<BundlesUrl>,
    /// The first root (root/1.json of that folder), which says whose signatures count; needed once [default: `[bundles]
    /// root` of the configuration]
    #[arg(long, value_name = "FILE")]
    pub root: Option<PathBuf>,
    /// Let it look at what the current bundle answers first: a candidate, until it is promoted or given up
    #[arg(long)]
    pub shadow: bool,
    /// Try it although it has failed here before
    #[arg(long)]
    pub again: bool,
    /// Fetch no faster, and say how many bytes have come: for the agent, which counts them
    #[arg(long, value_name = "N", hide = true)]
    pub bytes_per_s: Option<NonZeroU64>,
    #[command(flatten)]
    pub config: ConfigArgument,
}

/// Which model.
#[derive(Debug, clap::Args)]
pub struct ShelfArgs {
    /// The model, as the configuration names it
    #[arg(value_name = "MODEL")]
    pub model: Name,
    #[command(flatten)]
    pub config: ConfigArgument,
}

fn url(text: &str) -> Result<BundlesUrl, String> {
    text.to_owned().try_into()
}

/// Why a bundle that came as signed is not run.
struct Bad(String);

pub(super) fn update(args: &UpdateArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config.config, std::env::vars())?;
    let model = model_of(&config, &args.model)?;
    let shelves = Shelves::of(&config.state_dir, &model.name);
    let _alone = alone(&shelves)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (held, staged) = match runtime.block_on(fetched(args, &config, &shelves, out))? {
        Ok(fetched) => fetched,
        Err((held, Bad(reason))) => return failed(&shelves, held, &reason, out),
    };
    writeln!(out, "verified   every file is as signed")?;
    // A person sees that it never ends; the agent by itself would go on for ever.
    let insists = args.again || args.bytes_per_s.is_none();
    if let Err(reason) = shelves.change(|shelf| shelf.trial_begins(&held, insists))? {
        return failed(&shelves, held, reason, out);
    }
    let checked = fits(&staged, &held, model).and_then(|()| {
        let variant = model.variant.as_deref();
        runtime.block_on(proof::run(&staged, variant, config.runtime.library.as_deref()))
    });
    if let Err(reason) = checked {
        return failed(&shelves, held, &reason, out);
    }
    writeln!(out, "tried      its golden samples give the answers they should")?;
    let place = shelves.dir().join(held.folder());
    if staged != place {
        fs::rename(&staged, &place).with_context(|| place.display().to_string())?;
    }
    File::open(shelves.dir())?.sync_all()?;
    // With nothing to compare it with it could only wait.
    let (shadow, shelf) = shelves.change(|shelf| {
        let shadow = args.shadow && shelf.current.is_some();
        if shadow {
            shelf.stage(held.clone())
        } else {
            shelf.promote(held.clone())
        }
        (shadow, shelf.clone())
    })?;
    shelves.clear_away(&shelf)?;
    if shadow {
        writeln!(out, "candidate  {}/{} looks at what the current bundle answers", held.name, held.version)?;
        return say_next(&shelves, model, out).map(|()| ExitCode::SUCCESS);
    }
    runs(&shelf, &shelves, model, "promoted", out)
}

/// Another bundle is the current one.
fn runs(
    shelf: &Shelf,
    shelves: &Shelves,
    model: &ModelConfig,
    what: &str,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    if let Some(held) = &shelf.current {
        writeln!(out, "{what:<11}{}/{} is {}", held.name, held.version, shelves.current().display())?;
    }
    say_next(shelves, model, out)?;
    Ok(ExitCode::SUCCESS)
}

fn say_next(shelves: &Shelves, model: &ModelConfig, out: &mut impl Write) -> anyhow::Result<()> {
    let current = shelves.current();
    if model.bundle == current {
        writeln!(out, "next       reload the agent")?;
    } else {
        writeln!(
            out,
            "next       give model `{}` bundle = \"{}\", and restart the agent",
            model.name,
            current.display()
        )?;
    }
    Ok(())
}

/// Makes another bundle the current one that lies on the device already.
pub(super) fn turn(
    args: &ShelfArgs,
    what: &str,
    turn: impl FnOnce(&mut Shelf) -> Result<(), NotTried>,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config.config, std::env::vars())?;
    let model = model_of(&config, &args.model)?;
    let shelves = Shelves::of(&config.state_dir, &model.name);
    let _alone = alone(&shelves)?;
    let shelf = shelves.change(|shelf| turn(shelf).map(|()| shelf.clone()))??;
    runs(&shelf, &shelves, model, what, out)
}

fn model_of<'a>(config: &'a Config, name: &Name) -> anyhow::Result<&'a ModelConfig> {
    let found = config.models.iter().find(|model| model.name == *name);
    found.with_context(|| format!("the configuration has no model `{name}`"))
}

/// One update of a model at a time: two would write one file.
fn alone(shelves: &Shelves) -> anyhow::Result<File> {
    fs::create_dir_all(shelves.dir()).with_context(|| shelves.dir().display().to_string())?;
    // What another user writes here the agent could not replace.
    let (owner, me) = (fs::metadata(shelves.dir())?.uid(), rustix::process::geteuid().as_raw());
    let above = fs::metadata(shelves.dir().parent().and_then(Path::parent).unwrap_or(shelves.dir()))?.uid();
    ensure!(
        owner == me && above == me,
        "the agent's state belongs to user {above}, not to you ({me}): run this as that user, for example with `sudo -u \
         '#{above}' hedge-agent …`"
    );
    let path = shelves.dir().join("lock");
    let lock = File::create(&path).with_context(|| path.display().to_string())?;
    ensure!(lock.try_lock().is_ok(), "another update of this model is running");
    // The one before may have been cut off before its bundle was linked.
    shelves.change(|_| ()).with_context(|| shelves.dir().display().to_string())?;
    Ok(lock)
}

/// Remembers that it failed. The files go: the next try fetches them again, if a person insists.
fn failed(shelves: &Shelves, held: Held, reason: &str, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    writeln!(out, "failed     {}/{}: {reason}; the bundle that is run stays", held.name, held.version)?;
    let shelf = shelves.change(|shelf| {
        shelf.fail(held, reason);
        shelf.clone()
    })?;
    shelves.clear_away(&shelf)?;
    Ok(ExitCode::FAILURE)
}

/// The bundle as signed, in a folder of its own and on the disk.
async fn fetched(
    args: &UpdateArgs,
    config: &Config,
    shelves: &Shelves,
    out: &mut impl Write,
) -> anyhow::Result<Result<(Held, PathBuf), (Held, Bad)>> {
    let server = server(args, config)?;
    let dates = dates(config);
    let root = args.root.as_deref().or(config.bundles.as_ref().and_then(|bundles| bundles.root.as_deref()));
    let trusted = trusted(root, shelves, &server, dates).await?;
    let device = config.device_id().map_err(anyhow::Error::msg)?;
    let (name, version) = &args.wanted;
    let entry = trusted.entry(name, version, &device, dates)?;
    let held = Held { name: name.clone(), version: version.clone(), signature: entry.signature };
    let shelf: Shelf = shelves.read()?;
    shelf.may_try(&held, args.again)?;
    let place = shelves.dir().join(held.folder());
    let part = shelves.dir().join(format!("{}.part", held.folder()));
    // The one before lies here already, and is looked at as if it had just come.
    let staged = if shelf.keeps(&held.folder()) { &place } else { &part };
    if staged == &part && place.exists() && !part.exists() {
        // Ended between its last two steps.
        fs::rename(&place, &part).with_context(|| place.display().to_string())?;
    }
    writeln!(out, "listed     {name}/{version}, {} bytes", entry.bytes)?;
    server.expect(entry.bytes);
    take_files(&server, entry, &trusted, staged).await?;
    match verify_folder(staged, &trusted.root().release.keys) {
        Ok(verified) if verified.signature == held.signature => {}
        Ok(_) => return Ok(Err((held, Bad("its signature is not the one that is listed".to_owned())))),
        Err(error) => return Ok(Err((held, Bad(error.to_string())))),
    }
    sync(staged)?;
    Ok(Ok((held, staged.clone())))
}

/// The one that was named, or that of the configuration with what it asks for: a token is for nobody else.
fn server(args: &UpdateArgs, config: &Config) -> anyhow::Result<Server> {
    let named = args.from.clone().map(|url| BundlesConfig { url, root: None, ca_file: None, token_file: None });
    let from = named.as_ref().or(config.bundles.as_ref());
    let from =
        from.context("where bundles come from is not known: give --from, or `[bundles] url` in the configuration")?;
    Server::new(from, args.bytes_per_s)
}

/// Dates as the device can tell them; see [`Dates`].
fn dates(config: &Config) -> Dates {
    let file = config.broker.as_ref().and_then(|broker| broker.certificate_file.as_deref());
    let certificate = file.and_then(|file| Certificate::read(file).ok());
    // The running agent owns the file; it is only looked at.
    let state = StateFile::in_memory(&config.state_dir, "it is only looked at");
    Dates {
        wall_ms: wall_ms().unwrap_or(0),
        built_ms: built_ms(),
        certificate_ms: certificate.map_or(0, |own| own.validity.from_ms),
        powered: Clock::resume(&state.state().clock, Moment(0)).now(),
    }
}

/// What this device trusts after it has seen the server's roots and list. It is on the disk before it is gone by.
async fn trusted(root: Option<&Path>, shelves: &Shelves, server: &Server, dates: Dates) -> anyhow::Result<Trusted> {
    let path = shelves.dir().join("trusted.json");
    let mut trusted = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is damaged; remove it and give --root again, with the newest root you have", path.display())
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => first(root)?,
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let keep = |trusted: &Trusted| -> anyhow::Result<()> { Ok(replace(&path, &serde_json::to_vec(trusted)?)?) };
    let envelope = |payload, what: &str, bytes: &[u8]| {
        Envelope::read(payload, bytes).map_err(|reason| anyhow::anyhow!("{what} of {}: {reason}", server.name()))
    };
    // Each step is kept, so a device that is cut off learns of a rotated key once.
    loop {
        let what = format!("root/{}.json", trusted.root().version.saturating_add(1));
        let Some(bytes) = server.document(&what).await? else { break };
        let next = envelope(Payload::Root, &what, &bytes)?;
        trusted.next_root(next.bytes(), |keys| next.signers(keys)).with_context(|| what)?;
        keep(&trusted)?;
    }
    let bytes = server.document("list.json").await?.with_context(|| format!("{} has no list.json", server.name()))?;
    let list = envelope(Payload::List, "list.json", &bytes)?;
    trusted.next_list(list.bytes(), |keys| list.signers(keys), dates).context("list.json")?;
    keep(&trusted)?;
    Ok(trusted)
}

/// From the root that a person gave.
fn first(root: Option<&Path>) -> anyhow::Result<Trusted> {
    let path = root.context(
        "whom to believe is not known yet: give --root, or `[bundles] root` in the configuration, the first root, from \
         those who sign",
    )?;
    let bytes = read_file(path, hedge_core::release::DOCUMENT_BYTES_MAX)?;
    let shown = path.display();
    let envelope = Envelope::read(Payload::Root, &bytes).map_err(|reason| anyhow::anyhow!("{shown}: {reason}"))?;
    let root: Root = serde_json::from_slice(envelope.bytes()).with_context(|| shown.to_string())?;
    root.root.met_by("the root", &envelope.signers(&root.root.keys)).with_context(|| shown.to_string())?;
    Trusted::begin(root).with_context(|| shown.to_string())
}

/// Fetches the signature, then what it names: never more than the list says there is.
async fn take_files(server: &Server, entry: &Entry, trusted: &Trusted, part: &Path) -> anyhow::Result<()> {
    let at = format!("{}/{}", entry.name, entry.version);
    let path = part.join(SIGNATURE);
    fs::create_dir_all(part).with_context(|| part.display().to_string())?;
    let signature_max = entry.bytes.min(hedge_inference::signing::SIGNATURE_BYTES_MAX);
    let mut left = entry.bytes;
    left -= server.file(&format!("{at}/{SIGNATURE}"), &path, entry.signature, signature_max).await?;
    let verified = Verified::read(&fs::read(&path)?, &path, &trusted.root().release.keys)?;
    for (file, sum) in &verified.files {
        let to = part.join(file);
        fs::create_dir_all(to.parent().unwrap_or(part)).with_context(|| to.display().to_string())?;
        left = left.saturating_sub(server.file(&format!("{at}/{file}"), &to, *sum, left).await?);
    }
    Ok(())
}

/// The folder's names are on the disk; its files are since they came.
fn sync(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync(&entry.path())?;
        }
    }
    Ok(File::open(dir)?.sync_all()?)
}

/// Whether the bundle is what it is listed as, needs nothing else, and does what the model's sources expect. Its manifest
/// is read here for the first time.
fn fits(dir: &Path, held: &Held, model: &ModelConfig) -> Result<(), String> {
    let bundle = Bundle::open(dir).map_err(|error| error.to_string())?;
    let manifest = bundle.manifest();
    if (&manifest.name, &manifest.version) != (&held.name, &held.version) {
        return Err(format!("its manifest calls it {}/{}", manifest.name, manifest.version));
    }
    self_contained(&bundle).map_err(|error| error.to_string())?;
    if let Err(error) = bundle.variant(model.variant.as_deref()) {
        return Err(error.to_string());
    }
    // Without a bundle that works there is nothing to differ from.
    let Ok(now) = Bundle::open(&model.bundle) else { return Ok(()) };
    if now.task() != bundle.task() {
        return Err(format!("its task is {}, and model `{}` does {}", bundle.task(), model.name, now.task()));
    }
    keeps(&model.threshold, now.labels(), bundle.labels())
}

/// A class whose samples never leave by the device's own file would leave if another bundle called it something else.
fn keeps(threshold: &ThresholdConfig, now: &[String], then: &[String]) -> Result<(), String> {
    let has = |labels: &[String], label: &str| labels.iter().any(|own| own == label);
    let gone = threshold.never_leaving().find(|label| has(now, label) && !has(then, label));
    gone.map_or(Ok(()), |label| {
        Err(format!(
            "it has no label `{label}`, whose samples never leave this device: the model's `threshold.policies` says so, and \
             would have no effect; change that first"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_calls_what_never_leaves_something_else_is_not_taken() {
        let threshold: ThresholdConfig =
            toml::from_str("policies = { person = \"never_leave\", sky = \"never_ask\" }").expect("valid");
        let labels = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let now = labels("person sky cat");
        let error = keeps(&threshold, &now, &labels("human sky cat")).expect_err("it would leave");
        assert!(error.contains("no label `person`, whose samples never leave"), "{error}");
        assert_eq!(keeps(&threshold, &now, &labels("cat person")), Ok(()), "the others are a fault");
        assert_eq!(keeps(&threshold, &labels("dog"), &labels("cat")), Ok(()), "nothing was held back before");
    }
}
