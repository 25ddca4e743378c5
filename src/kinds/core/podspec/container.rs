//! Containers and init containers.

use std::collections::HashSet;

use serde_json::Value;

use super::names::Names;
use super::{Context, env, probe, resources, security, volume};
use crate::base::json::{list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// Which list of containers one stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Init,
    Main,
}

/// Checks all containers and init containers of a spec.
pub(super) fn validate_all(errors: &mut Errors, path: &Path<'_>, context: &Context<'_>) {
    let (main, init) = (list(context.spec, "containers"), list(context.spec, "initContainers"));
    let main_path = path.field("containers");
    if main.is_empty() {
        errors.push(field::required(&main_path, ""));
    }
    let mut ports = HashSet::new();
    let mut names: HashSet<&str> = HashSet::new();
    for (i, container) in main.iter().enumerate() {
        let path = main_path.index(i);
        name(errors, &path, text(container, "name"), &mut names);
        validate(errors, &path, container, Role::Main, context);
        host_ports(errors, &path.field("ports"), container, &mut ports);
    }
    let init_path = path.field("initContainers");
    for (i, container) in init.iter().enumerate() {
        let path = init_path.index(i);
        name(errors, &path, text(container, "name"), &mut names);
        validate(errors, &path, container, Role::Init, context);
        let mut own = HashSet::new();
        host_ports(errors, &path.field("ports"), container, &mut own);
    }
}

fn name<'a>(errors: &mut Errors, path: &Path<'_>, name: &'a str, names: &mut HashSet<&'a str>) {
    let path = path.field("name");
    if name.is_empty() {
        errors.push(field::required(&path, ""));
        return;
    }
    check::dns_label(errors, &path, name);
    if !names.insert(name) {
        errors.push(field::duplicate(&path, name));
    }
}

/// What containers of every role share, ephemeral ones too.
pub(super) fn common(errors: &mut Errors, path: &Path<'_>, container: &Value, names: &Names<'_>) {
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(field::required(&path.field("image"), ""));
    } else if image.trim() != image {
        errors.push(field::invalid(&path.field("image"), image, "must not have leading or trailing whitespace"));
    }
    let policies = ["FallbackToLogsOnError", "File"];
    let policy = text(container, "terminationMessagePolicy");
    check::required_one_of(errors, &path.field("terminationMessagePolicy"), policy, &policies);
    let pull = ["Always", "IfNotPresent", "Never"];
    check::required_one_of(errors, &path.field("imagePullPolicy"), text(container, "imagePullPolicy"), &pull);
    ports(errors, &path.field("ports"), list(container, "ports"));
    env::validate(errors, &path.field("env"), list(container, "env"), names);
    env::validate_from(errors, &path.field("envFrom"), list(container, "envFrom"));
    volume::mounts(errors, path, container, names);
    volume::devices(errors, path, container, names);
    resources::validate_container(errors, &path.field("resources"), container.get("resources"), names);
    resize_policy(errors, &path.field("resizePolicy"), container);
}

fn validate(errors: &mut Errors, path: &Path<'_>, container: &Value, role: Role, context: &Context<'_>) {
    common(errors, path, container, context.names);
    let host_users = context.host_users;
    security::validate_container(errors, &path.field("securityContext"), container.get("securityContext"), host_users);
    let restart = text(container, "restartPolicy");
    restart_rules(errors, path, container, role, restart);
    if role == Role::Main || restart == "Always" {
        probe::lifecycle(errors, &path.field("lifecycle"), container.get("lifecycle"), context);
        probe::validate_all(errors, path, container, context.grace);
        return;
    }
    for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container.get(key).is_some() {
            let why = "may not be set for init containers without restartPolicy=Always";
            errors.push(field::forbidden(&path.field(key), why));
        }
    }
}

