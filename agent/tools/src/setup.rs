//! `hedge-agent setup`: makes a key, enrols with a pairing code, and writes what `hedge-agent run` needs.
//!
//! What is there stays unless `--force` is given. Only the key is on the disk before the cloud is asked: a code is worth one
//! key, so a setup that was cut off, or could not write what it got, is run again with the same code and goes on with it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use hedge_core::identity::{NamedBy, device_id};
use hedge_inference::read_text;
use hedge_proto::{DeviceId, Enrolled, PairingCode};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use hedge_config::Config;
use hedge_identity::{EnrolError, Folder, enrol, new_key, write_secret};

/// Whom the service runs as, where the package made that user.
const SERVICE_USER: &str = "hedge";

#[derive(Debug, Clone, clap::Args)]
pub struct SetupArgs {
    /// The pairing code `hedge-cloud quickstart` or `hedge-cloud ca claim` printed
    #[arg(long, value_name = "CODE")]
    pair: PairingCode,
    /// The device's name in the fleet; by default what the claim says, or the host name
    #[arg(long, value_name = "NAME")]
    device: Option<DeviceId>,
    /// Take pictures: adds a source for hedge-camera@camera.service, and the photo model
    #[arg(long)]
    camera: bool,
    /// The model bundle of --camera
    #[arg(long, value_name = "DIR", default_value = "/usr/share/hedge/models/photo-small")]
    model: PathBuf,
    /// Where agent.toml is, or will be
    #[arg(long, value_name = "DIR", default_value = "/etc/hedge")]
    config_dir: PathBuf,
    /// Where the agent keeps its state; key and certificate go to `identity` in it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/hedge-agent")]
    state_dir: PathBuf,
    /// Replace an identity or a broker that is there
    #[arg(long)]
    force: bool,
}

impl SetupArgs {
    /// The service that reads what is written starts in another folder than this command.
    fn absolute(&self) -> anyhow::Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        Ok(Self {
            model: absolute(&self.model)?,
            config_dir: absolute(&self.config_dir)?,
            state_dir: absolute(&self.state_dir)?,
            ..self.clone()
        })
    }
}

/// Enrols and writes; says what to do next.
pub async fn run(arguments: &SetupArgs) -> anyhow::Result<ExitCode> {
    let arguments = &arguments.absolute()?;
    let (file, folder) = (arguments.config_dir.join("agent.toml"), Folder::below(&arguments.state_dir));
    let mut document = read_document(&file)?;
    refuse_to_overwrite(arguments, &file, &document, &folder)?;

    let name = match &arguments.device {
        Some(device) => device.clone(),
        None => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            device_id(None, None, NamedBy::Agreed, &host)
                .map_err(|error| anyhow::anyhow!("{error}, or give --device"))?
        }
    };
    let key = kept_key(&folder)?;
    let enrolled = match enrol(&arguments.pair, Some(name), &key).await {
        Err(refused @ (EnrolError::Refused { .. } | EnrolError::Stranger { .. })) => {
            // Nobody has signed for it, and nothing of a refused setup stays.
            drop((std::fs::remove_file(folder.unfinished_key()), std::fs::remove_dir(folder.path())));
            return Err(refused.into());
        }
        other => other?,
    };
    describe(arguments, &enrolled, &folder, &mut document);
    let text = document.to_string();
    Config::parse(&text, &file.display().to_string(), std::iter::empty())
        .context("what would be written is not valid")?;

    write_identity(&folder, &key, &enrolled)?;
    std::fs::create_dir_all(&arguments.config_dir).with_context(|| arguments.config_dir.display().to_string())?;
    write_secret(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    let owned = give_to_service(arguments, &folder, &file)?;
    std::fs::remove_file(folder.unfinished_key()).with_context(|| folder.unfinished_key().display().to_string())?;
    say_next(arguments, &enrolled, &file, owned);
    Ok(ExitCode::SUCCESS)
}

