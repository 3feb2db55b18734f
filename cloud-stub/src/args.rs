//! The command line. Everything is checked before anything is opened or dialled.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use axum::http::HeaderName;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use hedge_config::{ConfigError, LogFormat};
use hedge_proto::Name;

use crate::access::audit::AuditArgs;
use crate::access::cli::UserArgs;
use crate::access::{Entrance, USERS_FILE};
use crate::answerers::{Config, PageConfig};
use crate::bundle::cli::BundleArgs;
use crate::export::cli::ExportArgs;
use crate::fleet::cli::DeviceArgs;
use crate::fleet::delete::DeleteArgs;
use crate::intake::Enough;
use crate::link::{BrokerArgs, Endpoint};
use crate::payloads::PayloadsArgs;
use crate::store::RecordsArgs;
use crate::traces::TracesArgs;

/// The cloud side of Hedge: answers the cases devices are not sure about, and sets and commands devices.
#[derive(Debug, Parser)]
#[command(name = "hedge-cloud", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take cases from a broker, answer them, keep records, serve the dashboard
    Serve(Box<Serve>),
    /// Say what is wrong with the configuration file, and how each answerer of it is
    Check(Check),
    /// All in one for a first hour: a broker with TLS, a model, the dashboard, and a pairing code for a device
    Quickstart(Box<Quickstart>),
    Export(ExportArgs),
    Delete(DeleteArgs),
    /// A certificate authority for devices, if you have none
    Ca(Ca),
    Device(Box<DeviceArgs>),
    User(UserArgs),
    Audit(AuditArgs),
    Bundle(BundleArgs),
    /// What `serve` starts for cases that were left over: see `model::alone`
    #[command(name = crate::model::alone::COMMAND, hide = true)]
    Answer(Models),
    /// Print a script that completes this program's commands in a shell
    #[command(after_help = "For example: hedge-cloud completions bash > /etc/bash_completion.d/hedge-cloud")]
    Completions {
        shell: Shell,
    },
}

/// Beside the records of a cloud that was started in this folder.
pub const CA_DIR: &str = "hedge-cloud-state/ca";

const SERVE_AFTER: &str = "\
Examples:
  All in one, for a first look (no broker needed):
    hedge-cloud serve --embedded-broker 127.0.0.1:1883 --model models/fashion-large

  Beside a real broker, with TLS:
    hedge-cloud serve --broker mqtts://broker.example:8883 --ca ca.pem --cert cloud.pem --key cloud.key \\
      --state-dir /var/lib/hedge-cloud --model /srv/models/photo-large

Once ready, stdout gets one line `dashboard http://ADDR` (https with --page-cert), with --embedded-broker a line `broker mqtt://ADDR`
before it. Logs go to stderr; RUST_LOG sets what is logged.

Exit codes: 0 stopped as asked, 1 failed while running, 2 wrong command line, 3 could not start.";

/// Each flag can also be given as an environment variable, named below its text.
#[derive(Debug, Args)]
#[command(after_long_help = SERVE_AFTER)]
pub struct Serve {
    #[command(flatten)]
    pub broker: BrokerArgs,

    /// Run a broker inside this process instead, in memory and without passwords: for demos. Port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "HEDGE_CLOUD_EMBEDDED_BROKER")]
    pub embedded_broker: Option<SocketAddr>,

    /// Run a broker inside this process that devices reach with TLS and a certificate of --ca-dir, each its own topics
    #[arg(long, value_name = "ADDR", env = "HEDGE_CLOUD_GUARDED_BROKER", conflicts_with = "embedded_broker")]
    pub guarded_broker: Option<SocketAddr>,

    /// Let devices enrol and renew their certificates here, over HTTPS
    #[arg(long, value_name = "ADDR", env = "HEDGE_CLOUD_ENROL", requires = "device_broker")]
    pub enrol: Option<SocketAddr>,

    /// The broker's address as devices see it, told to them when they enrol: mqtts://HOST:PORT
    #[arg(long, value_name = "URL", env = "HEDGE_CLOUD_DEVICE_BROKER")]
    pub device_broker: Option<Endpoint>,

    /// Where the authority made by `hedge-cloud ca init` is; `ca` in --state-dir if not given
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_CA_DIR")]
    pub ca_dir: Option<PathBuf>,

    /// A name or address this host is reached at by devices; for the certificates of --enrol and --guarded-broker
    #[arg(long, value_name = "HOST", env = "HEDGE_CLOUD_HOST", value_delimiter = ',', default_value = "localhost")]
    pub host: Vec<String>,

    /// How many days a device's certificate is valid; it is renewed when a third is left
    #[arg(long, value_name = "DAYS", env = "HEDGE_CLOUD_CERTIFICATE_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub certificate_days: u16,