/// The policy of one container, and its rules by exit code.
fn restart_rules(errors: &mut Errors, path: &Path<'_>, container: &Value, role: Role, policy: &str) {
    let given = container.get("restartPolicy").is_some();
    if given {
        let at = path.field("restartPolicy");
        if !["Always", "OnFailure", "Never"].contains(&policy) {
            errors.push(field::not_supported(&at, policy, &["Always", "Never", "OnFailure"]));
        }
    }
    let rules = list(container, "restartPolicyRules");
    let rules_path = path.field("restartPolicyRules");
    if rules.is_empty() {
        return;
    }
    if !given {
        errors.push(field::required(
            &path.field("restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        ));
    }
    if role == Role::Init && policy == "Always" {
        errors.push(field::forbidden(
            &rules_path,
            "restart rules are not allowed for init containers with restart policy \"Always\"",
        ));
    }
    if rules.len() > 20 {
        errors.push(field::too_long(&rules_path, 20));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = rules_path.index(i);
        let actions = ["Restart", "RestartAllContainers"];
        if !actions.contains(&text(rule, "action")) {
            errors.push(field::not_supported(&path.field("action"), text(rule, "action"), &actions));
        }
        let Some(codes) = rule.get("exitCodes") else {
            errors.push(field::required(&path.field("exitCodes"), "must be specified"));
            continue;
        };
        let path = path.field("exitCodes");
        if !["In", "NotIn"].contains(&text(codes, "operator")) {
            errors.push(field::not_supported(&path.field("operator"), text(codes, "operator"), &["In", "NotIn"]));
        }
        match list(codes, "values").len() {
            0 => errors.push(field::required(&path.field("values"), "must specify at least one value")),
            n if n > 255 => errors.push(field::too_long(&path.field("values"), 255)),
            _ => {}
        }
        for (k, code) in list(codes, "values").iter().enumerate() {
            let n = code.as_i64().unwrap_or(0);
            check::within(errors, &path.field("values").index(k), n, 0, 255);
        }
    }
}

fn resize_policy(errors: &mut Errors, path: &Path<'_>, container: &Value) {
    let policies = list(container, "resizePolicy");
    let mut seen = HashSet::new();
    for (i, policy) in policies.iter().enumerate() {
        let name = text(policy, "resourceName");
        if !seen.insert(name) {
            errors.push(field::duplicate(&path.index(i), name));
        }
        if !["cpu", "memory"].contains(&name) {
            errors.push(field::not_supported(path, name, &["cpu", "memory"]));
        }
        let restart = text(policy, "restartPolicy");
        let supported = ["NotRequired", "RestartContainer"];
        check::required_one_of(errors, path, restart, &supported);
    }
}

fn ports(errors: &mut Errors, path: &Path<'_>, ports: &[Value]) {
    let mut seen = HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(port, "name");
        let again = !seen.insert(name);
        if !name.is_empty() {
            if let Some(why) = check::port_name_error(name) {
                errors.push(field::invalid(&path.field("name"), name, why));
            } else if again {
                errors.push(field::duplicate(&path.field("name"), name));
            }
        }
        match port.get("containerPort").and_then(Value::as_i64).unwrap_or(0) {
            0 => errors.push(field::required(&path.field("containerPort"), "")),
            n => check::port(errors, &path.field("containerPort"), n),
        }
        if let Some(n) = port.get("hostPort").and_then(Value::as_i64).filter(|n| *n != 0) {
            check::port(errors, &path.field("hostPort"), n);
        }
        let supported = ["SCTP", "TCP", "UDP"];
        check::required_one_of(errors, &path.field("protocol"), text(port, "protocol"), &supported);
    }
}

type HostPort<'a> = (&'a str, &'a str, i64);

fn host_ports<'a>(errors: &mut Errors, path: &Path<'_>, container: &'a Value, taken: &mut HashSet<HostPort<'a>>) {
    for (i, port) in list(container, "ports").iter().enumerate() {
        let number = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
        if number != 0 && !taken.insert((text(port, "protocol"), text(port, "hostIP"), number)) {
            errors.push(field::duplicate(&path.index(i).field("hostPort"), number));
        }
    }
}
