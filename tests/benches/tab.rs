//! What an open tab holds after an hour of live updates: Chromium's own figures before and after.
//!
//! The cases are real ones, with photos, taken by a device and answered by the cloud. The updates of an hour are told to the
//! page one after the other instead of three seconds apart, which is as often as the cloud tells them: each brings the
//! figures, the device, and the cases that have come since the update before; when all were told, the first come again, which
//! the page has forgotten long since. Run it by `cargo xtask bench tab`.
#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hedge_tests::browser::Browser;
use hedge_tests::{AgentConfig, Cloud, CloudSetup, places, wait};
use serde_json::{Value, json};

/// As often as the cloud tells a page.
const UPDATE_EVERY_S: usize = 3;

/// As many as the front page shows.
const CASES_SHOWN: usize = 24;

const ANSWERED_WITHIN: Duration = Duration::from_secs(3600);

#[derive(Parser)]
struct Arguments {
    /// Minutes of updates, at one case a second
    #[arg(long, default_value_t = 60)]
    minutes: usize,
    /// How many different cases there are
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(60..))]
    cases: u32,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Tells the page events as the cloud would.
const CATCH: &str = "
    const Real = window.EventSource;
    window.EventSource = class extends Real {
        constructor(...words) { super(...words); window.source = this; }
    };";

/// One update after the other, each once the one before is drawn; the real source is closed, so nothing else is told.
const REPLAY: &str = "
    const source = window.source;
    const tell = (name, value) => source.dispatchEvent(new MessageEvent(name, { data: JSON.stringify(value) }));
    const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 10)));
    (async () => {
        for (const { figures, devices, cases } of arguments[0]) {
            tell('figures', figures);
            tell('changed_devices', devices);
            tell('changed_cases', cases);
            await drawn();
        }
        done(true);
    })().catch((error) => done(String(error)));";

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let count = arguments.cases as usize;
    let dir = tempfile::tempdir()?;
    let cloud = Cloud::start(dir.path(), &CloudSetup::embedded(&["photo-large"]))?;
    let config = AgentConfig::new(dir.path(), "porch").broker(cloud.broker());
    let config = config.model_keeping("photo-small", 1.0).http_source("photos");
    // As small as the page shows them: an hour's photos whole would be a gigabyte.
    let config = config.section("[telemetry]\ninterval_s = 1\n[link.states.online]\npayload = { thumbnail = 320 }");
    let mut agent = config.start()?;
    agent.wait_until_online()?;
    let photos = ["astronaut.png", "chelsea.png", "coffee.png", "camera.png"];
    let photos = photos.map(|name| std::fs::read(places::model("pictures").join(name)));
    let photos = photos.into_iter().collect::<Result<Vec<_>, _>>()?;
    for number in 0..count {
        agent.http.post("photos", "", "image/png", &photos[number % photos.len()])?;
    }
    wait::until_true("the cases are answered", ANSWERED_WITHIN, || {
        Ok(cloud.get("/api/figures")?["answered"].as_u64() == Some(count as u64))
    })?;
    let updates = updates(&cloud, count, arguments.minutes * 60 / UPDATE_EVERY_S)?;
    let browser = Browser::start(dir.path())?;
    browser.before_scripts(CATCH)?;
    let page = cloud.dashboard();
    let mut measured = serde_json::Map::new();
    for (name, path, drawn) in [
        ("front", "/", format!("document.querySelectorAll('.case').length === {}", CASES_SHOWN)),
        ("device", "/devices/porch", "document.querySelector('.chart')".to_owned()),
    ] {
        browser.open(&format!("{page}{path}"))?;
        browser.wait_until(&drawn)?;
        browser.look("window.source.close()")?;
        let before = browser.memory()?;
        for some in updates.chunks(20) {
            let told = browser.look_later_with(REPLAY, json!([some]))?;
            ensure!(told == true, "{name}: {told}");
        }
        browser.wait_until("[...document.images].filter((image) => image.getBoundingClientRect().top < innerHeight).every((image) => image.complete)")?;
        let after = browser.memory()?;
        println!("{name}: {before} before, {after} after {} updates", updates.len());
        measured.insert(name.to_owned(), json!({"before": before, "after": after}));
    }
    agent.stop()?;
    println!("{}", json!({"updates": updates.len(), "cases": count, "pages": measured}));
    Ok(())
}

/// What the cloud tells in such a time, oldest first.
fn updates(cloud: &Cloud, count: usize, wanted: usize) -> Result<Vec<Value>> {
    let mut cases = Vec::new();
    while cases.len() < count {
        let after = cases
            .last()
            .map_or_else(String::new, |case: &Value| format!("&after={}", case["id"].as_str().unwrap_or_default()));
        let page = cloud.get(&format!("/api/cases?limit=500{after}"))?;
        let page = page.as_array().context("a list of cases")?;
        ensure!(!page.is_empty(), "only {} of {count} cases are on record", cases.len());
        cases.extend(page.iter().cloned());
    }
    cases.reverse();
    let (figures, device) = (cloud.get("/api/figures")?, cloud.get("/api/devices/porch")?["device"].clone());
    let mut updates = Vec::new();
    for number in 0..wanted {
        let (mut figures, mut device) = (figures.clone(), device.clone());
        let past = UPDATE_EVERY_S * (number + 1);
        let sum = figures["now_ms"].as_u64().unwrap_or_default() + 1000 * past as u64;
        figures["now_ms"] = json!(sum);
        figures["cases"] = json!(count + past);
        device["telemetry"]["samples"]["answered"] = json!(past);
        device["telemetry_ms"] = json!(sum);
        // Newer than what the page shows.
        let some = cases.iter().cycle().skip(number * UPDATE_EVERY_S).take(UPDATE_EVERY_S);
        let mut some: Vec<Value> = some.cloned().collect();
        some.iter_mut().for_each(|case| case["received_ms"] = json!(sum));
        updates.push(json!({"figures": figures, "devices": [device], "cases": some}));
    }
    Ok(updates)
}
