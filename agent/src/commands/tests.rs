//! The desk over a real journal, with effects and a broker that do as the test says. Ending its task is the crash.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use hedge_core::clock::Moment;
use hedge_core::policy::Policies;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{Notify, Semaphore};

use super::replies::Said;
use super::*;
use crate::clock::ClockMark;

/// The world around one desk, which survives its crashes.
struct Bench {
    dir: TempDir,
    world: World,
    running: Option<(Desk, JoinHandle<()>, watch::Sender<LinkView>)>,
}

#[derive(Clone)]
struct World(Arc<Inside>);

struct Inside {
    journal: PathBuf,
    begun: AtomicUsize,
    /// An effect ends when there is a permit.
    gate: Semaphore,
    /// Whether the broker takes replies.
    broker: std::sync::atomic::AtomicBool,
    replies: Mutex<Vec<(ReplyTo, Reply)>>,
    changed: Notify,
}

impl World {
    fn journal_has(&self, what: &str, id: &str) -> bool {
        let journal = std::fs::read_to_string(&self.0.journal).expect("a journal");
        journal.lines().any(|line| line.contains(what) && line.contains(id))
    }

    fn replies(&self) -> Vec<Reply> {
        self.0.replies.lock().expect("not poisoned").iter().map(|(_, reply)| reply.clone()).collect()
    }
}

impl CarriesOut for World {
    async fn carry_out(&self, order: Order) -> Result<Value, String> {
        assert!(self.journal_has("began", "\"id\"") || order.changes_nothing(), "an effect before its intent");
        let n = self.0.begun.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.changed.notify_waiters();
        if order == Order::Restart {
            std::future::pending::<()>().await;
        }
        self.0.gate.acquire().await.expect("open").forget();
        Ok(json!({"n": n}))
    }
}

impl Says for World {
    async fn say(&self, reply_to: ReplyTo, reply: Reply) -> Said {
        if let Some(id) = &reply.id
            && reply.outcome != CommandOutcome::Refused
        {
            assert!(self.journal_has("ended", id), "a reply before its result is on disk");
        }
        self.0.replies.lock().expect("not poisoned").push((reply_to, reply));
        self.0.changed.notify_waiters();
        if self.0.broker.load(Ordering::SeqCst) { Said::Over } else { Said::NotYet }
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let world = World(Arc::new(Inside {
            journal: dir.path().join("commands.jsonl"),
            begun: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            broker: true.into(),
            replies: Mutex::default(),
            changed: Notify::new(),
        }));
        let mut bench = Self { dir, world, running: None };
        bench.start();
        bench
    }

    fn task(&self) -> DeskTask<World, World> {
        let clock = Clock::resume(&ClockMark::default(), Moment(0));
        let setup = DeskSetup {
            device: DeviceId::new("d1").expect("valid"),
            topics: Topics::new("").expect("valid"),
            audit: Audit::new(self.dir.path(), clock.clone()),
            clock,
            effects: self.world.clone(),
            says: self.world.clone(),
        };
        DeskTask::open(self.dir.path(), setup).expect("opens").0
    }

    fn start(&mut self) {
        self.start_with(|_| {});
    }

    fn start_with(&mut self, change: impl FnOnce(&mut DeskTask<World, World>)) {
        let mut task = self.task();
        change(&mut task);
        let (desk, arrived) = Desk::new();
        let (link, view) = watch::channel(LinkView::starting(Policies::DEFAULT.online));
        let running = tokio::spawn(task.run(arrived, view, CancellationToken::new()));
        self.running = Some((desk, running, link));
    }

    async fn crash(&mut self) {
        let (_, task, _) = self.running.take().expect("runs");
        task.abort();
        drop(task.await);
    }

