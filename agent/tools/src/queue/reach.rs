//! Finds the outbox: behind the agent's listener if it runs, in its state folder if not.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, bail};
use axum::http::StatusCode;
use bytes::Bytes;
use hedge_proto::{DeviceId, to_json, word};

use crate::client::{AskError, Client};
use crate::running;
use hedge_agent::queue::{CaseDocument, Changed, CheckReport, Id, Listing, Queue, QueueError, Selection, Stage, Stats};
use hedge_config::{Config, Listen};
use hedge_outbox::{OpenError, Outbox};

/// Where questions and changes go.
pub(super) enum Reach {
    Running(Client),
    Stopped(Queue),
}

impl Reach {
    pub(super) async fn find(config: &Config) -> anyhow::Result<Self> {
        if let Some(client) = running(config).await {
            return Ok(Self::Running(client));
        }
        let dir = outbox_dir(config)?;
        check_owner(&dir)?;
        let opened = Queue::stopped(&config.state_dir, config.outbox.limits(), device(config)?);
        opened.map(Self::Stopped).map_err(|error| cannot_open(config, error))
    }

    pub(super) async fn list(&self, stage: Option<Stage>, limit: usize) -> anyhow::Result<Listing> {
        match self {
            Self::Running(client) => Ok(client.get(&format!("/v1/queue?limit={limit}{}", filter("&", stage))).await?),
            Self::Stopped(queue) => Ok(queue.list(stage, limit)),
        }
    }

    pub(super) async fn ids(&self, stage: Option<Stage>) -> anyhow::Result<Vec<Id>> {
        match self {
            Self::Running(client) => Ok(client.get(&format!("/v1/queue/ids{}", filter("?", stage))).await?),
            Self::Stopped(queue) => Ok(queue.ids(stage)),
        }
    }

    /// `None` if there is no such case.
    pub(super) async fn show(&self, id: Id) -> anyhow::Result<Option<CaseDocument>> {
        match self {
            Self::Running(client) => unless_gone(client.get(&format!("/v1/queue/cases/{id}")).await),
            Self::Stopped(queue) => unless_missing(queue.show(id)),
        }
    }

    /// `None` if there is no such case, or its payload is gone because it is answered.
    pub(super) async fn payload(&self, id: Id) -> anyhow::Result<Option<Bytes>> {
        match self {
            Self::Running(client) => unless_gone(client.bytes(&format!("/v1/queue/cases/{id}/payload")).await),
            Self::Stopped(queue) => unless_missing(queue.payload(id)),
        }
    }

    pub(super) async fn stats(&self) -> anyhow::Result<Stats> {
        match self {
            Self::Running(client) => Ok(client.get("/v1/queue/stats").await?),
            Self::Stopped(queue) => Ok(queue.stats()),
        }
    }

    pub(super) async fn requeue(&self, selection: &Selection) -> anyhow::Result<Vec<Changed>> {
        match self {
            Self::Running(client) => Ok(client.post("/v1/queue/requeue", to_json(selection)).await?),
            Self::Stopped(queue) => Ok(queue.requeue(selection).await?),
        }
    }

    pub(super) async fn drop_cases(&self, selection: &Selection) -> anyhow::Result<Vec<Changed>> {
        match self {
            Self::Running(client) => Ok(client.post("/v1/queue/drop", to_json(selection)).await?),
            Self::Stopped(queue) => Ok(queue.drop_cases(selection).await?),
        }
    }

    pub(super) async fn close(self) {
        if let Self::Stopped(queue) = self {
            queue.close().await;
        }
    }
}

/// Reads the whole log. Of a stopped agent not even the queue is opened.
pub(super) async fn check(config: &Config) -> anyhow::Result<CheckReport> {
    if let Some(client) = running(config).await {
        return Ok(client.get("/v1/queue/check").await?);
    }
    let dir = outbox_dir(config)?;
    let found = tokio::task::spawn_blocking(move || Outbox::inspect_closed(&dir)).await?;
    Ok(found.map_err(|error| cannot_open(config, error))?.into())
}

pub(crate) fn outbox_dir(config: &Config) -> anyhow::Result<std::path::PathBuf> {
    let dir = config.state_dir.join("outbox");
    match dir.try_exists() {
        Ok(true) => Ok(dir),
        Ok(false) => bail!(
            "there is no outbox in {}: no agent has run with this configuration; is --config right?",
            config.state_dir.display()
        ),
        Err(error) => bail!("cannot look into {}: {error}; run this as the agent's user", config.state_dir.display()),
    }
}

/// Files made by somebody else, root included, would keep the agent from starting.
pub(crate) fn check_owner(dir: &Path) -> anyhow::Result<()> {
    let owner = std::fs::metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?.uid();
    let me = rustix::process::geteuid().as_raw();
    if owner != me {
        bail!(
            "the agent does not run, and its outbox belongs to user {owner}, not to you ({me}): run this as that user, \
             for example with `sudo -u '#{owner}' hedge-agent …`"
        );
    }
    Ok(())
}

pub(crate) fn cannot_open(config: &Config, error: OpenError) -> anyhow::Error {
    if !matches!(error, OpenError::InUse(_)) {
        return error.into();
    }
    let asked: Vec<_> = config.http.listen.iter().map(address).collect();
    if asked.is_empty() {
        return anyhow::anyhow!(
            "the agent runs, but listens nowhere: give it `listen = [\"unix:/run/hedge/agent.sock\"]` in [http] and \
             restart it, or stop it"
        );
    }
    anyhow::anyhow!(
        "the agent runs, but does not answer on {}: it may be starting or stopping, or you may not open its socket; \
         try again, or stop it",
        asked.join(" or ")
    )
}

fn address(listen: &Listen) -> String {
    match listen {
        Listen::Unix(path) => format!("unix:{}", path.display()),
        Listen::Tcp(address) => address.to_string(),
    }
}

/// For lines that do not say it themselves.
fn device(config: &Config) -> anyhow::Result<DeviceId> {
    match &config.device {
        Some(device) => Ok(device.clone()),
        None => Ok(DeviceId::new(&rustix::system::uname().nodename().to_string_lossy())?),
    }
}

fn filter(begin: &str, stage: Option<Stage>) -> String {
    stage.map(|stage| format!("{begin}stage={}", word(&stage))).unwrap_or_default()
}

fn unless_gone<T>(answer: Result<T, AskError>) -> anyhow::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(AskError::Refused { status: StatusCode::NOT_FOUND | StatusCode::GONE, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn unless_missing<T>(answer: Result<T, QueueError>) -> anyhow::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(QueueError::NoCase(_) | QueueError::PayloadGone(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