fn read_document(file: &Path) -> anyhow::Result<DocumentMut> {
    if !file.exists() {
        return Ok(DocumentMut::new());
    }
    let text = read_text(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.parse().with_context(|| format!("{} cannot be read; correct it or move it away", file.display()))
}

fn refuse_to_overwrite(
    arguments: &SetupArgs,
    file: &Path,
    document: &DocumentMut,
    folder: &Folder,
) -> anyhow::Result<()> {
    let unfinished = std::fs::read(folder.unfinished_key()).ok();
    if arguments.force || unfinished.is_some_and(|key| std::fs::read(folder.key()).ok() == Some(key)) {
        return Ok(());
    }
    if document.contains_key("broker") {
        bail!("{} has a [broker] already; --force replaces it", file.display());
    }
    let key = folder.key();
    ensure!(!key.exists(), "{} is there already: this device is enrolled; --force replaces it", key.display());
    Ok(())
}

/// The key of a setup that was cut off, or a new one that is kept for the next.
fn kept_key(folder: &Folder) -> anyhow::Result<String> {
    let file = folder.unfinished_key();
    if file.exists() {
        return read_text(&file).with_context(|| file.display().to_string());
    }
    let key = new_key()?;
    folder
        .make()
        .and_then(|()| write_secret(&file, &key))
        .with_context(|| format!("cannot write to {}", folder.path().display()))?;
    Ok(key)
}

/// Puts the new identity into the configuration and leaves the rest of it as it is.
fn describe(arguments: &SetupArgs, enrolled: &Enrolled, folder: &Folder, document: &mut DocumentMut) {
    let text = |path: &Path| value(path.display().to_string());
    document["device"] = value(enrolled.device.as_str());
    document["state_dir"] = text(&arguments.state_dir);
    let mut broker = Table::new();
    broker["url"] = value(enrolled.broker.as_str());
    broker["ca_file"] = text(&folder.authorities());
    broker["certificate_file"] = text(&folder.certificate());
    broker["key_file"] = text(&folder.key());
    document["broker"] = Item::Table(broker);
    let mut enrolment = Table::new();
    enrolment["url"] = value(arguments.pair.url());
    document["enrolment"] = Item::Table(enrolment);
    if !document.contains_key("http") {
        let mut http = Table::new();
        http["listen"] = value(toml_edit::Array::from_iter(["unix:/run/hedge/agent.sock"]));
        document["http"] = Item::Table(http);
    }
    if !arguments.camera {
        return;
    }
    if !document.contains_key("model") {
        let mut model = Table::new();
        model["name"] = value("photo");
        model["bundle"] = text(&arguments.model);
        document["model"] = Item::ArrayOfTables(ArrayOfTables::from_iter([model]));
    }
    if !document.contains_key("source") {
        let mut source = Table::new();
        source["name"] = value("camera");
        source["kind"] = value("http");
        document["source"] = Item::ArrayOfTables(ArrayOfTables::from_iter([source]));
    }
}

fn write_identity(folder: &Folder, key: &str, enrolled: &Enrolled) -> anyhow::Result<()> {
    folder
        .make()
        .and_then(|()| write_secret(&folder.key(), key))
        .and_then(|()| write_secret(&folder.authorities(), &enrolled.authorities))
        .and_then(|()| write_secret(&folder.certificate(), &enrolled.certificate))
        .with_context(|| format!("cannot write to {}", folder.path().display()))
}

/// Run by root, the service's user must be able to read what was written, and to write renewals.
fn give_to_service(arguments: &SetupArgs, folder: &Folder, file: &Path) -> anyhow::Result<bool> {
    let Some((user, group)) = service_user() else { return Ok(false) };
    if !rustix::process::geteuid().is_root() {
        return Ok(false);
    }
    for path in [&arguments.state_dir, folder.path(), &folder.key(), &folder.certificate(), &folder.authorities()] {
        let now = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        if (now.uid(), now.gid()) != (user, group) {
            std::os::unix::fs::chown(path, Some(user), Some(group)).with_context(|| path.display().to_string())?;
        }
    }
    // Root writes the configuration, the service reads it.
    std::os::unix::fs::chown(file, Some(0), Some(group)).with_context(|| file.display().to_string())?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    std::fs::set_permissions(file, readable).with_context(|| file.display().to_string())?;
    Ok(true)
}

fn service_user() -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.split(':').next() == Some(SERVICE_USER))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn say_next(arguments: &SetupArgs, enrolled: &Enrolled, file: &Path, owned: bool) {
    let (device, broker, file) = (&enrolled.device, &enrolled.broker, file.display());
    let mut text = format!("enrolled as {device} at {broker}; wrote {file}\n");
    if owned {
        text.push_str("next: systemctl restart hedge-agent\n");
        if arguments.camera {
            text.push_str("      systemctl enable --now hedge-camera@camera\n");
        }
    } else {
        text.push_str(&format!("next: hedge-agent check --config {file} && hedge-agent run --config {file}\n"));
    }
    #[expect(clippy::print_stdout, reason = "a command's result goes to standard output")]
    {
        print!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        setup: SetupArgs,
    }

    #[test]
    fn what_is_written_names_no_path_that_depends_on_where_setup_was_run() {
        let code = "host:8443/23456789ABCDEFGH/0123456789abcdef0123456789abcdef";
        let line = ["setup", "--pair", code, "--camera", "--model", "models/m", "--state-dir", "state"];
        let arguments = Line::try_parse_from(line).expect("valid").setup.absolute().expect("a folder");
        let enrolled = Enrolled {
            device: DeviceId::new("d").expect("valid"),
            certificate: String::new(),
            authorities: String::new(),
            broker: "mqtts://broker:8883".to_owned(),
        };
        let mut document = DocumentMut::new();
        describe(&arguments, &enrolled, &Folder::below(&arguments.state_dir), &mut document);
        let here = std::env::current_dir().expect("a folder");
        let broker = &document["broker"];
        for (item, ending) in [
            (&document["state_dir"], "state"),
            (&document["model"].as_array_of_tables().expect("a table").get(0).expect("a model")["bundle"], "models/m"),
            (&broker["ca_file"], ""),
            (&broker["certificate_file"], ""),
            (&broker["key_file"], ""),
        ] {
            let path = Path::new(item.as_str().expect("a path"));
            assert!(path.starts_with(&here) && path.to_string_lossy().ends_with(ending), "{}", path.display());
        }
    }
}
