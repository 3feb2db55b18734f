//! The command line of `hedge-cloud device`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use hedge_proto::{COMMAND_ID_BYTES_MAX, Confirm};

use crate::fleet::change::Onto;
use crate::fleet::select::Where;
use crate::fleet::stages::Stages;
use crate::link::BrokerArgs;

/// How long a device may take for its first word.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

const AFTER: &str = "\
Settings are named as in the device's configuration file, with dots; a part that has a dot itself is quoted:
model.\"photo.v2\".threshold.score_min. docs/settings.md lists the remote settings.

Examples:
  hedge-cloud device list
  hedge-cloud device set hall-1 model.photo.threshold.score_min=0.8 log.level=info
  hedge-cloud device set --where link=online,model=photo-small link.profile=metered
  hedge-cloud device command hall-1 explain last=3
  hedge-cloud device diff --all

Exit codes: 0 all as wanted, 1 some device refused, failed, is away or did not answer in time (`diff`: there are
differences), 2 wrong command line, 3 nothing could be done: no broker, no such device, no such file.";

/// Look at devices, change their settings and give them commands, over any MQTT 5 broker
#[derive(Debug, Args)]
#[command(after_long_help = AFTER)]
pub struct DeviceArgs {
    #[command(subcommand)]
    pub(super) ask: Ask,
}

#[derive(Debug, Subcommand)]
pub(super) enum Ask {
    /// Show all devices: link, version, models, settings
    List(Common),
    /// Show one device with its last change and its live figures, which it is asked for
    #[command(override_usage = "hedge-cloud device status [OPTIONS] NAME|--all|--where CONDITIONS")]
    Status(Look),
    /// Print the settings in force, or one of them
    #[command(override_usage = "hedge-cloud device get [OPTIONS] NAME|--all|--where CONDITIONS [KEY]")]
    Get(Look),
    /// Change settings, and wait until the device says what became of it
    #[command(override_usage = "hedge-cloud device set [OPTIONS] NAME|--all|--where CONDITIONS KEY=VALUE...", long_about = SET)]
    Set(Set),
    /// Show where the settings in force are not the wanted ones
    #[command(override_usage = "hedge-cloud device diff [OPTIONS] NAME|--all|--where CONDITIONS")]
    Diff(Look),
    /// Replace all wanted settings by those in a JSON or TOML file
    #[command(override_usage = "hedge-cloud device apply [OPTIONS] NAME|--all|--where CONDITIONS FILE", long_about = APPLY)]
    Apply(Apply),
    /// Print what devices say, until Ctrl-C
    #[command(override_usage = "hedge-cloud device watch [OPTIONS] [NAME|--where CONDITIONS]")]
    Watch(Look),
    /// Give a command, and print the reply
    #[command(override_usage = "hedge-cloud device command [OPTIONS] NAME|--all|--where CONDITIONS COMMAND [ARG=VALUE]...", long_about = COMMAND)]
    Command(Command),
    /// Print what was wanted of a device and what became of it, as `serve` has recorded it
    #[command(long_about = HISTORY)]
    History(History),
}

const SET: &str = "\
Change settings, and wait until the device says what became of it.

Reads the settings in force, changes the named ones, and publishes all of them as the next version. VALUE is JSON
where it reads as JSON and text otherwise; `KEY=` and `KEY=null` restore the value of the device's own file. A wrong
name or value is refused here, before the device hears of it.

What the device has refused, or what failed its trial, does not come along. Where it has not taken yet what is wanted
of it, --onto says whether the change includes that (wanted) or drops it (in-force). While settings are on trial nothing
is changed.

With --stages a few devices are changed first: where one refuses, fails, does not answer, leaves or has a new fault, or
where a bundle that is wanted does not come, the others are left alone. The same again goes on with those.

Settings that could cut the link are on trial first: `set` then waits for the trial's end. If somebody else
publishes at the same time, it says so.";

const APPLY: &str = "\
Replace all wanted settings by those in a JSON or TOML file.

What the file leaves out is as in the device's own file afterwards. `-` reads JSON from standard input. Otherwise like
`set`.";

