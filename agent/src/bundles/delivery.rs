//! Brings the bundles that settings want: runs `bundle update` when core says so, counts what it fetches, and ends it when
//! the link, a ceiling or the settings say otherwise.
//!
//! A process of its own fetches, verifies and tries, so nothing of a bundle is read in the one that answers before it is
//! known to be good. It goes on where it was ended, wherever that was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hedge_core::budget::{Budget, Spent};
use hedge_core::engine::Event;
use hedge_core::release::delivery::{Delivery, Means, Step, Wanted};
use hedge_core::release::shelf::{Shelf, Standing};
use hedge_proto::{Name, WantedFigures};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Shelves;
use crate::audit::{Audit, Kind, Noted};
use crate::child::{Child, Use, describe_end};
use crate::clock::Clock;
use crate::faults::{Faults, Part};
use crate::in_force::InForce;
use crate::inference::Judge;
use crate::link::LinkView;
use crate::restart;
use crate::uplink::Meter;

/// Whoever works on the device may change what is there without a word.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// A server that is away for a moment is no fault of the device.
const FAULT_AFTER: u32 = 3;

/// How the line begins that the process says once all of it has come; see `bundle update`.
const HAS_COME: &str = "verified ";

/// What is said of each wanted bundle in the status.
pub type Shown = BTreeMap<Name, WantedFigures>;

/// Fetches for all models, one at a time.
pub struct Deliveries {
    pub clock: Clock,
    pub settings: watch::Receiver<Arc<InForce>>,
    pub link: watch::Receiver<LinkView>,
    pub spent: watch::Receiver<Spent>,
    pub judges: BTreeMap<Name, Judge>,
    pub faults: Faults,
    pub events: mpsc::Sender<Event>,
    pub meter: Meter,
    pub shown: watch::Sender<Shown>,
    pub audit: Audit,
    /// What the process that fetches is configured by.
    pub config_file: PathBuf,
}

/// A model whose bundle is to be looked for.
#[derive(PartialEq)]
struct Order {
    model: Name,
    wanted: Wanted,
    shelves: Shelves,
}

