//! A headless Chromium that does what a person does at the page, driven over WebDriver.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::interface::client;
use crate::program::{Program, Recipe};
use crate::wait;

/// Debian's package `chromium-driver` has it, and brings the browser.
pub const CHROMEDRIVER: &str = "/usr/bin/chromedriver";

const START_WAIT_MAX: Duration = Duration::from_secs(60);

/// Longer than any script of a test runs.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(120);

/// A phone held upright, in CSS pixels.
pub const PHONE_WIDTH: u32 = 390;

/// One browser with one page. Dropping it closes it.
pub struct Browser {
    session: String,
    http: ureq::Agent,
    driver: Program,
}

impl Browser {
    /// Starts it with everything of its own below `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        let recipe = Recipe::new("chromedriver", CHROMEDRIVER.into(), dir).argument("--port=0");
        let mut driver = recipe.start()?;
        let port = driver.wait_for("chromedriver says its port", START_WAIT_MAX, |driver| {
            let output = driver.output()?;
            let line = output.lines().find_map(|line| line.split_once("started successfully on port "));
            Ok(line.and_then(|(_, port)| port.trim_end_matches('.').parse::<u16>().ok()))
        })?;
        let http = client(REQUEST_WAIT_MAX);
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        // Tests run as root in containers, where neither the sandbox nor much shared memory is there.
        let args = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", &profile];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true, // the authorities of tests
            "goog:chromeOptions": {"args": args},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let driver_address = format!("http://127.0.0.1:{port}");
        let made = send(&http, &format!("{driver_address}/session"), &wanted)?;
        let id = made["sessionId"].as_str().context("a session")?;
        Ok(Self { session: format!("{driver_address}/session/{id}"), http, driver })
    }

    fn tell(&self, command: &str, arguments: Value) -> Result<Value> {
        send(&self.http, &format!("{}/{command}", self.session), &arguments)
    }

    pub fn open(&self, url: &str) -> Result<()> {
        self.tell("url", json!({ "url": url })).map(drop)
    }

    /// Presses keys one after the other, wherever the focus is.
    pub fn press(&self, keys: &str) -> Result<()> {
        let each = |key: char| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let strokes: Vec<Value> = keys.chars().flat_map(each).collect();
        self.tell("actions", json!({"actions": [{"type": "key", "id": "keys", "actions": strokes}]})).map(drop)
    }

    /// What the body of a function returns in the page.
    pub fn look(&self, script: &str) -> Result<Value> {
        self.tell("execute/sync", json!({"script": script, "args": []}))
    }

    /// Likewise, of one that calls `done` with it.
    pub fn look_later(&self, script: &str) -> Result<Value> {
        self.look_later_with(script, json!([]))
    }

    /// The same, with arguments in front of `done`.
    pub fn look_later_with(&self, script: &str, arguments: Value) -> Result<Value> {
        let script = format!("const done = arguments[arguments.length - 1]; {script}");
        self.tell("execute/async", json!({"script": script, "args": arguments}))
    }

    /// Runs in each page that is opened from now on, before its own scripts.
    pub fn before_scripts(&self, script: &str) -> Result<()> {
        self.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script })).map(drop)
    }

    /// What the page holds, without what nobody needs any more: the browser's own figures, and the memory of the process
    /// that draws it. `private_bytes` is what the browser's task manager tells of a tab; `rss_bytes` has the browser's
    /// program besides, which all of its processes share.
    pub fn memory(&self) -> Result<Value> {
        self.devtools("HeapProfiler.collectGarbage", json!({}))?;
        self.devtools("Performance.enable", json!({}))?;
        let told = self.devtools("Performance.getMetrics", json!({}))?;
        let metric = |name: &str| {
            let metrics = told["metrics"].as_array().into_iter().flatten();
            metrics.filter(|metric| metric["name"] == name).find_map(|metric| metric["value"].as_f64())
        };
        let (heap, nodes) = (metric("JSHeapUsedSize").context("no heap")?, metric("Nodes").context("no nodes")?);
        let listeners = metric("JSEventListeners").context("no listeners")?;
        let driver = self.driver.id().context("the driver has ended")?;
        let (rss, private) = drawing(driver)?;
        Ok(
            json!({"js_heap_bytes": heap, "nodes": nodes, "listeners": listeners, "rss_bytes": rss, "private_bytes": private}),
        )
    }

    /// Waits until an expression is true in the page.
    pub fn wait_until(&self, expression: &str) -> Result<()> {
        let script = format!("return Boolean({expression})");
        wait::until_true(expression, START_WAIT_MAX, || Ok(self.look(&script)? == true))
    }

    /// Says yes to the question that the page asks next.
    pub fn say_yes(&self) -> Result<()> {
        wait::until_true("the page asks", START_WAIT_MAX, || Ok(self.tell("alert/accept", json!({})).is_ok()))
    }

    fn devtools(&self, command: &str, params: Value) -> Result<Value> {
        self.tell("goog/cdp/execute", json!({"cmd": command, "params": params}))
    }

    /// In light or dark, on a desk or a phone.
    pub fn appear(&self, scheme: &str, width: u32) -> Result<()> {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }))?;
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width <= PHONE_WIDTH});
        self.devtools("Emulation.setDeviceMetricsOverride", size).map(drop)
    }

    /// Where files go that are downloaded from now on.
    pub fn download_to(&self, folder: &Path) -> Result<()> {
        self.devtools("Browser.setDownloadBehavior", json!({"behavior": "allow", "downloadPath": folder})).map(drop)
    }

    /// What scripts and the browser have complained about since this was asked last.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let entries = self.tell("se/log", json!({"type": "browser"}))?;
        let entries = entries.as_array().context("a log")?.iter();
        let severe = entries.filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        Ok(severe.map(|entry| entry["message"].to_string()).collect())
    }

    /// Where requests have gone since this was asked last.
    pub fn requests(&self) -> Result<Vec<String>> {
        let entries = self.tell("se/log", json!({"type": "performance"}))?;
        let mut urls = Vec::new();
        for entry in entries.as_array().context("a log")? {
            let message: Value = serde_json::from_str(entry["message"].as_str().unwrap_or_default())?;
            if message["message"]["method"] == "Network.requestWillBeSent" {
                urls.extend(message["message"]["params"]["request"]["url"].as_str().map(str::to_owned));
            }
        }
        Ok(urls)
    }

    /// No error was said, and nobody but this page's own server was asked for anything.
    pub fn nothing_is_wrong(&self, page: &str) -> Result<()> {
        let complaints = self.complaints()?;
        ensure!(complaints.is_empty(), "the browser complains: {complaints:?}");
        let requests = self.requests()?;
        ensure!(requests.len() > 5, "no requests were seen");
        // The tab that a browser opens with is its own.
        let is_ours = |url: &&String| ["data:", "chrome:", page].iter().any(|own| url.starts_with(own));
        let elsewhere: Vec<_> = requests.iter().filter(|url| !is_ours(url)).collect();
        ensure!(elsewhere.is_empty(), "requests elsewhere: {elsewhere:?}");
        Ok(())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser outlives a driver that is killed.
        drop(self.http.delete(&self.session).call());
    }
}

