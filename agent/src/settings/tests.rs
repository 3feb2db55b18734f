//! No setting locks a device out: every field that can cut the link, set wrong, with a kill at every step.
//!
//! What decides is the real thing: the documents' reader, the book, the trial, what is remembered as bytes. The time
//! and the world are numbers: a device is connected if the world lets the settings in force connect.

use std::collections::BTreeSet;
use std::time::Duration;

use hedge_core::clock::Moment;
use hedge_core::control::trial::{End, Evidence, STARTS_MAX, TRIAL};
use hedge_proto::{SettingsOutcome, from_json, to_json};
use serde_json::{Value, json};

use super::desired::Device;
use super::desired::documents::LOCAL;
use super::desired::tests::schema;
use super::in_force;
use crate::in_force::InForce;
use crate::state::Remembered;
use hedge_config::{Config, ConfigFile};

/// What an operator gets in exchange for a wrong setting: the trial, and a dial.
const BACK_WITHIN: Duration = TRIAL.saturating_add(Duration::from_secs(60));

/// From a kill to the next start; systemd's `RestartSec`.
const RESTART: Duration = Duration::from_secs(2);

/// To a broker that is there.
const DIAL: Duration = Duration::from_secs(3);

/// What comes of the wrong settings.
#[derive(Debug, Clone, Copy, PartialEq)]
enum World {
    /// Nobody is there.
    NoBroker,
    /// A broker, but nobody behind it.
    NoCloud,
    /// The agent crashes when it dials.
    Crashes,
}

/// The process is gone.
struct Killed;

/// A device, from one process to the next.
struct Life<'a> {
    file: &'a ConfigFile,
    world: World,
    /// What the broker keeps for it.
    retained: &'a [u8],
    /// Steps that are not survived.
    kills: &'a BTreeSet<u32>,
    now: Moment,
    /// The state file.
    disk: Vec<u8>,
    steps: u32,
    trials: u32,
    began_at: Option<Moment>,
    back_at: Option<Moment>,
}

impl<'a> Life<'a> {
    fn new(file: &'a ConfigFile, world: World, retained: &'a [u8], kills: &'a BTreeSet<u32>) -> Self {
        let disk = to_json(&Remembered::default());
        let (now, steps, trials) = (Moment(1_000_000), 0, 0);
        Self { file, world, retained, kills, now, disk, steps, trials, began_at: None, back_at: None }
    }

    /// One process after the other until the device is back, and then some more.
    fn live(&mut self) {
        let mut starts = 0;
        while self.back_at.is_none() && starts < 50 {
            starts += 1;
            if self.run().is_err() {
                self.now = self.now + RESTART;
            }
        }
    }

    fn step(&mut self) -> Result<(), Killed> {
        self.steps += 1;
        if self.kills.contains(&self.steps) { Err(Killed) } else { Ok(()) }
    }

    fn save(&mut self, remembered: &Remembered) -> Result<(), Killed> {
        self.step()?;
        self.disk = to_json(remembered);
        self.step()
    }

    /// One process, from its start until it is killed or the device is back with its old settings.
    fn run(&mut self) -> Result<(), Killed> {
        let mut remembered: Remembered = from_json(&self.disk, usize::MAX).expect("what was written reads");
        if remembered.started(self.now) {
            self.save(&remembered)?;
        }
        loop {
            let (_, config) = in_force(self.file, &remembered.book).expect("fits");
            let good = config == self.file.config;
            if !good && self.world == World::Crashes {
                return Err(Killed);
            }
            self.now = self.now + DIAL;
            if good {
                self.step()?;
                if !self.connected(&mut remembered)? {
                    self.back_at = Some(self.now);
                    return Ok(());
                }
            } else {
                self.try_out(&mut remembered)?;
            }
        }
    }

    /// Connected with the good settings: the retained document comes. True if it is in force now.
    fn connected(&mut self, remembered: &mut Remembered) -> Result<bool, Killed> {
        let device = Device { file: self.file, book: &remembered.book, labels: |_: &_| None };
        let Ok(wanted) = device.read(self.retained) else { return Ok(false) };
        let wanted = wanted.expect("the good settings are in force, not these");
        let mut next = remembered.clone();
        let outcome = next.take(self.file, wanted.overlay, &wanted.config, wanted.confirm, self.now);
        assert_eq!(outcome, SettingsOutcome::OnTrial, "it can cut the link");
        let began = self.now;
        self.step()?;
        self.disk = to_json(&next);
        self.trials += 1;
        self.began_at = Some(began);
        self.step()?;
        *remembered = next;
        Ok(true)
    }

    /// The trial, second by second. Returns with its end.
    fn try_out(&mut self, remembered: &mut Remembered) -> Result<(), Killed> {
        loop {
            let trial = remembered.book.trial_mut().expect("what cuts the link is on trial");
            trial.lost();
            if self.world == World::NoCloud {
                trial.saw(Evidence::Subscribed);
                trial.saw(Evidence::Reported);
            }
            if let Some(end) = trial.end(self.now) {
                assert!(matches!(end, End::Failed(_)), "nothing confirms it");
                let mut next = remembered.clone();
                next.end(end);
                self.save(&next)?;
                *remembered = next;
                return Ok(());
            }
            self.now = self.now + Duration::from_secs(1);
            if self.now.0 % 30_000 < 1000 {
                self.step()?;
            }
        }
    }
}

