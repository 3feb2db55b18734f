//! `hedge-cloud delete`: asks a running cloud's dashboard to delete cases. It alone knows what waits and what is counted.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use hedge_identity::http_client;
use hedge_proto::{CaseId, Name};
use serde_json::{Value, json};

use crate::wall_ms;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The dashboard waits for devices, one after the other.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60 * 60);

const AFTER: &str = "\
Examples:
  hedge-cloud delete --device porch                    says how many cases that would be
  hedge-cloud delete --device porch --yes              and all that this device still has to send
  hedge-cloud delete --label person --older-than 30 --yes
  hedge-cloud delete --case porch.0000000000000001.7 --yes
A device that is away is told when it is back within an hour; delete again if it was away for longer.";

/// Delete cases, their payloads, and what their devices still have of them. Without --yes it says how many there are
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct DeleteArgs {
    /// The dashboard of a running cloud
    #[arg(long, value_name = "URL", env = "HEDGE_CLOUD_URL", default_value = "http://127.0.0.1:8080")]
    url: String,

    /// File that holds an operator's token, where the dashboard asks who is there: see `hedge-cloud user`
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_TOKEN_FILE")]
    token_file: Option<PathBuf>,

    /// The authority of the dashboard's certificate (PEM) [default: those the system trusts]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// This case
    #[arg(long, value_name = "ID", conflicts_with_all = ["device", "task", "label", "older_than", "newer_than"])]
    case: Option<CaseId>,

    /// Cases of this device
    #[arg(long, value_name = "NAME")]
    device: Option<Name>,

    /// Cases of this task
    #[arg(long, value_name = "TASK")]
    task: Option<String>,

    /// Cases where device or verdict say this label
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,

    /// Cases received before so many days
    #[arg(long, value_name = "DAYS")]
    older_than: Option<u32>,

    /// Cases received within so many days
    #[arg(long, value_name = "DAYS")]
    newer_than: Option<u32>,

    /// Delete them
    #[arg(long)]
    yes: bool,
}

/// What to print.
pub fn run(args: &DeleteArgs) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(delete(args))
}

async fn delete(args: &DeleteArgs) -> anyhow::Result<String> {
    let dashboard = Dashboard::new(args)?;
    let found = dashboard.ask(None).await?;
    if !args.yes {
        let (cases, devices) = (counted(&found["cases"], "case"), counted(&found["devices"], "device"));
        return Ok(format!("{cases} of {devices}; with --yes they are deleted"));
    }
    let seen = json!({"cases": found["cases"], "until_ms": found["until_ms"]});
    let done = dashboard.ask(Some(seen)).await?;
    let mut lines = vec![format!("{} deleted", counted(&done["deleted"], "case"))];
    for told in done["told"].as_array().into_iter().flatten() {
        let text = |field: &str| told[field].as_str().unwrap_or_default().to_owned();
        let forgotten = told["result"]["forgotten"].as_u64().map(|n| format!(", forgot {n}")).unwrap_or_default();
        lines.push(
            format!("{}: {}{forgotten} {}", text("device"), text("outcome"), text("reason")).trim_end().to_owned(),
        );
    }
    Ok(lines.join("\n"))
}

fn counted(number: &Value, what: &str) -> String {
    let several = if number == 1 { "" } else { "s" };
    format!("{number} {what}{several}")
}

struct Dashboard<'a> {
    args: &'a DeleteArgs,
    url: String,
    token: Option<String>,
    http: reqwest::Client,
    /// Days are counted from here, in both questions.
    now_ms: u64,
}

impl<'a> Dashboard<'a> {
    fn new(args: &'a DeleteArgs) -> anyhow::Result<Self> {
        let http = http_client(&args.url, args.ca.as_deref()).map_err(|why| anyhow!("--ca {why}"))?;
        let token = args
            .token_file
            .as_ref()
            .map(|path| hedge_inference::read_secret(path).with_context(|| format!("--token-file {}", path.display())));
        let url = args.url.trim_end_matches('/').to_owned();
        ensure!(url.starts_with("http://") || url.starts_with("https://"), "--url {url}: write https://HOST:PORT");
        let http = http.timeout(ANSWER_WAIT_MAX).build()?;
        Ok(Self { args, url, token: token.transpose()?, http, now_ms: wall_ms() })
    }

    /// How many cases it is about; with what that has said, deletes them.
    async fn ask(&self, seen: Option<Value>) -> anyhow::Result<Value> {
        let mut asking = self.http.post(format!("{}{}", self.url, self.path()));
        asking = match &self.token {
            Some(token) => asking.bearer_auth(token),
            // As the page itself.
            None => asking.header("Origin", &self.url).header("Hedge-Operate", "yes"),
        };
        if let Some(seen) = seen {
            asking = asking.json(&seen);
        }
        let answer = asking.send().await.with_context(|| format!("the dashboard {} is not reached", self.url))?;
        let status = answer.status();
        let text = answer.text().await?;
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        if !status.is_success() {
            bail!("the dashboard refuses: {}", said["error"].as_str().unwrap_or(status.as_str()));
        }
        Ok(said)
    }

    fn path(&self) -> String {
        let DeleteArgs { case, device, task, label, older_than, newer_than, .. } = self.args;
        if let Some(case) = case {
            return format!("/api/cases/{case}/delete");
        }
        let days_ago = |days: u32| self.now_ms.saturating_sub(u64::from(days) * DAY_MS);
        let mut query = form_urlencoded::Serializer::new(String::new());
        let texts =
            [("device", device.as_ref().map(Name::as_str)), ("task", task.as_deref()), ("label", label.as_deref())];
        for (name, value) in texts {
            query.extend_pairs(value.map(|value| (name, value)));
        }
        let times = [("since_ms", newer_than.map(days_ago)), ("until_ms", older_than.map(days_ago))];
        for (name, value) in times {
            query.extend_pairs(value.map(|value| (name, value.to_string())));
        }
        format!("/api/delete?{}", query.finish())
    }
}
