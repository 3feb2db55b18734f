//! What Home Assistant is told of a device: one document with all its entities, in the terms of MQTT discovery.
//!
//! Everything an entity shows or does is a message of the wire; its templates translate. The number of a threshold
//! reads what is in force, lays its value over it and publishes the whole as the next version, as every operator does.

use hedge_proto::{DeviceId, LinkState, Name, Topic};
use serde_json::{Map, Value, json};

use crate::state::Announced;
use hedge_config::Config;

/// Whoever reads the audit log sees this name.
const BY: &str = "Home Assistant";

/// A message of discovery and which entities are in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Announcement {
    pub(super) announced: Announced,
    pub(super) document: Value,
}

impl Announcement {
    /// The document with entities that were announced before and are no longer: Home Assistant removes what has
    /// nothing but a platform.
    pub(super) fn with_removed(&self, before: Option<&Announced>) -> Value {
        let mut document = self.document.clone();
        for (key, platform) in before.iter().flat_map(|before| &before.parts) {
            if !self.announced.parts.contains_key(key) {
                document["components"][key] = json!({"platform": platform});
            }
        }
        document
    }
}

/// What is to be announced; `None` where the configuration does not ask for it.
pub(super) fn announcement(config: &Config, device: &DeviceId) -> Option<Announcement> {
    let (wanted, broker) = (config.home_assistant.as_ref()?, config.broker.as_ref()?);
    let text = |topic: Topic| broker.prefix.text(&topic);
    let mut entities = Entities { device, parts: Map::new() };
    entities.link(&text(Topic::UpTelemetry(device.clone())));
    let (reported, desired) = (text(Topic::UpReported(device.clone())), text(Topic::DownDesired(device.clone())));
    for model in &config.models {
        entities.threshold(&model.name, &reported, &desired);
    }
    // Answers that go to another broker cannot be seen at this one.
    let answers = config.verdicts.on_uplink();
    let command = text(Topic::DownCommand(device.clone()));
    for source in &config.sources {
        entities.paused(&source.name, &reported, &command);
        if answers {
            entities.answer(&source.name, &text(Topic::UpAnswer(device.clone(), source.name.clone())));
        }
    }
    let parts = entities.parts;
    let platform = |(key, part): (&String, &Value)| Some((key.clone(), part["platform"].as_str()?.to_owned()));
    let version = env!("CARGO_PKG_VERSION");
    let document = json!({
        "device": {
            "identifiers": [format!("hedge_{device}")],
            "name": device,
            "manufacturer": "Hedge",
            "sw_version": version,
        },
        "origin": {"name": "hedge-agent", "sw_version": version},
        "availability": [{
            "topic": text(Topic::UpStatus(device.clone())),
            "value_template": "{{ value_json.state }}",
            "payload_available": "online",
            "payload_not_available": "offline",
        }],
        "qos": 1,
        "components": parts,
    });
    // Home Assistant takes no dot in this level.
    let level = device.to_string().replace('.', "_dot_");
    let topic = format!("{}/device/hedge_{level}/config", wanted.discovery_prefix);
    let parts = document["components"].as_object()?.iter().filter_map(platform).collect();
    Some(Announcement { announced: Announced { topic, parts }, document })
}

struct Entities<'a> {
    device: &'a DeviceId,
    parts: Map<String, Value>,
}

