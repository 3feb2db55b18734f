//! The committed JSON Schema as a list of places, and what it allows at each.

use std::sync::LazyLock;

use hedge_proto::{Name, SETTINGS_SCHEMA};
use serde_json::{Map, Value, json};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(SETTINGS_SCHEMA).expect("JSON"));

/// Somewhere a document may have something.
#[derive(Debug, Clone)]
pub(in crate::settings) struct Place {
    pub(in crate::settings) path: Vec<String>,
    pub(in crate::settings) schema: Value,
    /// What must stand beside it, besides itself.
    beside: Map<String, Value>,
}

impl Place {
    /// As a refusal names it.
    pub(in crate::settings) fn name(&self) -> String {
        if self.path.is_empty() { "settings".to_owned() } else { self.path.join(".") }
    }

    /// Version 9, with this text at this place and nothing else.
    pub(in crate::settings) fn document(&self, text: &str) -> String {
        let mut inner = text.to_owned();
        for (level, name) in self.path.iter().enumerate().rev() {
            let beside: String = match level + 1 == self.path.len() {
                true => self.beside.iter().map(|(name, value)| format!("\"{name}\": {value}, ")).collect(),
                false => String::new(),
            };
            inner = format!("{{{beside}\"{name}\": {inner}}}");
        }
        format!("{{\"version\": 9, \"settings\": {inner}}}")
    }

    /// Its schemas, whichever of them holds.
    pub(in crate::settings) fn alternatives(&self) -> impl Iterator<Item = &Value> {
        alternatives(&self.schema).into_iter()
    }
}

/// Every place, the outermost first.
pub(in crate::settings) fn places() -> Vec<Place> {
    let mut found = Vec::new();
    walk(Place { path: Vec::new(), schema: SCHEMA.clone(), beside: Map::new() }, &mut found);
    found
}

fn walk(place: Place, found: &mut Vec<Place>) {
    found.push(place.clone());
    for schema in place.alternatives() {
        check_bounded(&place, schema);
        let known = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        let known = known.map(|(name, inner)| (name.as_str(), inner));
        // Whatever a device calls its own.
        let own = match place.path.last().map(String::as_str) {
            Some("model") => "m.1",
            Some("source") => "porch",
            Some("sinks") => "shed",
            Some("classes" | "weights" | "policies") => "cat",
            _ => "note",
        };
        let patterns = schema.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
        let open = schema.get("additionalProperties").filter(|inner| inner.is_object());
        let named = patterns.map(|(_, inner)| inner).chain(open).map(|inner| (own, inner));
        for (name, inner) in known.chain(named) {
            let path = place.path.iter().cloned().chain([name.to_owned()]).collect();
            let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            let others = required.filter_map(Value::as_str).filter(|other| *other != name);
            let beside = others.map(|other| (other.to_owned(), json!(0.5))).collect();
            walk(Place { path, schema: inner.clone(), beside }, found);
        }
    }
}

/// A number without a range or a text without a length is one that nobody thought about.
#[track_caller]
fn check_bounded(place: &Place, schema: &Value) {
    let has = |word: &str| schema.get(word).is_some();
    let is = |name: &str| types(schema).contains(&name);
    let number = is("number") || is("integer");
    assert!(!number || (has("minimum") && has("maximum")), "{} has no range", place.name());
    let short = ["maxLength", "pattern", "const", "enum"].into_iter().any(has);
    // All of them together have at most 1 KiB.
    let metadata = place.path.contains(&"metadata".to_owned());
    assert!(!is("string") || short || metadata, "{} has no length", place.name());
}

fn resolved(schema: &Value) -> &Value {
    match schema.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix("#/$defs/")) {
        Some(name) => &SCHEMA["$defs"][name],
        None => schema,
    }
}

fn alternatives(schema: &Value) -> Vec<&Value> {
    let schema = resolved(schema);
    let choices = ["anyOf", "oneOf"].into_iter().filter_map(|word| schema.get(word)?.as_array()).flatten();
    let choices: Vec<&Value> = choices.flat_map(alternatives).collect();
    if choices.is_empty() { vec![schema] } else { choices }
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(name)) => vec![name],
        _ => Vec::new(),
    }
}

/// Whether the schema allows the value; as much of JSON Schema as ours uses.
pub(in crate::settings) fn allows(schema: &Value, value: &Value) -> bool {
    alternatives(schema).into_iter().any(|schema| {
        let types = types(schema);
        let is = |name: &&str| match *name {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "object" => value.is_object(),
            other => panic!("no such type: {other}"),
        };
        let typed = types.is_empty() || types.iter().any(is);
        let constant = schema.get("const").is_none_or(|only| only == value);
        let listed = schema.get("enum").and_then(Value::as_array).is_none_or(|list| list.contains(value));
        typed && constant && listed && in_range(schema, value) && fields_allowed(schema, value)
    })
}

fn in_range(schema: &Value, value: &Value) -> bool {
    let bound = |word: &str| schema.get(word).and_then(Value::as_f64);
    let (least, most, text) = match value {
        Value::Number(_) => ("minimum", "maximum", None),
        Value::String(text) => ("minLength", "maxLength", Some(text)),
        _ => return true,
    };
    let size = text.map_or(value.as_f64(), |text| Some(text.len() as f64)).expect("a number");
    let name = schema.get("pattern").is_none_or(|_| text.is_none_or(|text| Name::new(text).is_ok()));
    bound(least).is_none_or(|least| size >= least) && bound(most).is_none_or(|most| size <= most) && name
}

fn fields_allowed(schema: &Value, value: &Value) -> bool {
    let Value::Object(fields) = value else { return true };
    let mut required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let known = |name: &str| schema.get("properties").and_then(|known| known.get(name));
    let named = |name: &str| {
        let (_, inner) = schema.get("patternProperties")?.as_object()?.iter().next()?;
        Name::new(name).is_ok().then_some(inner)
    };
    required.all(|name| name.as_str().is_some_and(|name| fields.contains_key(name)))
        && fields.iter().all(|(name, inner)| match known(name).or_else(|| named(name)) {
            Some(schema) => allows(schema, inner),
            None => match schema.get("additionalProperties") {
                Some(Value::Bool(open)) => *open,
                Some(schema) => allows(schema, inner),
                None => true,
            },
        })
}
