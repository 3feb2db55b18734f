//! The API's JSON: what a record looks like to the page, to tests and to the demo.
//!
//! All times are milliseconds since 1970 UTC by this machine's clock, unless they say otherwise.

use hedge_core::agree::agree;
use hedge_proto::{
    Authority, CaseId, DeviceState, Doubt, Faults, LinkState, Metadata, ModelRef, Output, PayloadForm, Reason, Rect,
    Telemetry, ThresholdMode, Verdict, said,
};
use serde::Serialize;

use super::Shown;
use crate::answerers::Condition;
use crate::fleet::select::Facts;
use crate::intake::AnswererNow;
use crate::link::LinkNow;
use crate::store::{CaseRow, DeviceRow, Standing, Totals};

/// One device.
#[derive(Debug, Serialize)]
pub struct DeviceView {
    pub device: String,
    /// `online`, `degraded`, `offline`, `resting` between two windows of its radio, or `unknown`: it has not said a word
    /// about itself, or what it said last is from before this program's connection to the broker, so that its end may
    /// have gone unheard.
    pub state: &'static str,
    /// Its own sentence on its link, from the last telemetry.
    pub link_reason: String,
    /// Counts the device's connections.
    pub connection: Option<u64>,
    pub version: Option<String>,
    pub models: Vec<ModelRef>,
    /// What is wrong with it, by the part it concerns, as its status says.
    pub faults: Faults,
    /// The device's own figures, as of `telemetry_ms`.
    pub telemetry: Option<Telemetry>,
    pub telemetry_ms: Option<u64>,
    pub status_ms: Option<u64>,
    /// When a device that rests its radio connects again.
    pub back_ms: Option<u64>,
    /// When anything of it last arrived, its will aside.
    pub last_seen_ms: Option<u64>,
    /// Its cases on record here, and what the verdicts said.
    pub cases: u64,
    pub agreed: u64,
    pub disagreed: u64,
    /// The version of the settings in force; 0 is the local file alone.
    pub in_force: Option<u64>,
    pub wanted: Option<u64>,
    /// What became of the last wanted settings: `applied`, `on_trial`, `refused` or `failed`.
    pub outcome: Option<String>,
    /// Grows with its history of settings and commands.
    pub events: u64,
    /// Its place where what is wrong comes first.
    pub trouble: u8,
}

/// One answerer of a task.
#[derive(Debug, Serialize)]
pub struct AnswererView {
    pub name: String,
    pub task: String,
    /// `up`, `starting`, `down` or `no_money`.
    pub state: &'static str,
    /// Why it is not up.
    pub why: Option<String>,
    /// In how many milliseconds it is asked again, if it is down.
    pub retry_ms: Option<u128>,
    /// What its calls have cost this month, and what all together may cost.
    pub spent: f64,
    pub month_max: Option<f64>,
}

impl From<&AnswererNow> for AnswererView {
    fn from(now: &AnswererNow) -> Self {
        let retry_ms = if let Condition::Resting(rest) = now.condition { Some(rest.as_millis()) } else { None };
        Self {
            name: now.name.clone(),
            task: now.task.clone(),
            state: now.condition.word(),
            why: now.why.clone(),
            retry_ms,
            spent: now.spent,
            month_max: now.month_max,
        }
    }
}

/// How late a device that rests its radio may be: a dial takes 30 s, and the first may fail.
const WINDOW_LATE_MS: u64 = 5 * 60 * 1000;

impl DeviceView {
    pub(super) fn new(row: DeviceRow, shown: &Shown, now_ms: u64) -> Self {
        let heard_ms = shown.heard.last_ms(&row.device);
        let connected_ms = match &*shown.link.borrow() {
            LinkNow::Connected { since_ms } => Some(*since_ms),
            LinkNow::Connecting | LinkNow::Broken(_) => None,
        };
        Self::as_heard(row, heard_ms, connected_ms, now_ms)
    }

