//! The table against the schema, the source tree, what the API says, and the documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path as FilePath, PathBuf};

use serde_json::{Map, Value, json};

use super::*;
use crate::api::Request;
use crate::api::in_memory;
use crate::schema::Scalar;

/// Set to write the documentation's list anew.
const WRITE: &str = "AMPHIPOD_WRITE_DOCS";
const DOCUMENT: &str = "docs/compatibility.md";
const BEGIN: &str =
    "<!-- pod fields: written by the tests of podspec/fields, AMPHIPOD_WRITE_DOCS=1 writes them anew -->\n";
const END: &str = "<!-- end of pod fields -->\n";

fn root() -> &'static FilePath {
    FilePath::new(env!("CARGO_MANIFEST_DIR"))
}

fn row_of(kind: &str, field: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.kind == kind && row.field == field)
}

/// Whether the fields inside have rows of their own.
fn opens(how: How) -> bool {
    matches!(how, How::Honoured(_))
}

/// The type of what is inside lists and maps.
fn element(kind: TypeRef<'static>) -> TypeRef<'static> {
    match kind.node() {
        Node::List { .. } => element(kind.item().unwrap()),
        _ => kind,
    }
}

/// Every type that is reached through fields that are honoured, with a way to it: fields from the pod's spec on.
fn reached() -> BTreeMap<&'static str, Vec<(&'static str, TypeRef<'static>)>> {
    let mut found: BTreeMap<&'static str, Vec<(&'static str, TypeRef<'static>)>> = BTreeMap::new();
    let mut queue = vec![(schema::type_of(&format!("{CORE}PodSpec")).unwrap(), Vec::new())];
    while let Some((kind, way)) = queue.pop() {
        let Some(name) = kind.as_struct().and_then(|s| s.name.strip_prefix(CORE)) else { continue };
        // A mutable name would need the schema; the rows have static ones.
        let Some(name) = TABLE.iter().map(|row| row.kind).find(|kind| *kind == name) else {
            panic!("{name} has no rows, but {way:?} is honoured")
        };
        if found.contains_key(name) {
            continue;
        }
        for field in kind.fields() {
            let Some(row) = row_of(name, &field.name).filter(|row| opens(row.how)) else { continue };
            let mut way: Vec<_> = way.clone();
            way.push((row.field, kind.of(field)));
            queue.insert(0, (element(kind.of(field)), way));
        }
        found.insert(name, way);
    }
    found
}

#[test]
fn every_field_has_one_row_and_every_row_its_field() {
    let types = reached();
    let mut missing = Vec::new();
    let mut expected = BTreeSet::new();
    for name in types.keys() {
        for field in schema::type_of(&format!("{CORE}{name}")).unwrap().fields() {
            expected.insert((*name, field.name.to_string()));
            if row_of(name, &field.name).is_none() {
                missing.push(format!("{name}.{}", field.name));
            }
        }
    }
    assert!(missing.is_empty(), "fields without a row: {missing:?}");
    let mut seen = BTreeSet::new();
    for row in TABLE {
        assert!(expected.contains(&(row.kind, row.field.to_owned())), "no such field: {}.{}", row.kind, row.field);
        assert!(seen.insert((row.kind, row.field)), "two rows: {}.{}", row.kind, row.field);
    }
}

fn sources(directory: &FilePath, out: &mut String) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn the_tests_that_the_table_names_are_there() {
    let mut text = String::new();
    sources(&root().join("src"), &mut text);
    sources(&root().join("tests"), &mut text);
    let lines: Vec<&str> = text.lines().collect();
    let is_test = |name: &str| {
        let declares = |line: &str| {
            line.trim_start()
                .trim_start_matches("async ")
                .strip_prefix("fn ")
                .is_some_and(|rest| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')))
        };
        let attribute = |line: &str| ["#[test]", "#[tokio::test"].iter().any(|a| line.trim_start().starts_with(a));
        let places = lines.iter().enumerate().filter(|(_, line)| declares(line)).map(|(at, _)| at);
        places.into_iter().any(|at| lines[at.saturating_sub(3)..at].iter().any(|line| attribute(line)))
    };
    for row in TABLE {
        let (How::Honoured(name) | How::Partly { shown_by: name, .. }) = row.how else { continue };
        assert!(is_test(name), "{}.{}: no test {name}", row.kind, row.field);
    }
}

/// A value of a type that counts as set.
fn sample(kind: TypeRef<'static>) -> Value {
    match kind.node() {
        Node::Scalar(Scalar::Bool) => json!(true),
        Node::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString) => json!(1),
        Node::Scalar(_) => json!("x"),
        Node::List { .. } => json!([sample(kind.item().unwrap())]),
        Node::Map { .. } => json!({"x": "1"}),
        _ => json!({}),
    }
}

/// A pod's spec in which the object of this type is `object`.
fn spec_with(kind: &str, object: Value) -> Value {
    let types = reached();
    let mut value = object;
    for (field, kind) in types[kind].iter().rev() {
        if matches!(kind.node(), Node::List { .. }) {
            value = json!([value]);
        }
        value = json!({ *field: value });
    }
    value
}

#[test]
fn what_is_said_to_be_warned_of_is() {
    for row in TABLE {
        let (object, warning) = match row.how {
            How::Warned(warning) => {
                let kind = schema::type_of(&format!("{CORE}{}", row.kind)).unwrap();
                let value = sample(kind.child(row.field).unwrap());
                (Value::Object(Map::from_iter([(row.field.to_owned(), value)])), warning)
            }
            How::Partly { warning, example, .. } => (serde_json::from_str(example).unwrap(), warning),
            _ => continue,
        };
        let mut out = Vec::new();
        warnings(&mut out, &Path::root("spec"), &spec_with(row.kind, object));
        let name = format!("{}.{}", row.kind, row.field);
        assert!(out.len() == 1 && out[0].ends_with(&format!("{}: {warning}", row.field)), "{name}: {out:?}");
        assert!(warning.ends_with("this version"), "{name}: clients of later versions must be able to tell: {warning}");
    }
}

