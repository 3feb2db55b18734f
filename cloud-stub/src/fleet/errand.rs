//! One thing wanted of one device, from publishing it to knowing what became of it. No IO and no time.
//!
//! ```text
//! settings: published ─► echoed by the broker ─► [on trial] ─► applied | refused | failed
//!                              └─ another document is there ─► overtaken
//! command:  published ─► done | refused | failed | interrupted
//! ```
//! A device's word on a version counts only after the broker has shown us our own document: before that it is about
//! somebody else's document of the same version.

use hedge_proto::{
    CommandMessage, CommandOutcome, DOCUMENT_BYTES_MAX, Desired, DeviceId, FieldError, LastDesired, Order, Reply,
    Reported, SettingsOutcome, to_json,
};
use serde::Serialize;
use serde_json::Value;

use super::board::Said;
use super::change::Draft;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The settings are in force.
    Applied,
    /// The settings are in force until the trial ends, and nobody waited for that.
    OnTrial,
    /// The command ran.
    Done,
    /// By the device, or before it was sent.
    Refused,
    Failed,
    Interrupted,
    /// Somebody else's document took the place of this one.
    Overtaken,
    /// Sent to a device that is away.
    Offline,
    /// Sent, and nothing heard in time.
    NoAnswer,
    /// The broker did not take it.
    NotSent,
}

impl Ending {
    /// Whether what was wanted has come about.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Applied | Self::OnTrial | Self::Done)
    }

    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::OnTrial => "on trial",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Overtaken => "overtaken",
            Self::Offline => "offline",
            Self::NoAnswer => "no answer",
            Self::NotSent => "not sent",
        }
    }
}

/// What became of an errand, for one device. One line of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub device: DeviceId,
    pub outcome: Ending,
    /// Of the settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Of the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub result: Value,
    /// What the operator should know besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Report {
    #[must_use]
    pub fn new(device: &DeviceId, outcome: Ending) -> Self {
        Self {
            device: device.clone(),
            outcome,
            version: None,
            id: None,
            reason: None,
            errors: Vec::new(),
            result: Value::Null,
            note: None,
        }
    }

    /// What was wrong before anything was sent.
    #[must_use]
    pub fn not_sent(device: &DeviceId, errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(device, Ending::Refused).because("nothing was sent") }
    }

    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}

/// What a message about the device means for the errand.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    Wait,
    /// The settings are in force, and on trial.
    Trial,
    Ended(Box<Report>),
}

/// One thing wanted of one device.
#[derive(Debug, Clone)]
pub struct Errand {
    pub device: DeviceId,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    Settings(Settings),
    Command(CommandMessage),
}

/// A wanted document on its way into force.
#[derive(Debug, Clone)]
pub struct Settings {
    pub desired: Desired,
    note: Option<String>,
    /// The broker has shown us that it has our document.
    echoed: bool,
    on_trial: bool,
}

impl Errand {
    #[must_use]
    pub fn settings(device: DeviceId, draft: Draft) -> Self {
        let Draft { desired, note } = draft;
        Self { device, what: What::Settings(Settings { desired, note, echoed: false, on_trial: false }) }
    }