/// One document for each field that can cut the link. Found by looking, so that no new one is forgotten.
fn link_cutting(file: &ConfigFile) -> Vec<(String, Vec<u8>)> {
    let candidates = ["\"mqtt://nowhere:9\"", "\"http://nowhere:1\"", "\"away\"", "\"metered\"", "9999", "0.5", "true"];
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    for place in schema::places() {
        let cuts = candidates.into_iter().map(|value| place.document(value).into_bytes()).find(|document| {
            let book = &Default::default();
            let device = Device { file, book, labels: |_: &_| None };
            let wanted = device.read(document).ok().flatten();
            wanted.is_some_and(|wanted| InForce::cuts_the_link(&file.config, &wanted.config))
        });
        found.extend(cuts.map(|document| (place.name(), document)));
    }
    found
}

#[track_caller]
fn check(file: &ConfigFile, field: &str, world: World, retained: &[u8], kills: &BTreeSet<u32>) -> u32 {
    let mut life = Life::new(file, world, retained, kills);
    life.live();
    let what = format!("{field}, {world:?}, killed at {kills:?}");
    let began = life.began_at.unwrap_or_else(|| panic!("{what}: no trial"));
    let back = life.back_at.unwrap_or_else(|| panic!("{what}: locked out"));
    assert!(back.since(began) <= BACK_WITHIN, "{what}: back after {:?}", back.since(began));
    // The retained document comes again at every connect, and is left alone.
    let connects = if kills.is_empty() { 20 } else { 2 };
    for _ in 0..connects {
        (life.back_at, life.now) = (None, life.now + Duration::from_secs(600));
        life.live();
        assert!(life.back_at.is_some_and(|back| back.since(life.now) <= DIAL), "{what}: not back at once");
    }
    assert_eq!(life.trials, 1, "{what}: the trial loops");
    let remembered: Remembered = from_json(&life.disk, usize::MAX).expect("reads");
    let last = remembered.last.expect("said");
    assert_eq!((last.outcome, last.version), (SettingsOutcome::Failed, Some(9)), "{what}");
    assert!(remembered.book.in_force().is_none(), "{what}");
    life.steps
}

#[test]
fn every_field_that_cuts_the_link_is_given_back_whatever_is_killed_when() {
    let file = ConfigFile::parse(LOCAL, "agent.toml", std::iter::empty()).expect("valid");
    let fields = link_cutting(&file);
    let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
    let expected =
        ["alpn", "client_id", "credentials", "keep_alive_s", "proxy", "url"].map(|name| format!("broker.{name}"));
    assert_eq!(names, expected.iter().map(String::as_str).chain(["link.profile"]).collect::<Vec<_>>());
    let mut lives = 0;
    for (field, retained) in &fields {
        for world in [World::NoBroker, World::NoCloud, World::Crashes] {
            let steps = check(&file, field, world, retained, &BTreeSet::new());
            for kill in 1..=steps {
                check(&file, field, world, retained, &BTreeSet::from([kill]));
                // And again and again at the next steps, as often as a trial bears and once more.
                check(&file, field, world, retained, &(kill..=kill + STARTS_MAX).collect());
                lives += 2;
            }
        }
    }
    eprintln!("{lives} lives with kills, {} fields, all back within {BACK_WITHIN:?}", fields.len());
}

#[test]
fn good_settings_of_the_link_are_kept_over_a_kill_at_every_step() {
    let file = ConfigFile::parse(LOCAL, "agent.toml", std::iter::empty()).expect("valid");
    let document = json!({"version": 9, "settings": {"broker": {"keep_alive_s": 30}}}).to_string();
    let device = Device { file: &file, book: &Default::default(), labels: |_: &_| None };
    let wanted = device.read(document.as_bytes()).expect("valid").expect("new");
    let mut remembered = Remembered::default();
    remembered.take(&file, wanted.overlay, &wanted.config, wanted.confirm, Moment(0));
    for start in 1..=STARTS_MAX {
        let mut after: Remembered = from_json(&to_json(&remembered), usize::MAX).expect("reads");
        after.started(Moment(u64::from(start)));
        let trial = after.book.trial_mut().expect("goes on");
        [Evidence::Subscribed, Evidence::Reported, Evidence::CloudSpoke].into_iter().for_each(|seen| trial.saw(seen));
        assert_eq!(trial.end(Moment(10)), Some(End::Confirmed), "after start {start}");
        after.end(End::Confirmed);
        let kept: Remembered = from_json(&to_json(&after), usize::MAX).expect("reads");
        let (version, config): (u64, Config) = in_force(&file, &kept.book).expect("fits");
        assert_eq!((version, config.broker.and_then(|broker| broker.keep_alive_s)), (9, Some(30)));
        let value: Value = serde_json::from_slice(&to_json(&kept)).expect("JSON");
        assert!(value["book"]["trial"].is_null(), "{value}");
        remembered.started(Moment(u64::from(start)));
    }
}