impl Entities<'_> {
    fn add(&mut self, key: String, mut part: Value) {
        part["unique_id"] = format!("hedge_{}_{key}", self.device).into();
        self.parts.insert(key, part);
    }

    fn link(&mut self, telemetry: &str) {
        let states: Vec<&str> = LinkState::ALL.into_iter().map(LinkState::name).collect();
        self.add(
            "link".to_owned(),
            json!({
                "platform": "sensor",
                "name": "Link",
                "device_class": "enum",
                "options": states,
                "entity_category": "diagnostic",
                "state_topic": telemetry,
                "value_template": "{{ value_json.link }}",
                "json_attributes_topic": telemetry,
                "json_attributes_template": "{{ {'reason': value_json.link_reason} | to_json }}",
            }),
        );
        self.add(
            "queue".to_owned(),
            json!({
                "platform": "sensor",
                "name": "Cases waiting",
                "state_class": "measurement",
                "entity_category": "diagnostic",
                "state_topic": telemetry,
                "value_template": "{{ value_json.queue.waiting }}",
            }),
        );
    }

    fn answer(&mut self, source: &Name, topic: &str) {
        self.add(
            format!("answer_{source}"),
            json!({
                "platform": "sensor",
                "name": format!("Answer of {source}"),
                "state_topic": topic,
                "value_template": "{% set result = value_json.result | default({}, true) %}\
                    {% if result.classify is defined %}{{ result.classify.label }}\
                    {% elif result.detect is defined %}{{ result.detect.found | length }} found\
                    {% else %}None{% endif %}",
                "json_attributes_topic": topic,
                // Of things found also how many of each: `person: 2`.
                "json_attributes_template": "{% set result = value_json.result | default({}, true) %}\
                    {% set ns = namespace(counts={}) %}\
                    {% for one in (result.detect | default({}, true)).found | default([], true) %}\
                    {% set ns.counts = dict(ns.counts, **{one.label: ns.counts.get(one.label, 0) + 1}) %}{% endfor %}\
                    {{ dict(ns.counts, **{'id': value_json.id, 'revision': value_json.revision, \
                    'authority': value_json.authority, 'provisional': value_json.provisional, \
                    'because': value_json.decision.because}) | to_json }}",
            }),
        );
        self.add(
            format!("doubt_{source}"),
            json!({
                "platform": "binary_sensor",
                "device_class": "problem",
                "entity_category": "diagnostic",
                "name": format!("Doubt of {source}"),
                "state_topic": topic,
                "value_template": "{{ 'ON' if value_json.decision.outcome == 'defer' and value_json.provisional else 'OFF' }}",
            }),
        );
    }

    /// Shows what is in force, also where it was set by someone else.
    fn threshold(&mut self, model: &Name, reported: &str, desired: &str) {
        let command = [
            "{% set report = this.attributes %}",
            "{% set last = report.last | default({}, true) %}",
            "{% set overlay = report.overlay | default({}, true) %}",
            "{% set models = overlay.model | default({}, true) %}",
            &format!("{{% set model = models['{model}'] | default({{}}, true) %}}"),
            "{% set threshold = dict(model.threshold | default({}, true), score_min=value) %}",
            "{{ {'version': [report.version | default(0) | int, last.version | default(0) | int] | max + 1, ",
            &format!("'by': '{BY}', "),
            &format!(
                "'settings': dict(overlay, model=dict(models, **{{'{model}': dict(model, threshold=threshold)}}))}}"
            ),
            " | to_json }}",
        ];
        // What nobody has set is the bundle's suggestion, and in force all the same.
        let value = format!(
            "{{% set suggested = (value_json.suggested | default({{}}, true))['{model}'] | default({{}}, true) %}}\
             {{{{ value_json.settings.model['{model}'].threshold.score_min \
             | default(suggested.score_min | default('None')) }}}}"
        );
        self.add(
            format!("threshold_{model}"),
            json!({
                "platform": "number",
                "name": format!("Threshold of {model}"),
                "entity_category": "config",
                "min": 0,
                "max": 1,
                "step": 0.01,
                "mode": "box",
                "state_topic": reported,
                "value_template": value,
                "json_attributes_topic": reported,
                "json_attributes_template": "{{ {'version': value_json.version, 'overlay': value_json.overlay, \
                    'last': value_json.last | default({}, true)} | to_json }}",
                "command_topic": desired,
                "command_template": command.concat(),
                "retain": true,
            }),
        );
    }

    fn paused(&mut self, source: &Name, reported: &str, command: &str) {
        self.add(
            format!("paused_{source}"),
            json!({
                "platform": "switch",
                "name": format!("Pause {source}"),
                "icon": "mdi:pause",
                "state_topic": reported,
                "value_template": format!(
                    "{{{{ 'pause' if '{source}' in (value_json.paused | default([], true)) else 'resume' }}}}"
                ),
                "state_on": "pause",
                "state_off": "resume",
                "command_topic": command,
                "payload_on": "pause",
                "payload_off": "resume",
                // A new id each time: the same command may be meant again.
                "command_template": format!(
                    "{{{{ {{'id': 'ha-' ~ now().timestamp(), 'command': value, 'args': {{'source': '{source}'}}, \
                    'by': '{BY}'}} | to_json }}}}"
                ),
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [broker]
        url = "mqtt://b"
        prefix = "site"
        [home_assistant]
        [verdicts.mqtt]
        [[model]]
        name = "photo.v2"
        bundle = "/b"
        [[source]]
        name = "porch"
        kind = "http"
    "#;

    fn announced(file: &str) -> Option<Announcement> {
        let config = Config::parse(file, "agent.toml", std::iter::empty()).expect("valid");
        announcement(&config, &DeviceId::new("hall.1").expect("valid"))
    }

    #[test]
    fn what_a_device_has_is_announced_and_nothing_unless_asked_for() {
        let all = announced(FILE).expect("announced");
        assert_eq!(all.announced.topic, "homeassistant/device/hedge_hall_dot_1/config");
        let parts: Vec<_> =
            all.announced.parts.iter().map(|(key, platform)| (key.as_str(), platform.as_str())).collect();
        let expected = [
            ("answer_porch", "sensor"),
            ("doubt_porch", "binary_sensor"),
            ("link", "sensor"),
            ("paused_porch", "switch"),
            ("queue", "sensor"),
            ("threshold_photo.v2", "number"),
        ];
        assert_eq!(parts, expected);
        let part = &all.document["components"]["answer_porch"];
        assert_eq!(part["state_topic"], "site/hedge/v1/hall.1/up/answer/porch");
        assert_eq!(part["unique_id"], "hedge_hall.1_answer_porch");
        assert_eq!(announced(&FILE.replace("[home_assistant]", "")), None);
        let other = announced(&FILE.replace("[home_assistant]", "[home_assistant]\ndiscovery_prefix = \"a/b\""));
        assert_eq!(other.expect("announced").announced.topic, "a/b/device/hedge_hall_dot_1/config");
    }

    #[test]
    fn answers_that_are_published_elsewhere_or_not_at_all_have_no_sensor() {
        for mqtt in ["", "[verdicts.mqtt.broker]\nurl = \"mqtt://c\""] {
            let all = announced(&FILE.replace("[verdicts.mqtt]", mqtt)).expect("announced");
            assert!(!all.announced.parts.contains_key("answer_porch"), "{mqtt}");
        }
    }

    #[test]
    fn an_entity_that_is_gone_is_removed_by_name() {
        let before = announced(FILE).expect("announced").announced;
        let now = announced(&FILE.replace("porch", "hall")).expect("announced");
        let document = now.with_removed(Some(&before));
        assert_eq!(document["components"]["paused_porch"], json!({"platform": "switch"}));
        assert_eq!(document["components"]["link"], now.document["components"]["link"]);
        assert_eq!(now.with_removed(None), now.document);
    }
}