impl Deliveries {
    /// Runs until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let (mut settings, mut link) = (self.settings.clone(), self.link.clone());
        let mut deliveries = BTreeMap::new();
        loop {
            settings.mark_unchanged();
            let state = link.borrow_and_update().state;
            let (order, look_in) = self.look(&mut deliveries);
            if let Some((order, bytes_per_s)) = order {
                let delivery = deliveries.entry(order.model.clone()).or_default();
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.bring(&order, bytes_per_s, delivery) => continue,
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = settings.changed() => if changed.is_err() { return },
                changed = link.wait_for(|view| view.state != state) => if changed.is_err() { return },
                () = tokio::time::sleep(look_in) => {}
            }
        }
    }

    /// What is to be fetched now, and when to look again.
    fn look(&self, deliveries: &mut BTreeMap<Name, Delivery>) -> (Option<(Order, u64)>, Duration) {
        let (mut shown, mut fetch, mut look_in) = (Shown::new(), None, LOOK_EVERY);
        let now = self.clock.now();
        for order in self.orders() {
            let part = Part::Bundle(order.model.clone());
            let delivery = deliveries.entry(order.model.clone()).or_default();
            let mut pace = None;
            let (state, reason) = match order.shelves.read() {
                Err(error) => ("waiting", Some(error.to_string())),
                Ok(shelf) => match delivery.step(now, &order.wanted, &shelf, &self.means()) {
                    Step::Settled(standing) => stands(standing),
                    Step::Wait { reason, until } => {
                        look_in = until.map_or(look_in, |until| look_in.min(until.since(now)));
                        ("waiting", Some(reason))
                    }
                    Step::Fetch { .. } if fetch.is_some() => ("waiting", Some("another one is fetched".to_owned())),
                    Step::Fetch { bytes_per_s } => {
                        pace = Some(bytes_per_s);
                        ("fetching", None)
                    }
                },
            };
            let is_fault = state == "failed" || (state == "waiting" && delivery.failures() >= FAULT_AFTER);
            let fault = reason.as_deref().filter(|_| is_fault);
            self.faults.note(&part, fault.map(|reason| sentence(&order.wanted, reason)));
            shown.insert(order.model.clone(), figures(&order.wanted, state, reason));
            fetch = pace.map(|pace| (order, pace)).or(fetch);
        }
        for (model, gone) in self.shown.borrow().iter().filter(|(model, _)| !shown.contains_key(*model)) {
            tracing::info!(%model, "{}/{} is wanted no longer", gone.name, gone.version);
            self.faults.clear(&Part::Bundle(model.clone()));
        }
        self.shown.send_replace(shown);
        (fetch, look_in)
    }

    fn orders(&self) -> Vec<Order> {
        let config = &self.settings.borrow().config;
        let order = |model: &hedge_config::ModelConfig| {
            let shelves = Shelves::configured(config, model)?;
            Some(Order { model: model.name.clone(), wanted: model.wanted()?, shelves })
        };
        config.models.iter().filter_map(order).collect()
    }

    fn means(&self) -> Means {
        let now = self.clock.now();
        let config = self.settings.borrow().config.clone();
        let spent = self.spent.borrow().clone();
        let link = config.broker.is_some().then(|| self.link.borrow().state);
        Means { link, pace: Budget::resume(config.link.ceilings(), Some(spent), now).pace_of_bundles(now) }
    }

    /// Fetches until the bundle is here, has failed, or is not to be fetched now.
    async fn bring(&self, order: &Order, bytes_per_s: u64, delivery: &mut Delivery) {
        let (model, title) = (&order.model, title(&order.wanted));
        tracing::info!(%model, bytes_per_s, "{title} is fetched");
        let why = match self.fetch(order, bytes_per_s, delivery).await {
            Ok(Some(why)) => why,
            Ok(None) => return tracing::info!(%model, "{title} is not fetched further now; what has come is kept"),
            Err(error) => error.to_string(),
        };
        let Wanted { name, version, shadow } = &order.wanted;
        let standing = order.shelves.read().map(|shelf: Shelf| shelf.standing(name, version, *shadow));
        let (outcome, reason) = match standing {
            Ok(Some(Standing::Current)) => ("promoted", None),
            Ok(Some(Standing::Candidate)) => ("candidate", None),
            Ok(Some(Standing::Failed(reason))) => ("failed", Some(reason)),
            Ok(None) | Err(_) => {
                tracing::warn!(%model, "{title} has not come: {why}");
                return delivery.failed(self.clock.now(), &why, chance());
            }
        };
        let mut entry = Noted::new(Kind::Bundle, format!("{model} {title}"), outcome);
        entry.reason.clone_from(&reason);
        self.audit.note(entry).await;
        if reason.is_none()
            && let Some(judge) = self.judges.get(model)
            && let Err(reason) = take_up(model, &order.shelves, judge).await
        {
            tracing::error!(%model, "{title} has come, but {reason}");
        }
    }

    /// Has another process fetch it. Returns what that says at its end; none if it was ended before.
    async fn fetch(&self, order: &Order, bytes_per_s: u64, delivery: &Delivery) -> std::io::Result<Option<String>> {
        let mut child = self.start(order, bytes_per_s)?;
        let mut lines = BufReader::new(child.stdout().ok_or(std::io::ErrorKind::BrokenPipe)?).lines();
        let (mut counted, mut has_come) = (0, false);
        loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) => {
                        has_come |= line.starts_with(HAS_COME);
                        self.count(&order.model, &line, &mut counted);
                        // The engine takes what was counted when it turns; a full queue turns it, too.
                        drop(self.events.try_send(Event::Tick));
                    }
                    // What is no text is no word of ours; it ends with the process.
                    Ok(None) | Err(_) => break,
                },
                () = self.changed(order, delivery, has_come) => {
                    child.stop().await?;
                    return Ok(None);
                }
            }
        }
        let ended = child.wait().await;
        let words = child.last_words().await;
        Ok(Some(match words.strip_prefix("hedge-agent: ") {
            Some(words) => words.to_owned(),
            None => describe_end(&ended, &words),
        }))
    }

    fn start(&self, order: &Order, bytes_per_s: u64) -> std::io::Result<Child> {
        let program =
            restart::program().ok_or_else(|| std::io::Error::other("this process does not know its own program"))?;
        let mut command = vec![program.display().to_string()];
        command.extend(["bundle", "update", order.model.as_str(), &title(&order.wanted)].map(str::to_owned));
        command.extend(["--bytes-per-s".to_owned(), bytes_per_s.to_string()]);
        command.extend(order.wanted.shadow.then(|| "--shadow".to_owned()));
        command.extend(["--config".to_owned(), self.config_file.display().to_string()]);
        Child::spawn(&command, Use::Stdout)
    }

    /// Counts what came by the line of the process that fetches, if that is what the line says.
    fn count(&self, model: &Name, line: &str, counted: &mut u64) {
        let numbers = line.strip_prefix("came ").and_then(|rest| {
            let mut words = rest.split_whitespace();
            let came: u64 = words.next()?.parse().ok()?;
            Some((came, words.nth(1)?.parse().ok()?))
        });
        let Some((came, bytes)) = numbers else { return };
        self.meter.count(came.saturating_sub(*counted));
        *counted = came;
        self.shown.send_modify(|shown| {
            if let Some(figures) = shown.get_mut(model) {
                (figures.came, figures.bytes) = (Some(came), Some(bytes).filter(|bytes| *bytes > 0));
            }
        });
    }

    /// Returns once the bundle is not wanted any more, or its delivery does not go on.
    async fn changed(&self, order: &Order, delivery: &Delivery, has_come: bool) {
        let (mut settings, mut link) = (self.settings.clone(), self.link.clone());
        let mut spent = self.spent.clone();
        loop {
            let state = link.borrow().state;
            settings.mark_unchanged();
            spent.mark_unchanged();
            let goes_on = delivery.goes_on(self.clock.now(), &order.wanted, &self.means(), has_come);
            if !goes_on || !self.orders().contains(order) {
                return;
            }
            tokio::select! {
                changed = settings.changed() => if changed.is_err() { return },
                changed = spent.changed() => if changed.is_err() { return },
                changed = link.wait_for(|view| view.state != state) => if changed.is_err() { return },
            }
        }
    }
}

