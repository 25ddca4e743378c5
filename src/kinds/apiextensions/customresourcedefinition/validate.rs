//! What a definition must be like (`k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation`).
//!
//! Kubernetes looks at what all versions have in common as if it stood above them: paths name it there, as here.

use std::collections::HashSet;

use serde_json::Value;

use super::{conversion, schema};
use crate::base::json::{at, flag, list, text};
use crate::base::labels::{dns_1035_error, dns_subdomain_error};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::schema::structural::{Structural, Type, is_known_format};

const APPROVED: &str = "api-approved.kubernetes.io";
const SELECTABLE_FIELDS_MAX: usize = 8;
/// Each version is a kind with a schema of its own, which takes a hundred times the memory of a version's least text.
const VERSIONS_MAX: usize = 100;
/// Each is looked for in every row of every table.
const COLUMNS_MAX: usize = 100;
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

/// Errors of a definition in itself.
pub(super) fn definition(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    spec(&mut errors, at(definition, "spec").unwrap_or(&Value::Null));
    conversion::validate(&mut errors, definition);
    let accepted = at(definition, "status.acceptedNames").unwrap_or(&Value::Null);
    names(&mut errors, &Path::root("status.acceptedNames"), accepted);
    stored_versions(&mut errors, definition);
    errors
}

/// Errors of a new definition.
pub(super) fn new(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    let expected = format!("{}.{}", text(definition, "spec.names.plural"), text(definition, "spec.group"));
    let name = text(definition, "metadata.name");
    if name != expected && !name.is_empty() {
        errors.push(field::invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group"));
    }
    approval(&mut errors, definition, None);
    conversion::validate_change(&mut errors, definition, None);
    if flag(definition, "spec.preserveUnknownFields") {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(field::invalid("spec.preserveUnknownFields", true, why));
    }
    errors
}

/// Errors of a change: what makes the names of objects and their keys stays.
pub(super) fn update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut same = |path: &str| {
        if text(new, path) != text(old, path) {
            errors.push(field::invalid(path, text(new, path), check::IMMUTABLE));
        }
    };
    if super::condition::is_true(old, "Established") {
        same("spec.scope");
        same("spec.names.kind");
    }
    same("spec.group");
    same("spec.names.plural");
    approval(&mut errors, new, Some(old));
    conversion::validate_change(&mut errors, new, Some(old));
    if flag(new, "spec.preserveUnknownFields") && !flag(old, "spec.preserveUnknownFields") {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(field::invalid("spec.preserveUnknownFields", true, why));
    }
    errors
}

/// Errors of a changed status.
pub(super) fn status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let accepted = at(new, "status.acceptedNames").unwrap_or(&Value::Null);
    names(&mut errors, &Path::root("status.acceptedNames"), accepted);
    errors
}

fn stored_versions(errors: &mut Errors, definition: &Value) {
    let path = "status.storedVersions";
    let stored = list(definition, path);
    if stored.is_empty() {
        errors.push(field::invalid(path, stored.to_vec(), "must have at least one stored version"));
        return;
    }
    let versions = list(definition, "spec.versions");
    for version in versions.iter().filter(|v| flag(v, "storage")) {
        let name = text(version, "name");
        if !stored.iter().any(|v| v == name) {
            errors.push(field::invalid(path, stored.to_vec(), format!("must have the storage version {name}")));
        }
    }
    for (i, name) in stored.iter().enumerate() {
        let name = name.as_str().unwrap_or("");
        if !versions.iter().any(|v| text(v, "name") == name) {
            let why = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
                 until a storage migration ensures no data remains persisted in {name} and removes {name} from \
                 status.storedVersions"
            );
            errors.push(field::invalid(format!("{path}[{i}]"), name, why));
        }
    }
}

