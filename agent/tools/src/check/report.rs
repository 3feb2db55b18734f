//! Lines of a check: what was looked at, how it is, and what to do.

use serde::Serialize;

/// How one thing is, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Grade {
    Ok,
    /// It works, and will not for ever, or not as well as it could.
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    pub(crate) check: String,
    pub(crate) outcome: Grade,
    pub(crate) text: String,
    /// What to do; none when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
}

/// All of them, in the order in which one would look.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Finding>);

impl Report {
    pub(super) fn ok(&mut self, check: impl Into<String>, text: impl ToString) {
        self.add(check, Grade::Ok, text, None);
    }

    pub(super) fn warning(&mut self, check: impl Into<String>, text: impl ToString, advice: impl Into<String>) {
        self.add(check, Grade::Warning, text, Some(advice.into()));
    }

    pub(super) fn failed(&mut self, check: impl Into<String>, text: impl ToString, advice: impl Into<String>) {
        self.add(check, Grade::Failed, text, Some(advice.into()));
    }

    fn add(&mut self, check: impl Into<String>, outcome: Grade, text: impl ToString, advice: Option<String>) {
        self.0.push(Finding { check: check.into(), outcome, text: text.to_string(), advice });
    }

    pub(super) fn has_failed(&self) -> bool {
        self.worst() == Grade::Failed
    }

    fn worst(&self) -> Grade {
        self.0.iter().map(|line| line.outcome).max().unwrap_or(Grade::Ok)
    }

    /// One document.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "outcome": self.worst(), "checks": self.0 })
    }

    /// A line for each, with what to do below it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.0 {
            let outcome = match line.outcome {
                Grade::Ok => "ok",
                Grade::Warning => "warning",
                Grade::Failed => "FAILED",
            };
            text += &format!("{outcome:8} {}: {}\n", line.check, line.text);
            if let Some(advice) = &line.advice {
                text += &format!("         -> {advice}\n");
            }
        }
        text
    }

    pub(super) fn print(&self, json: bool) {
        let text = if json { format!("{:#}\n", self.json()) } else { self.text() };
        // A reader that has seen enough is no failure.
        drop(std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()));
    }
}
