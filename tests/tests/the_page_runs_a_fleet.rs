//! What an operator does and sees on the page, in one browser: a device loses its link and comes back, settings on trial are
//! kept, a change goes out in stages by keyboard on a phone, a training set is downloaded and read by what retrains models, a
//! case that waits on its device is deleted there too, and ten thousand devices leave the page usable. No complaint of the browser, and no request elsewhere.
//!
//! A broker says half a minute after a cut that the device is gone, and a device dials again when it is due: the rest happens
//! meanwhile.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{
    CaseFate, CaseId, DeviceId, DeviceState, DeviceStatus, LinkState, ModelFigures, ModelRef, Telemetry, Topic, Topics,
    WIRE_VERSION, WantedFigures, to_json,
};
use hedge_tests::browser::{Browser, PHONE_WIDTH};
use hedge_tests::{Agent, AgentConfig, Cloud, FaultProxy, Scene, Tally, places, skip, wait};
use rumqttc::{AsyncClient, MqttOptions, PublishOptions, QoS};

/// A link that is back is used within the longest ordinary wait between two dials, and the page says so after that.
const SEEN_WITHIN: Duration = Duration::from_secs(90);

const DEVICES: usize = 10_000;

/// What the page may consist of, however many devices there are.
const NODES_MAX: u64 = 5_000;

/// How many messages of the fleet's are on their way at once.
const UNDER_WAY: usize = 500;

const ENTER: &str = "\u{e007}";
const TAB: &str = "\u{e004}";
const SPACE: &str = " ";

#[test]
fn an_operator_sees_and_changes_a_fleet_in_the_browser() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_browser() {
        return Ok(());
    }
    let scene = Scene::embedded()?;
    let way = FaultProxy::start(scene.broker()?)?;
    // Nothing here answers about photos: its cases wait, in the cloud and in its outbox.
    let shed = AgentConfig::new(scene.dir(), "shed").model_keeping("photo-small", 1.0).http_source("photos");
    let shed = shed.broker(&format!("mqtt://{}", way.address())).corrections_file();
    let mut cut_off = shed.start()?;
    let config = scene.doubter("porch").broker(&format!("mqtt://{}", scene.broker()?));
    let mut agent = config.section("[telemetry]\ninterval_s = 1\n[settings]\ntrial_s = 60").start()?;
    agent.wait_until_online()?;
    cut_off.wait_until_online()?;
    let case = scene.post_a_stored_one(&agent, 0, &mut Tally::default())?.id;
    agent.wait_for_correction(&case, SEEN_WITHIN)?;
    let browser = Browser::start(scene.dir())?;
    let page = scene.cloud.dashboard();

    browser.open(page)?;
    browser.wait_until("document.querySelectorAll('.device.online').length === 2")?;
    let deleted = a_waiting_case_is_deleted(&browser, page, &scene.cloud, &cut_off)?;
    way.cut();
    settings_on_trial_are_kept_by_a_click(&browser, page, &mut agent)?;
    a_change_goes_out_in_stages_by_keyboard(&browser, page, &scene.cloud)?;
    a_training_set_is_downloaded(&browser, page, scene.dir())?;
    a_cut_is_seen(&browser, page)?;
    way.pass();
    let complaints = browser.complaints()?;
    ensure!(complaints.is_empty(), "the browser complains: {complaints:?}");
    agent.stop()?;
    let (nodes, busy) = ten_thousand_devices_leave_it_usable(&browser, page, &scene.cloud)?;
    println!("ten thousand devices: {nodes} elements, a timer of 50 ms is late for {busy:.1} % of the time");
    ensure!(nodes <= NODES_MAX, "the page has {nodes} elements");
    its_end_is_seen_too(&browser, page)?;
    // It has come back, and neither side has anything of the case.
    cut_off.stop()?;
    let mut queue = Command::new(places::program("hedge-agent")?);
    let queue = queue.args(["queue", "--config"]).arg(shed.file()).arg("list").output()?;
    ensure!(queue.stdout == b"no cases\n", "{}", String::from_utf8_lossy(&queue.stdout));
    ensure!(cut_off.corrections()?.is_empty(), "the deleted case was answered");
    ensure!(scene.cloud.get(&format!("/api/cases/{deleted}")).is_err(), "the cloud has the deleted case");
    browser.nothing_is_wrong(page)
}

/// Returns its id.
fn a_waiting_case_is_deleted(browser: &Browser, page: &str, cloud: &Cloud, device: &Agent) -> Result<CaseId> {
    let photo = std::fs::read(places::model("pictures").join("coffee.png"))?;
    let answer = device.http.post("photos", "", "image/png", &photo)?;
    ensure!(answer.case == Some(CaseFate::Stored), "{answer:?}");
    let id = answer.id;
    wait::until_true("the cloud has the case", SEEN_WITHIN, || Ok(cloud.get(&format!("/api/cases/{id}")).is_ok()))?;
    ensure!(device.http.status()?.queue.waiting == 1, "the device forgets it before it is answered");
    browser.open(&format!("{page}/cases/{id}"))?;
    browser.wait_until("document.querySelector('#picture img') && document.getElementById('delete').offsetParent")?;
    browser.look("document.getElementById('delete').click()")?;
    browser.say_yes()?;
    browser.wait_until("document.getElementById('deleted').textContent === '1 deleted.'")?;
    ensure!(device.http.status()?.queue.waiting == 0, "it still waits on the device");
    Ok(id)
}

