//! Tells open pages what has changed, at most four times a second, from one reading of the records for all.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::stream::{Stream, unfold};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::routes::Admitted;
use super::{ApiError, CASES_LIMIT, CaseView, DeviceView, FiguresView, FleetView, Records, Shown, View, all_devices};
use crate::access::{Access, Watching, Who};
use crate::store::{Reader, Sought};
use crate::wall_ms;

/// How many pages are served live at once.
const PAGES_MAX: usize = 64;

/// How many of one user's: in several windows and browsers, and others find a place, too.
const PAGES_PER_USER_MAX: usize = 16;

/// The shortest time between two updates: faster than anyone reads.
const PAUSE: Duration = Duration::from_millis(250);

/// How many devices a page is told of, what is wrong first: the others it asks for.
const DEVICES_SHOWN: usize = 60;

/// Reading takes at most one part in so many of a processor: ten thousand devices take a while.
const READING: u32 = 5;

/// The most that is told to one page in a second, on average: who watches a busy fleet over a phone link must not pay
/// for more than can be read.
const BYTES_PER_S: u32 = 15_000;

/// How long a page hears nothing more after an update: what changes twice meanwhile is told once.
const PAGE_PAUSE: Duration = Duration::from_secs(3);

/// That a device was heard again, or has sent one more case, is told this late at most: with each case it would be the
/// greater part of all that is told.
const HEARD_LATE_MS: u64 = 30_000;

/// The figures go out at least this often, so that a page knows it is still live.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// What pages show, as JSON.
#[derive(Clone, Default)]
struct Snapshot {
    figures: Arc<str>,
    /// By name, and by id: in the order of the lists they stand in.
    devices: Items,
    cases: Items,
}

type Items = Arc<[Item]>;

struct Item {
    key: String,
    text: Arc<str>,
    /// It is told again when this is another.
    news: Arc<str>,
}

/// The way to the one that reads for all pages.
#[derive(Clone)]
pub(super) struct Live {
    latest: watch::Receiver<Snapshot>,
    joined: Arc<Notify>,
    pages: Arc<Semaphore>,
}

/// Starts reading for pages. Nothing is read while none is open.
pub(super) fn start(records: Records, shown: Arc<Shown>, commits: watch::Receiver<u64>) -> Live {
    let (sender, latest) = watch::channel(Snapshot::default());
    let joined = Arc::new(Notify::new());
    let pages = Arc::new(Semaphore::new(PAGES_MAX));
    tokio::spawn(read_for_all(records, shown, commits, sender, joined.clone(), pages.clone()));
    Live { latest, joined, pages }
}

async fn read_for_all(
    records: Records,
    shown: Arc<Shown>,
    mut commits: watch::Receiver<u64>,
    sender: watch::Sender<Snapshot>,
    joined: Arc<Notify>,
    pages: Arc<Semaphore>,
) {
    let mut link = shown.link.clone();
    loop {
        if pages.available_permits() == PAGES_MAX {
            joined.notified().await;
        }
        let began = Instant::now();
        match read(&records, &shown).await {
            Ok(snapshot) => drop(sender.send_replace(snapshot)),
            Err(error) => tracing::error!("pages are not up to date: {error}"),
        }
        // On a processor that is busy with other work a reading takes long without taking much of it.
        sleep((began.elapsed() * (READING - 1)).clamp(PAUSE, QUIET_MAX)).await;
        let changed = async {
            tokio::select! {
                seen = commits.changed() => seen,
                seen = link.changed() => seen,
                () = joined.notified() => Ok(()),
            }
        };
        // Only the end of the intake ends this; a quiet time is as good a reason to read as a change.
        if let Ok(Err(_)) = timeout(QUIET_MAX, changed).await {
            return;
        }
    }
}

async fn read(records: &Records, shown: &Shown) -> Result<Snapshot, ApiError> {
    let look = |reader: &Reader| {
        let cases = reader.find(&Sought::default(), CASES_LIMIT)?.unwrap_or_default();
        Ok((reader.totals()?, reader.devices()?, cases.rows))
    };
    let (totals, devices, cases) = records.read(look).await?;
    let mut devices = all_devices(devices, shown);
    let fleet = FleetView::count(&devices);
    devices.sort_by_key(|device| device.trouble);
    devices.truncate(DEVICES_SHOWN);
    let cases: Vec<CaseView> = cases.into_iter().map(CaseView::from).collect();
    Ok(Snapshot {
        figures: json(&FiguresView::new(totals, fleet, shown, wall_ms())),
        devices: devices.into_iter().map(device_item).collect(),
        cases: cases.iter().map(case_item).collect(),
    })
}

