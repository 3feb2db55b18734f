//! A model that says the same about everything: for benches and tests of all that is around a model.

use std::ffi::OsString;
use std::time::Duration;

use hedge_proto::{Case, ModelRef, Output};

use super::{Answerer, ModelFailure, Opinion};

/// A payload that begins like this ends the process, as one does that a model's library cannot bear.
const CRASHES: &[u8] = b"crash!";

/// A payload that begins like this takes as many milliseconds as follow.
const IS_SLOW: &str = "slow!";

/// Answers every case of one task with one label.
pub struct Fixed {
    task: String,
    label: String,
}

impl Fixed {
    #[must_use]
    pub fn new(task: &str, label: &str) -> Self {
        Self { task: task.to_owned(), label: label.to_owned() }
    }
}

impl Answerer for Fixed {
    fn task(&self) -> &str {
        &self.task
    }

    fn answer(&mut self, _: &Case, payload: &[u8]) -> Result<Opinion, ModelFailure> {
        if payload.starts_with(CRASHES) {
            std::process::abort();
        }
        let slow = std::str::from_utf8(payload).ok().and_then(|text| text.strip_prefix(IS_SLOW));
        if let Some(ms) = slow.and_then(|rest| rest.split(' ').next()?.parse().ok()) {
            std::thread::park_timeout(Duration::from_millis(ms));
        }
        Ok(Opinion {
            said: Output::label(&self.label),
            model: ModelRef { name: "fixed".to_owned(), version: "1".to_owned() },
        })
    }

    fn alone(&self) -> Vec<OsString> {
        vec!["--answer-with".into(), format!("{}={}", self.task, self.label).into()]
    }
}
