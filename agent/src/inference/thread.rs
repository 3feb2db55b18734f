//! One model's thread: it owns what is loaded, and does one thing after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedge_core::judge::{Asked, Familiar, Frames, ThresholdScale, judge};
use hedge_inference::{ContentType, Region, Tensor, Tensors};
use hedge_proto::{ModelRef, Name, Output, Reason, RivalRole};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::loaded::Loaded;
use super::record::{Record, Work};
use super::{ModelCard, ModelSetup, Opinion};
use crate::faults::Part;
use crate::figures::Timed;
use crate::sample::SampleError;
use hedge_config::ThresholdConfig;

/// A model that could not be loaded is tried again after so long: its file may have been put right.
pub const RELOAD_WAIT: Duration = Duration::from_secs(10);

/// What the thread is asked to do.
pub(super) enum Job {
    /// Answered as soon as the jobs before it are done and the model is loaded, or is known not to load. A model
    /// whose turn to be tried again has come is tried.
    Settle {
        reply: oneshot::Sender<Result<(), SampleError>>,
    },
    Judge {
        content_type: ContentType,
        bytes: Bytes,
        region: Option<Region>,
        threshold: Arc<ThresholdConfig>,
        scale: ThresholdScale,
        /// The source, and which camera if it has several, of a sample that is a frame.
        frame_of: Option<(Name, Option<Name>)>,
        reply: oneshot::Sender<Result<(Opinion, Arc<ModelCard>), SampleError>>,
    },
    /// The samples after it are answered by another bundle.
    Swap {
        loaded: Box<Loaded>,
        reply: oneshot::Sender<ModelRef>,
    },
    /// Another bundle looks at the samples, or none. Without a loaded one, that in this folder goes on if it is there.
    /// Answers whether that is so now.
    Compare {
        with: Option<(PathBuf, RivalRole)>,
        loaded: Option<Box<Loaded>>,
        reply: oneshot::Sender<bool>,
    },
    /// The bundle of this folder, which looked on, answers from now on, and the one that answered looks on. Answers whether
    /// it was there.
    Exchange {
        with: PathBuf,
        reply: oneshot::Sender<bool>,
    },
    Run {
        tensor: Tensor,
        reply: oneshot::Sender<Result<Tensors, SampleError>>,
    },
}

/// The thread's own things.
pub(super) struct ModelThread {
    setup: ModelSetup,
    cards: watch::Sender<Option<Arc<ModelCard>>>,
    work: Work,
    record: Record,
    familiar: Familiar,
    frames: Frames,
    loaded: Result<Loaded, Missing>,
    /// Looks at the same samples; nobody hears it.
    rival: Option<Loaded>,
}

/// Why a model is not loaded, and when that is tried again.
struct Missing {
    reason: Arc<str>,
    again_at: Instant,
}

impl ModelThread {
    pub(super) fn new(
        setup: ModelSetup,
        cards: watch::Sender<Option<Arc<ModelCard>>>,
        (work, record): (Work, Record),
    ) -> Self {
        let loaded = Err(Missing { reason: Arc::from("it is being loaded"), again_at: Instant::now() });
        Self {
            setup,
            cards,
            work,
            record,
            familiar: Familiar::default(),
            frames: Frames::default(),
            loaded,
            rival: None,
        }
    }

    pub(super) fn serve(mut self, mut queue: mpsc::Receiver<Job>) {
        match self.setup.rest.take() {
            Some((rest, reason)) => self.missing(&reason, rest),
            None => self.load(),
        }
        while let Some(job) = queue.blocking_recv() {
            match job {
                Job::Settle { reply } => drop(reply.send(self.model().map(drop))),
                // A caller that has gone away needs no answer, so a failed reply is no error.
                Job::Judge { content_type, bytes, region, threshold, scale, frame_of, reply } => {
                    let by = (&*threshold, scale);
                    drop(reply.send(self.judge(&content_type, &bytes, region.as_ref(), by, frame_of.as_ref())));
                }
                Job::Swap { loaded, reply } => {
                    let model = loaded.card.model.clone();
                    self.take(*loaded);
                    drop(reply.send(model));
                }
                Job::Compare { with, loaded, reply } => {
                    reply.send(self.compare(with, loaded.map(|loaded| *loaded))).ok();
                }
                Job::Exchange { with, reply } => {
                    reply.send(self.exchange(&with)).ok();
                }
                Job::Run { tensor, reply } => drop(reply.send(self.run(&tensor))),
            }
            self.work.set(None);
        }
    }

    fn load(&mut self) {
        match Loaded::new(self.setup.place.dir(), &self.setup.place, self.setup.name.clone()) {
            Ok(loaded) => self.take(loaded),
            Err(reason) => self.missing(&reason, RELOAD_WAIT),
        }
    }

    fn take(&mut self, loaded: Loaded) {
        self.loaded = Ok(loaded);
        self.announce();
    }

    /// Another model answers from now on.
    fn announce(&mut self) {
        let Ok(loaded) = &self.loaded else { return };
        let card = loaded.card.clone();
        let (version, on) = (&card.model.version, &card.runs_on);
        tracing::info!(model = %card.name, version, task = card.task, on = on.name, "model loaded, runs on {on}");
        self.setup.learned.begin(card.model.clone());
        // What another one has answered says nothing of this one.
        self.record.begin();
        (self.familiar, self.frames) = (Familiar::default(), Frames::default());
        self.cards.send_replace(Some(card));
        self.setup.faults.clear(&Part::Model(self.setup.name.clone()));
        self.setup.loaded.send_modify(|count| *count += 1);
    }