#[test]
fn what_is_done_is_not_warned_of() {
    for example in [
        json!({"hostUsers": false, "preemptionPolicy": "PreemptLowerPriority", "priority": 0}),
        json!({"containers": [{"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}),
        json!({"initContainers": [{"restartPolicy": "Always"}], "setHostnameAsFQDN": false}),
        json!({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "stdin": false}]}),
        json!({"volumes": [{"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}, {"emptyDir": {}}]}),
        json!({"containers": [{"securityContext": {"procMount": "Unmasked", "privileged": false}}]}),
        json!({"activeDeadlineSeconds": null, "topologySpreadConstraints": [], "volumes": null}),
    ] {
        let mut out = Vec::new();
        warnings(&mut out, &Path::root("spec"), &example);
        assert!(out.is_empty(), "{example}: {out:?}");
    }
}

#[test]
fn a_row_warns_once_however_often_its_field_is_set() {
    let volumes: Vec<Value> = (0..5000).map(|i| json!({"name": format!("v{i}"), "nfs": {}, "csi": {}})).collect();
    let mut out = Vec::new();
    warnings(&mut out, &Path::root("spec"), &json!({"volumes": volumes}));
    let text = "a volume of this type is refused by nodes of this version";
    assert_eq!(out, [format!("spec.volumes[0].csi: {text}"), format!("spec.volumes[0].nfs: {text}")]);
}

#[test]
fn what_is_new_in_a_pod_is_warned_of() {
    let old = json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]}});
    assert!(super::super::warnings_for_pod_update(&old, &old).is_empty());
    let mut new = old.clone();
    new["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "2".into();
    new["spec"]["ephemeralContainers"] = json!([{"name": "e", "volumeDevices": [{"name": "x"}]}]);
    let said = super::super::warnings_for_pod_update(&new, &old);
    assert_eq!(said, ["spec.ephemeralContainers[0].volumeDevices: accepted but not honoured by this version"]);
}

#[tokio::test]
async fn what_is_said_to_be_refused_is() {
    let api = in_memory::api();
    let namespace = json!({"metadata": {"name": "n"}});
    let kind = &crate::kinds::core::namespace::KIND;
    api.create(&Request::internal("test", kind, "", "n"), namespace).await.unwrap();
    let account = json!({"metadata": {"name": "default", "namespace": "n"}});
    let kind = &crate::kinds::core::serviceaccount::KIND;
    api.create(&Request::internal("test", kind, "n", "default"), account).await.unwrap();
    for row in TABLE {
        let How::Refused(message) = row.how else { continue };
        let kind = schema::type_of(&format!("{CORE}{}", row.kind)).unwrap();
        let value = sample(kind.child(row.field).unwrap());
        let name = format!("{}.{}", row.kind, row.field);
        let said = if row.kind == "EphemeralContainer" {
            let mut errors = crate::kinds::field::Errors::new();
            let mut container = json!({"name": "e", "image": "i"});
            container[row.field] = match row.field {
                "resources" => json!({"limits": {"cpu": "1"}}),
                _ => value,
            };
            super::super::validate_ephemeral_containers(
                &mut errors,
                &Path::root("spec"),
                &json!({"ephemeralContainers": [container]}),
            );
            format!("{errors:?}")
        } else {
            let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            pod["spec"]["nodeName"] = json!("node");
            pod["spec"][row.field] = value;
            let request = Request::internal("test", &crate::kinds::core::pod::KIND, "n", "p");
            match api.create(&request, pod).await {
                Ok(_) => String::new(),
                Err(status) => status.to_string(),
            }
        };
        assert!(said.contains(message), "{name}: {said:?}");
    }
}

#[test]
fn what_is_said_to_be_dropped_is() {
    for row in TABLE.iter().filter(|row| matches!(row.how, How::Dropped)) {
        let kind = schema::type_of(&format!("{CORE}{}", row.kind)).unwrap();
        let value = sample(kind.child(row.field).unwrap());
        let mut spec = spec_with(row.kind, json!({row.field: value, "kept": 1}));
        assert!(spec.to_string().contains(row.field));
        super::super::drop_disabled(&mut spec);
        assert!(!spec.to_string().contains(row.field), "{}.{}: {spec}", row.kind, row.field);
    }
}

/// The list as the documentation has it.
fn document() -> String {
    let mut out = String::from(BEGIN);
    out.push_str("\n| type | field | what becomes of it |\n|---|---|---|\n");
    for row in TABLE {
        let how = match row.how {
            How::Honoured(test) => format!("honoured (`{test}`)"),
            How::Warned(warning) => format!("warned of: {warning}"),
            How::Partly { shown_by, warning, .. } => format!("honoured (`{shown_by}`); warned of: {warning}"),
            How::Refused(message) => format!("refused: {message}"),
            How::Dropped => "removed: its feature is off by default".to_owned(),
        };
        out.push_str(&format!("| {} | {} | {how} |\n", row.kind, row.field));
    }
    out.push('\n');
    out.push_str(END);
    out
}

#[test]
fn the_documentation_lists_every_field() {
    let path: PathBuf = root().join(DOCUMENT);
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("a place for the list");
    let (_, after) = rest.split_once(END).expect("its end");
    let wanted = format!("{before}{}{after}", document());
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap() == wanted, "{DOCUMENT} is out of date: {WRITE}=1 writes it anew");
}