    /// `connected_ms`: since when its end would have been heard.
    fn as_heard(row: DeviceRow, heard_ms: Option<u64>, connected_ms: Option<u64>, now_ms: u64) -> Self {
        let is_heard = heard_ms.zip(connected_ms).is_some_and(|(heard, connected)| heard >= connected);
        let offline = row.status.as_ref().is_some_and(|status| status.state == DeviceState::Offline);
        let window_every_s = row.status.as_ref().and_then(|status| status.window_every_s);
        let back_ms = row.status_ms.zip(window_every_s).map(|(at, every_s)| at + u64::from(every_s) * 1000);
        let resting = back_ms.is_some_and(|at| now_ms <= at + WINDOW_LATE_MS);
        let told = [heard_ms, row.telemetry_ms, row.case_ms];
        let (connection, version, models, faults) = match row.status {
            Some(status) => (Some(status.connection), status.version, status.models, status.faults),
            None => (None, None, Vec::new(), Faults::new()),
        };
        let degraded = row
            .telemetry
            .as_ref()
            .is_some_and(|telemetry| matches!(telemetry.link, LinkState::Degraded | LinkState::OverBudget));
        let state = match (connection, offline, degraded) {
            (None, ..) => "unknown",
            (_, true, _) if resting => "resting",
            (_, true, _) => "offline",
            _ if !is_heard => "unknown",
            (_, false, true) => "degraded",
            (_, false, false) => "online",
        };
        let settings_failed = row.outcome.as_deref().is_some_and(|outcome| outcome != "applied");
        let trouble = match state {
            "offline" => 0,
            _ if !faults.is_empty() || settings_failed => 1,
            "degraded" => 2,
            "unknown" => 3,
            "resting" => 4,
            _ => 5,
        };
        Self {
            device: row.device,
            trouble,
            state,
            link_reason: row.telemetry.as_ref().map(|telemetry| telemetry.link_reason.clone()).unwrap_or_default(),
            connection,
            version,
            models,
            faults,
            telemetry: row.telemetry,
            telemetry_ms: row.telemetry_ms,
            status_ms: row.status_ms,
            back_ms: back_ms.filter(|_| state == "resting"),
            last_seen_ms: told.into_iter().flatten().max(),
            cases: row.cases,
            agreed: row.agreed,
            disagreed: row.disagreed,
            in_force: row.in_force,
            wanted: row.wanted,
            outcome: row.outcome,
            events: row.events,
        }
    }

    pub(super) fn facts(&self) -> Facts<'_> {
        let outcome = self.outcome.as_deref();
        Facts {
            name: &self.device,
            link: self.state,
            models: &self.models,
            version: self.version.as_deref(),
            outcome: outcome.and_then(|outcome| serde_json::from_value(outcome.into()).ok()),
        }
    }
}

/// How many devices are how.
#[derive(Debug, Default, Serialize)]
pub struct FleetView {
    pub online: u64,
    pub degraded: u64,
    pub offline: u64,
    pub resting: u64,
    pub unknown: u64,
    /// Whatever their link.
    pub with_faults: u64,
}

impl FleetView {
    pub(super) fn count(devices: &[DeviceView]) -> Self {
        let mut fleet = Self::default();
        for device in devices {
            let count = match device.state {
                "online" => &mut fleet.online,
                "degraded" => &mut fleet.degraded,
                "offline" => &mut fleet.offline,
                "resting" => &mut fleet.resting,
                _ => &mut fleet.unknown,
            };
            *count += 1;
            fleet.with_faults += u64::from(!device.faults.is_empty());
        }
        fleet
    }
}

/// One case, with what the device said and what was answered.
#[derive(Debug, Serialize)]
pub struct CaseView {
    pub id: CaseId,
    pub device: String,
    pub source: String,
    pub task: String,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    pub received_ms: u64,
    /// When the sample was taken, by the device's clock, if that was known to be right.
    pub captured_ms: Option<u64>,
    /// Why the device asked, and what its answer had to reach.
    pub reason: Reason,
    pub threshold: f32,
    pub mode: ThresholdMode,
    /// What the local model said, as in the case: a list of classes, best first; empty when its output was unusable.
    #[serde(with = "said")]
    pub local: Option<Output>,
    pub doubt: Doubt,
    /// The part of the picture that was judged, if not all.
    pub view: Option<Rect>,
    pub local_model: ModelRef,
    /// `waiting`, `answered`, `failed` or `dead`.
    pub state: &'static str,
    /// Why it failed or is dead.
    pub why: Option<String>,
    pub verdict: Option<VerdictView>,
    /// Whether both say the same; absent without a verdict or a local answer.
    pub agrees: Option<bool>,
    /// How much of it: of boxes, the F1 of one list as the truth about the other.
    pub agreement: Option<f32>,
    /// How much of the sample came.
    pub form: PayloadForm,
    /// It is not enough: the device was asked for the whole.
    pub whole_wanted: bool,
    /// Of the sample, also when nothing of it came.
    pub content_type: String,
    pub payload_bytes: u64,
    /// Whether `/api/cases/{id}/payload` still has it.
    pub payload_kept: bool,
    /// Whether it can be looked at.
    pub picture: bool,
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
}

/// The cloud's answer.
#[derive(Debug, Serialize)]
pub struct VerdictView {
    pub revision: u32,
    pub authority: Authority,
    #[serde(rename = "result")]
    pub said: Output,
    pub model: ModelRef,
    pub given_ms: Option<u64>,
}

impl VerdictView {
    pub(super) fn new(verdict: Verdict, given_ms: Option<u64>) -> Self {
        let Verdict { revision, authority, said, model, .. } = verdict;
        Self { revision, authority, said, model, given_ms }
    }
}