fn a_cut_is_seen(browser: &Browser, page: &str) -> Result<()> {
    browser.open(page)?;
    browser.wait_until("document.querySelector('.device.offline .say')?.textContent.startsWith('offline for')")?;
    browser.wait_until("document.getElementById('fleet').textContent.includes('1 offline')")
}

/// Found among all the others, and without a new search.
fn its_end_is_seen_too(browser: &Browser, page: &str) -> Result<()> {
    browser.open(&format!("{page}/?where=name=shed"))?;
    browser.wait_until("document.getElementById('where').textContent === '1 to 1 of 1'")?;
    wait::until_true("the device is seen online again", SEEN_WITHIN, || {
        Ok(browser.look("return Boolean(document.querySelector('.device.online'))")? == true)
    })
}

/// In the editor, with a setting of the connection, which an operator has to confirm.
fn settings_on_trial_are_kept_by_a_click(browser: &Browser, page: &str, agent: &mut Agent) -> Result<()> {
    browser.open(&format!("{page}/devices/porch"))?;
    let field = "[...document.querySelectorAll('.field')].find((one) => one.querySelector('label').textContent === 'keep_alive_s')";
    browser.wait_until(field)?;
    browser.look(&format!(
        "document.getElementById('confirm').value = 'operator'; const field = {field}; field.closest('details').open = true;
         field.querySelector('input').focus()"
    ))?;
    browser.press(&format!("33{ENTER}{ENTER}"))?;
    browser.wait_until("document.querySelector('.trial .main')?.disabled === false")?;
    browser.wait_until("document.querySelector('.standing .pill')?.textContent === 'on trial'")?;
    browser.look("document.querySelector('.trial .main').click()")?;
    browser.wait_until("document.querySelector('.standing .pill')?.textContent === 'applied'")?;
    browser.wait_until("document.getElementById('history').textContent.includes('broker.keep_alive_s')")?;
    ensure!(browser.look("return document.querySelector('.trial')")?.is_null(), "the trial is over");
    agent.wait_until_online()
}

/// From field to field by Tab, on the width of a phone.
fn a_change_goes_out_in_stages_by_keyboard(browser: &Browser, page: &str, cloud: &Cloud) -> Result<()> {
    browser.appear("light", PHONE_WIDTH)?;
    browser.open(&format!("{page}/fleet"))?;
    browser
        .wait_until("document.querySelector('#runs .run') && document.documentElement.dataset.role === 'operator'")?;
    let reach = |what: &str| {
        // No page has more stops than this.
        for _ in 0..60 {
            if browser.look(&format!("return document.activeElement.matches('{what}')"))? == true {
                return Ok(());
            }
            browser.press(TAB)?;
        }
        anyhow::bail!("no way to {what} by keyboard")
    };
    reach("[name=where]")?;
    browser.press("name=por*")?;
    reach("[name=settle_s]")?;
    browser.look("document.activeElement.select()")?;
    browser.press("0")?;
    reach("[name=edits]")?;
    browser.press("log.level=warn")?;
    reach("#look")?;
    browser.press(ENTER)?;
    browser.wait_until("document.getElementById('said').textContent.startsWith('1 device')")?;
    reach("#begin")?;
    browser.press(SPACE)?;
    browser.wait_until("document.querySelector('#list .pill.good')?.textContent === 'done'")?;
    browser.wait_until("document.getElementById('list').textContent.includes('1 applied')")?;
    let wide = browser.look("return document.scrollingElement.scrollWidth")?;
    ensure!(wide.as_u64() <= Some(PHONE_WIDTH.into()), "the page is {wide} pixels wide");
    let settings = &cloud.get("/api/devices/porch")?["reported"]["settings"];
    ensure!(settings["log"]["level"] == "warn" && settings["broker"]["keep_alive_s"] == 33, "{settings}");
    browser.appear("light", 1300)
}

fn a_training_set_is_downloaded(browser: &Browser, page: &str, dir: &Path) -> Result<()> {
    let folder = dir.join("downloads");
    std::fs::create_dir_all(&folder)?;
    browser.download_to(&folder)?;
    browser.open(&format!("{page}/cases"))?;
    browser.wait_until("document.querySelector('.case .who') && document.getElementById('as-jsonl').offsetParent")?;
    browser.look("document.getElementById('as-jsonl').click()")?;
    let archive = wait::until("the archive is there", SEEN_WITHIN, || {
        let files = std::fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(files.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "tar")))
    })?;
    let bytes = std::fs::read(&archive)?;
    let named = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    ensure!(named(b"labels.jsonl") && named(b".png"), "{}", archive.display());

    // What retrains models begins with it.
    ensure!(
        Command::new("tar").arg("-C").arg(&folder).arg("-xf").arg(&archive).status()?.success(),
        "it is no archive"
    );
    let half = ["train", "test"].map(|half| folder.join(half)).into_iter().find(|half| half.is_dir());
    let tensors = dir.join("tensors");
    let mut read = Command::new(places::program("hedge-agent")?);
    read.args(["bundle", "tensors"]).arg(places::model("fashion-small")).arg("--out").arg(&tensors);
    let read = read.arg("--pictures").arg(half.context("neither half of a training set")?).output()?;
    let said = String::from_utf8_lossy(&read.stdout);
    ensure!(
        said.starts_with("1 samples, 0 of which could not be read"),
        "{said}{}",
        String::from_utf8_lossy(&read.stderr)
    );
    let class = std::fs::read(tensors.join("classes.npy"))?;
    ensure!(class.ends_with(&[0; 7]), "its label is none of the model's");
    Ok(())
}

