//! Carries orders out: each in the part of the agent that it is about.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hedge_core::engine::Event;
use hedge_core::release::shelf::{NotTried, Shelf};
use hedge_proto::{Answer, CaseKey, ForgetArgs, LogLevelArgs, Name, Order, RequeueArgs, WhatIfArgs, to_value};
use serde_json::{Value, json};

use super::CarriesOut;
use crate::bundles;
use crate::capture::Intake as _;
use crate::control::Control;
use crate::inference::Judge;
use crate::pipeline::Pipeline;
use crate::queue::{CHANGES_MAX, Id, Selection, Stage};
use crate::restart::Restart;
use hedge_config::ThresholdConfig;

/// How long a source may take to bring a picture.
const SNAPSHOT_WAIT_MAX: Duration = Duration::from_secs(20);

/// Dead letters that one reply lists, if they fit into it.
const DEAD_LETTERS_MAX: usize = 100;

/// What orders are about.
#[derive(Clone)]
pub(crate) struct Effects {
    pub pipeline: Arc<Pipeline>,
    pub control: Control,
    pub restart: Restart,
}

impl CarriesOut for Effects {
    async fn carry_out(&self, order: Order) -> Result<Value, String> {
        match order {
            Order::Ping => Ok(json!({"version": env!("CARGO_PKG_VERSION")})),
            Order::Status => Ok(to_value(&self.pipeline.status())),
            Order::Explain(args) => Ok(self.explain(usize::from(args.last))),
            Order::Drain => {
                let told = self.pipeline.events.send(Event::Drain).await;
                told.map_err(|_| "the agent is stopping".to_owned())?;
                Ok(json!({"waiting": self.pipeline.outbox.figures().waiting}))
            }
            Order::WhatIf(args) => self.what_if(*args),
            Order::Pause(args) => self.control.pause(args.source).await.map(nothing),
            Order::Resume(args) => self.control.resume(args.source).await.map(nothing),
            Order::QueueStats => Ok(to_value(&self.pipeline.queue().stats())),
            Order::DeadLetters => {
                let queue = self.pipeline.queue();
                let listed = tokio::task::spawn_blocking(move || queue.list(Some(Stage::Dead), DEAD_LETTERS_MAX));
                Ok(to_value(&listed.await.map_err(|error| error.to_string())?))
            }
            Order::Requeue(args) => self.requeue(args).await,
            Order::Forget(args) => self.forget(args).await,
            Order::Reload => Ok(json!({"next_start": self.control.reload().await?})),
            Order::LogLevel(LogLevelArgs { level, for_s }) => self.control.log_level(level, for_s).await.map(nothing),
            Order::Snapshot(args) => {
                let asked = self.pipeline.snapshots.ask(&args.source);
                let answer = tokio::time::timeout(SNAPSHOT_WAIT_MAX, asked)
                    .await
                    .unwrap_or_else(|_| Err(format!("it brought no picture within {} s", SNAPSHOT_WAIT_MAX.as_secs())));
                let answer = answer.map_err(|reason| match self.pipeline.figures.sources().get(&args.source) {
                    Some(state) => format!("source `{}`: {reason}; its state: {state}", args.source),
                    None => format!("there is no source named `{}`", args.source),
                })?;
                Ok(to_value(&*answer))
            }
            Order::Restart => {
                self.restart.ask()?;
                // The next start writes the result.
                std::future::pending().await
            }
            Order::Promote(args) => self.turn(&args.model, Shelf::promote_candidate).await,
            Order::Back(args) => self.turn(&args.model, Shelf::back_by_hand).await,
            Order::Confirm(args) => self.control.confirm(args.version).await.map(nothing),
            Order::Revert(args) => self.control.revert(args.version).await.map(nothing),
        }
    }
}