impl From<CaseRow> for CaseView {
    fn from(row: CaseRow) -> Self {
        let case = row.case;
        let whole_wanted = row.standing == Standing::Wanted;
        let (state, why, verdict) = match row.standing {
            Standing::Waiting | Standing::Wanted => ("waiting", None, None),
            Standing::Answered(verdict) => ("answered", None, Some(verdict)),
            Standing::Failed(why) => ("failed", Some(why), None),
            Standing::Dead(why) => ("dead", Some(why), None),
        };
        let verdict = verdict.map(|verdict| VerdictView::new(verdict, row.given_ms));
        Self {
            device: case.id.device.to_string(),
            id: case.id,
            source: case.source,
            task: case.task,
            reference: case.reference,
            received_ms: row.received_ms,
            captured_ms: case.captured.wall_ms.filter(|_| case.captured.synced),
            reason: case.decision.reason,
            threshold: case.decision.threshold,
            mode: case.decision.mode,
            agreement: case.said.as_ref().zip(verdict.as_ref()).map(|(own, verdict)| agree(own, &verdict.said)),
            local: case.said,
            doubt: case.doubt,
            view: case.view,
            local_model: case.model,
            state,
            why,
            verdict,
            agrees: row.agrees,
            picture: case.form != PayloadForm::Nothing && picture_type(&case.content_type).is_some(),
            form: case.form,
            whole_wanted,
            content_type: case.content_type,
            payload_bytes: row.payload_bytes,
            payload_kept: row.payload_kept,
            metadata: case.metadata,
        }
    }
}

/// What has passed through, and how this instance is.
#[derive(Debug, Serialize)]
pub struct FiguresView {
    #[serde(flatten)]
    pub totals: Totals,
    pub fleet: FleetView,
    pub instance: String,
    pub broker: String,
    /// `connected`, `connecting` or `broken`.
    pub link: &'static str,
    pub link_reason: Option<String>,
    /// Tasks that have a model here.
    pub tasks: Vec<String>,
    /// When this was written.
    pub now_ms: u64,
}

impl FiguresView {
    pub(super) fn new(totals: Totals, fleet: FleetView, shown: &Shown, now_ms: u64) -> Self {
        let (link, link_reason) = match &*shown.link.borrow() {
            LinkNow::Connected { .. } => ("connected", None),
            LinkNow::Connecting => ("connecting", None),
            LinkNow::Broken(reason) => ("broken", Some(reason.clone())),
        };
        Self {
            totals,
            fleet,
            instance: shown.instance.to_string(),
            broker: shown.broker.clone(),
            link,
            link_reason,
            tasks: shown.tasks.clone(),
            now_ms,
        }
    }
}

/// The picture types a browser is trusted with; everything else is only handed out as a file.
pub(super) fn picture_type(content_type: &str) -> Option<&'static str> {
    match content_type.trim().to_ascii_lowercase().as_str() {
        "image/jpeg" => Some("image/jpeg"),
        "image/png" => Some("image/png"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::DeviceStatus;

    #[test]
    fn a_device_that_rests_its_radio_is_resting_until_it_is_late() {
        let view = |window_every_s: Option<u32>, now_ms: u64| {
            let status = DeviceStatus {
                state: DeviceState::Offline,
                connection: 1,
                window_every_s,
                link: None,
                version: None,
                wire: Vec::new(),
                models: Vec::new(),
                faults: Default::default(),
            };
            let row = DeviceRow { status: Some(status), status_ms: Some(1_000), ..DeviceRow::default() };
            let view = DeviceView::as_heard(row, None, Some(0), now_ms);
            (view.state, view.back_ms)
        };
        assert_eq!(view(None, 2_000), ("offline", None));
        assert_eq!(view(Some(3600), 2_000), ("resting", Some(3_601_000)));
        assert_eq!(view(Some(3600), 3_601_000 + WINDOW_LATE_MS), ("resting", Some(3_601_000)));
        assert_eq!(view(Some(3600), 3_601_001 + WINDOW_LATE_MS), ("offline", None));
    }

    #[test]
    fn a_device_is_online_only_if_it_was_heard_over_the_present_connection() {
        let view = |heard_ms, connected_ms| {
            let status = DeviceStatus {
                state: DeviceState::Online,
                connection: 1,
                window_every_s: None,
                link: None,
                version: None,
                wire: Vec::new(),
                models: Vec::new(),
                faults: Default::default(),
            };
            let row = DeviceRow {
                status: Some(status),
                status_ms: Some(4_000),
                telemetry_ms: Some(2_000),
                ..DeviceRow::default()
            };
            let view = DeviceView::as_heard(row, heard_ms, connected_ms, 5_000);
            (view.state, view.last_seen_ms)
        };
        assert_eq!(view(None, Some(3_000)), ("unknown", Some(2_000)), "a retained status is no sign of life");
        assert_eq!(view(Some(2_500), Some(3_000)), ("unknown", Some(2_500)), "its end may have gone unheard");
        assert_eq!(view(Some(3_500), Some(3_000)), ("online", Some(3_500)));
        assert_eq!(view(Some(3_500), None), ("unknown", Some(3_500)), "no broker, no news");
    }
}
