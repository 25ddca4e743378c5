//! What fuzzing calls: a function for each kind of input that clients, nodes, registries, name servers or the kernel send.
//!
//! Each panics when more is wrong than the input: what was decoded is not what it is when it is written and decoded again,
//! a patch made more than its budget says, a layer left something outside of its root, an answer does not fit. Two drivers
//! call them: `tests/fuzz.rs` with mutations from a seed, in every run of the tests, and `scripts/fuzz`, led by coverage.
//! They are in the development profile and under the feature `fuzzing`, never in a release.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::form::{self, Encoding};
use crate::base::budget::{Budget, DEPTH_MAX, Size, size_of};
use crate::base::labels::{FieldSelector, FieldTerm, Selector};
use crate::cel::{CALL_COST_MAX, Decl, DeclKind, Env, Meter, Value as CelValue};
use crate::kinds::custom::declare;
use crate::schema::apply::{self, FieldSet, managed};
use crate::schema::{TypeRef, decode, manifest, parse_json, parse_yaml, patch, type_of};
use crate::{containers, dns, net, wire};

const POD: &str = "io.k8s.api.core.v1.Pod";
const NOW: &str = "2026-01-02T03:04:05Z";
/// What budgets count takes about so much more in an allocator.
const SLACK_BYTES: usize = 4096;

/// One kind of input.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Memory that one input may take at once; inputs are at most 64 KiB long.
    pub memory_bytes_max: usize,
}

/// All of them.
pub static TARGETS: &[Target] = &[
    target("json_decode", json_decode, 32),
    target("yaml_decode", yaml_decode, 32),
    target("protobuf_decode", protobuf_decode, 32),
    target("json_patch", json_patch, 48),
    target("merge_patch", merge_patch, 32),
    target("strategic_patch", strategic_patch, 48),
    target("server_side_apply", server_side_apply, 64),
    target("label_selector", label_selector, 16),
    target("field_selector", field_selector, 16),
    target("cel_expression", cel_expression, 96),
    target("dns_query", dns_query, 8),
    target("dns_answer", dns_answer, 8),
    target("spdy_frames", spdy_frames, 4),
    target("websocket_frames", websocket_frames, 4),
    target("tunnel_frames", tunnel_frames, 4),
    target("image_manifest", image_manifest, 16),
    target("image_layer", image_layer, 80),
    target("registries", registries, 128),
    target("netlink_route", netlink_route, 4),
    target("netlink_nftables", netlink_nftables, 4),
    target("netlink_conntrack", netlink_conntrack, 4),
];

const fn target(name: &'static str, run: fn(&[u8]), memory_megabytes_max: usize) -> Target {
    Target { name, run, memory_bytes_max: memory_megabytes_max << 20 }
}

/// A JSON body: bounded, and the same when it is written and read again.
pub fn json_decode(data: &[u8]) {
    let mut budget = Budget::new();
    let Ok((value, _)) = parse_json(data, &mut budget) else { return };
    bounded(&value, 0, &budget);
    again_as_json(&value);
    canonical(value);
}

/// A YAML body: bounded, the same when it is written as JSON and read as either, and a manifest that is refused or not.
pub fn yaml_decode(data: &[u8]) {
    let _ = std::str::from_utf8(data).map(manifest::parse);
    let mut budget = Budget::new();
    let Ok((value, _)) = parse_yaml(data, &mut budget) else { return };
    bounded(&value, 0, &budget);
    again_as_json(&value);
    let text = value.to_string();
    if let Ok((again, _)) = parse_yaml(text.as_bytes(), &mut Budget::new()) {
        assert_eq!(again, value, "JSON read as YAML: {text}");
    }
    canonical(value);
}

/// A protobuf body of any kind.
pub fn protobuf_decode(data: &[u8]) {
    let mut budget = Budget::new();
    let Ok((value, _)) = form::parse(data, Encoding::Protobuf, &mut budget) else { return };
    bounded(&value, 2 * SLACK_BYTES, &budget);
    again_as_json(&value);
    canonical(value);
}

/// A JSON patch, in the first line, on the object after it.
pub fn json_patch(data: &[u8]) {
    patched(data, |target, patch, _, budget| patch::json::apply(target, patch, budget));
}

/// A merge patch: once is as good as twice.
pub fn merge_patch(data: &[u8]) {
    patched(data, |target, patch, _, budget| {
        patch::merge::apply(target, patch, budget)?;
        let mut twice = target.clone();
        patch::merge::apply(&mut twice, patch, &mut Budget::new())?;
        assert_eq!(twice, *target, "merged twice");
        Ok(())
    });
}

/// A strategic merge patch on an object of its type.
pub fn strategic_patch(data: &[u8]) {
    patched(data, patch::strategic::apply);
}

