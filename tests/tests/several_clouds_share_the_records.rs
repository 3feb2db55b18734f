//! Several instances on one mosquitto and one PostgreSQL: one of them dies, the server goes away, and every case is
//! answered, once, whoever had it; each instance tells of all of them.
//!
//! A round: ten seconds more for which the server hangs; the first is as long as it takes until devices are told.
#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(dead_code, clippy::print_stderr, clippy::cast_precision_loss, reason = "the devices are those of the bench")]

#[path = "../benches/fleet/device.rs"]
mod device;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use device::{Device, Fleet, LABEL, Stage, TASK};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{Cloud, CloudSetup, Ext4, Mosquitto, Postgres, skip, soak, wait};
use tokio::sync::watch;

const DEVICES: usize = 30;

/// Of all devices together: what three debug builds on a busy machine can do beside other tests.
const CASES_PER_S: f64 = 60.0;

/// How much longer the server hangs with each round.
const ROUND: Duration = Duration::from_secs(10);

/// For what is no promise in time.
const PATIENCE: Duration = Duration::from_secs(120);

struct Stand {
    clouds: Vec<(Cloud, CloudSetup)>,
    fleet: Arc<Fleet>,
    stage: watch::Sender<Stage>,
    postgres: Postgres,
    _mosquitto: Mosquitto,
    _runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Stand {
    /// Three instances and a fleet at work.
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let postgres = Postgres::start(dir.path())?;
        Self::with(postgres, dir)
    }

    fn with(postgres: Postgres, dir: tempfile::TempDir) -> Result<Self> {
        let limits = MosquittoSetup { shipped_limits: true, ..MosquittoSetup::default() };
        let mosquitto = Mosquitto::start_with(dir.path(), &limits)?;
        let mut clouds = Vec::new();
        for number in 1..=3 {
            let mut setup =
                CloudSetup { instance: format!("cloud-{number}"), ..CloudSetup::stub(&mosquitto.url(), TASK, LABEL) };
            setup.environment.push(("HEDGE_CLOUD_RECORDS".to_owned(), postgres.url()));
            let cloud = Cloud::start(dir.path(), &setup)?;
            cloud.wait_until_connected()?;
            clouds.push((cloud, setup));
        }
        let every = Some(Duration::from_secs_f64(DEVICES as f64 / CASES_PER_S));
        let fleet = Arc::new(Fleet { every, ..Fleet::at(mosquitto.address())? });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (stage, stages) = watch::channel(Stage::Working);
        for number in 0..DEVICES {
            let device = Device::new(fleet.clone(), stages.clone(), number)?;
            runtime.spawn(device.run(number as f64 / DEVICES as f64));
        }
        let stand = Self { clouds, fleet, stage, postgres, _mosquitto: mosquitto, _runtime: runtime, _dir: dir };
        stand.wait_for_answers(60)?;
        Ok(stand)
    }

