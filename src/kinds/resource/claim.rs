//! What is claimed: requests of devices, constraints among them, and what drivers are told.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{
    CONFIGS_MAX, configuration, each, each_once, fully_qualified_name, selector, tolerations, unknown_features,
};
use crate::base::json::{int, list, list_mut, set, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

const REQUESTS_MAX: usize = 32;
const CONSTRAINTS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const NOT_A_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// The names of requests, each with those of its alternatives.
pub(super) struct Requests<'c>(HashMap<&'c str, HashSet<&'c str>>);

// === impl Requests ===

impl<'c> Requests<'c> {
    /// Those of a `ResourceClaimSpec`.
    pub(super) fn of(spec: &'c Value) -> Self {
        let alternatives =
            |request: &'c Value| list(request, "firstAvailable").iter().map(|r| text(r, "name")).collect();
        Self(list(spec, "devices.requests").iter().map(|r| (text(r, "name"), alternatives(r))).collect())
    }

    fn has(&self, name: &str) -> bool {
        match name.split_once('/') {
            None => self.0.contains_key(name),
            Some((request, alternative)) => self.0.get(request).is_some_and(|of| of.contains(alternative)),
        }
    }

    /// A name that must be one of these.
    pub(super) fn reference(&self, errors: &mut Errors, path: &Path<'_>, name: &str) {
        let segments: Vec<&str> = name.split('/').collect();
        if segments.len() > 2 {
            errors.push(field::invalid(path, name, NOT_A_REQUEST));
            return;
        }
        segments.into_iter().for_each(|segment| check::dns_label(errors, path, segment));
        if !self.has(name) {
            errors.push(field::invalid(path, name, NOT_A_REQUEST));
        }
    }

    /// `requests` of a constraint or a configuration.
    pub(super) fn references(&self, errors: &mut Errors, path: &Path<'_>, of: &Value) {
        let key = |name: &Value| name.as_str().unwrap_or_default().to_owned();
        each_once(errors, &path.field("requests"), list(of, "requests"), REQUESTS_MAX, key, |errors, path, name| {
            self.reference(errors, path, name.as_str().unwrap_or_default());
        });
    }
}

/// Fills in what was left out of a `ResourceClaimSpec`.
pub(super) fn default(spec: &mut Value) {
    for request in list_mut(spec, "devices.requests").into_iter().flatten() {
        if let Some(exactly) = request.get_mut("exactly").filter(|e| e.is_object()) {
            default_request(exactly);
        }
        list_mut(request, "firstAvailable").into_iter().flatten().for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    if text(request, "allocationMode").is_empty() {
        set(request, "allocationMode", "ExactCount");
    }
    if text(request, "allocationMode") == "ExactCount" && int(request, "count").unwrap_or(0) == 0 {
        set(request, "count", 1);
    }
    default_tolerations(request);
}

pub(super) fn default_tolerations(of: &mut Value) {
    for toleration in list_mut(of, "tolerations").into_iter().flatten() {
        set_default(toleration, "operator", "Equal");
    }
}

/// What is wrong with a `ResourceClaimSpec`.
pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let path = path.field("devices");
    let requests = Requests::of(spec);
    let name = |request: &Value| text(request, "name").to_owned();
    let all = list(spec, "devices.requests");
    each_once(errors, &path.field("requests"), all, REQUESTS_MAX, name, request);
    let constraints = list(spec, "devices.constraints");
    each(errors, &path.field("constraints"), constraints, CONSTRAINTS_MAX, |errors, path, constraint| {
        requests.references(errors, path, constraint);
        let given = |key: &str| constraint.get(key).and_then(Value::as_str);
        match (given("matchAttribute"), given("distinctAttribute")) {
            (Some(name), None) => fully_qualified_name(errors, &path.field("matchAttribute"), name),
            (None, Some(name)) => fully_qualified_name(errors, &path.field("distinctAttribute"), name),
            (None, None) => {
                let why = "exactly one of `matchAttribute` or `distinctAttribute` is required";
                errors.push(field::required(path, why));
            }
            (Some(_), Some(_)) => {
                let why =
                    "exactly one of `matchAttribute` or `distinctAttribute` is required, but multiple fields are set";
                errors.push(field::invalid(path, constraint.clone(), why));
            }
        }
    });
    let configs = list(spec, "devices.config");
    each(errors, &path.field("config"), configs, CONFIGS_MAX, |errors, path, config| {
        requests.references(errors, path, config);
        configuration(errors, path, config);
    });
}

fn request(errors: &mut Errors, path: &Path<'_>, request: &Value) {
    check::dns_label(errors, &path.field("name"), text(request, "name"));
    let exactly = request.get("exactly").filter(|e| e.is_object());
    let alternatives = list(request, "firstAvailable");
    match (exactly, alternatives.is_empty()) {
        (None, true) => {
            errors.push(field::required(path, "exactly one of `exactly` or `firstAvailable` is required"));
        }
        (Some(_), false) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.push(field::invalid(path, Value::Null, why));
        }
        (Some(exactly), true) => one_kind(errors, &path.field("exactly"), exactly),
        (None, false) => {
            let name = |request: &Value| text(request, "name").to_owned();
            let path = path.field("firstAvailable");
            each_once(errors, &path, alternatives, ALTERNATIVES_MAX, name, |errors, path, one| {
                check::dns_label(errors, &path.field("name"), text(one, "name"));
                one_kind(errors, path, one);
            });
        }
    }
}

/// Devices of one class.
fn one_kind(errors: &mut Errors, path: &Path<'_>, request: &Value) {
    let class = text(request, "deviceClassName");
    if check::given(errors, &path.field("deviceClassName"), class) {
        check::dns_subdomain(errors, &path.field("deviceClassName"), class);
    }
    selector::selectors(errors, path, request);
    let (mode, count) = (text(request, "allocationMode"), int(request, "count").unwrap_or(0));
    match mode {
        "All" if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            errors.push(field::invalid(path.field("count"), count, why));
        }
        "All" => {}
        "ExactCount" if count <= 0 => {
            errors.push(field::invalid(path.field("count"), count, "must be greater than zero"))
        }
        "ExactCount" => {}
        other => errors.push(field::not_supported(path.field("allocationMode"), other, &["All", "ExactCount"])),
    }
    tolerations(errors, path, request);
    unknown_features(errors, path, request, &["derivedAttributes"]);
}

/// Whether a request of a `ResourceClaimSpec` is for administrators, and at which place.
pub(super) fn admin_requests(spec: &Value) -> impl Iterator<Item = usize> + '_ {
    let is_admins = |request: &Value| {
        let exactly = request.get("exactly").and_then(Value::as_object);
        exactly.and_then(|e: &Map<String, Value>| e.get("adminAccess")) == Some(&Value::Bool(true))
    };
    list(spec, "devices.requests").iter().enumerate().filter(move |(_, r)| is_admins(r)).map(|(i, _)| i)
}
