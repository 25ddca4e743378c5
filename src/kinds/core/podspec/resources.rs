//! Resources of containers, their sums over a pod, and the class of service that follows.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::names::Names;
use crate::base::json::{list, map_mut, text};
use crate::base::labels::{dns_subdomain_error, label_key_error};
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// Resources of a node that every container may use.
const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// Whether the resource is one of Kubernetes' own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(super) fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether a pod may ask for less than its limit.
pub fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_hugepages(name)
}

/// Whether the resource is one that somebody else counts, and only in whole numbers.
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && label_key_error(&format!("requests.{name}")).is_none()
}

/// Why the name is no resource that a container may ask for, if it is none.
pub fn name_error(name: &str) -> Option<String> {
    if let Some(why) = label_key_error(name) {
        return Some(why);
    }
    if !name.contains('/') {
        let standard = STANDARD.contains(&name) || is_hugepages(name);
        return (!standard).then(|| "must be a standard resource for containers".into());
    }
    let extended = !name.starts_with("requests.")
        && dns_subdomain_error(&format!("requests.{}", name.replace('/', "."))).is_none();
    (!is_native(name) && !extended && !is_extended(name))
        .then(|| "doesn't follow extended resource name standard".into())
}

/// Why an amount of the resource is wrong, if it is.
fn amount_error(name: &str, amount: &Quantity) -> Option<String> {
    if amount.is_negative() {
        return Some(check::NEGATIVE.into());
    }
    (!is_native(name) && amount.milli() % 1000 != 0).then(|| "must be an integer".into())
}

/// Why an amount of huge pages is wrong, if it is: the size is in the name.
fn hugepages_error(name: &str, amount: &Quantity) -> Option<String> {
    let size: Quantity = match name.strip_prefix("hugepages-").unwrap_or("").parse() {
        Ok(size) => size,
        Err(error) => return Some(format!("{error}")),
    };
    let size = size.units();
    (size <= 0 || amount.units() % size != 0).then(|| format!("must be an integer multiple of the page size {size}"))
}

/// Why a resource or its amount is wrong in a list of a container; both may be.
pub fn requirement_error(name: &str, amount: &Quantity) -> Option<String> {
    name_error(name).or_else(|| amount_error(name, amount))
}

fn amounts(value: Option<&Value>) -> impl Iterator<Item = (&str, Quantity)> {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?.parse().ok()?)))
}

/// The `resources` of a container.
pub(super) fn validate_container(errors: &mut Errors, path: &Path<'_>, resources: Option<&Value>, names: &Names<'_>) {
    let Some(resources) = resources else { return };
    let (limits, requests) = (resources.get("limits"), resources.get("requests"));
    let (limits_path, requests_path) = (path.field("limits"), path.field("requests"));
    let (mut huge, mut normal) = (false, false);
    for (path, list) in [(&limits_path, limits), (&requests_path, requests)] {
        for (name, amount) in amounts(list) {
            let path = path.key(name);
            for why in [name_error(name), amount_error(name, &amount)].into_iter().flatten() {
                errors.push(field::invalid(&path, amount.to_string(), why));
            }
            if is_hugepages(name) {
                huge = true;
                if let Some(why) = hugepages_error(name, &amount) {
                    errors.push(field::invalid(&path, amount.to_string(), why));
                }
            }
            normal |= matches!(name, "cpu" | "memory");
        }
    }
    requests_against_limits(errors, path, limits, requests);
    if huge && !normal {
        errors.push(field::forbidden(path, "HugePages require cpu or memory"));
    }
    claims(errors, &path.field("claims"), list(resources, "claims"), names);
}

