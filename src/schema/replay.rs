//! Recorded requests and answers of a Kubernetes API server, played through patches, apply and field tracking.
//!
//! There is no server here, so nothing is defaulted: each step starts from the recorded answer before it, and what we
//! compute must be contained in the recorded answer, with exactly its managed fields.

use std::collections::BTreeMap;

use serde_json::Value;

use super::apply::managed::Writer;
use super::apply::{ApplyError, FieldSet, after_update, apply};
use super::types::TypeRef;
use super::{bundle, decode, parse_json, parse_yaml, patch, zero};
use crate::base::budget::Budget;

const CASES: &[u8] = include_bytes!("../../tests/data/schema-replay.json.zst");

/// What a recorded time is replaced with; only its presence is compared.
const TIME: &str = "<volatile>";

/// Cases in which the server itself changes what was sent, beyond defaults.
const NOT_OURS: [&str; 9] = [
    "apply/generate-name",
    "apply/svc-type-change",
    "apply/node-apply",
    "patch/merge/secret-stringdata",
    "patch/smp/ownerrefs-merge-by-uid",
    "patch/smp/clusterrole",
    "patch/smp/pvc",
    "patch/namespace-patch",
    "apply/pod-toleration-seconds-mutating",
];

/// Fields of a created object that admission and storage fill in, after field tracking.
const ALLOCATED: [&str; 11] = [
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "nodePort",
    "preemptionPolicy",
    "priority",
    "serviceAccount",
    "serviceAccountName",
    "tolerations",
    "healthCheckNodePort",
];

struct Player {
    /// Stored objects by path, with times of our own.
    objects: BTreeMap<String, Value>,
    clock: u32,
    /// The managed fields of the step's result, as we computed them.
    computed: Vec<Value>,
    failures: Vec<String>,
    compared: usize,
}

#[test]
fn recorded_answers_come_out_the_same() {
    let bytes = zstd::decode_all(CASES).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&bytes).unwrap();
    let only = std::env::var("AMPHIPOD_ONLY").unwrap_or_default();
    let (mut failures, mut compared) = (Vec::new(), 0);
    let chosen = |name: &str| name.contains(&only) && !NOT_OURS.contains(&name);
    for case in cases.iter().filter(|c| c["name"].as_str().is_some_and(chosen)) {
        let mut player =
            Player { objects: BTreeMap::new(), clock: 0, computed: Vec::new(), failures: Vec::new(), compared: 0 };
        for step in case["steps"].as_array().unwrap() {
            player.step(step);
        }
        compared += player.compared;
        failures.extend(player.failures.iter().map(|f| format!("{}: {f}", case["name"])));
    }
    assert!(failures.is_empty(), "{} of {compared} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(compared > 300 || !only.is_empty(), "{compared}");
}

fn type_of(api_version: &str, kind: &str) -> Option<TypeRef<'static>> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let schema = bundle();
    let found = schema
        .structs
        .iter()
        .find(|s| s.gvk.as_ref().is_some_and(|(g, v, k)| g == group && v == version && k == kind))?;
    schema.type_of(&found.name)
}

fn has_status(kind: &str) -> bool {
    !matches!(kind, "ConfigMap" | "Secret" | "PodTemplate" | "Role" | "RoleBinding" | "ServiceAccount" | "ClusterRole")
}

// === impl Player ===