    async fn take(&self, text: &str) {
        let (desk, ..) = self.running.as_ref().expect("runs");
        assert!(desk.take(Command { payload: text.to_owned().into(), ..Command::default() }).await);
    }

    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let wait = async {
            loop {
                let changed = self.world.0.changed.notified();
                if holds(&self.world) {
                    return;
                }
                // Not everything waited for rings a bell, the journal for example.
                drop(tokio::time::timeout(Duration::from_millis(10), changed).await);
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(seen.is_ok(), "{what}: not within 60 s; replies {:?}", self.world.replies());
    }

    /// Starts anew and returns the one reply that is then said.
    async fn reply_after_crash(&mut self) -> Reply {
        self.crash().await;
        let before = self.world.replies().len();
        self.start();
        self.until("a reply", |world| world.replies().len() > before).await;
        self.world.replies().last().cloned().expect("one")
    }
}

const DRAIN: &str = r#"{"id": "a", "command": "drain"}"#;

#[tokio::test]
async fn once_acknowledged_a_command_is_on_disk_and_a_crash_before_its_effect_interrupts_it() {
    let mut bench = Bench::new();
    // The first one holds up the second, which has therefore not begun.
    bench.take(r#"{"id": "first", "command": "drain"}"#).await;
    bench.take(DRAIN).await;
    assert!(bench.world.journal_has("began", "\"a\""));
    bench.crash().await;
    bench.start();
    bench.until("both replies", |world| world.replies().len() == 2).await;
    assert!(bench.world.replies().iter().all(|reply| reply.outcome == CommandOutcome::Interrupted));
    let begun = bench.world.0.begun.load(Ordering::SeqCst);
    bench.take(DRAIN).await;
    bench.until("the same again", |world| world.replies().len() == 3).await;
    assert_eq!(bench.world.replies()[2], bench.world.replies()[1]);
    assert_eq!(bench.world.0.begun.load(Ordering::SeqCst), begun, "it ran after all");
}

#[tokio::test]
async fn a_crash_between_effect_and_result_interrupts_it() {
    let mut bench = Bench::new();
    bench.take(DRAIN).await;
    bench.until("it has begun", |world| world.0.begun.load(Ordering::SeqCst) == 1).await;
    let reply = bench.reply_after_crash().await;
    assert_eq!((reply.outcome, reply.id.as_deref()), (CommandOutcome::Interrupted, Some("a")));
    assert_eq!(bench.world.0.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_result_that_the_broker_never_acknowledged_is_said_by_the_next_start() {
    let mut bench = Bench::new();
    bench.world.0.broker.store(false, Ordering::SeqCst);
    bench.world.0.gate.add_permits(1);
    bench.take(DRAIN).await;
    bench.until("a reply", |world| !world.replies().is_empty()).await;
    let first = bench.world.replies()[0].clone();
    bench.world.0.broker.store(true, Ordering::SeqCst);
    assert_eq!(bench.reply_after_crash().await, first);
    bench.until("it is noted as said", |world| world.journal_has("said", "\"a\"")).await;
    bench.crash().await;
    bench.start();
    bench.take(r#"{"command": "ping"}"#).await;
    bench.world.0.gate.add_permits(1);
    bench.until("a reply", |world| world.replies().len() == 3).await;
    assert_eq!(bench.world.replies()[2].command.as_deref(), Some("ping"), "said once more than needed");
}

#[tokio::test]
async fn another_connection_brings_what_could_not_be_said() {
    let bench = Bench::new();
    bench.world.0.broker.store(false, Ordering::SeqCst);
    bench.world.0.gate.add_permits(1);
    bench.take(DRAIN).await;
    bench.until("a reply", |world| !world.replies().is_empty()).await;
    bench.world.0.broker.store(true, Ordering::SeqCst);
    let (.., link) = bench.running.as_ref().expect("runs");
    let connected = std::time::Instant::now();
    link.send_modify(|view| view.connections += 1);
    bench.until("said", |world| world.journal_has("said", "\"a\"")).await;
    assert!(connected.elapsed() < replies::TRY_AGAIN_AFTER / 2, "it only came because time had passed");
    assert_eq!(bench.world.replies().len(), 2);
}

#[tokio::test]
async fn a_restart_is_done_by_the_next_start() {
    let mut bench = Bench::new();
    bench.take(r#"{"id": "r", "command": "restart"}"#).await;
    bench.until("it has begun", |world| world.0.begun.load(Ordering::SeqCst) == 1).await;
    let reply = bench.reply_after_crash().await;
    assert_eq!((reply.outcome, reply.id.as_deref()), (CommandOutcome::Done, Some("r")));
    bench.take(r#"{"id": "r", "command": "restart"}"#).await;
    bench.until("the same again", |world| world.replies().len() == 2).await;
    assert_eq!(bench.world.0.begun.load(Ordering::SeqCst), 1, "it would restart for ever");
}

#[tokio::test]
async fn a_hundred_repeats_have_one_effect_and_one_result() {
    let bench = Bench::new();
    bench.world.0.gate.add_permits(100);
    for _ in 0..100 {
        bench.take(DRAIN).await;
    }
    bench.until("said", |world| world.journal_has("said", "\"a\"")).await;
    let replies = bench.world.replies();
    assert!(replies.iter().all(|reply| *reply == replies[0] && reply.outcome == CommandOutcome::Done), "{replies:?}");
    assert_eq!(bench.world.0.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn commands_take_their_turns_in_the_order_they_came() {
    let bench = Bench::new();
    bench.world.0.gate.add_permits(10);
    for id in 0..10 {
        bench.take(&json!({"id": format!("c{id}"), "command": "drain"}).to_string()).await;
    }
    bench.until("all are said", |world| world.replies().len() == 10).await;
    for (n, reply) in bench.world.replies().iter().enumerate() {
        assert_eq!((reply.id.clone(), &reply.result["n"]), (Some(format!("c{n}")), &json!(n + 1)));
    }
}

#[tokio::test]
async fn a_message_that_a_stopping_agent_did_not_take_comes_again_and_one_that_ended_the_desk_does_not() {
    let mut bench = Bench::new();
    let desk = bench.running.as_ref().expect("runs").0.clone();
    bench.crash().await;
    assert!(desk.take(Command::default()).await, "acknowledged, or it would come for ever");
    desk.stopping.store(true, Ordering::SeqCst);
    assert!(!desk.take(Command::default()).await);
}

#[tokio::test]
async fn a_disk_that_takes_nothing_leaves_questions_only() {
    let mut bench = Bench::new();
    bench.crash().await;
    bench.start_with(|task| task.journal.lock().expect("not poisoned").refuse_writes());
    bench.world.0.gate.add_permits(1);
    bench.take(DRAIN).await;
    bench.until("a reply", |world| world.replies().len() == 1).await;
    let refused = bench.world.replies()[0].clone();
    assert_eq!(refused.outcome, CommandOutcome::Refused);
    assert!(refused.reason.expect("said").contains("disk"));
    bench.take(r#"{"id": "b", "command": "ping"}"#).await;
    bench.until("begun", |world| world.0.begun.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn everything_stands_in_the_audit_log_with_who_gave_it() {
    let mut bench = Bench::new();
    bench.world.0.gate.add_permits(1);
    bench.take(r#"{"id": "a", "command": "drain", "by": "ana"}"#).await;
    bench.until("said", |world| world.replies().len() == 1).await;
    bench.take(r#"{"command": "drain"}"#).await;
    bench.take(r#"{"id": "b", "command": "drain", "by": "bo"}"#).await;
    bench.until("begun", |world| world.0.begun.load(Ordering::SeqCst) == 2).await;
    bench.reply_after_crash().await;
    let (lines, _) = crate::audit::read(bench.dir.path(), 10).expect("reads");
    let seen: Vec<_> = lines.iter().map(|line| (line.entry.outcome.as_str(), line.entry.by.as_deref())).collect();
    assert_eq!(seen, [("done", Some("ana")), ("refused", None), ("interrupted", Some("bo"))]);
}
