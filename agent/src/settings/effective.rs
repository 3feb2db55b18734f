//! Every remotely settable field as it is in force, in the words of the settings.

use hedge_core::policy::{Policies, Policy};
use hedge_inference::Region;
use hedge_proto::{
    BrokerSettings, CeilingsSettings, LinkSettings, LogSettings, ModelSettings, OutboxSettings, RegionSettings,
    Settings, Share, SilentStateSettings, SinkSettings, SourceSettings, StateSettings, StatesSettings,
    TelemetrySettings, VerdictsSettings, WantedSettings, WindowsSettings,
};

use std::collections::BTreeMap;

use hedge_config::{BrokerConfig, Config, KIND_TABLES, LinkConfig, SinkConfig, SourceConfig, VerdictsConfig};

/// What `config` says of each remotely settable field.
#[must_use]
pub(super) fn effective(config: &Config) -> Settings {
    let model = |model: &hedge_config::ModelConfig| {
        let wanted = Some(&model.wanted).filter(|wanted| **wanted != WantedSettings::default()).cloned();
        (model.name.clone(), Some(ModelSettings { threshold: Some(model.threshold.given().clone()), wanted }))
    };
    Settings {
        log: Some(LogSettings { level: Some(config.log.level.clone()) }),
        link: Some(link(config)),
        outbox: Some(OutboxSettings { store_wait_ms: Some(config.outbox.store_wait_ms) }),
        telemetry: Some(TelemetrySettings {
            interval_s: Some(config.telemetry_interval().as_secs()),
            traces: Some(config.telemetry.traces),
        }),
        verdicts: Some(verdicts(&config.verdicts)),
        broker: config.broker.as_ref().map(|broker| broker_settings(broker, &config.link)),
        model: Some(config.models.iter().map(model).collect()),
        source: Some(config.sources.iter().map(|one| (one.name.clone(), Some(source(config, one)))).collect()),
    }
}

fn link(config: &Config) -> LinkSettings {
    let (link, ceilings) = (&config.link, config.link.ceilings());
    LinkSettings {
        profile: Some(link.profile),
        batch_bytes_max: Some(link.batch_bytes_max()),
        windows: Some(WindowsSettings { every_s: Some(link.windows.every_s), open_s: Some(link.windows.open_s) }),
        states: Some(states(&config.policies())),
        ceilings: Some(CeilingsSettings {
            cases_per_hour: Some(ceilings.cases_per_hour),
            cases_per_day: Some(ceilings.cases_per_day),
            cases_per_month: Some(ceilings.cases_per_month),
            bytes_per_hour: Some(ceilings.bytes_per_hour),
            bytes_per_day: Some(ceilings.bytes_per_day),
            bytes_per_month: Some(ceilings.bytes_per_month),
        }),
    }
}

fn states(policies: &Policies) -> StatesSettings {
    let wait = |policy: &Policy| u64::try_from(policy.wait_max.as_millis()).ok();
    let state = |policy: &Policy| {
        Some(StateSettings {
            threshold_scale: Some(policy.threshold.value()),
            wait_ms_max: wait(policy),
            payload: Some(policy.payload),
            drain_per_s: policy.drain_per_s,
        })
    };
    let silent = |policy: &Policy| {
        Some(SilentStateSettings {
            threshold_scale: Some(policy.threshold.value()),
            wait_ms_max: wait(policy),
            payload: Some(policy.payload),
        })
    };
    StatesSettings {
        online: state(&policies.online),
        degraded: state(&policies.degraded),
        offline: silent(&policies.offline),
        over_budget: silent(&policies.over_budget),
    }
}

fn verdicts(config: &VerdictsConfig) -> VerdictsSettings {
    let shown = |sink: &SinkConfig| SinkSettings { wanted: Some(sink.wanted()) };
    let of_kind =
        |table: &str| config.sinks.iter().find(|(name, _)| name.as_str() == table).map(|(_, sink)| shown(sink));
    let own = config.sinks.iter().filter(|(name, _)| !KIND_TABLES.contains(&name.as_str()));
    let named: BTreeMap<_, _> = own.map(|(name, sink)| (name.clone(), Some(shown(sink)))).collect();
    VerdictsSettings {
        jsonl: of_kind("jsonl"),
        webhook: of_kind("webhook"),
        command: of_kind("command"),
        mqtt: of_kind("mqtt"),
        sinks: (!named.is_empty()).then_some(named),
    }
}

fn broker_settings(config: &BrokerConfig, link: &LinkConfig) -> BrokerSettings {
    let profiles = u16::try_from(link.profile().keep_alive.as_secs()).unwrap_or(u16::MAX);
    BrokerSettings {
        url: Some(config.url.to_string()),
        credentials: config.credentials.clone(),
        client_id: config.client_id.clone(),
        alpn: config.alpn.clone(),
        proxy: config.proxy.as_ref().map(ToString::to_string),
        keep_alive_s: Some(config.keep_alive_s.unwrap_or(profiles)),
    }
}

fn source(config: &Config, source: &SourceConfig) -> SourceSettings {
    SourceSettings {
        kind: None,
        enabled: Some(source.enabled),
        model: config.model_of(source).map(|model| model.name.clone()),
        interval_ms: source.interval_ms,
        region: source.region.as_ref().and_then(region),
        metadata: (!source.metadata.is_empty()).then(|| source.metadata.clone()),
    }
}

fn region(region: &Region) -> Option<RegionSettings> {
    #[expect(clippy::cast_possible_truncation, reason = "fractions, for people")]
    let [left, top, width, height] = region.fractions().map(|value| Share::new(value as f32).ok());
    Some(RegionSettings { left: left?, top: top?, width: width?, height: height? })
}