impl Player {
    fn step(&mut self, step: &Value) {
        let (verb, full) = (step["do"].as_str().unwrap_or(""), step["path"].as_str().unwrap_or(""));
        if full == "/version" {
            self.clock += 2;
            return;
        }
        let (path, query) = full.split_once('?').unwrap_or((full, ""));
        let answer = &step["answer"];
        let Some(of) = answer["apiVersion"].as_str().zip(answer["kind"].as_str()).and_then(|(a, k)| type_of(a, k))
        else {
            return self.refused(step, path, query);
        };
        let name = answer["metadata"]["name"].as_str().unwrap_or("");
        let dry = query.contains("dryRun");
        let subresource = ["status", "scale"].into_iter().find(|s| path.ends_with(&format!("/{s}"))).unwrap_or("");
        let object_path = match verb {
            "POST" => format!("{path}/{name}"),
            _ => path.trim_end_matches(&format!("/{subresource}")).to_owned(),
        };
        let hidden = ignores(step, "metadata") || ignores(step, "status") && subresource == "status";
        if subresource == "scale" || hidden {
            self.objects.remove(&object_path);
            return;
        }
        let live = self.objects.get(&object_path).cloned();
        let known = verb == "POST" || live.is_some() || is_apply(step) && step["http"] == 201;
        if known && verb != "GET" && verb != "DELETE" {
            self.write(step, query, &of, live.as_ref(), subresource);
        }
        if !dry {
            // Times are ours where the recorded entry is one we know.
            let mut stored = answer.clone();
            concrete("", &mut stored);
            self.give_times(&mut stored, live.as_ref());
            self.objects.insert(object_path, stored);
        }
    }

