//! `/etc/hedge-cloud/cloud.toml`: read and checked whole before anything is opened or dialled.
//!
//! Every value can be overridden from the environment: `HEDGE_CLOUD_MONEY__MONTH_MAX` is `month_max` in `[money]`,
//! `HEDGE_CLOUD_ANSWERER__LARGE__URL` is `url` of the answerer named `large`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::HeaderName;
use hedge_config::{ConfigError, Override, read_toml, span_of};
use hedge_proto::{Authority, Name, to_value, word};
use serde::{Deserialize, Serialize};

use super::{ANSWERERS_MAX, Micro};

/// What the variables of the environment begin with. Those of the command line have no `__`.
const PREFIX: &str = "HEDGE_CLOUD_";

/// What answers, and how the dashboard is reached.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub page: PageConfig,
    pub money: Option<MoneyConfig>,
    /// In order of preference.
    #[serde(rename = "answerer")]
    pub answerers: Vec<AnswererConfig>,
}

/// How others reach the dashboard. What the command line says counts instead.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PageConfig {
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Host names of a proxy in front of it.
    pub names: Vec<String>,
    pub trusted_proxies: Vec<IpAddr>,
    /// The header in which these name the user.
    pub proxy_user_header: Option<String>,
}

impl PageConfig {
    fn check(&self) -> Result<(), (&'static str, String)> {
        match (&self.certificate_file, &self.key_file) {
            (Some(_), None) => return Err(("certificate_file", "it needs `key_file`, too".to_owned())),
            (None, Some(_)) => return Err(("key_file", "it needs `certificate_file`, too".to_owned())),
            _ => {}
        }
        let is_header = |name: &&String| HeaderName::from_bytes(name.as_bytes()).is_ok();
        match self.proxy_user_header.as_ref().filter(|name| !is_header(name)) {
            Some(name) => Err(("proxy_user_header", format!("`{name}` is no name of a header"))),
            None => Ok(()),
        }
    }

    /// [`Self::proxy_user_header`], which was checked.
    #[must_use]
    pub fn header(&self) -> Option<HeaderName> {
        HeaderName::from_bytes(self.proxy_user_header.as_ref()?.as_bytes()).ok()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoneyConfig {
    /// What all calls of a calendar month (UTC) may cost together, in the unit of every `price`.
    pub month_max: f64,
}

/// What kind of answerer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Onnx,
    OpenInference,
    Chat,
    Http,
    Person,
}

impl Kind {
    /// The fields that it needs besides `name` and `kind`.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Onnx => &["bundle"],
            Self::OpenInference => &["bundle", "url", "model"],
            Self::Chat => &["task", "url", "model", "labels"],
            Self::Http => &["task", "url", "label"],
            Self::Person => &["task"],
        }
    }

    /// The fields that it may have beside these.
    fn may_have(self) -> Vec<&'static str> {
        /// Of all that are called over HTTP.
        const CALLED: [&str; 7] =
            ["headers", "token_file", "ca_file", "concurrency", "deadline_ms", "authority", "price"];
        let (own, called): (&[&str], &[&str]) = match self {
            Self::Onnx => (&["threads", "batch_max", "batch_wait_ms", "authority"], &[]),
            Self::OpenInference => (&["version", "tensors"], &CALLED),
            Self::Chat => (&["prompt", "extra"], &CALLED),
            Self::Http => (&["body", "content_type", "score", "labels"], &CALLED),
            Self::Person => (&["labels"], &[]),
        };
        [own, called].concat()
    }
}

/// How tensors travel to an Open Inference Protocol server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorsAs {
    /// Numbers in JSON: every server reads it.
    #[default]
    Json,
    /// The protocol's binary extension: a fifth of the size, not read by every server.
    Binary,
}