/// No request above its limit, and none that differs where nothing may be promised twice.
pub(super) fn requests_against_limits(
    errors: &mut Errors,
    path: &Path<'_>,
    limits: Option<&Value>,
    requests: Option<&Value>,
) {
    let requests_path = path.field("requests");
    for (name, amount) in amounts(requests) {
        let limit = limits.and_then(|l| l.get(name)).and_then(Value::as_str).and_then(|t| t.parse::<Quantity>().ok());
        match limit {
            Some(limit) if amount != limit && !may_overcommit(name) => {
                let why = format!("must be equal to {name} limit of {limit}");
                errors.push(field::invalid(&requests_path, amount.to_string(), why));
            }
            Some(limit) if may_overcommit(name) && amount > limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(field::invalid(&requests_path, amount.to_string(), why));
            }
            None if !may_overcommit(name) => {
                errors
                    .push(field::required(&path.field("limits"), "Limit must be set for non overcommitable resources"));
            }
            _ => {}
        }
    }
}

fn claims(errors: &mut Errors, path: &Path<'_>, claims: &[Value], names: &Names<'_>) {
    let mut seen = HashSet::new();
    for (i, claim) in claims.iter().enumerate() {
        let path = path.index(i);
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            errors.push(field::required(&path, ""));
            continue;
        }
        // The whole claim stands for every request of it.
        if seen.contains(&(name, "")) || !seen.insert((name, request)) {
            errors.push(field::duplicate(&path, name));
        }
        if !names.has_claim(name) {
            errors.push(field::not_found(&path, name));
        }
    }
}

type Amounts<'a> = BTreeMap<&'a str, Quantity>;

/// What all containers of a pod use at most at a time; `which` is `limits` or `requests`.
fn total<'a>(spec: &'a Value, which: &str) -> Amounts<'a> {
    let add = |sum: &mut Amounts<'a>, name: &'a str, amount: Quantity| {
        let entry = sum.entry(name).or_insert_with(|| Quantity::from_units(0));
        *entry = if entry.is_zero() { amount } else { *entry + amount };
    };
    let mut sum = Amounts::new();
    for container in list(spec, "containers") {
        amounts(container.get("resources").and_then(|r| r.get(which))).for_each(|(n, a)| add(&mut sum, n, a));
    }
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in list(spec, "initContainers") {
        let own = amounts(container.get("resources").and_then(|r| r.get(which)));
        let mut at_once = sidecars.clone();
        if text(container, "restartPolicy") == "Always" {
            own.for_each(|(n, a)| {
                add(&mut sum, n, a);
                add(&mut sidecars, n, a);
            });
            at_once = sidecars.clone();
        } else {
            own.for_each(|(n, a)| add(&mut at_once, n, a));
        }
        raise(&mut most, at_once);
    }
    raise(&mut sum, most);
    sum
}

fn raise<'a>(sum: &mut Amounts<'a>, other: Amounts<'a>) {
    for (name, amount) in other {
        let entry = sum.entry(name).or_insert(amount);
        if *entry < amount {
            *entry = amount;
        }
    }
}

/// Whether a pod as a whole may have an amount of the resource.
pub(super) fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_hugepages(name)
}

/// What a pod asks for as a whole (`requests`) or may use at most (`limits`): what it says of itself where it does, else
/// what its containers use at most at a time. A container that is being made smaller counts as large as it still is.
pub fn of_pod(pod: &Value, which: &str) -> BTreeMap<String, Quantity> {
    let (null, resized);
    let mut spec = pod.get("spec").unwrap_or({
        null = Value::Null;
        &null
    });
    if let Some(larger) = not_yet_smaller(pod, which) {
        resized = larger;
        spec = &resized;
    }
    let mut sum: BTreeMap<String, Quantity> = total(spec, which).into_iter().map(|(n, a)| (n.to_owned(), a)).collect();
    let whole = pod.get("spec").and_then(|s| s.get("resources")).and_then(|r| r.get(which));
    sum.extend(amounts(whole).filter(|(n, _)| is_pod_level(n)).map(|(n, a)| (n.to_owned(), a)));
    sum
}