    fn writer_parts(&self, step: &Value, query: &str) -> (String, String, String) {
        let field = |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('=')).map(decoded);
        let manager = field("fieldManager").filter(|m| !m.is_empty()).unwrap_or_else(|| "fidelity".into());
        (manager, step["answer"]["apiVersion"].as_str().unwrap_or("").to_owned(), self.now())
    }

    fn now(&self) -> String {
        format!("2026-01-01T00:{:02}:{:02}Z", self.clock / 60, self.clock % 60)
    }

    fn write(&mut self, step: &Value, query: &str, of: &TypeRef<'_>, live: Option<&Value>, subresource: &str) {
        let answer = &step["answer"];
        let (manager, api_version, now) = self.writer_parts(step, query);
        let kind = answer["kind"].as_str().unwrap_or("");
        let reset = match subresource {
            "status" if kind == "Pod" => FieldSet::of_fields(["spec"]),
            "status" => FieldSet::of_fields(["spec", "metadata.labels"]),
            _ if has_status(kind) => FieldSet::of_fields(["status"]),
            _ => FieldSet::default(),
        };
        let writer = Writer {
            manager: &manager,
            api_version: &api_version,
            subresource,
            now: &now,
            reset: &reset,
            versions: None,
        };
        self.compared += 1;
        if is_apply(step) {
            let config = body(step);
            match apply(live, &config, of, &writer, query.contains("force="), &mut Budget::new()) {
                Ok(result) => {
                    self.same_managed(step, &result);
                    self.contained(step, &result, subresource);
                }
                Err(e) => self.fail(step, &format!("refused: {e}")),
            }
            return;
        }
        if step["do"] == "PATCH"
            && let Some(live) = live
        {
            let mut patched = live.clone();
            let result = apply_patch(step, &mut patched, of);
            match result.and_then(|()| decode(&mut patched, of, &mut Budget::new()).map_err(|e| e.to_string())) {
                Ok(_) => self.contained(step, &patched, subresource),
                Err(e) => self.fail(step, &format!("refused: {e}")),
            }
        }
        // What the server had before tracking: the recorded answer, with the managed fields the client sent.
        let mut new = answer.clone();
        concrete("", &mut new);
        let sent = if step["do"] == "PATCH" {
            let mut patched = live.cloned().unwrap_or_default();
            apply_patch(step, &mut patched, of).ok().and_then(|()| patched.pointer("/metadata/managedFields").cloned())
        } else {
            body(step).pointer("/metadata/managedFields").cloned()
        };
        let Some(metadata) = new["metadata"].as_object_mut() else { return };
        metadata.remove("managedFields");
        metadata.extend(sent.map(|list| ("managedFields".to_owned(), list)));
        if live.is_none() && matches!(kind, "Service" | "Pod") {
            unallocated(&mut new["spec"], &body(step)["spec"]);
        }
        if live.is_none() && has_status(kind) {
            new["status"] = zero(of)["status"].clone();
        }
        after_update(live, &mut new, of, &writer).expect("one version");
        self.same_managed(step, &new);
    }

    /// Steps that were answered with an error: ours must refuse apply conflicts and broken patches the same way.
    fn refused(&mut self, step: &Value, path: &str, query: &str) {
        let Some(live) = self.objects.get(path).cloned() else { return };
        let Some(of) = type_of(live["apiVersion"].as_str().unwrap_or(""), live["kind"].as_str().unwrap_or("")) else {
            return;
        };
        if step["do"] != "PATCH" {
            return;
        }
        let (manager, _, now) = self.writer_parts(step, query);
        let code = step["http"].as_u64().unwrap_or(0);
        if is_apply(step) {
            let api_version = live["apiVersion"].as_str().unwrap_or("");
            let reset = if has_status(live["kind"].as_str().unwrap_or("")) {
                FieldSet::of_fields(["status"])
            } else {
                FieldSet::default()
            };
            let writer =
                Writer { manager: &manager, api_version, subresource: "", now: &now, reset: &reset, versions: None };
            let result = apply(Some(&live), &body(step), &of, &writer, query.contains("force="), &mut Budget::new());
            let causes = step["answer"]["causes"].as_array().cloned().unwrap_or_default();
            if causes.iter().any(|c| c[1] == "FieldManagerConflict") {
                self.compared += 1;
                let want: Vec<&str> = causes.iter().filter_map(|c| c[0].as_str()).collect();
                match result {
                    Err(ApplyError::Conflicts(got)) => {
                        let mut got: Vec<&str> = got.iter().map(|c| c.field.as_str()).collect();
                        got.sort();
                        got.dedup();
                        if got != want {
                            self.fail(step, &format!("conflicts {got:?}, want {want:?}"));
                        }
                    }
                    other => self.fail(step, &format!("got {other:?}, want conflicts {want:?}")),
                }
            } else if code == 500 && step["answer"].get("kind").is_some() {
                self.compared += 1;
                if !matches!(result, Err(ApplyError::Schema(_))) {
                    self.fail(step, &format!("got {result:?}, want a schema error"));
                }
            }
        } else if code == 500 {
            self.compared += 1;
            if apply_patch(step, &mut live.clone(), &of).is_ok() {
                self.fail(step, "accepted, want 500");
            }
        }
    }

    fn fail(&mut self, step: &Value, text: &str) {
        self.failures.push(format!("{} {}: {text}", step["do"], step["path"]));
    }

    fn same_managed(&mut self, step: &Value, got: &Value) {
        let plain = |v: &Value| {
            let mut list = v.pointer("/metadata/managedFields").cloned().unwrap_or(Value::Array(vec![]));
            for entry in list.as_array_mut().into_iter().flatten() {
                if let Some(time) = entry.get_mut("time") {
                    *time = TIME.into();
                }
            }
            list
        };
        self.computed = got.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
        let (want, got) = (plain(&step["answer"]), plain(got));
        if want != got {
            self.fail(step, &format!("managed fields\n   want {want}\n    got {got}"));
        }
    }

    fn contained(&mut self, step: &Value, got: &Value, subresource: &str) {
        let mut missing = Vec::new();
        for (name, value) in got.as_object().into_iter().flatten() {
            let skip = match subresource {
                "status" => name != "status",
                _ => name == "status",
            };
            if !skip {
                subset(value, &step["answer"][name], name, &mut missing);
            }
        }
        if !missing.is_empty() {
            self.fail(step, &missing.join("; "));
        }
    }

    fn give_times(&self, object: &mut Value, before: Option<&Value>) {
        let old = before.and_then(|b| b.pointer("/metadata/managedFields")).cloned().unwrap_or_default();
        let bare = |e: &Value| {
            let mut e = e.clone();
            e.as_object_mut().map(|m| m.remove("time"));
            e
        };
        let now = self.now();
        for entry in object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
            if entry.get("time").is_none() {
                continue;
            }
            let known =
                self.computed.iter().chain(old.as_array().into_iter().flatten()).find(|e| bare(e) == bare(entry));
            entry["time"] = known.and_then(|e| e.get("time").cloned()).unwrap_or_else(|| now.clone().into());
        }
    }
}

