//! What of two answers must be equal: everything but times, identities, versions, allocated addresses and messages.

use serde_json::{Map, Value, json};

const VOLATILE: &[&str] = &[
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "selfLink",
    "time",
    "continue",
    "remainingItemCount",
    "clusterIP",
    "clusterIPs",
    "nodePort",
    "lastTransitionTime",
    "lastUpdateTime",
    "startTime",
    "lastProbeTime",
    "firstTimestamp",
    "lastTimestamp",
    "token",
    "expirationTimestamp",
    "caBundle",
    "evaluationTime",
    "message",
    "healthCheckNodePort",
    "storageVersionHash",
    "lastPhaseTransitionTime",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
];
/// Under these a member's name is the user's.
const FREE: &[&str] = &["data", "labels", "annotations", "matchLabels", "properties", "f"];

/// The answer with `{ns}` for the case's namespace and marks for what differs each time. `key` is where it stands.
pub fn normal(value: &Value, ns: &str, key: &str) -> Value {
    match value {
        Value::Object(map) if map.get("kind").is_some_and(|k| k == "Status") && map.contains_key("apiVersion") => {
            status(map, ns)
        }
        Value::Object(map) => map.iter().filter_map(|(k, v)| member(map, k, v, ns, key)).collect::<Map<_, _>>().into(),
        Value::Array(items) => items.iter().map(|v| normal(v, ns, key)).collect(),
        Value::String(text) => text.replace(ns, "{ns}").into(),
        other => other.clone(),
    }
}

fn status(map: &Map<String, Value>, ns: &str) -> Value {
    let details = map.get("details").and_then(Value::as_object).cloned().unwrap_or_default();
    let text = |c: &Value, key: &str| c[key].as_str().unwrap_or("").to_owned();
    let causes = details.get("causes").and_then(Value::as_array).into_iter().flatten();
    let mut causes: Vec<[String; 2]> = causes.map(|c| [text(c, "field"), text(c, "reason")]).collect();
    causes.sort();
    causes.dedup();
    let about = details.iter().filter(|(k, _)| matches!(k.as_str(), "kind" | "group" | "name"));
    let about: Map<String, Value> =
        about.map(|(k, v)| (k.clone(), v.as_str().map_or(v.clone(), |t| t.replace(ns, "{ns}").into()))).collect();
    json!({
        "kind": "Status", "status": map.get("status"), "code": map.get("code"), "reason": map.get("reason"),
        "details": about, "causes": causes,
    })
}

fn member(map: &Map<String, Value>, name: &str, value: &Value, ns: &str, key: &str) -> Option<(String, Value)> {
    let generated = map.get("generateName").is_some_and(|g| g != "");
    let keep = |v: Value| Some((name.to_owned(), v));
    if name == "annotations"
        && let Value::Object(annotations) = value
    {
        return keep(annotations.iter().map(|(k, v)| (k.clone(), normal(v, ns, ""))).collect::<Map<_, _>>().into());
    }
    let plain = match name {
        "clusterIP" => *value == "" || *value == "None",
        "clusterIPs" => *value == json!(["None"]) || *value == json!([]),
        _ => false,
    };
    if plain {
        return keep(value.clone());
    }
    if name.contains("controller-uid") && value.is_string() {
        return keep("<volatile>".into());
    }
    if VOLATILE.contains(&name) && !value.is_object() && !FREE.contains(&key) {
        return keep("<volatile>".into());
    }
    match name {
        "name" if generated => keep("<generated>".into()),
        "fieldsV1" => keep(value.clone()),
        "description" if key == "columnDefinitions" => None,
        "cells" => keep(value.as_array().into_iter().flatten().map(|c| cell(c, ns)).collect()),
        _ => Some((name.replace(ns, "{ns}"), normal(value, ns, name))),
    }
}

fn cell(cell: &Value, ns: &str) -> Value {
    let is_age = cell.as_str().is_some_and(|text| text == "<invalid>" || is_duration(text) || is_time(text));
    if is_age { "<age>".into() } else { normal(cell, ns, "") }
}

/// `5m`, `2d3h`
fn is_duration(text: &str) -> bool {
    let parts: Vec<&str> = text.split_inclusive(|c: char| "smhdy".contains(c)).collect();
    let is_part = |part: &&str| {
        let number = part.trim_end_matches(|c: char| "smhdy".contains(c));
        number.len() + 1 == part.len() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    !parts.is_empty() && parts.iter().all(is_part)
}

/// `2026-01-02T03:04:05Z`
fn is_time(text: &str) -> bool {
    text.len() == 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T' && text.as_bytes()[0].is_ascii_digit()
}

/// Removes what a dotted path leads to; `*` is every item.
pub fn drop_path(value: &mut Value, path: &str) {
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    match value {
        Value::Array(items) if head == "*" => items.iter_mut().for_each(|v| drop_path(v, rest)),
        Value::Array(items) => {
            let item = head.parse::<usize>().ok().and_then(|i| items.get_mut(i));
            match item {
                Some(item) if rest.is_empty() => *item = "<ignored>".into(),
                Some(item) => drop_path(item, rest),
                None => {}
            }
        }
        Value::Object(map) if rest.is_empty() => drop(map.remove(head)),
        Value::Object(map) => map.get_mut(head).into_iter().for_each(|v| drop_path(v, rest)),
        _ => {}
    }
}

/// Where two values differ.
pub fn differences(want: &Value, got: &Value, path: &str, out: &mut Vec<String>) {
    match (want, got) {
        (Value::Object(w), Value::Object(g)) => {
            for key in w.keys().chain(g.keys().filter(|k| !w.contains_key(*k))) {
                let path = format!("{path}.{key}");
                match (w.get(key), g.get(key)) {
                    (Some(w), Some(g)) => differences(w, g, &path, out),
                    (Some(w), None) => out.push(format!("{path}: missing, want {w}")),
                    (None, g) => out.push(format!("{path}: not expected, got {}", g.unwrap_or(&Value::Null))),
                }
            }
        }
        (Value::Array(w), Value::Array(g)) if w.len() == g.len() => {
            for (i, (w, g)) in w.iter().zip(g).enumerate() {
                differences(w, g, &format!("{path}[{i}]"), out);
            }
        }
        (w, g) if w != g => out.push(format!("{path}: want {w}, got {g}")),
        _ => {}
    }
}