/// Groups of Kubernetes itself are given away by those who make it.
fn approval(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let group = text(new, "spec.group");
    let is_protected =
        ["k8s.io", "kubernetes.io"].iter().any(|end| group == *end || group.ends_with(&format!(".{end}")));
    if !is_protected {
        return;
    }
    let given = |of: &Value| {
        let annotation = at(of, "metadata.annotations").and_then(|a| a.get(APPROVED)).and_then(Value::as_str);
        annotation.unwrap_or("").to_owned()
    };
    let state = |annotation: &str| {
        let has_host = annotation
            .split_once("://")
            .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/'));
        match annotation {
            "" => 0,
            a if a.starts_with("unapproved") => 1,
            _ if has_host => 2,
            _ => 3,
        }
    };
    let annotation = given(new);
    let now = state(&annotation);
    if old.is_some_and(|old| state(&given(old)) == now) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVED}]");
    let what = format!("protected groups must have approval annotation {APPROVED:?}");
    let link = "see https://github.com/kubernetes/enhancements/pull/1111";
    match now {
        0 => errors.push(field::required(path, format!("{what}, {link}"))),
        3 => {
            let why = format!("{what} with either a URL or a reason starting with \"unapproved\", {link}");
            errors.push(field::invalid(path, annotation, why));
        }
        _ => {}
    }
}

/// What all versions have the same of stands above them.
struct Shared<'s> {
    schema: Option<&'s Value>,
    subresources: Option<&'s Value>,
    columns: Option<&'s Value>,
    selectable: Option<&'s Value>,
}

// === impl Shared ===

impl<'s> Shared<'s> {
    fn of(versions: &'s [Value]) -> Self {
        let same = |key: &str| {
            let first = versions.first().and_then(|v| v.get(key));
            first.filter(|_| versions.iter().all(|v| v.get(key) == first))
        };
        Self {
            schema: same("schema"),
            subresources: same("subresources"),
            columns: same("additionalPrinterColumns"),
            // They are of a schema, and stand where it does.
            selectable: same("schema").and_then(|_| same("selectableFields")),
        }
    }
}

fn spec(errors: &mut Errors, spec: &Value) {
    let path = Path::root("spec");
    let group = text(spec, "group");
    let group_path = path.field("group");
    if check::given(errors, &group_path, group) {
        if let Some(why) = dns_subdomain_error(group) {
            errors.push(field::invalid(&group_path, group, why));
        } else if !group.contains('.') {
            errors.push(field::invalid(&group_path, group, "should be a domain with at least one dot"));
        }
    }
    check::required_one_of(errors, &path.field("scope"), text(spec, "scope"), &["Cluster", "Namespaced"]);
    let versions = list(spec, "versions");
    if versions.len() > VERSIONS_MAX {
        errors.push(field::too_many(&path.field("versions"), versions.len(), VERSIONS_MAX));
        return;
    }
    let shared = Shared::of(versions);
    if at(shared.schema.unwrap_or(&Value::Null), "openAPIV3Schema").is_none() {
        for (i, _) in versions.iter().enumerate().filter(|(_, v)| at(v, "schema.openAPIV3Schema").is_none()) {
            errors.push(field::required(format!("spec.versions[{i}].schema.openAPIV3Schema"), ""));
        }
    }
    check_versions(errors, &path, versions, &shared);
    let required = path.field("names");
    for key in ["plural", "singular", "kind", "listKind"] {
        check::given(errors, &required.field(key), text(spec, &format!("names.{key}")));
    }
    names(errors, &required, spec.get("names").unwrap_or(&Value::Null));
    let has_status = versions.iter().any(|v| at(v, "subresources.status").is_some());
    if let Some(of) = shared.schema.and_then(|s| s.get("openAPIV3Schema")) {
        schema::validate(errors, "spec.validation", of, has_status);
    }
    subresources(errors, &path.field("subresources"), shared.subresources);
    columns(errors, &path.field("additionalPrinterColumns"), shared.columns);
    if let Some(of) = shared.selectable {
        match shared.schema.and_then(|s| s.get("openAPIV3Schema")) {
            Some(schema) => selectable_fields(errors, &path.field("selectableFields"), of, schema),
            None => {
                let why = "may only be set when validations.schema is included";
                errors.push(field::invalid(&path.field("selectableFields"), "", why));
            }
        }
    }
}