impl Effects {
    /// The last decisions, newest first, and what answers must reach now.
    fn explain(&self, last: usize) -> Value {
        let decisions = self.pipeline.answers.recent(last).into_iter().map(|remembered| {
            // What has become of the case, not what was true when the answer was given.
            let local = self.pipeline.as_it_stands(remembered.local.clone());
            let Answer { id, reference, source, model, said, decision, case, captured, .. } = &*remembered.local;
            let correction = remembered.correction.as_ref();
            let case = if correction.is_some() { json!("answered") } else { json!(local.case.or(*case)) };
            let correction =
                correction.map(|answer| json!({"result": to_value(&answer.said), "revision": answer.revision}));
            json!({
                "id": id, "ref": reference, "source": source, "model": model, "result": to_value(said),
                "decision": to_value(decision), "case": case, "captured": captured, "correction": correction,
            })
        });
        let decisions: Vec<Value> = decisions.collect();
        json!({"decisions": decisions, "models": to_value(&self.pipeline.status().model_figures)})
    }

    /// What the threshold in force makes of the answers of the last day, and what another would have made of them.
    fn what_if(&self, WhatIfArgs { model, threshold }: WhatIfArgs) -> Result<Value, String> {
        let judge = self.pipeline.judges.get(&model).ok_or_else(|| {
            let known: Vec<&str> = self.pipeline.judges.keys().map(Name::as_str).collect();
            format!("model: there is no model named `{model}`; the models are: {}", known.join(", "))
        })?;
        let in_force = self.pipeline.settings.borrow().thresholds.get(&model).cloned().unwrap_or_default();
        let wanted = in_force.with(&threshold).map_err(|reason| format!("threshold: {reason}"))?;
        let of =
            |threshold: &ThresholdConfig| judge.forecast(threshold).map_err(|reason| format!("threshold: {reason}"));
        let then =
            of(&wanted)?.ok_or_else(|| format!("model `{model}` has answered nothing since the agent started"))?;
        // What is in force may lack what the other has.
        Ok(json!({"in_force": to_value(&of(&in_force).ok().flatten()), "then": to_value(&then)}))
    }

    /// Another bundle of this model runs from now on.
    async fn turn(&self, model: &Name, turn: fn(&mut Shelf) -> Result<(), NotTried>) -> Result<Value, String> {
        let config = self.pipeline.settings.borrow().config.clone();
        bundles::turn(&config, &self.pipeline.judges, model, turn).await?;
        let runs = self.pipeline.judges.get(model).and_then(Judge::card);
        Ok(json!({"model": runs.map(|card| to_value(&card.model))}))
    }

    async fn requeue(&self, args: RequeueArgs) -> Result<Value, String> {
        let ids: Vec<Id> = args.ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        let selection = Selection { all_dead: ids.is_empty(), ids };
        let changed = self.pipeline.queue().requeue(&selection).await.map_err(|error| error.to_string())?;
        Ok(json!({"cases": changed}))
    }

    /// Whatever is not stored is forgotten already.
    async fn forget(&self, ForgetArgs { ids, all }: ForgetArgs) -> Result<Value, String> {
        let queue = self.pipeline.queue();
        let named: HashSet<CaseKey> = ids.iter().map(|id| id.parse::<Id>().map(|id| id.0)).collect::<Result<_, _>>()?;
        let mut ids = queue.ids(None);
        ids.retain(|id| all || named.contains(&id.0));
        let mut forgotten = 0;
        for ids in ids.chunks(CHANGES_MAX) {
            let selection = Selection { ids: ids.to_vec(), all_dead: false };
            let changed = queue.drop_cases(&selection).await.map_err(|error| error.to_string())?;
            let (done, not): (Vec<_>, Vec<_>) = changed.into_iter().partition(|one| one.problem.is_none());
            forgotten += done.len();
            // One that was answered meanwhile is gone as well.
            let left: HashSet<CaseKey> = queue.ids(None).into_iter().map(|id| id.0).collect();
            if let Some(failed) = not.into_iter().find(|one| left.contains(&one.id.key)) {
                return Err(format!("{}: {}", failed.id, failed.problem.unwrap_or_default()));
            }
        }
        Ok(json!({"forgotten": forgotten}))
    }
}

fn nothing((): ()) -> Value {
    Value::Null
}