    fn of(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// So many more than there are.
    fn wait_for_answers(&self, more: u64) -> Result<()> {
        let wanted = Self::of(&self.fleet.counts.answered) + more;
        wait::until_true("cases are answered", PATIENCE, || Ok(Self::of(&self.fleet.counts.answered) >= wanted))
    }

    /// No more cases are made; all there are are answered within `bound`.
    fn finish(&self, bound: Duration) -> Result<Duration> {
        let begun = Instant::now();
        self.stage.send_replace(Stage::Finishing);
        let counts = &self.fleet.counts;
        let is_done = || Ok(Self::of(&counts.answered) == Self::of(&counts.made));
        if let Err(error) = wait::until_true("every case is answered", bound, is_done) {
            let (answered, made) = (Self::of(&counts.answered), Self::of(&counts.made));
            let logs = self.clouds.iter().map(|(cloud, setup)| format!("\n{}:\n{}", setup.instance, cloud.log_end()));
            let figures = self.clouds.iter().map(|(cloud, _)| format!("{:?}", cloud.get("/api/figures")));
            let said: String = logs.chain(figures).collect();
            return Err(error.context(format!("{answered} of {made} are answered; {said}")));
        }
        ensure!(Self::of(&counts.twice) == 0, "{} have two answers", Self::of(&counts.twice));
        Ok(begun.elapsed())
    }

    /// Each instance says what is so of all.
    fn check_totals(&self) -> Result<()> {
        let made = Self::of(&self.fleet.counts.made);
        for (cloud, setup) in &self.clouds {
            let figures = cloud.get("/api/figures")?;
            for (name, wanted) in [("cases", made), ("answered", made), ("waiting", 0), ("failed", 0), ("dead", 0)] {
                ensure!(figures[name] == wanted, "{} says {figures}, and {name} should be {wanted}", setup.instance);
            }
        }
        Ok(())
    }
}

#[test]
fn the_open_cases_of_an_instance_that_died_are_answered_once_by_the_others() -> Result<()> {
    if !skip::has_mosquitto() || !skip::has_postgres() {
        return Ok(());
    }
    let mut stand = Stand::start()?;
    stand.clouds[1].0.kill()?;
    let killed = Instant::now();
    // What was open then is answered by now, and the others go on.
    let made = Stand::of(&stand.fleet.counts.made);
    wait::until_true("the others take over", PATIENCE, || Ok(Stand::of(&stand.fleet.counts.answered) > made))?;
    let took = stand.finish(Duration::from_secs(60))?;
    eprintln!(
        "all answered {} ms after the kill, {} ms after the last was made",
        killed.elapsed().as_millis(),
        took.as_millis()
    );
    let (cloud, setup) = &mut stand.clouds[1];
    cloud.start_again(setup)?;
    stand.check_totals()
}

#[test]
fn a_server_that_crashes_or_hangs_loses_nothing_and_is_used_again() -> Result<()> {
    if !skip::has_mosquitto() || !skip::has_postgres() {
        return Ok(());
    }
    let mut stand = Stand::start()?;
    stand.postgres.stop_at_once()?;
    let busy = |stand: &Stand| Ok(Stand::of(&stand.fleet.counts.busy) > 0);
    wait::until_true("devices are told to wait", PATIENCE, || busy(&stand))?;
    stand.postgres.start_again()?;
    stand.wait_for_answers(60)?;
    stand.postgres.freeze()?;
    let (frozen, told) = (Instant::now(), Stand::of(&stand.fleet.counts.busy));
    wait::until_true("devices are told again", PATIENCE, || Ok(Stand::of(&stand.fleet.counts.busy) > told))?;
    // From then on the clouds say of themselves that they take nothing.
    wait::pause(ROUND * (soak::rounds(1) - 1));
    stand.postgres.thaw()?;
    let frozen = frozen.elapsed();
    eprintln!("frozen for {} s", frozen.as_secs());
    // What was made meanwhile is answered, too.
    let took = stand.finish(PATIENCE + 2 * frozen)?;
    eprintln!("all answered {} s after the last was made", took.as_secs());
    for (cloud, _) in &stand.clouds {
        let log = cloud.log();
        let said = |what: &str| log.lines().filter(|line| line.contains(what)).count();
        let (began, ended) = (said("are told to wait") + said("; the answerers wait"), said("can be used again"));
        ensure!(ended > 0 && began == ended, "{began} times it was said that all wait, {ended} times that it is over");
    }
    stand.check_totals()
}

/// Nothing more goes onto it, however little.
fn fill(file: &Path) -> Result<()> {
    let mut hog = std::fs::File::create(file)?;
    for bytes in [1 << 20, 4096, 1] {
        while hog.write_all(&vec![0; bytes]).and_then(|()| hog.sync_data()).is_ok() {}
    }
    Ok(())
}

#[test]
fn a_server_whose_disk_is_full_loses_nothing_and_is_used_again_when_there_is_room() -> Result<()> {
    if !skip::has_mosquitto() || !skip::has_postgres() || !skip::has_ext4() {
        return Ok(());
    }
    let place = tempfile::tempdir()?;
    // The server runs as somebody else.
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755))?;
    let disk = Ext4::make(place.path(), 160)?;
    let mut stand = Stand::with(Postgres::start_on(place.path(), &disk.path())?, tempfile::tempdir()?)?;
    let hog = disk.path().join("hog");
    fill(&hog)?;
    wait::until_true("devices are told to wait", PATIENCE, || Ok(Stand::of(&stand.fleet.counts.busy) > 0))?;
    std::fs::remove_file(hog)?;
    // It ends by itself where it had no room for its own log, now or a little later; whoever runs it starts it again.
    let wanted = Stand::of(&stand.fleet.counts.answered) + 60;
    wait::until_true("cases are answered", PATIENCE, || {
        stand.postgres.start_again()?;
        Ok(Stand::of(&stand.fleet.counts.answered) >= wanted)
    })?;
    stand.finish(PATIENCE)?;
    stand.check_totals()
}
