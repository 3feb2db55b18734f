//! What the cloud's model alone would have answered, for every picture that was posted.
//!
//! Runs the large model in an agent of its own that keeps every answer, beside the demo and not through it: the
//! figure must not depend on which pictures were deferred.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, anyhow};
use hedge_proto::{CaseId, Output};
use hedge_tests::fashion::Fashion;
use hedge_tests::interface::Interface;
use hedge_tests::{AgentConfig, tally};

/// Callers at the same time; one processor runs the model while the other decodes.
const CALLERS: usize = 2;

/// The share of right answers, each picture counted as often as it was posted.
pub(super) fn accuracy(dir: &Path, library: &Path, fashion: &Fashion, posted: &[usize]) -> Result<f64> {
    let config = AgentConfig::new(dir, "comparison")
        .model_keeping("fashion-large", 0.0)
        .http_source("pictures")
        .library(library);
    let mut agent = config.start()?;
    let interface = agent.http.clone();
    let (next, right) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let ask = || ask(&interface, fashion, posted, &next, &right);
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(ask)).collect();
        for caller in callers {
            caller.join().map_err(|_| anyhow!("a caller panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    agent.stop()?;
    let all: usize = posted.iter().sum();
    Ok(right.into_inner() as f64 / all as f64)
}

/// What the cloud's detector alone finds in every frame.
pub(super) fn references(
    dir: &Path,
    library: &Path,
    frames: &[(Vec<CaseId>, Vec<u8>)],
) -> Result<HashMap<CaseId, Output>> {
    let config = AgentConfig::new(dir, "second-comparison")
        .model_keeping("objects-large", 0.0)
        .http_source(super::lane::SOURCE)
        .library(library);
    let mut agent = config.start()?;
    let mut references = HashMap::new();
    for (ids, frame) in frames.iter().filter(|(ids, _)| !ids.is_empty()) {
        let answer = agent.http.post(super::lane::SOURCE, "", "image/jpeg", frame)?;
        let said = answer.said.ok_or_else(|| anyhow!("the cloud's detector cannot read its own output"))?;
        references.extend(ids.iter().map(|id| (id.clone(), said.clone())));
    }
    agent.stop()?;
    Ok(references)
}

fn ask(
    interface: &Interface,
    fashion: &Fashion,
    posted: &[usize],
    next: &AtomicUsize,
    right: &AtomicUsize,
) -> Result<()> {
    loop {
        let picture = next.fetch_add(1, Ordering::Relaxed);
        let Some(times) = posted.get(picture) else { return Ok(()) };
        if *times == 0 {
            continue;
        }
        let answer = interface.post("pictures", "", "image/png", &fashion.png(picture)?)?;
        if tally::label(&answer).as_deref() == Some(fashion.label(picture)) {
            right.fetch_add(*times, Ordering::Relaxed);
        }
    }
}