    /// A command that devices know, with arguments they take.
    pub fn command(device: DeviceId, message: CommandMessage) -> Result<Self, String> {
        Order::read(&message.command, &message.args)?;
        let json = to_json(&message);
        // The device's own reader knows the bounds of ids and names.
        CommandMessage::read(&json).map_err(|error| error.to_string())?;
        if json.len() > DOCUMENT_BYTES_MAX {
            return Err(format!("the command has {} bytes, more than {DOCUMENT_BYTES_MAX}", json.len()));
        }
        Ok(Self { device, what: What::Command(message) })
    }

    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        match &self.what {
            What::Settings(settings) => to_json(&settings.desired),
            What::Command(message) => to_json(message),
        }
    }

    /// Takes note of a message about the device.
    pub fn hear(&mut self, said: &Said) -> Turn {
        let step = match (&mut self.what, said) {
            (What::Settings(settings), Said::Desired(Some(desired))) => settings.sees_wanted(&self.device, desired),
            (What::Settings(settings), Said::Desired(None)) if settings.echoed => {
                let report = Report::new(&self.device, Ending::Overtaken);
                Turn::Ended(report.because("somebody has emptied the topic of wanted settings").into())
            }
            (What::Settings(settings), Said::Reported(Some(reported))) => settings.is_told(&self.device, reported),
            (What::Command(message), Said::Reply(reply)) if reply.id.is_some() && reply.id == message.id => {
                Turn::Ended(answered(&self.device, reply).into())
            }
            _ => Turn::Wait,
        };
        match step {
            Turn::Ended(report) => Turn::Ended(self.name(*report).into()),
            step => step,
        }
    }

    /// Ends it without the device's word.
    #[must_use]
    pub fn give_up(&self, outcome: Ending, reason: impl Into<String>) -> Report {
        self.name(Report::new(&self.device, outcome).because(reason))
    }

    /// Ends it because time is up.
    #[must_use]
    pub fn time_is_up(&self, is_offline: bool) -> Report {
        let reason = match &self.what {
            What::Settings(settings) if !settings.echoed => {
                "the broker does not show what is published on down/desired; may this client read it?"
            }
            What::Settings(settings) if settings.on_trial => "it is still on trial",
            What::Settings(_) => "the wanted settings are at the broker; the device has not said what became of them",
            What::Command(_) if is_offline => {
                "it runs if the device connects within an hour of its sending, or in its radio's next window"
            }
            What::Command(_) => "the device has not replied",
        };
        self.give_up(if is_offline { Ending::Offline } else { Ending::NoAnswer }, reason)
    }

    #[must_use]
    pub fn is_on_trial(&self) -> bool {
        matches!(&self.what, What::Settings(settings) if settings.on_trial)
    }

    fn name(&self, report: Report) -> Report {
        match &self.what {
            What::Settings(settings) => {
                Report { version: Some(settings.desired.version), note: settings.note.clone(), ..report }
            }
            What::Command(message) => Report { id: message.id.clone(), ..report },
        }
    }
}

impl Settings {
    fn sees_wanted(&mut self, device: &DeviceId, seen: &Desired) -> Turn {
        if *seen == self.desired {
            self.echoed = true;
            return Turn::Wait;
        }
        let who = seen.by.as_deref().unwrap_or("somebody");
        let (theirs, ours) = (seen.version, self.desired.version);
        let reason = if self.echoed {
            format!("{who} has published version {theirs} since; that is wanted now")
        } else if theirs >= ours {
            format!(
                "{who} published version {theirs} at the same moment, and the device takes the first of two; \
                 look at `diff` and set again"
            )
        } else {
            // What was there when we began may arrive once more.
            return Turn::Wait;
        };
        Turn::Ended(Report::new(device, Ending::Overtaken).because(reason).into())
    }

    fn is_told(&mut self, device: &DeviceId, reported: &Reported) -> Turn {
        let Some(last) = reported.last.as_ref().filter(|last| last.version == Some(self.desired.version)) else {
            return Turn::Wait;
        };
        if !self.echoed {
            return Turn::Wait;
        }
        let LastDesired { outcome, reason, errors, .. } = last.clone();
        let outcome = match outcome {
            SettingsOutcome::Applied => Ending::Applied,
            SettingsOutcome::OnTrial => {
                self.on_trial = true;
                return Turn::Trial;
            }
            SettingsOutcome::Refused => Ending::Refused,
            SettingsOutcome::Failed => Ending::Failed,
        };
        Turn::Ended(Report { reason, errors, ..Report::new(device, outcome) }.into())
    }
}