/// The containers of a pod with what they really have where that is more than what they ask for; `None` where it is not.
fn not_yet_smaller(pod: &Value, which: &str) -> Option<Value> {
    let mut containers = Map::new();
    let mut any = false;
    for (group, statuses) in [("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")] {
        let statuses = pod.get("status").map_or(&[][..], |s| list(s, statuses));
        let mut raised = Vec::new();
        for container in pod.get("spec").map_or(&[][..], |s| list(s, group)) {
            let mut all: Amounts<'_> = amounts(container.get("resources").and_then(|r| r.get(which))).collect();
            let status = statuses.iter().find(|s| text(s, "name") == text(container, "name"));
            let allocated = status.and_then(|s| s.get("allocatedResources")).filter(|_| which == "requests");
            let real = status.and_then(|s| s.get("resources")).and_then(|r| r.get(which));
            for (name, amount) in amounts(allocated).chain(amounts(real)) {
                if all.get(name).is_some_and(|asked| *asked < amount) {
                    all.insert(name, amount);
                    any = true;
                }
            }
            let all: Map<String, Value> = all.iter().map(|(n, a)| ((*n).to_owned(), a.to_string().into())).collect();
            raised.push(serde_json::json!({
                "name": container.get("name"), "restartPolicy": container.get("restartPolicy"), "resources": {which: all},
            }));
        }
        containers.insert(group.to_owned(), raised.into());
    }
    any.then_some(containers.into())
}

/// The sums of the containers' requests, of the resources a pod as a whole may have.
pub(super) fn total_requests(spec: &Value) -> Vec<(&str, Quantity)> {
    total(spec, "requests").into_iter().filter(|(n, _)| is_pod_level(n)).collect()
}

