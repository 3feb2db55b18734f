//! The page in a real browser: a review by keyboard that reaches the device, no complaint of the browser, no request
//! elsewhere, and nothing serious or critical that axe-core finds, in light and dark, on a desk and on a phone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hedge_proto::{Authority, CaseId};
use hedge_tests::browser::{Browser, PHONE_WIDTH};
use hedge_tests::{Agent, AgentConfig, Cloud, CloudSetup, FaultProxy, Scene, Tally, places, skip, tally, wait};
use serde_json::Value;

/// Far more than one case takes on an idle link.
const CORRECTION_WAIT_MAX: Duration = Duration::from_secs(60);

/// As many as the front page shows.
const CASES_SHOWN: usize = 24;

/// How long a page is watched that stays open.
const SECONDS: u32 = 20;

/// Less than the half minute after which a browser lets go of a page's connections.
const LIVE_WITHIN: Duration = Duration::from_secs(20);

const ENTER: &str = "\u{e007}";

#[test]
fn a_review_by_keyboard_reaches_the_device() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_browser() {
        return Ok(());
    }
    let scene = Scene::embedded()?;
    let (mut agent, ids) = some_closed_cases(&scene, 3)?;
    let browser = Browser::start(scene.dir())?;
    let page = scene.cloud.dashboard();
    browser.open(&format!("{page}/cases?order=newest"))?;
    browser.wait_until("document.querySelectorAll('.case .who').length === 3")?;
    // The second case of the list, by its keys.
    browser.press(&format!("jj{ENTER}"))?;
    let id = &ids[1];
    browser.wait_until(&format!("location.pathname === '/cases/{id}' && document.querySelector('.label')"))?;
    browser.wait_until("!document.getElementById('following').disabled")?;

    // Another label than the one that stands, by its number.
    let next = browser.look(
        "return [...document.querySelectorAll('.label')].slice(0, 9).findIndex((one) => !one.classList.contains('now'))",
    )?;
    let next = usize::try_from(next.as_u64().context("another label")?)?;
    let wanted = browser.look(&format!("return document.querySelectorAll('.label')[{next}].dataset.label"))?;
    browser.press(&(next + 1).to_string())?;
    let line = wait::until("the correction comes out of the sink", CORRECTION_WAIT_MAX, || {
        Ok(agent.corrections()?.into_iter().find(|line| line.id == *id && line.revision == 2))
    })?;
    assert_eq!(line.authority, Authority::Person);
    assert_eq!(tally::label(&line).as_deref(), wanted.as_str());

    // It has gone on to the case behind it, an older one, which Enter confirms as it is.
    browser
        .wait_until(&format!("location.pathname === '/cases/{}' && document.querySelector('.label.now')", ids[2]))?;
    browser.press(ENTER)?;
    let confirmed = |agent: &Agent| -> Result<bool> {
        Ok(agent.corrections()?.iter().any(|line| line.id == ids[2] && line.authority == Authority::Person))
    };
    wait::until_true("the confirmation comes out of the sink", CORRECTION_WAIT_MAX, || confirmed(&agent))?;

    // Somebody else says another label while the case is open: that is what Enter would confirm now.
    browser.wait_until("document.getElementById('words').textContent.includes('(person')")?;
    let other = "const other = [...document.querySelectorAll('.label')].find((one) => !one.classList.contains('now')).dataset.label; \
         const headers = { 'Content-Type': 'application/json', 'Hedge-Operate': 'yes' }; \
         const body = JSON.stringify({ label: other, by: 'bob' }); \
         return fetch(`/api/review/${location.pathname.split('/').pop()}`, { method: 'POST', headers, body }).then(() => other)";
    let other = browser.look(other)?;
    browser.wait_until(&format!("document.getElementById('label').value === {other}"))?;
    browser.nothing_is_wrong(page)?;
    agent.stop()
}