/// Puts plain values where the recording has placeholders.
fn concrete(name: &str, value: &mut Value) {
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| concrete(key, value)),
        Value::Array(items) => items.iter_mut().for_each(|item| concrete(name, item)),
        Value::String(text) if text == TIME => {
            *value = match name {
                "nodePort" | "healthCheckNodePort" => 30_000.into(),
                "clusterIPs" => serde_json::json!(["10.0.0.1"]),
                "uid" | "resourceVersion" | "message" | "clusterIP" => "1".into(),
                _ => "2026-01-01T00:00:00Z".into(),
            }
        }
        _ => {}
    }
}

/// Whether the recording left out something below this member.
fn ignores(step: &Value, member: &str) -> bool {
    step["ignore"].as_array().into_iter().flatten().any(|p| p.as_str().is_some_and(|p| p.starts_with(member)))
}

/// Takes out what the client did not send but the server allocates.
fn unallocated(value: &mut Value, sent: &Value) {
    match value {
        Value::Object(map) => {
            map.retain(|k, _| !ALLOCATED.contains(&k.as_str()) || !sent[k].is_null());
            map.iter_mut().for_each(|(k, v)| unallocated(v, &sent[k.as_str()]));
        }
        Value::Array(items) => items.iter_mut().enumerate().for_each(|(i, v)| unallocated(v, &sent[i])),
        _ => {}
    }
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn is_apply(step: &Value) -> bool {
    step["type"].as_str().is_some_and(|t| t.contains("apply-patch"))
}

fn body(step: &Value) -> Value {
    match step.get("raw").and_then(Value::as_str) {
        Some(raw) => {
            let json = parse_json(raw.as_bytes(), &mut Budget::new())
                .or_else(|_| parse_yaml(raw.as_bytes(), &mut Budget::new()));
            json.map(|(v, _)| v).unwrap_or_default()
        }
        None => step["body"].clone(),
    }
}

fn apply_patch(step: &Value, target: &mut Value, of: &TypeRef<'_>) -> Result<(), String> {
    let change = body(step);
    let result = match step["type"].as_str().unwrap_or("") {
        t if t.contains("json-patch") => patch::json::apply(target, &change, &mut Budget::new()),
        t if t.contains("strategic") => patch::strategic::apply(target, &change, of, &mut Budget::new()),
        _ => patch::merge::apply(target, &change, &mut Budget::new()),
    };
    result.map_err(|e| e.to_string())
}

/// Everything in `part` must be in `whole`; lists have the same items in the same order.
fn subset(part: &Value, whole: &Value, path: &str, missing: &mut Vec<String>) {
    match (part, whole) {
        (_, Value::String(text)) if text == TIME => {}
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in
                a.iter().filter(|(k, _)| !matches!(k.as_str(), "managedFields" | "resourceVersion" | "generation"))
            {
                subset(value, b.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), missing);
            }
        }
        (Value::Object(a), Value::Null) if a.is_empty() => {}
        (Value::Array(_), _) if path.ends_with("tolerations") => {} // admission adds some
        // Not defaulted yet.
        (Value::Number(n), _) if path.ends_with("targetPort") && n.as_i64() == Some(0) => {}
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                subset(a, b, &format!("{path}[{i}]"), missing);
            }
        }
        (a, b) if a == b => {}
        (a, b) => missing.push(format!("{path}: got {a}, want {b}")),
    }
}