    /// How many days after its certificate's end a device may still renew it, having proved its key
    #[arg(long, value_name = "DAYS", env = "HEDGE_CLOUD_GRACE_DAYS", default_value_t = 800, value_parser = clap::value_parser!(u16).range(0..=3650))]
    pub grace_days: u16,

    /// Where the dashboard and its API listen. Any address but loopback needs --page-cert, --page-key and users: see
    /// `hedge-cloud user` and docs/access.md
    #[arg(long, value_name = "ADDR", env = "HEDGE_CLOUD_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// A host name of a proxy in front of the dashboard. Without it, one that listens on loopback is opened by address or
    /// as localhost only
    #[arg(long, value_name = "NAME", env = "HEDGE_CLOUD_PAGE_NAME", value_delimiter = ',')]
    pub page_name: Vec<String>,

    /// The certificate that the dashboard shows (PEM); it is read again each hour
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_PAGE_CERT", requires = "page_key")]
    pub page_cert: Option<PathBuf>,

    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_PAGE_KEY", requires = "page_cert")]
    pub page_key: Option<PathBuf>,

    /// Who may use the dashboard, as `hedge-cloud user` writes it [default: users.json in --state-dir]. With anybody in it,
    /// everybody is asked who they are
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_USERS")]
    pub users: Option<PathBuf>,

    /// The address of a proxy that asks who is there and says it in --proxy-user-header. From anywhere else that header
    /// means nothing. What a user may do is said by `hedge-cloud user add NAME --role ROLE --proxy`
    #[arg(long, value_name = "IP", env = "HEDGE_CLOUD_TRUSTED_PROXY", value_delimiter = ',')]
    pub trusted_proxy: Vec<IpAddr>,

    /// The header in which that proxy names the user [default: X-Forwarded-User]
    #[arg(long, value_name = "HEADER", env = "HEDGE_CLOUD_PROXY_USER_HEADER")]
    pub proxy_user_header: Option<HeaderName>,

    /// The dashboard changes no device and gives no command
    #[arg(long, env = "HEDGE_CLOUD_LOOK_ONLY")]
    pub look_only: bool,

    /// Where the records are kept
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_STATE_DIR", default_value = "hedge-cloud-state")]
    pub state_dir: PathBuf,

    #[command(flatten)]
    pub records: RecordsArgs,

    #[command(flatten)]
    pub models: Models,

    #[command(flatten)]
    pub config: ConfigFile,

    #[command(flatten)]
    pub enough: Enough,

    /// This instance's name: letters, digits, `.`, `_`, `-`
    #[arg(long, value_name = "NAME", env = "HEDGE_CLOUD_INSTANCE", default_value = "cloud-1")]
    pub instance: Name,

    #[command(flatten)]
    pub payloads: PayloadsArgs,

    /// How many MiB of payloads are kept; the oldest go first, answers stay
    #[arg(long, value_name = "MIB", env = "HEDGE_CLOUD_PAYLOAD_MIB", default_value_t = 4096)]
    pub payload_mib: u32,

    /// How many days payloads are kept
    #[arg(long, value_name = "DAYS", env = "HEDGE_CLOUD_PAYLOAD_DAYS", default_value_t = 30)]
    pub payload_days: u16,

    /// How many days answers are kept, so that a case that comes again is not answered twice
    #[arg(long, value_name = "DAYS", env = "HEDGE_CLOUD_RECORD_DAYS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(90..))]
    pub record_days: u16,

    /// How often, in seconds, the status is published again. More often costs every device data
    #[arg(long, value_name = "S", env = "HEDGE_CLOUD_STATUS_S", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub status_s: u32,

    #[command(flatten)]
    pub traces: TracesArgs,

    /// How logs are written
    #[arg(long, value_name = "FORMAT", env = "HEDGE_CLOUD_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// What answers.
#[derive(Debug, Args)]
pub struct Models {
    /// A model bundle; give one per task. Cases of a task without an answerer are recorded and held. Other kinds of
    /// answerers, and several for one task, are given in the file of --config
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_MODEL", value_delimiter = ',')]
    pub model: Vec<PathBuf>,

    /// The ONNX Runtime library; by default it is searched for
    #[arg(long, value_name = "SO", env = "HEDGE_CLOUD_LIBRARY")]
    pub library: Option<PathBuf>,

    /// Threads each model may use
    #[arg(long, value_name = "N", env = "HEDGE_CLOUD_THREADS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub threads: u8,

