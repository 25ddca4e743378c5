//! What expressions have made, as JSON (`k8s.io/apiserver/pkg/cel/mutation`).
//!
//! A value may stand in another one many times: what is written is counted as often.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map as Members, Number, Value as Json};

use super::library;
use super::meter::{Failure, Meter};
use super::types::JSON_PATCH;
use super::value::{Map, Message, Value};

/// What a value takes at least.
const VALUE_BYTES: usize = 32;

// === impl Value ===

impl Value<'_> {
    /// The value as JSON. A message in another one must be named by the way to it.
    pub fn to_json(&self, meter: &mut Meter) -> Result<Json, Failure> {
        written(self, None, meter)
    }

    /// A list of steps of a JSON patch, as a JSON patch.
    pub fn to_json_patch(&self, meter: &mut Meter) -> Result<Json, Failure> {
        let Self::List(steps) = self else { return Err(Failure::no_overload()) };
        steps.iter().map(|step| written_step(&step?, meter)).collect()
    }
}

fn written_step(step: &Value<'_>, meter: &mut Meter) -> Result<Json, Failure> {
    let step = match step {
        Value::Map(Map::Message(message)) if *message.name == *JSON_PATCH => message,
        _ => return Err(Failure::no_overload()),
    };
    let mut out = Members::new();
    for (name, value) in &step.fields {
        let value = match (&**name, value) {
            ("value", value) => written(value, None, meter)?,
            // Nothing is the same as not given.
            ("from", Value::String(text)) if text.is_empty() => continue,
            (_, Value::String(_)) => written(value, None, meter)?,
            (name, other) => {
                let of = other.type_of();
                return Err(Failure::error(format!("unexpected type {of} for JSONPatchType '{name}' field")));
            }
        };
        out.insert(name.to_string(), value);
    }
    for name in ["op", "path"] {
        out.entry(name).or_insert_with(|| "".into());
    }
    Ok(Json::Object(out))
}

fn written(value: &Value<'_>, way: Option<&str>, meter: &mut Meter) -> Result<Json, Failure> {
    meter.make(VALUE_BYTES)?;
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(n) => Json::Number((*n).into()),
        Value::Uint(n) => Json::Number((*n).into()),
        Value::Double(d) => Json::Number(Number::from_f64(*d).ok_or_else(|| unwritable(value))?),
        Value::String(text) => {
            meter.make(text.len())?;
            Json::String(text.to_string())
        }
        Value::Bytes(bytes) => {
            meter.make(bytes.len() * 2)?;
            Json::String(STANDARD.encode(bytes))
        }
        Value::Duration(_) | Value::Timestamp(_) => match library::run("string") {
            Some(run) => match run(meter, std::slice::from_ref(value))? {
                Value::String(text) => Json::String(text.to_string()),
                _ => return Err(unwritable(value)),
            },
            None => return Err(unwritable(value)),
        },
        Value::List(list) => {
            Json::Array(list.iter().map(|item| written(&item?, way, meter)).collect::<Result<_, _>>()?)
        }
        Value::Map(Map::Message(message)) => written_message(message, way, meter)?,
        Value::Map(map) => {
            let mut out = Members::new();
            for (key, value) in library::entries(map, meter)? {
                let Value::String(key) = &key else {
                    return Err(Failure::error(format!("map key {} is not a string", library::shown(&key))));
                };
                meter.make(key.len() + VALUE_BYTES)?;
                out.insert(key.to_string(), written(&value, way, meter)?);
            }
            Json::Object(out)
        }
        Value::Optional(Some(value)) => written(value, way, meter)?,
        other => return Err(unwritable(other)),
    })
}

fn written_message(message: &Message<'_>, way: Option<&str>, meter: &mut Meter) -> Result<Json, Failure> {
    let name = &*message.name;
    if let Some(way) = way.filter(|way| *way != name) {
        return Err(Failure::error(format!(
            "type mismatch: unexpected type name {name:?}, expected {way:?}, which matches field name path from root \
             Object type"
        )));
    }
    let mut out = Members::new();
    for (field, value) in &message.fields {
        meter.make(field.len() + name.len() + VALUE_BYTES)?;
        out.insert(field.to_string(), written(value, Some(&format!("{name}.{field}")), meter)?);
    }
    Ok(Json::Object(out))
}

fn unwritable(value: &Value<'_>) -> Failure {
    Failure::error(format!("a value of type {} cannot be written as JSON", value.type_of().name()))
}