fn case_item(case: &CaseView) -> Item {
    let text = json(case);
    Item { key: case.id.to_string(), news: text.clone(), text }
}

fn device_item(mut device: DeviceView) -> Item {
    let text = json(&device);
    (device.cases, device.agreed, device.disagreed) = (0, 0, 0);
    device.last_seen_ms = device.last_seen_ms.map(|at| at / HEARD_LATE_MS);
    Item { key: device.device.clone(), news: json(&device), text }
}

/// A list of those that are not among `sent` as they are now; none if all are.
fn changed(now: &Items, sent: &Items) -> Option<String> {
    let sent: HashMap<&str, &Arc<str>> = sent.iter().map(|item| (item.key.as_str(), &item.news)).collect();
    let changed = now.iter().filter(|item| sent.get(item.key.as_str()).is_none_or(|sent| **sent != item.news));
    let changed: Vec<&str> = changed.map(|item| item.text.as_ref()).collect();
    (!changed.is_empty()).then(|| format!("[{}]", changed.join(",")))
}

fn json<T: serde::Serialize>(value: &T) -> Arc<str> {
    // Views have text keys only and always serialise; an empty document would show as stale.
    serde_json::to_string(value).unwrap_or_default().into()
}

struct Page {
    latest: watch::Receiver<Snapshot>,
    /// None before the first.
    sent: Option<Snapshot>,
    ready: VecDeque<Event>,
    /// It has been told so much that it hears nothing before this.
    full_until: Instant,
    _place: OwnedSemaphorePermit,
    _watching: Watching,
    who: Who,
    access: Arc<Access>,
}

/// What a page hears of each list: first all of it, then what has changed. A page that is open for hours costs little
/// more than its news.
const NAMES: [(&str, &str); 2] = [("devices", "changed_devices"), ("cases", "changed_cases")];

/// `GET /events`
pub(super) async fn events(
    State(view): State<View>,
    Extension(who): Admitted,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let Live { latest, joined, pages } = view.live;
    let place = pages.try_acquire_owned().map_err(|_| ApiError::TooManyPages(PAGES_MAX))?;
    let watching = view.access.watch(&who, PAGES_PER_USER_MAX).ok_or(ApiError::TooManyOfYours(PAGES_PER_USER_MAX))?;
    joined.notify_one();
    let page = Page {
        latest,
        sent: None,
        ready: VecDeque::new(),
        full_until: Instant::now(),
        _place: place,
        _watching: watching,
        who,
        access: view.access,
    };
    Ok(Sse::new(unfold(page, next)).keep_alive(KeepAlive::default()))
}

async fn next(mut page: Page) -> Option<(Result<Event, Infallible>, Page)> {
    while page.ready.is_empty() {
        sleep_until(page.full_until).await;
        page.latest.changed().await.ok()?;
        // Who has logged out, or was removed, hears no more.
        if !page.access.is_still_in(&page.who) {
            return None;
        }
        let now = page.latest.borrow_and_update().clone();
        let mut bytes = 0;
        let mut event = |name: &str, data: &str| {
            bytes += data.len();
            Event::default().event(name).data(data)
        };
        let old = page.sent.take();
        if old.as_ref().is_none_or(|old| old.figures != now.figures) {
            page.ready.push_back(event("figures", &now.figures));
        }
        let lists = |snapshot: &Snapshot| [snapshot.devices.clone(), snapshot.cases.clone()];
        let before = old.as_ref().map_or_else(Default::default, lists);
        for ((whole, some), (now, before)) in NAMES.into_iter().zip(lists(&now).iter().zip(&before)) {
            match (changed(now, before), &old) {
                (items, None) => page.ready.push_back(event(whole, items.as_deref().unwrap_or("[]"))),
                (Some(items), Some(_)) => page.ready.push_back(event(some, &items)),
                (None, Some(_)) => {}
            }
        }
        // Not for the first, which is the page itself.
        if old.is_some() {
            let telling = Duration::from_secs(1) * u32::try_from(bytes).unwrap_or(u32::MAX) / BYTES_PER_S;
            page.full_until = Instant::now() + telling.max(PAGE_PAUSE);
        }
        page.sent = Some(now);
    }
    page.ready.pop_front().map(|event| (Ok(event), page))
}