/// One answerer. Which fields it has is up to its kind.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AnswererConfig {
    pub name: Name,
    pub kind: Kind,
    /// Which cases it answers; a bundle names its own.
    pub task: Option<String>,
    pub bundle: Option<PathBuf>,
    pub threads: Option<u8>,
    pub batch_max: Option<u16>,
    pub batch_wait_ms: Option<u16>,
    pub url: Option<String>,
    /// The model's name at the server.
    pub model: Option<String>,
    pub version: Option<String>,
    pub tensors: Option<TensorsAs>,
    pub labels: Option<Vec<String>>,
    /// What is asked about a picture; `{labels}` stands for the labels.
    pub prompt: Option<String>,
    /// Further fields of the request, as the server wants them.
    pub extra: Option<toml::Table>,
    /// What is posted: `{base64}`, `{content_type}`, `{task}`, `{id}` stand for what they name. The payload itself if
    /// not given.
    pub body: Option<String>,
    pub content_type: Option<String>,
    /// Where the answer has its label and its score: `result.0.label`.
    pub label: Option<String>,
    pub score: Option<String>,
    pub headers: Option<BTreeMap<String, String>>,
    pub token_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub concurrency: Option<u16>,
    pub deadline_ms: Option<u32>,
    pub authority: Option<Authority>,
    /// Of one call.
    pub price: Option<f64>,
}

/// The longest time any call may take.
const DEADLINE_MS_MAX: u32 = 60 * 60 * 1000;

/// The most calls to one answerer at once, and the largest batch.
const CONCURRENCY_MAX: u16 = 1024;
const BATCH_MAX: u16 = 256;

/// What is wrong, and where: names from the outermost to the field's own.
type Wrong = (Vec<String>, String);

impl Config {
    /// Reads, overrides and checks. Nothing else is touched.
    pub fn load(path: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let text = hedge_inference::read_text(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, &path.display().to_string(), environment)
    }

    /// Like [`Self::load`], from text; `file` is what errors call it.
    pub fn parse(
        text: &str,
        file: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut config: Self = read_toml(text, file)?;
        config.check().map_err(|(field, message)| {
            ConfigError::at(text, file, span_of(text, &field), in_words(&field, &message))
        })?;
        let mut table: toml::Table = read_toml(text, file)?;
        let ours =
            |(name, value): (String, String)| Override::new(PREFIX, &name, &value).filter(|one| one.path.len() > 1);
        for change in environment.filter_map(ours) {
            let wrong = |message: String| ConfigError::Invalid {
                place: format!("environment variable {}", change.variable),
                message,
            };
            apply(&change, &mut table).map_err(wrong)?;
            let written = toml::to_string(&table).map_err(|error| wrong(error.to_string()))?;
            config = read_toml(&written, "").map_err(|error| match error {
                ConfigError::Invalid { message, .. } => wrong(message),
                other => other,
            })?;
            config.check().map_err(|(field, message)| wrong(in_words(&field, &message)))?;
        }
        Ok(config)
    }

    fn check(&self) -> Result<(), Wrong> {
        let at = |path: &[&str], message: String| Err((path.iter().map(|name| (*name).to_owned()).collect(), message));
        if let Err((field, message)) = self.page.check() {
            return at(&["page", field], message);
        }
        if let Some(money) = self.money
            && Micro::of(money.month_max).is_none()
        {
            return at(&["money", "month_max"], format!("{} is no sum of money; give 0 or more", money.month_max));
        }
        if self.answerers.len() > ANSWERERS_MAX {
            return at(&["answerer"], format!("there are more than {ANSWERERS_MAX}"));
        }
        for (n, answerer) in self.answerers.iter().enumerate() {
            let name = answerer.name.as_str();
            if self.answerers[..n].iter().any(|other| other.name == answerer.name) {
                return at(&["answerer", &n.to_string()], format!("two answerers are named `{name}`"));
            }
            let checked = answerer
                .check_fields()
                .and_then(|()| answerer.check_values().map_err(|(field, message)| (field.to_owned(), message)));
            checked.map_err(|(field, message)| (vec!["answerer".to_owned(), name.to_owned(), field], message))?;
            if answerer.price.is_some_and(|price| price > 0.0) && self.money.is_none() {
                return at(
                    &["answerer", name, "price"],
                    "calls that cost money need a ceiling; give `month_max` in [money]".to_owned(),
                );
            }
        }
        Ok(())
    }
}

fn in_words(field: &[String], message: &str) -> String {
    format!("{}: {message}", field.join("."))
}