/// Returns how many elements the page has, and for how much of the time it is too busy for a timer, in percent.
fn ten_thousand_devices_leave_it_usable(browser: &Browser, page: &str, cloud: &Cloud) -> Result<(u64, f64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let fleet = Fleet::connect(cloud).await?;
        fleet.tell(0..DEVICES, 1).await?;
        fleet.tell_of_bundle("d00001").await?;
        browser.open(page)?;
        browser.wait_until("document.getElementById('where').textContent.endsWith('of 10,002')")?;
        browser.look(
            "window.late = 0; let last = performance.now();
             setInterval(() => { const now = performance.now(); window.late += Math.max(0, now - last - 50); last = now; }, 50);
             window.began = last;",
        )?;
        // One device in a hundred says something while the page is watched.
        fleet.tell((0..DEVICES).step_by(100), 2).await?;
        browser.wait_until("performance.now() - window.began > 5000")
    })?;
    let nodes = browser.look("return document.querySelectorAll('*').length")?.as_u64().context("a number")?;
    let busy = browser.look("return 100 * window.late / (performance.now() - window.began)")?;
    // They are found by the words of the command line.
    browser.look("const find = document.getElementById('find'); find.value = 'name=d0077*'; find.dispatchEvent(new Event('input'))")?;
    browser.wait_until("document.getElementById('where').textContent === '1 to 10 of 10'")?;
    browser.open(&format!("{page}/devices/d00001"))?;
    browser.wait_until("document.querySelector('#bundles .now')?.textContent === 'is being fetched'")?;
    browser.wait_until("document.getElementById('bundles').textContent.includes('1.0 MB of 4.0 MB')")?;
    Ok((nodes, busy.as_f64().context("a number")?))
}

/// Devices that are their status and nothing else.
struct Fleet {
    client: AsyncClient,
    topics: Topics,
}

impl Fleet {
    async fn connect(cloud: &Cloud) -> Result<Self> {
        let broker = cloud.broker_address()?;
        let options = MqttOptions::new("fleet", (broker.ip().to_string(), broker.port()));
        let (client, mut events) = AsyncClient::builder(options).capacity(2 * UNDER_WAY).build();
        tokio::spawn(async move { while events.poll().await.is_ok() {} });
        Ok(Self { client, topics: Topics::new("")? })
    }

    /// That it fetches what it is wanted to run.
    async fn tell_of_bundle(&self, device: &str) -> Result<()> {
        let wanted = WantedFigures {
            name: DeviceId::new("small")?,
            version: DeviceId::new("2")?,
            state: "fetching".to_owned(),
            reason: None,
            came: Some(1_000_000),
            bytes: Some(4_000_000),
        };
        let figures = ModelFigures { wanted: Some(wanted), ..ModelFigures::default() };
        let telemetry = Telemetry {
            model_figures: [(DeviceId::new("front")?, figures)].into(),
            ..Telemetry::new(LinkState::Online)
        };
        let topic = self.topics.text(&Topic::UpTelemetry(DeviceId::new(device)?));
        let options = PublishOptions::new(QoS::AtLeastOnce);
        self.client.publish_tracked(topic, to_json(&telemetry), options).await?.wait_async().await?;
        Ok(())
    }

    /// Returns once the broker has all of it.
    async fn tell(&self, devices: impl Iterator<Item = usize>, connection: u64) -> Result<()> {
        let mut under_way = std::collections::VecDeque::new();
        for number in devices {
            let device = DeviceId::new(&format!("d{number:05}"))?;
            let status = DeviceStatus {
                state: if number % 50 == 0 { DeviceState::Offline } else { DeviceState::Online },
                connection,
                window_every_s: None,
                link: None,
                version: Some("0.1.0".to_owned()),
                wire: vec![WIRE_VERSION],
                models: vec![ModelRef { name: "small".to_owned(), version: "1".to_owned() }],
                faults: Default::default(),
            };
            let topic = self.topics.text(&Topic::UpStatus(device));
            let options = PublishOptions::new(QoS::AtLeastOnce).retained();
            under_way.push_back(self.client.publish_tracked(topic, to_json(&status), options).await?);
            if under_way.len() >= UNDER_WAY
                && let Some(oldest) = under_way.pop_front()
            {
                oldest.wait_async().await?;
            }
        }
        for notice in under_way {
            notice.wait_async().await?;
        }
        Ok(())
    }
}