/// Fills in the `resources` of a whole pod where only a part of them was given.
pub(super) fn default_pod_level(spec: &mut Value) {
    if !spec.get("resources").is_some_and(Value::is_object) {
        return;
    }
    let owned = |t: Amounts<'_>| -> Vec<(String, Quantity)> { t.into_iter().map(|(n, a)| (n.to_owned(), a)).collect() };
    let (limits, requests) = (owned(total(spec, "limits")), owned(total(spec, "requests")));
    let get = |spec: &Value, which: &str| -> Map<String, Value> {
        spec["resources"].get(which).and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (mut pod_limits, mut pod_requests) = (get(spec, "limits"), get(spec, "requests"));
    let (limits_given, requests_given) = (!pod_limits.is_empty(), !pod_requests.is_empty());
    if !limits_given && !requests_given {
        return;
    }
    for (name, amount) in limits.iter().filter(|(n, _)| is_hugepages(n)) {
        if !pod_requests.contains_key(name) {
            pod_limits.entry(name.clone()).or_insert_with(|| amount.to_string().into());
        }
    }
    if !pod_limits.is_empty() {
        for (name, amount) in requests.iter().filter(|(n, _)| is_pod_level(n) && may_overcommit(n)) {
            pod_requests.entry(name.clone()).or_insert_with(|| amount.to_string().into());
        }
        for (name, amount) in pod_limits.iter().filter(|(n, _)| is_pod_level(n)) {
            pod_requests.entry(name.clone()).or_insert_with(|| amount.clone());
        }
    }
    if !limits_given && pod_limits.is_empty() && requests_given {
        let all_limit = |name: &str| {
            let has = |c: &Value| c.get("resources").and_then(|r| r.get("limits")).and_then(|l| l.get(name)).is_some();
            list(spec, "containers").iter().all(has)
                && list(spec, "initContainers").iter().filter(|c| text(c, "restartPolicy") == "Always").all(has)
        };
        for (name, amount) in limits.iter().filter(|(n, _)| is_pod_level(n) && may_overcommit(n) && all_limit(n)) {
            pod_limits.entry(name.clone()).or_insert_with(|| amount.to_string().into());
        }
    }
    for (which, amounts) in [("limits", pod_limits), ("requests", pod_requests)] {
        if !amounts.is_empty() {
            map_mut(spec, "resources").insert(which.into(), Value::Object(amounts));
        }
    }
}

/// `status.qosClass`: how firmly the pod's resources are promised.
pub fn qos_class(spec: &Value) -> &'static str {
    let whole =
        spec.get("resources").filter(|r| amounts(r.get("limits")).chain(amounts(r.get("requests"))).next().is_some());
    let groups: Vec<&Value> = match whole {
        Some(resources) => vec![resources],
        None => {
            let containers = list(spec, "containers").iter().chain(list(spec, "initContainers"));
            containers.map(|c| c.get("resources").unwrap_or(&Value::Null)).collect()
        }
    };
    let (mut limits, mut requests) = (Amounts::new(), Amounts::new());
    let mut guaranteed = true;
    for resources in groups {
        let mut limited = 0;
        for (which, sum) in [("requests", &mut requests), ("limits", &mut limits)] {
            for (name, amount) in amounts(resources.get(which)) {
                if !matches!(name, "cpu" | "memory") || amount.is_zero() || amount.is_negative() {
                    continue;
                }
                limited += usize::from(which == "limits");
                let entry =
                    sum.entry(if name == "cpu" { "cpu" } else { "memory" }).or_insert_with(|| Quantity::from_units(0));
                *entry = *entry + amount;
            }
        }
        guaranteed &= limited == 2;
    }
    if limits.is_empty() && requests.is_empty() {
        return "BestEffort";
    }
    let equal = limits.len() == requests.len() && limits.iter().all(|(n, l)| requests.get(n) == Some(l));
    if guaranteed && equal && limits.len() == 2 { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(resources: Value) -> Value {
        json!({"containers": [{"name": "a", "resources": resources}]})
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let full = json!({"cpu": "1", "memory": "1Gi"});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"requests": full, "limits": full}), "Guaranteed"),
            (json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": full}), "Burstable"),
            (json!({"requests": {"ephemeral-storage": "1"}}), "BestEffort"),
        ] {
            assert_eq!(qos_class(&pod(resources.clone())), class, "{resources}");
        }
    }

    #[test]
    fn sidecars_add_and_init_containers_take_the_most() {
        let spec = json!({
            "containers": [{"resources": {"requests": {"cpu": "1"}}}],
            "initContainers": [
                {"resources": {"requests": {"cpu": "200m"}}, "restartPolicy": "Always"},
                {"resources": {"requests": {"cpu": "1500m"}}},
            ],
        });
        assert_eq!(total_requests(&spec), vec![("cpu", "1700m".parse().unwrap())]);
    }

    #[test]
    fn a_pod_counts_as_large_as_it_is_and_as_it_says_of_itself() {
        let mut pod = json!({
            "spec": {"containers": [
                {"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "1"}}},
            ]},
            "status": {"containerStatuses": [
                {"name": "a", "allocatedResources": {"cpu": "2"}, "resources": {"requests": {"cpu": "3", "memory": "1Mi"}}},
            ]},
        });
        let cpu = |pod: &Value, which: &str| of_pod(pod, which).get("cpu").map(ToString::to_string);
        assert_eq!(cpu(&pod, "requests").as_deref(), Some("4"));
        assert_eq!(of_pod(&pod, "requests")["memory"].to_string(), "1Gi");
        assert_eq!(cpu(&pod, "limits"), None);
        pod["spec"]["resources"] = json!({"requests": {"cpu": "7", "ephemeral-storage": "1"}});
        assert_eq!(cpu(&pod, "requests").as_deref(), Some("7"));
        assert_eq!(of_pod(&pod, "requests").len(), 2, "only some resources are a whole pod's");
    }

    #[test]
    fn names_of_resources() {
        for (name, fine) in [
            ("cpu", true),
            ("hugepages-2Mi", true),
            ("foo", false),
            ("example.com/x", true),
            ("requests.example.com/x", false),
            ("kubernetes.io/x", true),
            ("a b", false),
        ] {
            assert_eq!(name_error(name).is_none(), fine, "{name}");
        }
    }
}