/// Lays one variable over the file. An answerer goes by its name; none is made.
fn apply(change: &Override, table: &mut toml::Table) -> Result<(), String> {
    if change.path.first().map(String::as_str) != Some("answerer") {
        change.apply_below(0, table);
        return Ok(());
    }
    let name = change.path.get(1).map_or("", String::as_str);
    let entries = table.get_mut("answerer").and_then(toml::Value::as_array_mut);
    // A variable of the environment has no small letters and, in most shells, neither dashes nor dots.
    let plain = |name: &str| name.to_lowercase().replace(['-', '.'], "_");
    let mut entries = entries.into_iter().flatten().filter_map(toml::Value::as_table_mut);
    let known =
        |entry: &&mut toml::Table| entry.get("name").and_then(toml::Value::as_str).map(plain) == Some(plain(name));
    let entry = entries.find(known).ok_or_else(|| format!("the file has no answerer `{name}`"))?;
    if change.path.len() < 3 {
        return Err(format!("name a field of the answerer: {}__URL", change.variable));
    }
    change.apply_below(2, entry);
    Ok(())
}

impl AnswererConfig {
    #[must_use]
    pub fn concurrency(&self) -> usize {
        self.concurrency.map_or(1, usize::from)
    }

    /// A cold model at the other end may take minutes to load; one that is warm, seconds.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        let own = if self.kind == Kind::Chat { 120_000 } else { 30_000 };
        Duration::from_millis(self.deadline_ms.unwrap_or(own).into())
    }

    #[must_use]
    pub fn authority(&self) -> Authority {
        let own = if self.kind == Kind::Person { Authority::Person } else { Authority::Model };
        self.authority.unwrap_or(own)
    }

    #[must_use]
    pub fn price(&self) -> Micro {
        self.price.and_then(Micro::of).unwrap_or_default()
    }

    /// Whether it has what its kind needs, and nothing that its kind has not.
    fn check_fields(&self) -> Result<(), (String, String)> {
        let (needs, may, kind) = (self.kind.needs(), self.kind.may_have(), word(&self.kind));
        let fields = to_value(self);
        let given = |field: &str| !fields[field].is_null();
        if let Some(missing) = needs.iter().find(|field| !given(field)) {
            return Err(((*missing).to_owned(), format!("an answerer of the kind `{kind}` needs it")));
        }
        let known: Vec<&str> = ["name", "kind"].iter().chain(needs).chain(&may).copied().collect();
        let odd = fields
            .as_object()
            .and_then(|fields| fields.keys().find(|field| given(field) && !known.contains(&field.as_str())));
        match odd {
            Some(odd) => Err((
                odd.clone(),
                format!("an answerer of the kind `{kind}` has no such field, but: {}", known[2..].join(", ")),
            )),
            None => Ok(()),
        }
    }

    fn check_values(&self) -> Result<(), (&'static str, String)> {
        let between =
            |field, number: Option<u32>, most: u32| match number.filter(|number| *number == 0 || *number > most) {
                Some(number) => Err((field, format!("{number} is not between 1 and {most}"))),
                None => Ok(()),
            };
        between("concurrency", self.concurrency.map(u32::from), CONCURRENCY_MAX.into())?;
        between("batch_max", self.batch_max.map(u32::from), BATCH_MAX.into())?;
        between("threads", self.threads.map(u32::from), 64)?;
        between("deadline_ms", self.deadline_ms, DEADLINE_MS_MAX)?;
        if let Some(price) = self.price.filter(|price| Micro::of(*price).is_none()) {
            return Err(("price", format!("{price} is no sum of money; give 0 or more")));
        }
        if let Some(labels) = &self.labels
            && (labels.is_empty() || labels.iter().any(|label| label.trim().is_empty()))
        {
            return Err(("labels", "give at least one label, none of them empty".to_owned()));
        }
        if self.authority.is_some_and(|authority| !matches!(authority, Authority::Model | Authority::StrongerModel)) {
            return Err(("authority", "a program's is `model` or `stronger_model`".to_owned()));
        }
        let Some(url) = &self.url else { return Ok(()) };
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(("url", format!("`{url}` is neither http://… nor https://…")));
        }
        reqwest::Url::parse(url).map(drop).map_err(|error| ("url", format!("`{url}` is no address: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "[[answerer]]\nname = \"big\"\nkind = \"chat\"\ntask = \"t\"\nurl = \"http://h/v1\"\nmodel = \"m\"\nlabels = [\"a\", \"b\"]\n";

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(text, "cloud.toml", environment).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &str) {
        assert_eq!(parse(text, &[]).expect_err("refused"), expected);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field_and_line() {
        check_refused(
            &format!("\n{CHAT}threads = 2\n"),
            "cloud.toml:9: answerer.big.threads: an answerer of the kind `chat` has no such field, but: task, url, model, labels, prompt, extra, headers, token_file, ca_file, concurrency, deadline_ms, authority, price",
        );
        check_refused(
            &CHAT.replace("model = \"m\"\n", ""),
            "cloud.toml:1: answerer.big.model: an answerer of the kind `chat` needs it",
        );
        check_refused(
            &format!("{CHAT}concurrency = 0\n"),
            "cloud.toml:8: answerer.big.concurrency: 0 is not between 1 and 1024",
        );
        check_refused(
            &format!("{CHAT}price = 0.01\n"),
            "cloud.toml:8: answerer.big.price: calls that cost money need a ceiling; give `month_max` in [money]",
        );
        check_refused(
            &format!("{CHAT}authority = \"person\"\n"),
            "cloud.toml:8: answerer.big.authority: a program's is `model` or `stronger_model`",
        );
        check_refused(
            &CHAT.replace("http://h/v1", "h:80"),
            "cloud.toml:5: answerer.big.url: `h:80` is neither http://… nor https://…",
        );
        check_refused(
            &CHAT.replace("http://h/v1", "http://h:99999/v1"),
            "cloud.toml:5: answerer.big.url: `http://h:99999/v1` is no address: invalid port number",
        );
        check_refused(&format!("{CHAT}{CHAT}"), "cloud.toml:8: answerer.1: two answerers are named `big`");
        check_refused(
            "[money]\nmonth_max = -1\n",
            "cloud.toml:2: money.month_max: -1 is no sum of money; give 0 or more",
        );
        check_refused(
            "[page]\nkey_file = \"page.key\"\n",
            "cloud.toml:2: page.key_file: it needs `certificate_file`, too",
        );
        check_refused(
            "[page]\nproxy_user_header = \"X Forwarded\"\n",
            "cloud.toml:2: page.proxy_user_header: `X Forwarded` is no name of a header",
        );
        let error = parse("[page]\ntrusted_proxies = [\"proxy\"]\n", &[]).expect_err("refused");
        assert!(error.starts_with("cloud.toml:2: page.trusted_proxies"), "{error}");
        let error = parse(&CHAT.replace("chat", "tea"), &[]).expect_err("refused");
        assert!(error.starts_with("cloud.toml:3: answerer.big.kind: unknown variant `tea`"), "{error}");
        let error = parse(&format!("{CHAT}modle = \"x\"\n"), &[]).expect_err("refused");
        assert!(error.starts_with("cloud.toml:8: answerer.big.modle: unknown field"), "{error}");
    }

    #[test]
    fn the_environment_overrides_an_answerer_by_its_name_and_a_wrong_value_names_its_variable() {
        let config = parse(
            CHAT,
            &[
                ("HEDGE_CLOUD_MONEY__MONTH_MAX", "20"),
                ("HEDGE_CLOUD_ANSWERER__BIG__PRICE", "0.5"),
                ("HEDGE_CLOUD_ANSWERER__BIG__URL", "https://other"),
                ("HEDGE_CLOUD_LISTEN", "127.0.0.1:0"),
                ("HEDGE_OUTBOX__CASES_MAX", "x"),
            ],
        )
        .expect("valid");
        let [big] = &config.answerers[..] else { panic!("{config:?}") };
        assert_eq!(
            (big.url.as_deref(), big.price, config.money.map(|money| money.month_max)),
            (Some("https://other"), Some(0.5), Some(20.0))
        );
        let wrong = |name: &str, value: &str| parse(CHAT, &[(name, value)]).expect_err("refused");
        assert_eq!(
            wrong("HEDGE_CLOUD_ANSWERER__SMALL__URL", "http://x"),
            "environment variable HEDGE_CLOUD_ANSWERER__SMALL__URL: the file has no answerer `small`"
        );
        let error = wrong("HEDGE_CLOUD_ANSWERER__BIG__CONCURRENCY", "many");
        assert!(
            error
                .starts_with("environment variable HEDGE_CLOUD_ANSWERER__BIG__CONCURRENCY: answerer.big.concurrency: "),
            "{error}"
        );
        let error = wrong("HEDGE_CLOUD_MONY__MONTH_MAX", "1");
        assert!(error.contains("unknown field `mony`"), "{error}");
    }
}