/// The memory of the largest process below this one that draws pages: all that is in use, and its own.
fn drawing(ancestor: u32) -> Result<(u64, u64)> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end meanwhile.
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_whitespace().next()?.parse::<u64>().ok()
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let draws = line.windows(15).any(|part| part == b"--type=renderer");
        let memory = field("VmRSS:").zip(field("RssAnon:").zip(field("VmSwap:")));
        let memory = memory.map(|(rss, (own, away))| (1024 * rss, 1024 * (own + away)));
        parents.insert(id, (field("PPid:").unwrap_or_default(), draws.then_some(memory).flatten()));
    }
    let is_below = |mut id: u32| {
        while id != ancestor {
            match parents.get(&id).and_then(|(parent, _)| u32::try_from(*parent).ok()) {
                Some(parent) if parent != 0 => id = parent,
                _ => return false,
            }
        }
        true
    };
    let ours = parents.iter().filter(|(id, _)| is_below(**id));
    ours.filter_map(|(_, (_, memory))| *memory).max().context("no process draws a page")
}

fn send(http: &ureq::Agent, url: &str, arguments: &Value) -> Result<Value> {
    let mut answer = http.post(url).content_type("application/json").send(arguments.to_string())?;
    let text = answer.body_mut().with_config().limit(64 << 20).read_to_string()?;
    let mut value: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    ensure!(answer.status() == 200, "the browser refuses: {text}");
    Ok(value["value"].take())
}