fn answered(device: &DeviceId, reply: &Reply) -> Report {
    let outcome = match reply.outcome {
        CommandOutcome::Done => Ending::Done,
        CommandOutcome::Refused => Ending::Refused,
        CommandOutcome::Failed => Ending::Failed,
        CommandOutcome::Interrupted => Ending::Interrupted,
    };
    Report { reason: reply.reason.clone(), result: reply.result.clone(), ..Report::new(device, outcome) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::{Confirm, Digest, Settings as Overlay};
    use serde_json::json;

    fn wanted(version: u64, by: &str) -> Desired {
        Desired { version, settings: json!({}), confirm: Confirm::Auto, by: Some(by.to_owned()) }
    }

    fn errand() -> Errand {
        Errand::settings(DeviceId::new("d").expect("valid"), Draft { desired: wanted(8, "me"), note: None })
    }

    fn told(version: u64, outcome: SettingsOutcome) -> Said {
        let errors = match outcome {
            SettingsOutcome::Refused => vec![FieldError::new("log.level", "no such level")],
            _ => Vec::new(),
        };
        Said::Reported(Some(Box::new(Reported {
            version,
            hash: Digest::of(b""),
            settings: Overlay::default(),
            overlay: Overlay::default(),
            suggested: Default::default(),
            paused: Vec::new(),
            last: Some(LastDesired { version: Some(version), outcome, reason: None, errors }),
        })))
    }

    #[track_caller]
    fn check(heard: &[Said], expected: Option<Ending>) -> Option<Report> {
        let mut errand = errand();
        let mut ended = None;
        for said in heard {
            if let Turn::Ended(report) = errand.hear(said) {
                ended = Some(*report);
                break;
            }
        }
        assert_eq!(ended.as_ref().map(|report| report.outcome), expected);
        ended
    }

    #[test]
    fn the_devices_word_on_the_version_ends_it() {
        let ours = Said::Desired(Some(wanted(8, "me")));
        check(&[ours.clone(), told(7, SettingsOutcome::Applied)], None);
        check(&[ours.clone(), told(8, SettingsOutcome::Applied)], Some(Ending::Applied));
        let refused = check(&[ours.clone(), told(8, SettingsOutcome::Refused)], Some(Ending::Refused));
        assert_eq!(refused.expect("a report").errors.len(), 1);
        check(&[ours.clone(), told(8, SettingsOutcome::OnTrial)], None);
        check(&[ours, told(8, SettingsOutcome::OnTrial), told(8, SettingsOutcome::Failed)], Some(Ending::Failed));
    }

    #[test]
    fn of_two_operators_neither_is_told_that_all_is_well_when_it_is_not() {
        let (ours, theirs) = (Said::Desired(Some(wanted(8, "me"))), Said::Desired(Some(wanted(8, "you"))));
        let applied = told(8, SettingsOutcome::Applied);
        // Theirs was first: what the device applied is theirs.
        let first = check(&[theirs.clone(), applied.clone(), ours.clone()], Some(Ending::Overtaken));
        assert!(first.and_then(|report| report.reason).expect("a reason").contains("you"));
        check(&[ours.clone(), theirs, applied.clone()], Some(Ending::Overtaken));
        check(&[applied], None);
        check(&[ours, Said::Desired(None)], Some(Ending::Overtaken));
    }

    #[test]
    fn only_the_reply_to_this_command_ends_it() {
        let message = |id: &str| CommandMessage {
            id: Some(id.to_owned()),
            command: "ping".to_owned(),
            args: Value::Null,
            issued_ms: None,
            by: None,
        };
        let mut errand = Errand::command(DeviceId::new("d").expect("valid"), message("a")).expect("a command");
        let reply = |id: Option<&str>| {
            Said::Reply(Reply {
                id: id.map(str::to_owned),
                command: None,
                outcome: CommandOutcome::Interrupted,
                reason: None,
                result: Value::Null,
            })
        };
        assert_eq!(errand.hear(&reply(None)), Turn::Wait);
        assert_eq!(errand.hear(&reply(Some("b"))), Turn::Wait);
        assert!(matches!(errand.hear(&reply(Some("a"))), Turn::Ended(report) if report.outcome == Ending::Interrupted));
    }

    #[test]
    fn what_no_device_would_take_is_not_sent() {
        let device = DeviceId::new("d").expect("valid");
        for (command, args, id) in [
            ("pong", json!(null), "a"),
            ("snapshot", json!({}), "a"),
            ("ping", json!({"x": 1}), "a"),
            ("ping", json!(null), ""),
        ] {
            let (command, id) = (command.to_owned(), Some(id.to_owned()));
            let message = CommandMessage { id, command, args, issued_ms: None, by: None };
            assert!(Errand::command(device.clone(), message.clone()).is_err(), "{message:?}");
        }
    }
}