/// Up to four configurations, apart by lines of `---`: applied, forced, updated and applied by different managers. What is
/// applied again changes nothing, and the fields of managers can be read.
pub fn server_side_apply(data: &[u8]) {
    let none = FieldSet::default();
    let mut live: Option<Value> = None;
    let mut of = None;
    for (turn, text) in String::from_utf8_lossy(data).split("\n---\n").take(4).enumerate() {
        let mut budget = Budget::new();
        let Ok((config, _)) = parse_yaml(text.as_bytes(), &mut budget) else { return };
        if !config.is_object() {
            return;
        }
        let of = *of.get_or_insert_with(|| shape_of(&config));
        let manager = ["a", "b", "c", "kubectl"][turn];
        let writer =
            managed::Writer { manager, api_version: "v1", subresource: "", now: NOW, reset: &none, versions: None };
        let new = if turn == 2 {
            let mut new = config;
            if decode(&mut new, &of, &mut budget).is_err() {
                return;
            }
            apply::after_update(live.as_ref(), &mut new, &of, &writer).expect("one version");
            new
        } else {
            let force = turn > 0;
            let Ok(new) = apply::apply(live.as_ref(), &config, &of, &writer, force, &mut budget) else { continue };
            applied_twice(&new, config, &of, &writer);
            new
        };
        fields_can_be_read(&new);
        serde_json::from_str::<Value>(&new.to_string()).expect("an object that was applied can be read");
        live = Some(new);
    }
}

/// A label selector, as text or as an object: what is printed reads the same, and it selects or not.
pub fn label_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let labels: BTreeMap<Box<str>, Box<str>> =
        [("a", "1"), ("b", "x"), ("k.io/n", "")].map(|(k, v)| (k.into(), v.into())).into();
    if let Ok(selector) = Selector::parse(text) {
        let printed = selector.to_string();
        let again = Selector::parse(&printed).unwrap_or_else(|e| panic!("{printed:?} was printed for {text:?}: {e}"));
        assert_eq!(again, selector, "printed as {printed:?}");
        assert_eq!(again.matches(&labels), selector.matches(&labels));
    }
    if let Ok((value, _)) = parse_json(data, &mut Budget::new())
        && let Ok(selector) = Selector::from_object(&value)
    {
        let _ = (selector.matches(&labels), selector.to_string());
    }
}

/// A field selector: its terms, written with escapes, read the same.
pub fn field_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(selector) = FieldSelector::parse(text) else { return };
    let escaped = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
    let term = |term: &FieldTerm| {
        let operator = if term.equal { "=" } else { "!=" };
        format!("{}{operator}{}", term.field, escaped(&term.value))
    };
    let written = selector.0.iter().map(term).collect::<Vec<_>>().join(",");
    let again = FieldSelector::parse(&written).unwrap_or_else(|e| panic!("{written:?} was made of {text:?}: {e}"));
    assert_eq!(again, selector, "written as {written:?}");
    for term in &selector.0 {
        let _ = selector.required(&term.field);
    }
}

/// An expression, in the first line, about the value after it, of which the schema says nothing and then everything: it is
/// refused, or ends within its cost, and its value is the same again.
pub fn cel_expression(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (text, json) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(text) = std::str::from_utf8(text) else { return };
    let json = parse_json(json, &mut Budget::new()).map_or(Value::Null, |(value, _)| value);
    let schema = json!({"type": "object", "properties": {
        "n": {"type": "integer"}, "s": {"type": "string"}, "any": {"x-kubernetes-int-or-string": true},
        "l": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "m": {"type": "object", "additionalProperties": {"type": "string", "format": "duration"}},
    }});
    let untyped = Arc::new(Decl::new(DeclKind::Untyped, 0, 2));
    for decl in [Some(untyped), declare(&schema, true, "self")].into_iter().flatten() {
        let env = Env::new().with("self", decl.type_of());
        let expression = match env.compile(text) {
            Ok(expression) => expression,
            Err(issues) => {
                assert!(issues.to_string().starts_with("ERROR: <input>:"), "{issues}");
                continue;
            }
        };
        let _ = (expression.cost_max(Some(&decl)), expression.output().to_string());
        let Ok(program) = expression.program(&env) else { continue };
        let run = || {
            let mut meter = Meter::new(CALL_COST_MAX);
            let value = CelValue::of_json(&json, &decl).ok();
            let result = program.eval(&[value], &mut meter).map(|value| format!("{value:?}").len());
            (result, meter.cost())
        };
        assert_eq!(run(), run(), "{text}");
    }
    crate::base::pattern::forget();
}

/// A DNS query.
pub fn dns_query(data: &[u8]) {
    dns::fuzzing::dns_query(data);
}

/// An upstream server's DNS answer.
pub fn dns_answer(data: &[u8]) {
    dns::fuzzing::dns_answer(data);
}

