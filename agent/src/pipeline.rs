//! The path of one sample: opinion, answer, and a stored case if the device is not sure.
//!
//! A kept answer never waits for anything but the model. A deferred one waits a bounded time for its case to
//! be on disk, so that it can say so.

mod storing;
mod telemetry;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hedge_core::budget::Spent;
use hedge_core::engine::Event;
use hedge_core::judge::ThresholdScale;
use hedge_core::outbox::sort_key;
use hedge_core::privacy::Treatment;
use hedge_core::uplink::Waiting;
use hedge_inference::{Region, Tensor, Tensors};
use hedge_proto::{
    Answer, Authority, Captured, Case, CaseDecision, CaseFate, CaseId, CaseKey, Crop, DeviceId, Digest, Epoch,
    LinkState, METADATA_BYTES_MAX, Metadata, ModelRef, Name, Outcome, Output, PayloadForm, Reason, Rect, Telemetry,
    to_cbor,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::storing::Storing;
use crate::answers::Answers;
use crate::bundles;
use crate::capture::{Asking, Intake, Lookup, ModelFacts, Snapshots, Taker};
use crate::clock::Clock;
use crate::control::Control;
use crate::faults::Faults;
use crate::figures::{Figures, Timed};
use crate::in_force::InForce;
use crate::inference::{Judge, ModelCard, Opinion};
use crate::learned::Learned;
use crate::link::LinkView;
use crate::metrics;
use crate::privacy::{Reducer, SentPayload};
use crate::queue::Queue;
use crate::sample::{NewSample, SampleError};
use crate::verdict::Locals;
use hedge_config::Quiet;
use hedge_outbox::{NewCase, Outbox, State};

/// Everything the path needs. One for the whole agent, behind an `Arc`.
pub struct Pipeline {
    pub device: DeviceId,
    /// Drawn at random at this process start; with the counter it names every sample.
    pub epoch: Epoch,
    pub sequence: AtomicU64,
    pub clock: Clock,
    pub judges: BTreeMap<Name, Judge>,
    /// Counts the models that were loaded.
    pub loaded: watch::Receiver<usize>,
    pub outbox: Outbox,
    pub answers: Answers,
    /// Local answers for the sinks that want them.
    pub locals: Locals,
    pub snapshots: Snapshots,
    pub figures: Arc<Figures>,
    pub events: mpsc::Sender<Event>,
    pub link: watch::Receiver<LinkView>,
    /// What counts against the ceilings.
    pub spent: watch::Receiver<Spent>,
    /// How far wanted bundles have come.
    pub wanted: watch::Receiver<bundles::Shown>,
    /// A sample is answered by what this shows when it arrives, from first to last.
    pub settings: watch::Receiver<Arc<InForce>>,
    pub control: Control,
    pub reducer: Reducer,
    pub faults: Faults,
    pub started: Instant,
}

/// What a crop's metadata calls the sample that it was cut out of.
const CROP_OF: &str = "crop_of";

/// A sample that has its id, and what the model made of it.
struct Judged {
    settings: Arc<InForce>,
    id: CaseId,
    captured: Captured,
    input: NewSample,
    metadata: Metadata,
    card: Arc<ModelCard>,
    /// The part of the picture that was judged, if not all of it.
    view: Option<Rect>,
    opinion: Opinion,
    learned: Learned,
}

impl Pipeline {
    async fn judge(&self, input: NewSample) -> Result<Judged, SampleError> {
        let settings = self.settings.borrow().clone();
        let source = settings.sources.get(&input.source).ok_or_else(|| {
            let known: Vec<&str> = settings.sources.keys().map(Name::as_str).collect();
            SampleError::UnknownSource(input.source.to_string(), known.join(", "))
        })?;
        if !source.on {
            return Err(SampleError::SourceOff(input.source.to_string()));
        }
        let mut metadata = source.metadata.clone();
        metadata.extend(input.metadata.clone());
        check_metadata(&metadata)?;
        let judge = self.judges.get(&source.model).ok_or(SampleError::Stopping)?;
        let threshold = settings.thresholds.get(&source.model).cloned().unwrap_or_default();

        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let id = CaseId { device: self.device.clone(), key: CaseKey { epoch: self.epoch, sequence } };
        let captured = self.clock.captured();
        let (state, scale) = {
            let link = self.link.borrow();
            (link.state, link.policy.threshold)
        };
        let (content_type, bytes) = (input.content_type.clone(), input.bytes.clone());
        let frame_of = input.frame.then(|| (input.source.clone(), input.camera.clone()));
        let region = input.view.or(source.region);
        let judged = judge.judge(content_type, bytes, region, threshold, scale, frame_of).await;
        let (mut opinion, card) = judged?;
        if scale != ThresholdScale::ONE {
            let (state, scale) = (state.name(), scale.value());
            opinion.explanation.because += &format!("; thresholds count {scale} times while the link is {state}");
        }
        let view = region.and_then(|region| region.view());
        let learned = judge.learned().clone();
        Ok(Judged { settings: settings.clone(), id, captured, input, metadata, card, view, opinion, learned })
    }

    /// Puts the case into the outbox and waits at most `store_wait` to know that it is there.
    async fn defer(&self, judged: &Judged) -> (CaseFate, Option<Storing>) {
        let payload = self.payload(judged).await;
        let case = case(judged, &payload);
        let key = case.id.key;
        let stored_at = self.clock.now();
        let sort_key = sort_key(judged.opinion.priority, stored_at);
        let new = NewCase { key, sort_key, stored_at, header: to_cbor(&case), payload: payload.bytes.clone() };
        let waiting = Waiting {
            key,
            sort_key,
            stored_at,
            payload_bytes: u32::try_from(payload.bytes.len()).unwrap_or(u32::MAX),
            sent: false,
            urgent: judged.input.urgent,
        };
        let learned = judged.learned.clone();
        learned.opened(&case, payload.bytes.len() as u64);
        if let Some(rival) = judged.opinion.rival.clone() {
            learned.contested(key, rival);
        }
        let submitted = Instant::now();
        let receipt = match self.outbox.submit(new) {
            Ok(receipt) => receipt,
            Err(refusal) => {
                self.figures.count_refused(refusal);
                learned.ended_unanswered(key);
                return (CaseFate::Refused(refusal), None);
            }
        };
        let figures = self.figures.clone();
        let stored = async move {
            // Counted here, because the answer may have been given before the outbox refuses.
            receipt.await.inspect_err(|refusal| {
                figures.count_refused(*refusal);
                learned.ended_unanswered(key);
            })?;
            figures.took(Timed::Store, submitted.elapsed());
            Ok(())
        };
        let mut storing = Storing::begin(stored, self.events.clone(), waiting);
        let fate = match storing.known(judged.settings.config.outbox.store_wait()).await {
            Some(Ok(())) => CaseFate::Stored,
            Some(Err(refusal)) => CaseFate::Refused(refusal),
            None => CaseFate::Pending,
        };
        (fate, Some(storing))
    }

    /// What of a sample is stored for the cloud, as the link's state and the device's ceiling have it.
    async fn payload(&self, judged: &Judged) -> SentPayload {
        let input = &judged.input;
        let whole = SentPayload {
            form: PayloadForm::Whole,
            content_type: input.content_type.to_header(),
            bytes: input.bytes.clone(),
        };
        let (asked, ceiling) = (self.link.borrow().policy.payload, judged.settings.config.privacy.ceiling());
        match (ceiling.treat(asked, PayloadForm::Whole), &judged.opinion.embedding) {
            (Treatment::Embed, Some(embedding)) => SentPayload::embedding(embedding),
            (treatment, _) => self.reducer.treat(whole, judged.view, treatment).await,
        }
    }

    /// What was answered already to the sample of this name, as it stands now.
    fn known(&self, input: &NewSample, content: Option<Digest>) -> Result<Option<Arc<Answer>>, SampleError> {
        let Some(reference) = &input.reference else { return Ok(None) };
        let known = self.answers.known(&input.source, reference, content)?;
        Ok(known.map(|remembered| self.as_it_stands(remembered.latest().clone())))
    }

    /// `waited_for`: the caller waits until the files of this machine have the answer.
    async fn answer_one(&self, input: NewSample, waited_for: bool) -> Result<Arc<Answer>, SampleError> {
        let arrived = Instant::now();
        let content = content(&input).await;
        if let Some(answer) = self.known(&input, content)? {
            return Ok(answer);
        }
        let judged = self.judge(input).await.inspect_err(|_| Figures::count(&self.figures.failed))?;
        let crops = self.crops(&judged, arrived).await;
        Ok(self.give(judged, crops, (arrived, content, waited_for)).await)
    }

    /// Asks other models about things that were found in a picture, one after the other. What gets no answer is left out.
    async fn crops(&self, judged: &Judged, arrived: Instant) -> Vec<Crop> {
        let Judged { settings, input, opinion: Opinion { said: Some(said), .. }, .. } = judged else {
            return Vec::new();
        };
        if !input.content_type.is_picture() {
            return Vec::new();
        }
        let mut crops = Vec::new();
        for (source, view) in settings.crops(&input.source, said) {
            let Ok(region) = Region::try_from(view) else { continue };
            // Two things in a row are no two frames of one.
            let whole = input.clone();
            let mut crop =
                NewSample { source: source.clone(), reference: None, frame: false, view: Some(region), ..whole };
            crop.metadata.insert(CROP_OF.to_owned(), judged.id.to_string());
            self.figures.saw(&source, true);
            let crop = match self.judge(crop).await {
                Ok(crop) => crop,
                Err(error) => {
                    Figures::count(&self.figures.failed);
                    tracing::debug!(%source, %error, "a crop gets no answer");
                    continue;
                }
            };
            let answer = self.give(crop, Vec::new(), (arrived, None, false)).await;
            let (id, said) = (answer.id.clone(), answer.said.clone());
            crops.push(Crop { id, source: source.to_string(), view, said, provisional: answer.provisional });
        }
        crops
    }

    /// The answer to a sample that was judged, once its case is on its way if it has one.
    async fn give(
        &self,
        judged: Judged,
        crops: Vec<Crop>,
        (arrived, content, waited_for): (Instant, Option<Digest>, bool),
    ) -> Arc<Answer> {
        Figures::count(&self.figures.answered);
        let (case, storing, path) = match judged.opinion.explanation.outcome {
            Outcome::Keep => {
                Figures::count(&self.figures.kept);
                (None, None, Timed::Kept)
            }
            Outcome::Defer => {
                Figures::count(&self.figures.deferred);
                let (case, storing) = self.defer(&judged).await;
                (Some(case), storing, Timed::Deferred)
            }
        };
        self.figures.took(path, arrived.elapsed());
        self.figures.answered_of(&judged.input.source);
        let answer = Answer { crops, ..local_answer(judged, case, self.link.borrow().state) };
        let answer = self.answers.give_to(answer, content);
        self.locals.pass_on(&answer, waited_for);
        drop(storing);
        answer
    }
}

impl Taker for Pipeline {
    async fn answer(&self, input: NewSample) -> Result<Arc<Answer>, SampleError> {
        self.answer_one(input, false).await
    }

    async fn answer_and_keep(&self, input: NewSample) -> Result<Arc<Answer>, SampleError> {
        let answer = self.answer_one(input, true).await?;
        self.locals.written().await;
        Ok(answer)
    }

    fn set_source_state(&self, source: &Name, state: String) {
        self.figures.set_source(source, state);
    }

    fn begin_source(&self, source: &Name, quiet: Option<Quiet>) {
        self.figures.begin_source(source, quiet);
    }

    fn end_source(&self, source: &Name) {
        self.figures.end_source(source);
    }

    fn saw(&self, source: &Name, is_new: bool) {
        self.figures.saw(source, is_new);
    }

    fn asked(&self, source: &Name) -> mpsc::Receiver<Asking> {
        self.snapshots.register(source)
    }

    fn count_skipped(&self, _: &Name, count: u64) {
        self.figures.skipped.fetch_add(count, Ordering::Relaxed);
    }
}

impl Intake for Pipeline {
    fn answers(&self) -> &Answers {
        &self.answers
    }

    fn as_it_stands(&self, answer: Arc<Answer>) -> Arc<Answer> {
        let state = self.outbox.lookup(answer.id.key).map(|entry| entry.state);
        let case = match (answer.case, state) {
            (Some(CaseFate::Stored | CaseFate::Pending), Some(State::Dead)) => CaseFate::Dead,
            (Some(CaseFate::Pending), Some(_)) => CaseFate::Stored,
            (Some(CaseFate::Stored), None) => CaseFate::Dropped,
            _ => return answer,
        };
        // A corrected case is gone, too, once every sink has the correction.
        if let Some(correction) = self.answers.get(&answer.id).and_then(|remembered| remembered.correction) {
            return correction;
        }
        let provisional = case == CaseFate::Stored;
        Arc::new(Answer { case: Some(case), provisional, ..(*answer).clone() })
    }

    async fn ended(&self, answer: &Answer) {
        self.outbox.ended(answer.id.key, answer.case == Some(CaseFate::Stored)).await;
    }

    async fn lookup(&self, id: &CaseId) -> Lookup {
        if id.device != self.device {
            return Lookup::NotOurs;
        }
        if let Some(remembered) = self.answers.get(id) {
            return Lookup::Found(remembered);
        }
        match self.outbox.lookup(id.key) {
            Some(_) => Lookup::Open,
            None if id.key.epoch == self.epoch && id.key.sequence >= self.sequence.load(Ordering::Relaxed) => {
                Lookup::NotOurs
            }
            None => Lookup::Gone,
        }
    }

    fn models(&self) -> Vec<ModelFacts> {
        let settings = self.settings.borrow().clone();
        let facts = |(name, judge): (&Name, &Judge)| {
            let threshold = settings.thresholds.get(name).cloned().unwrap_or_default();
            Some(facts(&*judge.card()?, judge.cannot_answer(&threshold)))
        };
        self.judges.iter().filter_map(facts).collect()
    }

    async fn run(&self, model: &Name, tensor: Tensor) -> Result<Tensors, SampleError> {
        let judge = self.judges.get(model).ok_or_else(|| {
            let known: Vec<&str> = self.judges.keys().map(Name::as_str).collect();
            SampleError::Unusable(format!("there is no model named `{model}`; the models are: {}", known.join(", ")))
        })?;
        judge.run(tensor).await
    }

    fn faults(&self) -> hedge_proto::Faults {
        self.faults.now()
    }

    fn status(&self) -> Telemetry {
        telemetry::of(self)
    }

    fn link(&self) -> watch::Receiver<LinkView> {
        self.link.clone()
    }

    fn metrics(&self) -> String {
        metrics::text(&self.status(), &self.figures)
    }

    fn queue(&self) -> Queue {
        Queue::running(
            self.device.clone(),
            self.outbox.clone(),
            self.clock.clone(),
            self.events.clone(),
            self.figures.clone(),
        )
    }

    fn control(&self) -> Control {
        self.control.clone()
    }
}

/// The models that are loaded, as the device's status names them.
pub fn loaded_models(judges: &BTreeMap<Name, Judge>) -> Vec<ModelRef> {
    judges.values().filter_map(Judge::card).map(|card| card.model.clone()).collect()
}

/// The sum of a sample that has a name, by which it is known again.
async fn content(input: &NewSample) -> Option<Digest> {
    input.reference.as_ref()?;
    let bytes = input.bytes.clone();
    // A large picture takes a small board as long as a small model.
    tokio::task::spawn_blocking(move || Digest::of(&bytes)).await.ok()
}

fn check_metadata(metadata: &Metadata) -> Result<(), SampleError> {
    let bytes = hedge_proto::to_json(metadata).len();
    if bytes > METADATA_BYTES_MAX {
        return Err(SampleError::MetadataTooLarge { bytes, bytes_max: METADATA_BYTES_MAX });
    }
    Ok(())
}

fn case(judged: &Judged, payload: &SentPayload) -> Case {
    let Opinion { said, explanation, .. } = &judged.opinion;
    Case {
        v: said.as_ref().map_or(1, Output::wire_version),
        id: judged.id.clone(),
        reference: judged.input.reference.clone(),
        source: judged.input.source.to_string(),
        task: judged.card.task.clone(),
        labels_hash: judged.card.labels_hash,
        model: judged.card.model.clone(),
        said: said.clone(),
        doubt: explanation.doubt,
        view: judged.view,
        decision: CaseDecision {
            reason: explanation.reason.clone().unwrap_or(Reason::Policy),
            check: explanation.check,
            threshold: explanation.threshold,
            mode: explanation.mode,
        },
        settings_version: judged.settings.version,
        captured: judged.captured.clone(),
        form: payload.form,
        content_type: payload.content_type.clone(),
        payload_sha256: payload.digest(),
        payload: None,
        offer: None,
        metadata: judged.metadata.clone(),
    }
}

fn local_answer(judged: Judged, case: Option<CaseFate>, link: LinkState) -> Answer {
    Answer {
        id: judged.id,
        reference: judged.input.reference,
        source: judged.input.source.to_string(),
        task: judged.card.task.clone(),
        revision: 0,
        authority: Authority::Device,
        model: judged.card.model.clone(),
        said: judged.opinion.said,
        provisional: matches!(case, Some(CaseFate::Stored | CaseFate::Pending)),
        changed: false,
        decision: judged.opinion.explanation,
        case,
        link,
        captured: judged.captured,
        metadata: judged.metadata,
        crops: Vec::new(),
    }
}

fn facts(card: &ModelCard, cannot_answer: Option<String>) -> ModelFacts {
    ModelFacts {
        name: card.name.clone(),
        version: card.model.version.clone(),
        cannot_answer,
        input_name: card.input_name.clone(),
        input_shape: card.input_shape.clone(),
        outputs: card.outputs.clone(),
        labels: card.labels.to_vec(),
    }
}