/// The model takes the bundle that has become the current one, or looks at its answers with the one that is to.
pub(super) async fn take_up(model: &Name, shelves: &Shelves, judge: &Judge) -> Result<(), String> {
    // Two copies are enough.
    judge.compare_with(None).await?;
    judge.reload().await.map_err(|reason| format!("the one before answers on: {reason}"))?;
    tokio::spawn(super::prove(model.clone(), shelves.clone(), judge.clone()));
    super::compare(shelves, judge).await.map_err(|reason| format!("it is compared with no other: {reason}"))
}

fn title(wanted: &Wanted) -> String {
    format!("{}/{}", wanted.name, wanted.version)
}

fn stands(standing: Standing) -> (&'static str, Option<String>) {
    match standing {
        Standing::Current => ("current", None),
        Standing::Candidate => ("candidate", None),
        Standing::Failed(reason) => ("failed", Some(reason)),
    }
}

fn figures(wanted: &Wanted, state: &str, reason: Option<String>) -> WantedFigures {
    let (name, version) = (wanted.name.clone(), wanted.version.clone());
    WantedFigures { name, version, state: state.to_owned(), reason, came: None, bytes: None }
}

fn sentence(wanted: &Wanted, reason: &str) -> String {
    format!("{} is wanted and not run: {reason}; the bundle before it answers on", title(wanted))
}

/// From 0 to 1; without any chance all devices wait equally long, which is no harm.
fn chance() -> f64 {
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}
