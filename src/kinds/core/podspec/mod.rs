//! Everything about `PodSpec`, which pods and all workloads share: defaults, validation, warnings, quality of service.
//!
//! [`default`] and [`validate`] take the spec of a pod or of a template; what differs between the two (service links, host
//! ports, requests from limits) stands in [`default_pod`] and [`Rules`].

mod container;
mod context;
mod defaults;
mod disabled;
mod dns;
mod env;
mod ephemeral;
mod field_ref;
mod fields;
mod names;
mod options;
mod os;
mod pod_resources;
mod probe;
mod projection;
mod resources;
mod scheduling;
mod security;
mod template;
mod volume;
mod volume_items;
mod volume_sources;
mod warnings;

use context::Context;
pub use context::Rules;

use std::collections::HashSet;

use serde_json::Value;

use crate::base::json::{at, list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

pub use defaults::{default, default_pod, default_resource_list, volume_sources as default_volume_sources};
pub use disabled::drop_disabled;
pub use ephemeral::{validate as validate_ephemeral_containers, validate_update as validate_ephemeral_update};
pub use options::{annotations as validate_annotations, finite_grace, overhead as validate_overhead};
pub use resources::{
    is_extended, may_overcommit, name_error as resource_name_error, of_pod as resources_of_pod, qos_class,
    requirement_error,
};
pub use scheduling::{node_affinity_update, node_selector as validate_node_selector, toleration_list};
pub use security::RESOURCES as POD_RESOURCES;
pub use template::{default_template, validate_free_template, validate_template};
pub use volume_sources::validate_source as validate_volume_source;
pub use warnings::{
    for_pod as warnings_for_pod, for_pod_update as warnings_for_pod_update, for_template as warnings_for_template,
    old_volume, selector_warnings,
};

/// Errors in a pod spec; it has seen [`default`].
pub fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value, rules: Rules) {
    let names = names::Names::of(spec);
    let context = Context {
        spec,
        names: &names,
        host_users: at(spec, "hostUsers") != Some(&Value::Bool(false)),
        grace: spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0),
    };
    volume::validate_all(errors, &path.field("volumes"), spec);
    container::validate_all(errors, path, &context);
    if rules.pod {
        ephemeral::validate_with(errors, &path.field("ephemeralContainers"), spec, &names);
    }
    pod_resources::validate(errors, path, spec);
    claims(errors, &path.field("resourceClaims"), spec);
    policies(errors, path, spec);
    check::labels(errors, &path.field("nodeSelector"), spec.get("nodeSelector"));
    security::validate_pod(errors, &path.field("securityContext"), spec);
    dns::validate(errors, path, spec);
    scheduling::validate(errors, path, spec, rules);
    options::validate(errors, path, spec);
    os::validate(errors, path, spec);
}

fn policies(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    check::required_one_of(
        errors,
        &path.field("restartPolicy"),
        text(spec, "restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    let supported = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    check::required_one_of(errors, &path.field("dnsPolicy"), text(spec, "dnsPolicy"), &supported);
}

/// `spec.resourceClaims`.
fn claims(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let claims = list(spec, "resourceClaims");
    let mut seen = HashSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let path = path.index(i);
        let (name_path, name) = (path.field("name"), text(claim, "name"));
        if name.is_empty() {
            errors.push(field::required(&name_path, ""));
        } else if !seen.insert(name) {
            errors.push(field::duplicate(&name_path, name));
        } else {
            check::dns_label(errors, &name_path, name);
        }
        match (claim.get("resourceClaimName"), claim.get("resourceClaimTemplateName")) {
            (Some(_), Some(_)) => {
                let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.push(field::invalid(&path, claim.clone(), why));
            }
            (None, None) => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.push(field::invalid(&path, claim.clone(), why));
            }
            (Some(_), None) => {
                let name = text(claim, "resourceClaimName");
                check::dns_subdomain(errors, &path.field("resourceClaimName"), name);
            }
            (None, Some(_)) => {
                let name = text(claim, "resourceClaimTemplateName");
                check::dns_subdomain(errors, &path.field("resourceClaimTemplateName"), name);
            }
        }
    }
}