const COMMAND: &str = "\
Give a command, and print the reply.

  ping                         status                   explain [last=N]
  pause [source=S]             resume [source=S]        snapshot source=S
  queue_stats                  dead_letters             requeue [ids=[\"ID\",...]]
  drain                        reload                   restart
  log_level level=L [for_s=N]  confirm version=N        revert version=N
  promote model=M              back model=M             forget ids=[\"ID\",...]
  what_if model=M threshold='{\"score_min\":0.8}'

Each has a random id: however often the broker delivers it, it has one effect. It expires after an hour.";

const HISTORY: &str = "\
Print what was wanted of a device and what became of it, as `serve` has recorded it.

Reads the records in --state-dir, on the machine where `serve` runs, whether it runs now or not. The same is on the
dashboard's page of the device. The device itself keeps more: `hedge-agent log settings`, on the device.";

#[derive(Debug, Args)]
pub(super) struct Common {
    #[command(flatten)]
    pub(super) chosen: Chosen,

    #[command(flatten)]
    pub(super) broker: BrokerArgs,

    /// One JSON object per device and line
    #[arg(long)]
    pub(super) json: bool,

    /// How long a device may take to answer, in seconds [default: 30, and no time for devices that are away]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(super) timeout: Option<u32>,
}

impl Common {
    pub(super) fn answer_wait(&self) -> Duration {
        self.timeout.map_or(ANSWER_WAIT, |seconds| Duration::from_secs(seconds.into()))
    }
}

#[derive(Debug, Clone, Args)]
pub(super) struct Chosen {
    /// Every device that is known at the broker
    #[arg(long, conflicts_with = "where")]
    pub(super) all: bool,

    /// Devices for which all conditions hold: name, model (also NAME/VERSION) or version with `*` for any text,
    /// link=online|degraded|over_budget|offline|unknown, outcome=applied|on_trial|refused|failed
    #[arg(long = "where", id = "where", value_name = "KEY=VALUE,...")]
    pub(super) filter: Option<Where>,
}

#[derive(Debug, Args)]
pub(super) struct Look {
    /// The device's name, and for `get` the setting's
    #[arg(value_name = "NAME")]
    pub(super) words: Vec<String>,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Change {
    /// Who ends the trial of settings that could cut the link: the device, once a cloud has answered it over them, or
    /// an operator with the command `confirm`
    #[arg(long, value_name = "WHO", default_value = "auto")]
    pub(super) confirm: ConfirmArg,

    /// What an edit builds on, where the device has not taken yet what is wanted of it; without this such a device is
    /// left alone
    #[arg(long, value_name = "WHAT")]
    pub(super) onto: Option<Onto>,

    /// Also for a device that has never been heard of: it takes the settings when it first connects
    #[arg(long)]
    pub(super) new: bool,

    /// Change so many of a hundred devices first, such as 10,50,100, and more only while those are well
    #[arg(long, value_name = "PERCENT,...")]
    pub(super) stages: Option<Stages>,

    /// With --stages: how many seconds devices are watched before the next stage; a bundle that the settings want has to
    /// run first
    #[arg(long, value_name = "S", default_value_t = 60, requires = "stages")]
    pub(super) settle: u32,

    /// With --stages: how many seconds a wanted bundle may take to come
    #[arg(long, value_name = "S", default_value_t = 3600, requires = "stages")]
    pub(super) within: u32,

    #[command(flatten)]
    pub(super) by: By,
}

#[derive(Debug, Args)]
pub(super) struct By {
    /// Who wants it, for the device's audit log; USER@HOST if not given
    #[arg(long, value_name = "WHO", value_parser = who)]
    by: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ConfirmArg {
    Auto,
    Operator,
}

impl From<ConfirmArg> for Confirm {
    fn from(arg: ConfirmArg) -> Self {
        match arg {
            ConfirmArg::Auto => Self::Auto,
            ConfirmArg::Operator => Self::Operator,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// The device's name, then the settings
    #[arg(value_name = "NAME|KEY=VALUE", required = true)]
    pub(super) words: Vec<String>,
    #[command(flatten)]
    pub(super) change: Change,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// The device's name, then the file
    #[arg(value_name = "NAME|FILE", required = true)]
    pub(super) words: Vec<String>,
    #[command(flatten)]
    pub(super) change: Change,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Command {
    /// The device's name, then the command and its arguments
    #[arg(value_name = "NAME|COMMAND|ARG=VALUE", required = true)]
    pub(super) words: Vec<String>,

    /// The command's id instead of a random one: the same id again brings the same result again
    #[arg(long, value_name = "ID", value_parser = who)]
    pub(super) id: Option<String>,

    #[command(flatten)]
    pub(super) by: By,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// The device's name
    pub(super) name: hedge_proto::DeviceId,

    /// Where `serve` keeps its records
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_STATE_DIR", default_value = "hedge-cloud-state")]
    pub(super) state_dir: PathBuf,

    #[command(flatten)]
    pub(super) records: crate::store::RecordsArgs,

    /// One JSON object per event and line
    #[arg(long)]
    pub(super) json: bool,
}

fn who(text: &str) -> Result<String, String> {
    if (1..=COMMAND_ID_BYTES_MAX).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(format!("it takes 1 to {COMMAND_ID_BYTES_MAX} bytes"))
    }
}

/// Who runs this, where the environment does not say: in a container, or under a service manager.
fn user_name() -> Option<String> {
    let (uid, users) = (rustix::process::getuid().as_raw(), std::fs::read_to_string("/etc/passwd").ok()?);
    let line = users.lines().find(|line| line.split(':').nth(2).and_then(|id| id.parse().ok()) == Some(uid))?;
    line.split(':').next().map(str::to_owned)
}

impl By {
    /// As given, or the user at this machine.
    pub(super) fn who(&self) -> String {
        self.by.clone().unwrap_or_else(|| {
            let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
            let user = user.or_else(user_name).unwrap_or_else(|| "somebody".to_owned());
            let system = rustix::system::uname();
            let mut who = format!("{user}@{}", system.nodename().to_string_lossy());
            while who.len() > COMMAND_ID_BYTES_MAX {
                who.pop();
            }
            who
        })
    }
}
