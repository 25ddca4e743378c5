//! Rules, role references and subjects, which the RBAC kinds share.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::base::json::{list, list_mut, map_mut, set_default, text};
use crate::kinds::check::{self, IMMUTABLE, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::meta::name_error;
use crate::kinds::table::{self, string, wide};
use crate::kinds::{Column, NameRule};

/// The group of all of these kinds, and of users and groups as subjects.
const GROUP: &str = "rbac.authorization.k8s.io";
/// Columns of Role and ClusterRole.
pub(super) const ROLE_COLUMNS: &[Column] = &[
    table::NAME,
    Column { name: "Created At", kind: "date", format: "", priority: 0, description: table::AGE_DESCRIPTION },
];
/// Columns of the bindings.
pub(super) const BINDING_COLUMNS: &[Column] = &[
    table::NAME,
    string("Role", "The role that is granted."),
    table::AGE,
    wide("Users", "Users it is granted to."),
    wide("Groups", "Groups it is granted to."),
    wide("ServiceAccounts", "Service accounts it is granted to."),
];

pub(super) fn role_row(role: &Value, _now: Timestamp) -> Vec<Value> {
    vec![table::name(role), text(role, "metadata.creationTimestamp").into()]
}

pub(super) fn binding_row(binding: &Value, now: Timestamp) -> Vec<Value> {
    let of = |kind: &str| -> Value {
        let subjects = list(binding, "subjects").iter().filter(|s| text(s, "kind") == kind);
        let names = subjects.map(|s| match text(s, "namespace") {
            namespace if kind == "ServiceAccount" && !namespace.is_empty() => {
                format!("{namespace}/{}", text(s, "name"))
            }
            _ => text(s, "name").to_owned(),
        });
        names.collect::<Vec<_>>().join(", ").into()
    };
    let role = format!("{}/{}", text(binding, "roleRef.kind"), text(binding, "roleRef.name"));
    vec![table::name(binding), role.into(), table::age(binding, now), of("User"), of("Group"), of("ServiceAccount")]
}

/// Errors in the rules of a role; only cluster-wide ones may name paths.
pub(super) fn rules(errors: &mut Errors, role: &Value, namespaced: bool) {
    let base = Path::root("rules");
    for (i, rule) in list(role, "rules").iter().enumerate() {
        let path = base.index(i);
        let empty = |key: &str| list(rule, key).is_empty();
        if empty("verbs") {
            errors.push(field::required(&path.field("verbs"), "verbs must contain at least one value"));
        }
        if !empty("nonResourceURLs") {
            let at = path.field("nonResourceURLs");
            let urls = list(rule, "nonResourceURLs").to_vec();
            if namespaced {
                errors.push(field::invalid(&at, urls, "namespaced rules cannot apply to non-resource URLs"));
            } else if !empty("apiGroups") || !empty("resources") || !empty("resourceNames") {
                errors.push(field::invalid(
                    &at,
                    urls,
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        for (key, why) in [
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ] {
            if empty(key) {
                errors.push(field::required(&path.field(key), why));
            }
        }
    }
}

/// Groups of what a binding names.
pub(super) fn default_binding(binding: &mut Value) {
    let group = GROUP;
    // An empty reference is still an object with three members.
    let reference = map_mut(binding, "roleRef");
    for key in ["apiGroup", "kind", "name"] {
        reference.entry(key).or_insert_with(|| json!(""));
    }
    if text(binding, "roleRef.apiGroup").is_empty() {
        map_mut(binding, "roleRef").insert("apiGroup".into(), group.into());
    }
    for subject in list_mut(binding, "subjects").into_iter().flatten() {
        if matches!(text(subject, "kind"), "User" | "Group") {
            set_default(subject, "apiGroup", group);
        }
    }
}

/// Errors in a binding.
pub(super) fn binding(errors: &mut Errors, binding: &Value, roles: &[&str], namespaced: bool) {
    let group = GROUP;
    let path = Path::root("roleRef");
    let reference = &binding["roleRef"];
    if text(reference, "apiGroup") != group {
        errors.push(field::not_supported(&path.field("apiGroup"), text(reference, "apiGroup"), &[group]));
    }
    if !roles.contains(&text(reference, "kind")) {
        errors.push(field::not_supported(&path.field("kind"), text(reference, "kind"), roles));
    }
    let name = text(reference, "name");
    if check::given(errors, &path.field("name"), name)
        && let Some(why) = name_error(NameRule::PathSegment, name, false)
    {
        errors.push(field::invalid(&path.field("name"), name, why));
    }
    let base = Path::root("subjects");
    for (i, s) in list(binding, "subjects").iter().enumerate() {
        subject(errors, &base.index(i), s, namespaced);
    }
}

fn subject(errors: &mut Errors, path: &Path<'_>, subject: &Value, namespaced: bool) {
    let (kind, name, group) = (text(subject, "kind"), text(subject, "name"), text(subject, "apiGroup"));
    check::given(errors, &path.field("name"), name);
    match kind {
        "ServiceAccount" => {
            if !name.is_empty() {
                check::dns_subdomain(errors, &path.field("name"), name);
            }
            if !group.is_empty() {
                errors.push(field::not_supported(&path.field("apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                errors.push(field::required(&path.field("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(field::not_supported(&path.field("apiGroup"), group, &[GROUP]));
            }
        }
        other => errors.push(field::not_supported(&path.field("kind"), other, &["Group", "ServiceAccount", "User"])),
    }
}

/// What a binding grants cannot change; who it is granted to can.
pub(super) fn fixed_reference(new: &Value, old: &Value) -> Errors {
    if new["roleRef"] == old["roleRef"] {
        return Errors::new();
    }
    [field::invalid("roleRef", new["roleRef"].clone(), IMMUTABLE)].into()
}
