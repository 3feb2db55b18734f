//! The whole MQTT interface as an AsyncAPI 3 document, made from the types: `docs/asyncapi.json`.
//!
//! Who may read it need not read Rust. A topic or a field that is not in it cannot be in the types, and the reverse.

pub(crate) mod examples;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::{
    Answer, CaseMessage, CloudStatus, CommandMessage, Desired, DeviceStatus, DownMessage, Name, Order, Reply, Reported,
    Telemetry, Topic, Topics, WIRE_VERSION,
};

/// Who is on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Party {
    Device,
    Cloud,
    /// Whoever looks after devices, or uses their answers.
    Operator,
}

/// One topic and what travels on it.
struct Channel {
    key: &'static str,
    says: &'static str,
    retained: bool,
    qos: u8,
    sender: Party,
    readers: &'static [Party],
    payload: fn(&mut SchemaGenerator) -> Value,
    cbor: bool,
    examples: Vec<(&'static str, Value)>,
}

use Party::{Cloud, Device, Operator};

/// Fails to compile when a topic is new.
fn channel(topic: &Topic) -> Channel {
    let of = |key, says, payload, examples| Channel {
        key,
        says,
        retained: false,
        qos: 1,
        sender: Device,
        readers: &[Operator],
        payload,
        cbor: false,
        examples,
    };
    match topic {
        Topic::UpStatus(_) => Channel {
            retained: true,
            readers: &[Cloud, Operator],
            ..of(
                "upStatus",
                "Who is there. `offline` is also the device's will, delayed 30 s; one whose connection is below that of the last `online` is old news.",
                schema::<DeviceStatus>,
                examples::device_status(),
            )
        },
        Topic::UpCase(_) => Channel {
            readers: &[Cloud],
            cbor: true,
            ..of(
                "upCase",
                "Samples the device is not sure about, and questions about them.",
                schema::<CaseMessage>,
                examples::case_message(),
            )
        },
        Topic::UpAnswer(..) => of(
            "upAnswer",
            "Answers and corrections of one source, if the device is told to publish them. Revision 0 is the device's own.",
            schema::<Answer>,
            examples::answer(),
        ),
        Topic::UpReported(_) => Channel {
            retained: true,
            readers: &[Cloud, Operator],
            ..of(
                "upReported",
                "The settings in force, and what became of the last ones wanted.",
                schema::<Reported>,
                examples::reported(),
            )
        },
        Topic::UpReply(_) => Channel {
            readers: &[Cloud, Operator],
            ..of(
                "upReply",
                "Results of commands. A command's response topic takes its place if it lies below the device's own `up`.",
                schema::<Reply>,
                examples::reply(),
            )
        },
        Topic::UpTelemetry(_) => Channel {
            qos: 0,
            readers: &[Cloud, Operator],
            ..of(
                "upTelemetry",
                "Live figures: at every change of the link, and once an interval.",
                schema::<Telemetry>,
                examples::telemetry(),
            )
        },
        Topic::DownVerdict(_) => Channel {
            sender: Cloud,
            readers: &[Device],
            cbor: true,
            ..of(
                "downVerdict",
                "What the cloud says of cases. Acknowledged once it is on the device's disk.",
                schema::<DownMessage>,
                examples::down_message(),
            )
        },
        Topic::DownDesired(_) => Channel {
            sender: Operator,
            retained: true,
            readers: &[Device, Cloud, Operator],
            ..of(
                "downDesired",
                "The settings wanted: the whole overlay over the device's file, never a patch. Versions grow.",
                schema::<Desired>,
                examples::desired(),
            )
        },
        Topic::DownCommand(_) => Channel {
            sender: Operator,
            readers: &[Device],
            ..of(
                "downCommand",
                "A command. One with an id has one effect and one result, however often it arrives. A retained one is refused.",
                command,
                examples::command(),
            )
        },
        Topic::CloudStatus(_) => Channel {
            sender: Cloud,
            retained: true,
            readers: &[Device, Cloud, Operator],
            ..of(
                "cloudStatus",
                "Which cloud is there, and what it reads and takes. `offline` is also its will.",
                schema::<CloudStatus>,
                examples::cloud_status(),
            )
        },
    }
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

/// What an operator's program says to itself.
fn marker() -> Channel {
    Channel {
        key: "operatorMarker",
        says: "What an operator's program publishes to itself, to know that everything the broker keeps has come before it.",
        retained: false,
        qos: 1,
        sender: Operator,
        readers: &[Operator],
        payload: |_| json!({"description": "Empty."}),
        cbor: false,
        examples: vec![("empty", json!(""))],
    }
}

/// A command's message, with the arguments that go with each name.
fn command(generator: &mut SchemaGenerator) -> Value {
    let orders = Order::json_schema(generator).to_value();
    let orders = orders["oneOf"].as_array().cloned().unwrap_or_default();
    let orders: Vec<Value> = orders
        .into_iter()
        .map(|mut order| {
            // The message has other fields besides.
            if let Some(order) = order.as_object_mut() {
                order.remove("additionalProperties");
                let optional = order["properties"].get("args").is_some_and(|args| !needs_fields(args, generator));
                if let Some(required) = order.get_mut("required").and_then(Value::as_array_mut) {
                    required.retain(|field| !(optional && field == "args"));
                }
            }
            order
        })
        .collect();
    json!({"allOf": [generator.subschema_for::<CommandMessage>().to_value(), {"oneOf": orders}]})
}

/// Whether arguments have a field that must be given.
fn needs_fields(args: &Value, generator: &SchemaGenerator) -> bool {
    let name = args["$ref"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    generator.definitions().get(name).is_some_and(|schema| schema.get("required").is_some())
}

fn party(party: Party) -> &'static str {
    match party {
        Device => "device",
        Cloud => "cloud",
        Operator => "operator",
    }
}

/// What takes the place of names in a topic.
fn parameters() -> Value {
    let name = |description: &str| json!({"description": description});
    json!({
        "device": name("The device's name: 1 to 64 of `A-Z a-z 0-9 . _ -`, not beginning with a dot."),
        "source": name("The source's name, of the same characters."),
        "instance": name("The cloud instance's name, of the same characters."),
        "operator": name("The operator's program's name, of the same characters."),
    })
}

fn marker_address() -> String {
    let topics = Topics::new("").expect("valid");
    topics.marker(&Name::new("-operator-").expect("valid")).replace("-operator-", "{operator}")
}

/// The topic with its parameters in braces.
fn address(topic: &Topic) -> String {
    let topics = Topics::new("").expect("valid");
    topics
        .text(topic)
        .replace("-device-", "{device}")
        .replace("-source-", "{source}")
        .replace("-instance-", "{instance}")
}

fn operation(key: &str, who: Party, action: &str, channel: &Channel) -> (String, Value) {
    let name = format!("{}{}{}", party(who), if action == "send" { "Sends" } else { "Reads" }, capital(key));
    let mut operation = json!({
        "action": action,
        "channel": {"$ref": format!("#/channels/{key}")},
        "messages": [{"$ref": format!("#/channels/{key}/messages/{key}")}],
        "tags": [{"name": party(who)}],
        "bindings": {"mqtt": {"qos": channel.qos, "bindingVersion": "0.2.0"}},
    });
    if action == "send" {
        operation["bindings"]["mqtt"]["retain"] = channel.retained.into();
    }
    if key == "downCommand" {
        operation["reply"] = json!({"channel": {"$ref": "#/channels/upReply"}});
    }
    (name, operation)
}

fn capital(key: &str) -> String {
    let mut letters = key.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

fn message(channel: &Channel, generator: &mut SchemaGenerator) -> Value {
    let content_type = if channel.cbor { "application/cbor" } else { "application/json" };
    let mut message = json!({
        "title": channel.key,
        "summary": channel.says,
        "contentType": content_type,
        "payload": (channel.payload)(generator),
        "examples": channel.examples.iter().map(|(name, payload)| json!({"name": name, "payload": payload})).collect::<Vec<_>>(),
    });
    if channel.cbor {
        message["description"] =
            "CBOR (RFC 8949). Schema and examples show the same data as JSON; byte strings (hashes, payloads) are hexadecimal text there.".into();
    }
    if channel.key == "downCommand" {
        message["headers"] = json!({"type": "object", "properties": {
            "by": {"type": "string", "description": "MQTT 5 user property: who says so, where the document does not."}
        }});
        message["correlationId"] = json!({
            "description": "The command's id; MQTT 5 correlation data replaces an absent one, and comes back with the reply.",
            "location": "$message.payload#/id",
        });
        message["bindings"] = json!({"mqtt": {
            "correlationData": {"type": "string", "description": "Stands for an absent `id`."},
            "responseTopic": {"type": "string", "description": "Honoured below the device's own `up`, on none of its other topics."},
            "bindingVersion": "0.2.0",
        }});
    }
    message
}

/// The names in braces of an address, each with its description.
fn parameters_of(address: &str) -> Map<String, Value> {
    let Value::Object(all) = parameters() else { return Map::new() };
    all.into_iter().filter(|(name, _)| address.contains(&format!("{{{name}}}"))).collect()
}

/// The whole document.
fn document() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    let topics = Topic::all();
    let topics = topics.iter().map(|topic| (address(topic), channel(topic)));
    for (address, found) in topics.chain([(marker_address(), marker())]) {
        let key = found.key;
        messages.insert(key.to_owned(), message(&found, &mut generator));
        channels.insert(
            key.to_owned(),
            json!({
                "address": address,
                "description": found.says,
                "messages": {key: {"$ref": format!("#/components/messages/{key}")}},
                "parameters": parameters_of(&address),
            }),
        );
        operations.extend([operation(key, found.sender, "send", &found)]);
        operations.extend(found.readers.iter().map(|reader| operation(key, *reader, "receive", &found)));
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Hedge over MQTT",
            "version": WIRE_VERSION.to_string(),
            "description": "What devices, clouds and operators say to each other. `version` is that of the wire. A configured prefix comes before every address. Operations are named by who does them: `device…`, `cloud…`, `operator…`.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": server("mqtts", "Any MQTT 5 broker. Devices show their certificate, or user and password."),
            "plain": server("mqtt", "The same without TLS, for a trusted network: anyone on the way can read pictures."),
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": generator.take_definitions(true)},
    })
}

fn server(protocol: &str, description: &str) -> Value {
    json!({
        "host": "broker.example",
        "protocol": protocol,
        "protocolVersion": "5.0",
        "description": description,
        "bindings": {"mqtt": {
            "clientId": "the device's name, if the configuration gives no other",
            "cleanSession": false,
            "lastWill": {
                "topic": "hedge/v1/{device}/up/status",
                "qos": 1,
                "message": "{\"state\":\"offline\",\"connection\":12}",
                "retain": true,
            },
            "keepAlive": 20,
            "sessionExpiryInterval": 86_400,
            "bindingVersion": "0.2.0",
        }},
    })
}

mod tests {
    use super::*;

