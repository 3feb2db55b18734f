//! `hedge-cloud user`: who may use the page. A running `serve` sees each change at once.

use std::fs::{DirBuilder, File};
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::users::{self, Proof, Role, USERS_FILE, User, UsersError};

const AFTER: &str = "\
Examples:
  hedge-cloud user add ann --role operator               asks for a password
  hedge-cloud user add prometheus --role viewer --token  prints a token, once
  hedge-cloud user add ann@example.org --role reviewer --proxy
  hedge-cloud user change ann --role viewer
A change ends what the user has open. Where nobody was asked so far, the first user counts from the next start of `serve`.";

/// Who may use the page, and as what
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct UserArgs {
    #[command(subcommand)]
    command: UserCommand,

    /// The file with the users [default: users.json in --state-dir]
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_USERS", global = true)]
    users: Option<PathBuf>,

    /// Where `serve` keeps its state
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_STATE_DIR", default_value = "hedge-cloud-state", global = true)]
    state_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Add somebody, with a password that is asked for, or read from standard input
    Add {
        name: String,
        #[arg(long, value_enum)]
        role: Role,
        #[command(flatten)]
        proof: ProofArgs,
    },
    /// Give somebody another role, or with --password or --token a new password or token
    Change {
        name: String,
        #[arg(long, value_enum, required_unless_present_any = ["password", "token"])]
        role: Option<Role>,
        /// Ask for a new password
        #[arg(long)]
        password: bool,
        /// Print a new token; the one before ends
        #[arg(long, conflicts_with = "password")]
        token: bool,
    },
    /// Remove somebody; their sessions end
    Remove { name: String },
    /// Say who is there
    List,
}

#[derive(Debug, Args)]
struct ProofArgs {
    /// A program: print a token for `Authorization: Bearer TOKEN`, once
    #[arg(long, conflicts_with = "proxy")]
    token: bool,
    /// Somebody that the proxy of --trusted-proxy knows by this name
    #[arg(long)]
    proxy: bool,
}

/// Does what was asked; what to print.
pub fn run(args: &UserArgs) -> anyhow::Result<String> {
    let path = args.users.clone().unwrap_or_else(|| args.state_dir.join(USERS_FILE));
    let same = |name: &str| {
        let name = name.to_owned();
        move |user: &User| user.name.eq_ignore_ascii_case(&name)
    };
    match &args.command {
        UserCommand::Add { name, role, proof } => {
            let name = users::name(name)?;
            if users::read(&path)?.iter().any(same(&name)) {
                return Err(UsersError::Exists(name).into());
            }
            if let Some(dir) = path.parent() {
                // As `serve` makes it: samples are for nobody else's eyes.
                let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
                made.with_context(|| dir.display().to_string())?;
            }
            let (proof, said) = match (proof.token, proof.proxy) {
                (true, _) => token()?,
                (_, true) => (Proof::Proxy, String::new()),
                _ => (ask_password()?, String::new()),
            };
            users::change(&path, |users| {
                if users.iter().any(same(&name)) {
                    return Err(UsersError::Exists(name.clone()));
                }
                users.push(User { name: name.clone(), role: *role, proof });
                Ok(())
            })?;
            Ok(format!("{said}added {name}, {}, in {}", role.name(), path.display()))
        }
        UserCommand::Change { name, role, password, token: new_token } => {
            if !users::read(&path)?.iter().any(same(name)) {
                return Err(UsersError::Unknown(name.clone()).into());
            }
            let (proof, said) = match (password, new_token) {
                (true, _) => (Some(ask_password()?), String::new()),
                (_, true) => token().map(|(proof, said)| (Some(proof), said))?,
                _ => (None, String::new()),
            };
            let role = users::change(&path, |users| {
                let user = users.iter_mut().find(|user| user.name.eq_ignore_ascii_case(name));
                let user = user.ok_or_else(|| UsersError::Unknown(name.clone()))?;
                user.role = role.unwrap_or(user.role);
                user.proof = proof.unwrap_or_else(|| user.proof.clone());
                Ok(user.role)
            })?;
            Ok(format!("{said}changed {name}, {}; what they had open ends", role.name()))
        }
        UserCommand::Remove { name } => {
            users::change(&path, |users| {
                let before = users.len();
                users.retain(|user| !same(name)(user));
                if users.len() == before { Err(UsersError::Unknown(name.clone())) } else { Ok(()) }
            })?;
            Ok(format!("removed {name}; what they had open ends"))
        }
        UserCommand::List => {
            let users = users::read(&path)?;
            let line = |user: &User| format!("{} {} {}", user.name, user.role.name(), user.proof.name());
            let lines: Vec<String> = users.iter().map(line).collect();
            Ok(if lines.is_empty() { format!("nobody in {}", path.display()) } else { lines.join("\n") })
        }
    }
}

fn token() -> Result<(Proof, String), UsersError> {
    let (token, proof) = Proof::token()?;
    Ok((proof, format!("{token}\n")))
}

/// Twice from a terminal, where it is not shown; once, a line, from anything else.
fn ask_password() -> anyhow::Result<Proof> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let mut line = String::new();
        stdin.lock().read_line(&mut line).context("standard input")?;
        return Ok(Proof::password(line.trim_end_matches(['\n', '\r']))?);
    }
    let password = read_unseen("Password: ")?;
    anyhow::ensure!(read_unseen("Again: ")? == password, "the two are not the same");
    Ok(Proof::password(&password)?)
}

fn read_unseen(prompt: &str) -> anyhow::Result<String> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").context("the terminal")?;
    let seen = tcgetattr(&terminal)?;
    let mut unseen = seen.clone();
    unseen.local_modes.remove(LocalModes::ECHO);
    unseen.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&terminal, OptionalActions::Flush, &unseen)?;
    (&terminal).write_all(prompt.as_bytes())?;
    let mut line = String::new();
    let read = io::BufReader::new(&terminal).read_line(&mut line);
    // Whatever came of it, the terminal shows again what is typed.
    tcsetattr(&terminal, OptionalActions::Flush, &seen)?;
    read?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
