//! `hedge-cloud quickstart`: `serve` with a guarded broker, an authority of its own and a pairing code.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use anyhow::Context;
use clap::Parser;

use crate::args::{Cli, Command, Quickstart};
use crate::ca;
use crate::identity::{Authority, AuthorityError};
use crate::serve::{self, ServeError};
use crate::wall_ms;

/// Long enough to carry the code to a device, short enough to be worth little on a screenshot.
const CODE_MINUTES: u64 = 60;

/// What the package installs.
const PACKAGED_MODEL: &str = "/usr/share/hedge/models/photo-large";

/// Prepares the state folder, then serves from it until told to stop.
pub fn run(args: &Quickstart) -> Result<(), ServeError> {
    let (serve, more) = prepare(args).map_err(ServeError::Start)?;
    let Command::Serve(serve) = serve.command else { unreachable!("`serve` was asked for") };
    serve::run(&serve, &more)
}

fn prepare(args: &Quickstart) -> anyhow::Result<(Cli, String)> {
    let ca_dir = args.state_dir.join("ca");
    match Authority::open(&ca_dir) {
        Ok(_) => tracing::info!("going on with {}", args.state_dir.display()),
        Err(AuthorityError::Missing(_)) => drop(Authority::init(&ca_dir, wall_ms())?),
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
    let text = |path: &Path| path.display().to_string();
    let mut words = vec!["hedge-cloud".to_owned(), "serve".to_owned()];
    let mut option = |name: &str, value: String| words.push(format!("--{name}={value}"));
    option("state-dir", text(&args.state_dir));
    option("ca-dir", text(&ca_dir));
    option("guarded-broker", args.broker.to_string());
    option("enrol", args.enrol.to_string());
    option("device-broker", format!("mqtts://{broker}"));
    option("listen", args.listen.to_string());
    option("host", host.clone());
    let models = if args.model.is_empty() { packaged_model() } else { args.model.clone() };
    for model in &models {
        option("model", text(model));
    }
    for answer in &args.answer_with {
        option("answer-with", answer.clone());
    }
    let cli = Cli::try_parse_from(&words).context("this is a defect of quickstart's")?;
    let more = format!(
        "pair hedge-agent setup --pair {code} --camera\n\
         devices reach {broker} and {enrol} of this machine, over TLS; the code is for one device and holds \
         {CODE_MINUTES} minutes\nanother: hedge-cloud ca claim --ca-dir {} --address {enrol}\n",
        ca_dir.display()
    );
    Ok((cli, more))
}

fn packaged_model() -> Vec<std::path::PathBuf> {
    let model = Path::new(PACKAGED_MODEL);
    if model.is_dir() { vec![model.to_owned()] } else { Vec::new() }
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