/// Frames of SPDY, as clients of exec and port-forward send them.
pub fn spdy_frames(data: &[u8]) {
    wire::fuzzing::spdy_frames(data);
}

/// Frames of websockets, at both ends.
pub fn websocket_frames(data: &[u8]) {
    wire::fuzzing::websocket_frames(data);
}

/// Frames of the tunnel between agents and server.
pub fn tunnel_frames(data: &[u8]) {
    wire::fuzzing::tunnel_frames(data);
}

/// Manifests, configurations and names of images.
pub fn image_manifest(data: &[u8]) {
    containers::image::fuzzing::image_manifest(data);
}

/// A layer.
pub fn image_layer(data: &[u8]) {
    containers::image::fuzzing::image_layer(data);
}

/// `registries.yaml`.
pub fn registries(data: &[u8]) {
    containers::image::fuzzing::registries(data);
}

/// The kernel's answers about links, addresses, neighbours and routes.
pub fn netlink_route(data: &[u8]) {
    net::netlink::fuzzing::route_answer(data);
}

/// The kernel's answers about rules.
pub fn netlink_nftables(data: &[u8]) {
    net::nft::fuzzing::rule_answer(data);
}

/// The kernel's answers about tracked flows.
pub fn netlink_conntrack(data: &[u8]) {
    net::nft::fuzzing::flow_answer(data);
}

/// A value is no more than what was there before and what the budget has counted.
fn bounded(value: &Value, before_bytes: usize, budget: &Budget) {
    let Size { bytes, depth, .. } = size_of(value);
    assert!(depth <= DEPTH_MAX, "{depth} levels");
    let most = before_bytes + budget.bytes() + SLACK_BYTES;
    assert!(bytes <= most, "{bytes} bytes were made, {} counted, {before_bytes} there before", budget.bytes());
}

fn again_as_json(value: &Value) {
    let text = value.to_string();
    let (again, twice) = parse_json(text.as_bytes(), &mut Budget::new()).expect("what was written is read");
    assert_eq!(again, *value, "written as {text}");
    assert!(twice.is_empty());
}

/// The type that an object says it has; of a Pod, if it says nothing that is known.
fn shape_of(value: &Value) -> TypeRef<'static> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or("");
    let known = crate::kinds::registry::builtin()
        .by_kind(text("apiVersion"), text("kind"))
        .map_or(POD.into(), |kind| kind.definition());
    type_of(&known).expect("a kind has a schema")
}

/// An object that was given its type's form stays as it is when that is done again.
fn canonical(mut value: Value) {
    let of = shape_of(&value);
    if decode(&mut value, &of, &mut Budget::new()).is_err() {
        return;
    }
    let mut again = value.clone();
    let unknown = decode(&mut again, &of, &mut Budget::new()).expect("what was decoded is decoded");
    assert_eq!(again, value, "decoded twice");
    assert!(unknown.is_empty(), "{unknown:?} after decoding");
}

/// Applies the patch of the first line to the object after it, or to a Pod.
fn patched(
    data: &[u8],
    apply: impl Fn(&mut Value, &Value, &TypeRef<'_>, &mut Budget) -> Result<(), patch::PatchError>,
) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (patch, object) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok((patch, _)) = parse_json(patch, &mut Budget::new()) else { return };
    let mut object = match parse_json(object, &mut Budget::new()) {
        Ok((object, _)) if object.is_object() => object,
        _ => json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}, "finalizers": ["x", "y"]},
            "spec": {"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80}]}, {"name": "b"}]}
        }),
    };
    let of = shape_of(&object);
    // As the live object is: in its type's form.
    if decode(&mut object, &of, &mut Budget::new()).is_err() {
        return;
    }
    let (before_bytes, mut budget) = (size_of(&object).bytes, Budget::new());
    if apply(&mut object, &patch, &of, &mut budget).is_err() {
        return;
    }
    bounded(&object, before_bytes, &budget);
    again_as_json(&object);
    canonical(object);
}

/// Applies a configuration in its type's form, in which no item lacks a part of its key, twice.
fn applied_twice(live: &Value, mut config: Value, of: &TypeRef<'_>, writer: &managed::Writer<'_>) {
    if decode(&mut config, of, &mut Budget::new()).is_err() {
        return;
    }
    let apply = |live| apply::apply(Some(live), &config, of, writer, true, &mut Budget::new());
    let Ok(once) = apply(live) else { return };
    let twice = apply(&once).expect("what was applied is applied");
    assert_eq!(twice, once, "applied twice: {config}");
}

fn fields_can_be_read(object: &Value) {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    for entry in entries.into_iter().flatten() {
        let fields = entry.get("fieldsV1").unwrap_or(&Value::Null);
        let set = FieldSet::from_fields_v1(fields).expect("fields that were written are read");
        assert_eq!(set.to_fields_v1(), *fields);
    }
}