fn check_versions(errors: &mut Errors, spec: &Path<'_>, versions: &[Value], shared: &Shared<'_>) {
    let path = spec.field("versions");
    let mut seen = HashSet::new();
    let (mut stored, mut unique) = (0, true);
    for (i, version) in versions.iter().enumerate() {
        let here = path.index(i);
        let name = text(version, "name");
        unique &= seen.insert(name);
        stored += usize::from(flag(version, "storage"));
        if let Some(why) = dns_1035_error(name) {
            errors.push(field::invalid(&here.field("name"), name, why.clone()));
            if i == 0 {
                errors.push(field::invalid(&spec.field("version"), name, why));
            }
        }
        deprecation(errors, &here.field("deprecationWarning"), version);
        if shared.schema.is_none()
            && let Some(of) = at(version, "schema.openAPIV3Schema")
        {
            let has_status = at(version, "subresources.status").is_some();
            schema::validate(errors, &format!("{}", here.field("schema")), of, has_status);
        }
        if shared.subresources.is_none() {
            subresources(errors, &here.field("subresources"), version.get("subresources"));
        }
        if shared.columns.is_none() {
            columns(errors, &here.field("additionalPrinterColumns"), version.get("additionalPrinterColumns"));
        }
        if shared.selectable.is_none()
            && let Some((of, schema)) = version.get("selectableFields").zip(at(version, "schema.openAPIV3Schema"))
        {
            selectable_fields(errors, &here.field("selectableFields"), of, schema);
        }
    }
    if !unique {
        errors.push(field::invalid(&path, versions.to_vec(), "must contain unique version names"));
    }
    if stored != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(field::invalid(&path, versions.to_vec(), why));
    }
}

fn deprecation(errors: &mut Errors, path: &Path<'_>, version: &Value) {
    let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) else { return };
    let mut refuse = |why: &str| errors.push(field::invalid(path, warning, why));
    if !flag(version, "deprecated") {
        refuse("can only be set for deprecated versions");
        return;
    }
    if warning.len() > 256 {
        refuse("must be <= 256 characters long");
    }
    if warning.is_empty() {
        refuse("must not be an empty string");
    }
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        refuse(&format!("must only contain printable UTF-8 characters; non-printable character found at index {i}"));
    }
}

fn names(errors: &mut Errors, path: &Path<'_>, names: &Value) {
    let mut label = |path: &Path<'_>, shown: &str, checked: &str, mixed: bool| {
        if let Some(why) = dns_1035_error(checked).filter(|_| !shown.is_empty() || !mixed) {
            let why = if mixed { format!("may have mixed case, but should otherwise match: {why}") } else { why };
            errors.push(field::invalid(path, shown, why));
        }
    };
    for key in ["plural", "singular"] {
        let name = text(names, key);
        if !name.is_empty() {
            label(&path.field(key), name, name, false);
        }
    }
    for key in ["kind", "listKind"] {
        let name = text(names, key);
        label(&path.field(key), name, &name.to_lowercase(), true);
    }
    for key in ["shortNames", "categories"] {
        let all = path.field(key);
        for (i, name) in list(names, key).iter().enumerate() {
            let name = name.as_str().unwrap_or("");
            label(&all.index(i), name, name, false);
        }
    }
    let kind = text(names, "kind");
    if !kind.is_empty() && kind == text(names, "listKind") {
        errors.push(field::invalid(&path.field("listKind"), kind, "kind and listKind may not be the same"));
    }
}

fn subresources(errors: &mut Errors, path: &Path<'_>, subresources: Option<&Value>) {
    let Some(scale) = subresources.and_then(|s| s.get("scale")).filter(|s| s.is_object()) else { return };
    let mut checked = |key: &str, parents: &[&str], words: &str, required: bool| {
        let value = text(scale, key);
        let name = format!("scale.{key}");
        let path = path.field(&name);
        if value.is_empty() {
            if required {
                errors.push(field::required(&path, ""));
            }
        } else if !value.starts_with('.') {
            errors.push(field::invalid(&path, value, "must be a simple json path starting with ."));
        } else if !parents.iter().any(|p| value.starts_with(p)) {
            errors.push(field::invalid(&path, value, format!("should be a json path under {words}")));
        }
    };
    checked("specReplicasPath", &[".spec."], ".spec", true);
    checked("statusReplicasPath", &[".status."], ".status", true);
    checked("labelSelectorPath", &[".spec.", ".status."], "either .spec or .status", false);
}