#[test]
fn every_page_can_be_used_by_everybody() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_browser() {
        return Ok(());
    }
    let Some(axe) = places::axe() else {
        skip::skipped("axe-core is not here; `cargo xtask test` fetches it and sets HEDGETEST_AXE");
        return Ok(());
    };
    let axe = std::fs::read_to_string(axe)?;
    let scene = Scene::embedded()?;
    let (mut agent, ids) = some_closed_cases(&scene, 3)?;
    let browser = Browser::start(scene.dir())?;
    let page = scene.cloud.dashboard();
    let pages = [
        ("/".to_owned(), ".case .who"),
        ("/cases".to_owned(), ".case .who"),
        ("/fleet".to_owned(), "#runs .run"),
        (format!("/cases/{}", ids[0]), ".label.now"),
        (
            "/devices/device-1".to_owned(),
            ".field') && document.querySelector('.chart') && document.querySelector('.case",
        ),
    ];
    let mut found = Vec::new();
    for (path, drawn) in &pages {
        browser.open(&format!("{page}{path}"))?;
        browser.wait_until(&format!("document.querySelector('{drawn}')"))?;
        browser.wait_until("document.getElementById('live').textContent === 'live'")?;
        // Most of the time is what a page and axe-core take to load: once for all ways in which the page may appear.
        browser.look(&axe)?;
        for (scheme, width) in [("light", 1300), ("dark", 1300), ("light", PHONE_WIDTH)] {
            browser.appear(scheme, width)?;
            let serious = serious_findings(&browser)?;
            found.extend(serious.into_iter().map(|what| format!("{path} {scheme} {width}: {what}")));
            let wide = browser.look("return document.scrollingElement.scrollWidth")?;
            if wide.as_u64() > Some(width.into()) {
                found.push(format!("{path} is {wide} pixels wide on a screen of {width}"));
            }
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    browser.nothing_is_wrong(page)?;
    agent.stop()
}

#[test]
fn a_device_s_page_shows_what_became_of_it_and_says_what_is_not_reported() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_browser() {
        return Ok(());
    }
    let scene = Scene::embedded()?;
    let (mut agent, _) = some_closed_cases(&scene, 3)?;
    let browser = Browser::start(scene.dir())?;
    let page = scene.cloud.dashboard();
    for width in [1300, PHONE_WIDTH] {
        browser.appear("light", width)?;
        browser.open(&format!("{page}/devices/device-1?span=hour"))?;
        // The device tells every second, and the page asks again by itself.
        for title in ["Answers", "Deferred", "Link", "Doubt of", "Is it right", "Queue", "How long"] {
            let drawn = format!(
                "[...document.querySelectorAll('.panel')].some((panel) => panel.textContent.startsWith('{title}')
                    && panel.querySelector('svg[role=img][aria-label]'))"
            );
            browser.wait_until(&drawn)?;
        }
        browser.wait_until(&format!("document.scrollingElement.scrollWidth <= {width}"))?;
        browser.wait_until("document.querySelector('.chart .limit')")?;
    }
    // No certificate is sought here, and what a case is worth no device tells.
    for words in ["No certificate: the threshold of fashion-small is a fixed number", "the device does not report"] {
        browser.wait_until(&format!("document.getElementById('trend').textContent.includes('{words}')"))?;
    }
    // A browser has six connections for one server, and keeps pages that were left for the way back.
    for path in ["/", "/fleet", "/devices/device-1?span=hour"].into_iter().cycle().take(9) {
        let began = Instant::now();
        browser.open(&format!("{page}{path}"))?;
        browser.wait_until("document.getElementById('live').textContent === 'live'")?;
        ensure!(began.elapsed() < LIVE_WITHIN, "{path} was live after {:?}", began.elapsed());
    }
    browser.wait_until("document.querySelector('.field') && document.querySelector('.chart')")?;
    // By keyboard: the tab before is the week's neighbour, and the address can be sent to a colleague.
    browser.look("document.querySelector('#trend [data-span=week]').focus()")?;
    browser.press(ENTER)?;
    browser.wait_until(
        "location.search === '?span=week' && document.querySelector('[data-span=week][aria-pressed=true]')",
    )?;
    browser.nothing_is_wrong(page)?;
    agent.stop()
}