    const COMMITTED: &str = include_str!("../../../docs/asyncapi.json");

    fn committed() -> Value {
        serde_json::from_str(COMMITTED).expect("JSON")
    }

    #[test]
    fn the_committed_document_is_that_of_the_types() {
        let document = serde_json::to_string_pretty(&document()).expect("serialises") + "\n";
        // A whole file to take over, not a difference to type in.
        assert!(document == COMMITTED, "docs/asyncapi.json is to be:\n{document}");
    }

    #[test]
    fn every_channel_is_a_topic_and_every_topic_a_channel() {
        let topics = Topics::new("").expect("valid");
        let document = committed();
        let channels = document["channels"].as_object().expect("an object");
        let mut addresses: Vec<String> = Topic::all().iter().map(address).collect();
        for (key, channel) in channels {
            let address = channel["address"].as_str().expect("text");
            let text = address.replace("{device}", "a").replace("{source}", "b").replace("{instance}", "c");
            assert!(topics.read(&text).is_some() || address == marker_address(), "{key}: {address}");
            addresses.retain(|one| one != address);
        }
        assert_eq!(addresses, Vec::<String>::new(), "topics without a channel");
    }

    fn reads<T: serde::de::DeserializeOwned>(payload: &Value) {
        let read = serde_json::from_value::<T>(payload.clone());
        assert!(read.is_ok(), "{payload}: {:?}", read.err());
    }

