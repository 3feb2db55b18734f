//! A model that says the same about everything: for benches and tests of all that is around a model.

use hedge_proto::{Case, LabelScore, ModelRef, TaskResult};

use super::{Answerer, ModelFailure, Opinion};

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

    fn answer(&mut self, _: &Case, _: &[u8]) -> Result<Opinion, ModelFailure> {
        let scores = vec![LabelScore { label: self.label.clone(), score: 1.0 }];
        Ok(Opinion {
            result: TaskResult::Classify { label: self.label.clone(), scores },
            model: ModelRef { name: "fixed".to_owned(), version: "1".to_owned() },
        })
    }
}