/// A fresh browser on a desk, cases with photos, and everything that goes to it counted on the way.
#[test]
fn the_front_page_costs_300_kilobytes_and_5_minutes_of_it_2_megabytes() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_browser() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let cloud = Cloud::start(dir.path(), &CloudSetup::embedded(&["photo-large"]))?;
    let start = |device| {
        let config = AgentConfig::new(dir.path(), device).broker(cloud.broker());
        let mut agent = config.model_keeping("photo-small", 1.0).http_source("photos").corrections_file().start()?;
        agent.wait_until_online()?;
        Ok(agent)
    };
    let mut agents = ["porch", "garden", "gate"].into_iter().map(start).collect::<Result<Vec<_>>>()?;
    let photos = ["astronaut.png", "chelsea.png", "coffee.png"].map(|name| places::model("pictures").join(name));
    let photos = photos.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    let post = |number: usize| {
        let (agent, photo) = (&agents[number % agents.len()], &photos[number % photos.len()]);
        agent.http.post("photos", "", "image/png", photo)
    };
    let mut posted = 0;
    while posted < CASES_SHOWN {
        post(posted)?;
        posted += 1;
    }
    let answered =
        |many: usize| cloud.get("/api/figures").map(|figures| figures["answered"].as_u64() == Some(many as u64));
    wait::until_true("the cases are answered", CORRECTION_WAIT_MAX, || answered(CASES_SHOWN))?;

    let way = FaultProxy::start(cloud.dashboard().trim_start_matches("http://").parse()?)?;
    let browser = Browser::start(dir.path())?;
    browser.appear("light", 1300)?;
    browser.open(&format!("http://{}/", way.address()))?;
    let drawn = format!(
        "document.querySelectorAll('.case').length === {CASES_SHOWN} && document.querySelectorAll('.device').length === 3"
    );
    browser.wait_until(&drawn)?;
    browser.wait_until("[...document.images].filter((image) => image.getBoundingClientRect().top < innerHeight).every((image) => image.complete && image.naturalWidth)")?;
    // All of them are scrolled past.
    browser.look("for (const image of document.images) image.loading = 'eager'")?;
    browser.wait_until("[...document.images].every((image) => image.complete && image.naturalWidth)")?;
    let first = way.meter();
    println!("the first load: {} bytes down, {} up", first.down_bytes, first.up_bytes);
    ensure!(first.bytes() <= 300_000, "the front page costs {} bytes", first.bytes());

    // So many seconds of five minutes, with a case in each.
    let began = Instant::now();
    for second in 1..=SECONDS {
        post(posted)?;
        posted += 1;
        wait::pause((Duration::from_secs(1) * second).saturating_sub(began.elapsed()));
    }
    browser.wait_until(&format!("document.querySelector('#figures b').textContent === '{posted}'"))?;
    let more = way.meter().since(&first).bytes() * 300 / u64::from(SECONDS);
    println!("five minutes at one case a second: {more} bytes");
    ensure!(more <= 2_000_000, "five minutes of the front page cost {more} bytes");
    agents.iter_mut().try_for_each(Agent::stop)
}

/// What axe-core finds that keeps people out, and where.
fn serious_findings(browser: &Browser) -> Result<Vec<String>> {
    let found = browser.look_later(
        "axe.run({ resultTypes: ['violations'] }).then(({ violations }) => done(violations
            .filter(({ impact }) => ['serious', 'critical'].includes(impact))
            .map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 160)).slice(0, 3).join(' | ')}`)),
            (error) => done([`axe-core: ${error}`]))",
    )?;
    Ok(found.as_array().context("a list")?.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// A device and so many cases of its that the cloud has answered, the newest first.
fn some_closed_cases(scene: &Scene, many: usize) -> Result<(Agent, Vec<CaseId>)> {
    let config = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?));
    let mut agent = config.section("[telemetry]\ninterval_s = 1").start()?;
    agent.wait_until_online()?;
    let mut ids = Vec::new();
    for n in 0..many {
        let id = scene.post_a_stored_one(&agent, 60 * n, &mut Tally::default())?.id;
        agent.wait_for_correction(&id, CORRECTION_WAIT_MAX)?;
        ids.insert(0, id);
    }
    Ok((agent, ids))
}