    #[test]
    fn every_example_is_read_by_the_types() {
        let document = committed();
        for (key, message) in document["components"]["messages"].as_object().expect("an object") {
            let examples = message["examples"].as_array().expect("a list");
            assert!(!examples.is_empty(), "{key} has no example");
            for example in examples {
                let (payload, bytes) = (&example["payload"], example["payload"].to_string().into_bytes());
                match key.as_str() {
                    "upStatus" => reads::<DeviceStatus>(payload),
                    "upCase" => reads::<CaseMessage>(payload),
                    "upAnswer" => reads::<Answer>(payload),
                    "upReported" => reads::<Reported>(payload),
                    "upReply" => reads::<Reply>(payload),
                    "upTelemetry" => reads::<Telemetry>(payload),
                    "downVerdict" => reads::<DownMessage>(payload),
                    "downDesired" => {
                        let desired = Desired::read(&bytes).expect("a document");
                        crate::Settings::read(desired.settings).expect("settings");
                    }
                    "downCommand" => {
                        let message = CommandMessage::read(&bytes).expect("a command");
                        Order::read(&message.command, &message.args).expect("an order");
                    }
                    "cloudStatus" => reads::<CloudStatus>(payload),
                    "operatorMarker" => {}
                    other => panic!("nobody reads {other}"),
                }
            }
        }
    }

    #[test]
    fn every_command_has_an_example() {
        let document = committed();
        let orders = &document["components"]["messages"]["downCommand"]["payload"]["allOf"][1]["oneOf"];
        let names = orders.as_array().expect("a list").iter().map(|order| &order["properties"]["command"]["const"]);
        let given = document["components"]["messages"]["downCommand"]["examples"].as_array().expect("a list");
        for name in names {
            assert!(given.iter().any(|example| &example["payload"]["command"] == name), "{name}");
        }
    }
}