    fn compare(&mut self, with: Option<(PathBuf, RivalRole)>, loaded: Option<Loaded>) -> bool {
        self.rival = loaded
            .or_else(|| self.rival.take())
            .filter(|rival| with.as_ref().is_some_and(|(dir, _)| rival.card.dir == *dir));
        if let (Some(rival), Some((_, role))) = (&self.rival, &with) {
            tracing::info!(model = %rival.card.name, version = rival.card.model.version, "a bundle looks on");
            self.setup.learned.begin_comparison(rival.card.model.clone(), rival.card.dir.clone(), *role);
        }
        self.rival.is_some() == with.is_some()
    }

    fn exchange(&mut self, with: &Path) -> bool {
        let is_meant = self.loaded.is_ok() && self.rival.as_ref().is_some_and(|rival| rival.card.dir == with);
        let Some(rival) = self.rival.take_if(|_| is_meant) else { return false };
        let before = std::mem::replace(&mut self.loaded, Ok(rival));
        self.rival = before.ok();
        self.announce();
        true
    }

    fn missing(&mut self, reason: &str, rest: Duration) {
        self.record.with(|record| record.missing = Some(reason.into()));
        self.setup.faults.set(&Part::Model(self.setup.name.clone()), reason);
        self.loaded = Err(Missing { reason: Arc::from(reason), again_at: Instant::now() + rest });
    }

    fn model(&mut self) -> Result<&mut Loaded, SampleError> {
        if self.loaded.as_ref().is_err_and(|missing| missing.again_at <= Instant::now()) {
            self.load();
        }
        usable(&mut self.loaded, &self.setup.name)
    }

    fn judge(
        &mut self,
        content_type: &ContentType,
        bytes: &[u8],
        region: Option<&Region>,
        (threshold, scale): (&ThresholdConfig, ThresholdScale),
        frame_of: Option<&(Name, Option<Name>)>,
    ) -> Result<(Opinion, Arc<ModelCard>), SampleError> {
        let (name, figures, work) = (self.setup.name.clone(), self.setup.figures.clone(), self.work.clone());
        let (record, learned) = (self.record.clone(), self.setup.learned.clone());
        self.model()?;
        work.set(Some(Instant::now()));
        let rival = self.rival_said(content_type, bytes, region);
        let loaded = usable(&mut self.loaded, &name)?;
        let mut thresholds = loaded.thresholds(&name, threshold)?;
        thresholds.rule.scale = scale;
        let begun = Instant::now();
        let tensor = loaded
            .model
            .tensor(content_type, bytes, region)
            .map_err(|error| SampleError::Unusable(error.to_string()))?;
        let decoded = Instant::now();
        let differs = |said: Option<&Output>| {
            let Some((rival, took)) = &rival else { return false };
            learned.compared((said, begun.elapsed()), (rival.as_ref(), *took))
        };
        let outputs = loaded.run(&name, &tensor).inspect_err(|error| {
            record.failed(&error.to_string());
            differs(None);
        })?;
        figures.took(Timed::Tensor, decoded - begun);
        figures.took(Timed::Inference, decoded.elapsed());
        let card = loaded.card.clone();
        let mut contested = false;
        let (task, frames) = (loaded.model.task(), &mut self.frames);
        let mut opinion = Opinion::by(task, &outputs, &tensor.frame, &thresholds, |said, doubt, asked| {
            contested = differs(Some(said));
            let asked = Asked { contested, ..asked };
            let doubt = &frame_of.map_or(*doubt, |(source, camera)| {
                frames.saw((source.as_str(), camera.as_ref().map(Name::as_str)), said, doubt)
            });
            // It was begun when the model was loaded.
            learned.judge(doubt, asked).unwrap_or_else(|| judge(doubt, &asked))
        });
        match &opinion.said {
            Some(said) => {
                record.answered();
                self.familiar.saw(said);
                // A spot check speaks for all answers: what it is about must not decide whether it gives way to others.
                if opinion.explanation.reason.as_ref().is_some_and(|reason| *reason != Reason::SpotCheck) {
                    opinion.priority *= self.familiar.worth(said);
                }
            }
            None => {
                differs(None);
                learned.unusable();
                record.failed(&opinion.explanation.because);
            }
        }
        opinion.rival = rival.filter(|_| contested).and_then(|(said, _)| said);
        Ok((opinion, card))
    }

    /// What the bundle that looks on makes of the sample, and how long that took, if it is its turn.
    fn rival_said(
        &mut self,
        content_type: &ContentType,
        bytes: &[u8],
        region: Option<&Region>,
    ) -> Option<(Option<Output>, Duration)> {
        let rival = self.rival.as_mut().filter(|_| self.setup.learned.compares_next())?;
        let begun = Instant::now();
        let said = rival.said(content_type, bytes, region);
        Some((said, begun.elapsed()))
    }

    fn run(&mut self, tensor: &Tensor) -> Result<Tensors, SampleError> {
        let (name, work) = (self.setup.name.clone(), self.work.clone());
        let loaded = self.model()?;
        work.set(Some(Instant::now()));
        loaded.run(&name, tensor)
    }
}

fn usable<'a>(loaded: &'a mut Result<Loaded, Missing>, name: &Name) -> Result<&'a mut Loaded, SampleError> {
    let missing =
        |missing: &mut Missing| SampleError::NoModel { model: name.to_string(), reason: missing.reason.clone() };
    loaded.as_mut().map_err(missing)
}
