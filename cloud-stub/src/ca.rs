//! `hedge-cloud ca`: the authority from the command line. A running enrolment endpoint sees each change at once.

use std::path::Path;

use anyhow::{Context, bail};
use hedge_proto::{Name, PairingCode};

use crate::args::{Ca, CaCommand};
use crate::certificate_ms;
use crate::identity::{Authority, Claim, Issued, Registry, new_secret, write};

/// Does what was asked and says what to do next.
pub fn run(args: &Ca) -> anyhow::Result<()> {
    let dir = &args.ca_dir;
    match &args.command {
        CaCommand::Init => {
            let authority = Authority::init(dir, certificate_ms())?;
            let shown = dir.display();
            say(&format!(
                "made an authority in {shown}, SHA-256 {}…\nkeep a copy of that folder in a safe place",
                authority.fingerprint()?
            ));
        }
        CaCommand::Claim { address, device, minutes } => {
            let code = claim(dir, address, device.clone(), u64::from(*minutes))?;
            say(&format!("hedge-agent setup --pair {code}"));
        }
        CaCommand::Issue { server, cloud, out } => {
            let authority = Authority::open(dir)?;
            let (name, issued) = if *cloud {
                ("cloud", authority.issue_cloud(certificate_ms())?)
            } else {
                ("server", authority.issue_server(server, certificate_ms())?)
            };
            let Issued { certificate, key } = issued;
            let files = [(format!("{name}.pem"), certificate, 0o644), (format!("{name}.key"), key, 0o600)];
            for (file, text, mode) in files.into_iter().chain([("ca.pem".to_owned(), authority.bundle()?, 0o644)]) {
                write(&out.join(&file), &text, mode)?;
                say(&format!("wrote {}", out.join(file).display()));
            }
        }
        CaCommand::Rollover => {
            let number = Authority::open(dir)?.rollover(certificate_ms())?;
            say(&format!(
                "authority {number} signs from now on; next: `ca issue` again for brokers and clouds, and once every \
                 device has renewed (`ca devices`), `ca retire {}`",
                number - 1
            ));
        }
        CaCommand::Retire { number } => {
            Authority::open(dir)?.retire(*number)?;
            say(&format!("authority {number} is trusted no longer; give brokers the new ca.pem (`ca issue`)"));
        }
        CaCommand::Devices => {
            for (name, device) in Registry::open(dir)?.devices()? {
                let revoked = if device.revoked { " revoked" } else { "" };
                let days = certificate_ms().saturating_sub(device.renewed_ms) / (24 * 3600 * 1000);
                say(&format!("{name} renewed {days} days ago{revoked}"));
            }
        }
        CaCommand::Revoke { device } => {
            let registry = Registry::open(dir)?;
            let Some(mut known) = registry.device(device)? else { bail!("there is no device `{device}`") };
            known.revoked = true;
            registry.put_device(device, &known)?;
            say(&format!(
                "{device} gets no further certificate; a broker of your own lets it in until the last one ends"
            ));
        }
    }
    Ok(())
}

/// Makes a claim and the code that carries it.
pub fn claim(dir: &Path, address: &str, device: Option<Name>, minutes: u64) -> anyhow::Result<PairingCode> {
    let (authority, registry) = (Authority::open(dir)?, Registry::open(dir)?);
    registry.forget_old_claims(certificate_ms())?;
    let secret = new_secret()?;
    let expires_ms = certificate_ms() + minutes * 60_000;
    registry.put_claim(&secret, &Claim { device, expires_ms, used_by: None, used_for: None })?;
    let code = PairingCode { address: address.to_owned(), secret, fingerprint: authority.fingerprint()? };
    // What a device could not read is refused here.
    code.to_string().parse::<PairingCode>().with_context(|| format!("--address {address}"))
}

#[expect(clippy::print_stdout, reason = "a command's result goes to standard output")]
fn say(text: &str) {
    println!("{text}");
}