fn columns(errors: &mut Errors, path: &Path<'_>, columns: Option<&Value>) {
    let count = columns.and_then(Value::as_array).map_or(0, Vec::len);
    if count > COLUMNS_MAX {
        errors.push(field::too_many(path, count, COLUMNS_MAX));
        return;
    }
    for (i, column) in columns.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let path = path.index(i);
        check::given(errors, &path.field("name"), text(column, "name"));
        let of_type = text(column, "type");
        let allowed = format!("must be one of {}", COLUMN_TYPES.join(","));
        if of_type.is_empty() {
            errors.push(field::required(&path.field("type"), allowed));
        } else if !COLUMN_TYPES.contains(&of_type) {
            errors.push(field::invalid(&path.field("type"), of_type, allowed));
        }
        let format = text(column, "format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let why = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.push(field::invalid(&path.field("format"), format, why));
        }
        let json_path = text(column, "jsonPath");
        if json_path.is_empty() {
            errors.push(field::required(&path.field("JSONPath"), ""));
        } else if !json_path.starts_with('.') {
            let why = "must be a simple json path starting with .";
            errors.push(field::invalid(&path.field("JSONPath"), json_path, why));
        }
    }
}

fn selectable_fields(errors: &mut Errors, path: &Path<'_>, fields: &Value, schema: &Value) {
    let tree = Structural::parse(schema);
    let mut seen = HashSet::new();
    for (i, selected) in fields.as_array().into_iter().flatten().enumerate() {
        let item = path.index(i);
        let here = item.field("jsonPath");
        let json_path = text(selected, "jsonPath");
        if !check::given(errors, &here, json_path) {
            continue;
        }
        let Some(dotted) = json_path.strip_prefix('.') else {
            errors.push(field::invalid(&here, json_path, "is an invalid path: must begin with a dot"));
            continue;
        };
        if dotted.split('.').next() == Some("metadata") {
            errors.push(field::invalid(&here, json_path, "must not point to fields in metadata"));
            continue;
        }
        let Some(found) = tree.at(dotted) else {
            errors.push(field::invalid(&here, json_path, "is an invalid path: does not refer to a valid field"));
            continue;
        };
        if !matches!(found.of, Type::String | Type::Boolean | Type::Integer) {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with \
                       formats are allowed.";
            errors.push(field::invalid(&here, json_path, why));
        }
        if !seen.insert(dotted) {
            errors.push(field::duplicate(&here, json_path));
        }
    }
    if seen.len() > SELECTABLE_FIELDS_MAX {
        errors.push(field::too_many(path, seen.len(), SELECTABLE_FIELDS_MAX));
    }
}

/// What is worth saying of a definition that is accepted.
pub(super) fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let said = |definition: &Value| -> Vec<String> {
        let mut all = Vec::new();
        for version in list(definition, "spec.versions") {
            if let Some(of) = at(version, "schema.openAPIV3Schema") {
                schema::each(of, &mut |of| note(of, &mut all));
            }
        }
        all
    };
    let before = old.map(said).unwrap_or_default();
    let mut seen = HashSet::new();
    said(new).into_iter().filter(|w| !before.contains(w) && seen.insert(w.clone())).collect()
}

fn note(of: &Value, all: &mut Vec<String>) {
    let format = text(of, "format");
    let of_type = match text(of, "type") {
        "" => Type::Any,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        _ => Type::Object,
    };
    if !format.is_empty() && !is_known_format(format, of_type) {
        all.push(format!("unrecognized format {format:?}"));
    }
    let item = text(of, "items.type");
    if text(of, "x-kubernetes-list-type") == "set" && matches!(item, "object" | "array") {
        all.push(format!(
            "x-kubernetes-list-type: set for items of type {item:?} is not supported by server-side apply or CEL \
             validation rules"
        ));
    }
}
