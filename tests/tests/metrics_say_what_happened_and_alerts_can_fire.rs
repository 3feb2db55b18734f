//! What a scraper sees is what has happened, and each alert names figures that exist and has its page in the runbook.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use hedge_proto::Outcome;
use hedge_tests::{Scene, Tally, places, scrape, skip, wait};
use serde_json::{Value, json};

const CORRECTION_WAIT_MAX: Duration = Duration::from_secs(60);

/// Well under the interval of telemetry (60 s): a change of the link is told at once.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// Only boards that tell have these; the agent's own tests look at them.
const OF_BOARDS: &str = "hedge_agent_board_";

fn docs(file: &str) -> Result<String> {
    let path = places::root().join("docs").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

#[test]
fn promtool_accepts_the_alert_rules() -> Result<()> {
    if !skip::has_promtool() {
        return Ok(());
    }
    let rules = places::root().join("docs/alerts.yml");
    let checked = Command::new(places::PROMTOOL).args(["check", "rules"]).arg(rules).output()?;
    let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    Ok(())
}

/// Every query of the example's dashboard, with what Grafana puts in the place of its variables.
fn dashboard_queries() -> Result<Vec<String>> {
    let path = places::root().join("examples/grafana/hedge.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let query =
        |target: &Value| Some(target["expr"].as_str()?.replace("$__rate_interval", "5m").replace("$device", ".*"));
    let queries: Vec<String> = targets.filter_map(query).collect();
    assert!(queries.len() > 10 && queries.iter().all(|query| !query.contains('$')), "{queries:?}");
    Ok(queries)
}

#[test]
fn promtool_accepts_the_queries_of_the_dashboard() -> Result<()> {
    if !skip::has_promtool() {
        return Ok(());
    }
    let rules = dashboard_queries()?.into_iter().enumerate();
    let rules: Vec<_> =
        rules.map(|(number, query)| json!({"record": format!("query:{number}"), "expr": query})).collect();
    let file = tempfile::NamedTempFile::new()?;
    // JSON is YAML.
    std::fs::write(&file, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string())?;
    let checked = Command::new(places::PROMTOOL).args(["check", "rules"]).arg(file.path()).output()?;
    let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    Ok(())
}

#[test]
fn each_alert_has_its_page_in_the_runbook() -> Result<()> {
    let (rules, runbook) = (docs("alerts.yml")?, docs("runbook.md")?);
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let pages: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(alerts, pages, "alerts and pages, in the same order");
    for page in runbook.split("\n### ").skip(1) {
        for part in ["**Means.**", "**Check.**", "**Act.**"] {
            assert!(page.contains(part), "no {part} in the page of {}", page.lines().next().unwrap_or_default());
        }
    }
    Ok(())
}

#[test]
fn both_programs_count_what_happened_and_have_every_figure_that_an_alert_names() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::embedded()?;
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?)).start()?;
    agent.wait_until_online()?;
    let mut tally = Tally::default();
    let answers = (0..5).map(|index| scene.post(&agent, index, &mut tally)).collect::<Result<Vec<_>>>()?;
    let deferred: Vec<_> = answers.iter().filter(|answer| answer.decision.outcome == Outcome::Defer).collect();
    assert!(!deferred.is_empty(), "nothing was deferred: the test shows nothing");
    for answer in &deferred {
        agent.wait_for_correction(&answer.id, CORRECTION_WAIT_MAX)?;
    }
    let (status, _) = agent.http.try_post("pictures", "", "image/png", b"no picture")?;
    assert_eq!(status, 422);
    agent.wait_for_status("the queue is empty", CORRECTION_WAIT_MAX, |status| status.queue.waiting == 0)?;

    // The device tells of its link by itself, on its way from connecting to online; no interval has to pass.
    let online = "hedge_cloud_devices{state=\"online\"}";
    let told = || Ok(scene.cloud.scrape()?.value(online)? == 1.0);
    wait::until_true("the cloud knows that the device is online", TOLD_WITHIN, told)?;

    let (device, cloud) = (agent.http.scrape()?, scene.cloud.scrape()?);
    let cases = deferred.len() as f64;
    let kept = answers.len() as f64 - cases;
    for (sample, expected) in [
        ("hedge_agent_answers_total{outcome=\"deferred\"}", cases),
        ("hedge_agent_answers_total{outcome=\"kept\"}", kept),
        ("hedge_agent_answers_total{outcome=\"failed\"}", 1.0),
        ("hedge_agent_answer_seconds_count{path=\"deferred\"}", cases),
        ("hedge_agent_answer_seconds_bucket{le=\"+Inf\",path=\"deferred\"}", cases),
        ("hedge_agent_stage_seconds_count{stage=\"inference\"}", answers.len() as f64),
        ("hedge_agent_stage_seconds_count{stage=\"store\"}", cases),
        ("hedge_agent_verdicts_total", cases),
        ("hedge_agent_link_state{state=\"online\"}", 1.0),
        ("hedge_agent_link_state{state=\"offline\"}", 0.0),
        ("hedge_agent_connections_total", 1.0),
        ("hedge_agent_cases_refused_total{reason=\"full\"}", 0.0),
        ("hedge_agent_queue_oldest_seconds", 0.0),
        ("hedge_agent_model_loaded{model=\"fashion-small\"}", 1.0),
    ] {
        assert_eq!(device.value(sample)?, expected, "{sample}");
    }
    for (sample, expected) in [
        ("hedge_cloud_received_cases_total", cases),
        ("hedge_cloud_case_outcomes{outcome=\"answered\"}", cases),
        ("hedge_cloud_case_outcomes{outcome=\"waiting\"}", 0.0),
        ("hedge_cloud_broker_connected", 1.0),
        (online, 1.0),
        ("hedge_cloud_turned_away_total{reason=\"refused\"}", 0.0),
    ] {
        assert_eq!(cloud.value(sample)?, expected, "{sample}");
    }
    assert!(device.value("hedge_agent_link_bytes_total")? > 1000.0);
    let spent = device.value("hedge_agent_budget_ratio{ceiling=\"bytes_per_month\"}")?;
    assert!(spent < 0.01, "a new device has its whole ceilings, not {spent} of them spent");
    assert!(device.value("hedge_agent_resident_memory_bytes")? > 1e6);
    assert!(device.text().ends_with("# EOF\n") && cloud.text().ends_with("# EOF\n"));

    let rules = docs("alerts.yml")?;
    let wanted = scrape::names_in(&rules);
    assert!(wanted.len() > 20, "{wanted:?}");
    for name in wanted.iter().filter(|name| !name.starts_with(OF_BOARDS)) {
        assert!(device.has(name) || cloud.has(name), "an alert names {name}, which neither program has");
    }
    for query in dashboard_queries()? {
        for name in scrape::names_in(&query) {
            assert!(device.has(&name) || cloud.has(&name), "the dashboard asks for {name}, which neither program has");
        }
    }
    agent.stop()
}

#[test]
fn a_device_nobody_can_scrape_tells_the_cloud_the_same() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::embedded()?;
    let config = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?));
    let mut agent = config.section("[telemetry]\ninterval_s = 1").start()?;
    agent.wait_until_online()?;
    scene.post(&agent, 0, &mut Tally::default())?;
    wait::until_true("its figures are on the dashboard", CORRECTION_WAIT_MAX, || {
        let devices = scene.cloud.get("/api/devices")?;
        let told = &devices[0]["telemetry"];
        Ok(told["samples"]["answered"] == 1
            && told["latency"]["inference"]["count"] == 1
            && told["models"]["fashion-small"]["name"] == "fashion-small"
            && told["queue"]["cases_max"].as_u64().is_some_and(|cases| cases > 0)
            && told["connections"] == 1
            && told["board"]["rss_bytes"].as_u64().is_some_and(|bytes| bytes > 0))
    })?;
    agent.stop()
}