    /// Answer every case of TASK with LABEL, without a model: for benches and tests
    #[arg(long, value_name = "TASK=LABEL", hide = true, value_parser = task_and_label)]
    pub answer_with: Vec<(String, String)>,
}

const QUICKSTART_AFTER: &str = "\
Everything lives in --state-dir: the authority, the records. A second start goes on with it, and with every device
that is paired. What protects what: devices reach the broker and the enrolment endpoint over TLS only, the broker asks
for the certificate that pairing gave, and each device reaches its own topics only. The dashboard listens on this
machine only and asks for no password, unless there are users: see `hedge-cloud user`. The broker keeps its sessions in memory; for more than
a first look run your own, see `hedge-cloud ca` and `hedge-cloud serve`.";

#[derive(Debug, Args)]
#[command(after_long_help = QUICKSTART_AFTER)]
pub struct Quickstart {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_STATE_DIR", default_value = "hedge-cloud-state")]
    pub state_dir: PathBuf,

    /// The name or address at which devices reach this machine; found by itself if not given
    #[arg(long, value_name = "HOST", env = "HEDGE_CLOUD_HOST")]
    pub host: Option<String>,

    /// Where the broker listens for devices
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8883")]
    pub broker: SocketAddr,

    /// Where devices enrol
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8443")]
    pub enrol: SocketAddr,

    /// Where the dashboard listens
    #[arg(long, value_name = "ADDR", env = "HEDGE_CLOUD_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// A model bundle; by default the packaged photo model, if it is installed
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_MODEL", value_delimiter = ',')]
    pub model: Vec<PathBuf>,

    /// Passed on to `serve`
    #[arg(long, value_name = "TASK=LABEL", hide = true, value_parser = task_and_label)]
    pub answer_with: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub config: ConfigFile,

    /// The ONNX Runtime library; by default it is searched for
    #[arg(long, value_name = "SO", env = "HEDGE_CLOUD_LIBRARY")]
    pub library: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ConfigFile {
    /// Which answerers there are, and how the dashboard is reached: see docs/answerers.md and docs/access.md [default:
    /// /etc/hedge-cloud/cloud.toml, if it is there]
    #[arg(long = "config", value_name = "FILE", env = "HEDGE_CLOUD_CONFIG")]
    pub path: Option<PathBuf>,
}

/// Where packages put it.
const CONFIG_FILE: &str = "/etc/hedge-cloud/cloud.toml";

impl ConfigFile {
    /// What the file says, and the environment; nothing if there is none.
    pub fn read(&self) -> Result<Config, ConfigError> {
        // One that may not be looked at is there, and said to be.
        let usual = || Some(PathBuf::from(CONFIG_FILE)).filter(|path| !matches!(path.try_exists(), Ok(false)));
        match self.path.clone().or_else(usual) {
            Some(path) => Config::load(&path, std::env::vars()),
            None => Ok(Config::default()),
        }
    }
}

#[derive(Debug, Args)]
pub struct Ca {
    /// Where the authority is kept: its keys are readable by its owner only
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_CA_DIR", default_value = CA_DIR, global = true)]
    pub ca_dir: PathBuf,

    #[command(subcommand)]
    pub command: CaCommand,
}

#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make the authority
    Init,
    /// Make a pairing code for one device
    Claim {
        /// The enrolment endpoint as the device sees it, HOST:PORT
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
        /// The name the device gets; an enrolled device of this name is replaced
        #[arg(long, value_name = "NAME")]
        device: Option<Name>,
        /// How long the code is valid
        #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=10_080))]
        minutes: u16,
    },
    /// Write a certificate and key for a broker (--server) or a cloud instance (--cloud), and ca.pem
    Issue {
        /// A name or address the server is reached at
        #[arg(long, value_name = "HOST", required_unless_present = "cloud", conflicts_with = "cloud")]
        server: Vec<String>,
        /// For `hedge-cloud serve --cert --key`
        #[arg(long)]
        cloud: bool,
        /// Where to write
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
    /// Make the next authority: it signs from now on, and both are trusted
    Rollover,
    /// Stop trusting an old authority
    Retire { number: u32 },
    /// List the devices
    Devices,
    /// Revoke a device: it gets no further certificate, and the guarded broker refuses it at once
    Revoke { device: Name },
}

impl Serve {
    /// How the dashboard is reached: by the file where nothing else is said here.
    #[must_use]
    pub fn entrance(&self, file: &PageConfig) -> Entrance {
        let header = self.proxy_user_header.clone().or_else(|| file.header());
        let proxies = if self.trusted_proxy.is_empty() { &file.trusted_proxies } else { &self.trusted_proxy };
        Entrance {
            users: self.users.clone().unwrap_or_else(|| self.state_dir.join(USERS_FILE)),
            proxies: proxies.clone(),
            proxy_header: header.unwrap_or(HeaderName::from_static("x-forwarded-user")),
        }
    }

    #[must_use]
    pub fn ca_dir(&self) -> PathBuf {
        self.ca_dir.clone().unwrap_or_else(|| self.state_dir.join("ca"))
    }
}

fn task_and_label(text: &str) -> Result<(String, String), String> {
    let (task, label) = text.split_once('=').ok_or("write TASK=LABEL")?;
    Ok((task.to_owned(), label.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
