//! What policies and bindings are about (`MatchResources`): rules and selectors.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::webhook;
use crate::base::json::{list, list_mut, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::{NameRule, meta};

pub(super) const RULES: [&str; 2] = ["resourceRules", "excludeResourceRules"];

pub(super) fn default(resources: &mut Value) {
    if !resources.is_object() {
        return;
    }
    set_default(resources, "matchPolicy", "Equivalent");
    set_default(resources, "namespaceSelector", json!({}));
    set_default(resources, "objectSelector", json!({}));
    for rules in RULES {
        for rule in list_mut(resources, rules).into_iter().flatten().filter(|r| r.is_object()) {
            set_default(rule, "scope", "*");
        }
    }
}

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, resources: &Value) {
    check::required_one_of(
        errors,
        &path.field("matchPolicy"),
        text(resources, "matchPolicy"),
        &["Equivalent", "Exact"],
    );
    for selector in ["namespaceSelector", "objectSelector"] {
        match resources.get(selector).filter(|s| s.is_object()) {
            Some(given) => check::label_selector(errors, &path.field(selector), Some(given)),
            None => errors.push(field::required(&path.field(selector), "")),
        }
    }
    for rules in RULES {
        let path = path.field(rules);
        for (i, rule) in list(resources, rules).iter().enumerate() {
            named_rule(errors, &path.index(i), rule);
        }
    }
}

fn named_rule(errors: &mut Errors, path: &Path<'_>, rule: &Value) {
    let names = path.field("resourceNames");
    let mut seen = HashSet::new();
    for (i, name) in list(rule, "resourceNames").iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        path_segment(errors, &names.index(i), name);
        if !seen.insert(name) {
            errors.push(field::duplicate(&names.index(i), name));
        }
    }
    webhook::rule(errors, path, rule);
}

/// What can be a part of a path.
pub(super) fn path_segment(errors: &mut Errors, path: &Path<'_>, name: &str) {
    if let Some(why) = meta::name_error(NameRule::PathSegment, name, false) {
        errors.push(field::invalid(path, name, why));
    }
}
