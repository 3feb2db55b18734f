//! `hedge-cloud quickstart`: `serve` with a guarded broker, an authority of its own and a pairing code.

use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use hedge_inference::Runtime;

use crate::args::{Cli, Command, Models, Quickstart, Serve};
use crate::ca;
use crate::certificate_ms;
use crate::identity::{Authority, AuthorityError};
use crate::serve::{self, ServeError};

/// Long enough to carry the code to a device, short enough to be worth little on a screenshot.
const CODE_MINUTES: u64 = 60;

/// What the package installs, and where a checkout has the same.
const PACKAGED_MODEL: &str = "/usr/share/hedge/models/photo-large";
const CHECKOUT_MODEL: &str = "models/photo-large";

/// Where a checkout keeps ONNX Runtime once `cargo xtask demo` has fetched it.
const CHECKOUT_LIBRARIES: &str = ".cache/onnxruntime";

/// Prepares the state folder, then serves from it until told to stop.
pub fn run(args: &Quickstart) -> Result<(), ServeError> {
    let (serve, more) = prepare(args).map_err(ServeError::Start)?;
    serve::run(&serve, &more)
}

fn prepare(args: &Quickstart) -> anyhow::Result<(Serve, String)> {
    let ca_dir = args.state_dir.join("ca");
    match Authority::open(&ca_dir) {
        Ok(_) => tracing::info!("going on with {}", args.state_dir.display()),
        Err(AuthorityError::Missing(_)) => drop(Authority::init(&ca_dir, certificate_ms())?),
        Err(error) => return Err(error.into()),
    }
    let host =
        args.host.clone().or_else(|| own_address(args)).context(
            "this machine has no network address that devices could reach; give the one they can with --host",
        )?;
    let authority = |port: u16| if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let enrol = authority(args.enrol.port());
    let code = ca::claim(&ca_dir, &enrol, None, CODE_MINUTES)?;
    let broker = authority(args.broker.port());
    let Found { models, library } = if args.model.is_empty() && args.answer_with.is_empty() {
        found_model()
    } else {
        Found { models: args.model.clone(), library: None }
    };
    let usual = usual()?;
    let serve = Serve {
        state_dir: args.state_dir.clone(),
        ca_dir: Some(ca_dir.clone()),
        guarded_broker: Some(args.broker),
        enrol: Some(args.enrol),
        device_broker: Some(format!("mqtts://{broker}").parse()?),
        listen: args.listen,
        host: vec![host],
        models: Models {
            model: models,
            library: library.or(usual.models.library),
            answer_with: args.answer_with.clone(),
            ..usual.models
        },
        ..usual
    };
    let more = format!(
        "pair hedge-agent setup --pair {code} --camera\n\
         devices reach {broker} and {enrol} of this machine, over TLS; the code is for one device and holds \
         {CODE_MINUTES} minutes\nanother: hedge-cloud ca claim --ca-dir {} --address {enrol}\n",
        ca_dir.display()
    );
    Ok((serve, more))
}

/// `serve` as it is where nothing is said, but by the environment.
fn usual() -> anyhow::Result<Serve> {
    match Cli::try_parse_from(["hedge-cloud", "serve"])?.command {
        Command::Serve(serve) => Ok(*serve),
        _ => anyhow::bail!("`serve` is read as something else"),
    }
}

/// What answers, if nothing is named.
#[derive(Debug, Default, PartialEq)]
struct Found {
    models: Vec<PathBuf>,
    library: Option<PathBuf>,
}

fn found_model() -> Found {
    let beside = std::env::current_exe().ok();
    // A checkout's program is in target/debug or target/release.
    let places = [Some(PathBuf::from("/")), std::env::current_dir().ok()];
    let places = places
        .into_iter()
        .flatten()
        .chain(beside.iter().flat_map(|exe| exe.ancestors().skip(1).take(3)).map(Path::to_owned));
    let mut found = found_in(places);
    if std::env::var_os("ORT_DYLIB_PATH").is_some() {
        // Somebody has said which.
        found.library = None;
    }
    if found.models.is_empty() {
        tracing::warn!(
            "no model was found: cases are recorded and held. Name a bundle with --model DIR; `models/photo-large` of \
             a checkout is one, and the package hedge-model-photo-large installs it in {PACKAGED_MODEL}"
        );
        return found;
    }
    if let Err(error) = Runtime::find(found.library.as_deref()) {
        tracing::warn!(
            "the model in {} cannot be used, so cases are recorded and held: {error}",
            found.models[0].display()
        );
        return Found::default();
    }
    found
}

/// Looks for the packaged model below the root, and for a checkout's everywhere else.
fn found_in(places: impl Iterator<Item = PathBuf>) -> Found {
    for place in places {
        for model in [PACKAGED_MODEL.trim_start_matches('/'), CHECKOUT_MODEL] {
            let model = place.join(model);
            if model.join("manifest.toml").is_file() {
                // The package brings its library to where it is searched for.
                let library = std::fs::read_dir(place.join(CHECKOUT_LIBRARIES)).ok().and_then(|files| {
                    files.flatten().map(|file| file.path()).find(|file| {
                        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so"))
                    })
                });
                return Found { models: vec![model], library };
            }
        }
    }
    Found::default()
}

/// The address others most likely reach this machine at: where it would send from. Nothing is sent.
fn own_address(args: &Quickstart) -> Option<String> {
    if !args.broker.ip().is_unspecified() {
        return Some(args.broker.ip().to_string());
    }
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // An address that is set aside for documentation (RFC 5737): there is a route to it wherever there is a default one.
    socket.connect((IpAddr::from([192, 0, 2, 1]), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_a_checkout_is_found_with_the_library_it_has_fetched() {
        let dir = tempfile::tempdir().expect("a directory");
        let (model, libraries) = (dir.path().join(CHECKOUT_MODEL), dir.path().join(CHECKOUT_LIBRARIES));
        let places = || [PathBuf::from("/nowhere"), dir.path().to_owned()].into_iter();
        assert_eq!(found_in(places()), Found::default());
        std::fs::create_dir_all(&model).expect("made");
        std::fs::write(model.join("manifest.toml"), "").expect("written");
        assert_eq!(found_in(places()), Found { models: vec![model.clone()], library: None });
        std::fs::create_dir_all(&libraries).expect("made");
        let library = libraries.join("libonnxruntime.so.1.99.0");
        std::fs::write(&library, "").expect("written");
        assert_eq!(found_in(places()), Found { models: vec![model], library: Some(library) });
    }
}
