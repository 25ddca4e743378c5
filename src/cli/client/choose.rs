//! Which pod and container `logs` and `exec` mean, chosen as kubectl chooses.

use anyhow::{Result, bail};
use http::Method;
use serde_json::Value;

use super::discovery::{Resource, Resources};
use super::{Cluster, escape};
use crate::base::labels::Selector;
use crate::cli::complain;

/// The container that stands for the pod where none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// What is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Logs,
    Exec,
}

/// A pod, and one of its containers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub pod: String,
    pub container: String,
}

/// Finds what `NAME`, `pod/NAME` or `KIND/NAME` means; of several pods, and of several containers, one is taken and told.
pub(super) async fn choose(
    cluster: &mut Cluster,
    target: &str,
    container: Option<&str>,
    purpose: Purpose,
) -> Result<Chosen> {
    let (kind, name) = target.split_once('/').unwrap_or(("pod", target));
    let is_pod = ["pod", "pods", "po"].contains(&kind);
    let pod = match (is_pod, container) {
        (true, Some(container)) => return Ok(Chosen { pod: name.to_owned(), container: container.to_owned() }),
        (true, None) => {
            let path = format!("/api/v1/namespaces/{}/pods/{}", escape(&cluster.namespace), escape(name));
            cluster.object(Method::GET, &path, None).await?
        }
        (false, _) => {
            let resources = Resources::load(cluster).await?;
            of_owner(cluster, resources.named(kind)?, name, purpose).await?
        }
    };
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match container {
        Some(container) => Ok(Chosen { pod: pod_name, container: container.to_owned() }),
        None => {
            let (container, note) = default_container(&pod)?;
            if let Some(note) = note {
                complain(&note);
            }
            Ok(Chosen { pod: pod_name, container })
        }
    }
}

/// One of the pods that an object selects.
async fn of_owner(cluster: &mut Cluster, resource: &Resource, name: &str, purpose: Purpose) -> Result<Value> {
    let path = format!("{}/{}", resource.path(&cluster.namespace), escape(name));
    let object = cluster.object(Method::GET, &path, None).await?;
    let Some(selector) = selector_of(&object["spec"]["selector"]) else {
        bail!("{}/{name} selects no pods: expected a pod, or what has pods such as a deployment", resource.shown());
    };
    let namespace = escape(&cluster.namespace);
    let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={}", escape(&selector));
    let mut list = cluster.object(Method::GET, &path, None).await?;
    let mut pods = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    if pods.is_empty() {
        bail!("{}/{name} has no pods", resource.shown());
    }
    pods.sort_by_key(|pod| order(pod, purpose));
    let pod = pods.swap_remove(0);
    if !pods.is_empty() {
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
        complain(&format!("Found {} pods, using pod/{pod_name}", pods.len() + 1));
    }
    Ok(pod)
}

/// A selector as a query has it: of labels alone, as a Service's, or of a workload.
fn selector_of(selector: &Value) -> Option<String> {
    let map = selector.as_object().filter(|map| !map.is_empty())?;
    let is_plain = map.values().all(Value::is_string);
    let (labels, expressions) = match is_plain {
        true => (selector, &Value::Null),
        false => (&selector["matchLabels"], &selector["matchExpressions"]),
    };
    let label = |(key, value): (&String, &Value)| Some(format!("{key}={}", value.as_str()?));
    let mut parts: Vec<String> = labels.as_object().into_iter().flatten().filter_map(label).collect();
    for expression in expressions.as_array().into_iter().flatten() {
        let key = expression["key"].as_str()?;
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str()? {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        });
    }
    let text = parts.join(",");
    (!text.is_empty() && Selector::parse(&text).is_ok()).then_some(text)
}

/// The best one first: it has a node, runs, is ready, and is old. To run something in, one that seldom restarts; to read of
/// what happened, one that often does.
fn order(pod: &Value, purpose: Purpose) -> (bool, u8, bool, i64, String, String) {
    let status = &pod["status"];
    let phase = match status["phase"].as_str() {
        Some("Running") => 0,
        Some("Unknown") => 1,
        Some("Pending") => 2,
        _ => 3,
    };
    let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    let ready = status["conditions"].as_array().into_iter().flatten().any(is_ready);
    let restarts = status["containerStatuses"].as_array().into_iter().flatten();
    let restarts = restarts.filter_map(|c| c["restartCount"].as_i64()).max().unwrap_or(0);
    let text = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
    let restarts = if purpose == Purpose::Logs { -restarts } else { restarts };
    let has_node = pod["spec"]["nodeName"].as_str().is_some_and(|name| !name.is_empty());
    (!has_node, phase, !ready, restarts, text("creationTimestamp"), text("name"))
}

/// The container that is meant where none is named, and what to say of it where there are others.
fn default_container(pod: &Value) -> Result<(String, Option<String>)> {
    let names = |list: &str, mark: &str| -> Vec<String> {
        let all = pod["spec"][list].as_array().into_iter().flatten();
        all.filter_map(|c| c["name"].as_str()).map(|name| format!("{name}{mark}")).collect()
    };
    let plain = names("containers", "");
    if let Some(named) = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str()
        && [&plain[..], &names("initContainers", ""), &names("ephemeralContainers", "")]
            .concat()
            .iter()
            .any(|n| n == named)
    {
        return Ok((named.to_owned(), None));
    }
    let Some(first) = plain.first().cloned() else { bail!("the pod has no containers") };
    let all = [plain, names("ephemeralContainers", " (ephem)"), names("initContainers", " (init)")].concat();
    let note = (all.len() > 1).then(|| format!("Defaulted container {first:?} out of: {}", all.join(", ")));
    Ok((first, note))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_container_stands_for_the_pod_whatever_was_added_to_debug_it() {
        let pod = |extra: &Value, annotations: &Value| {
            let mut spec = json!({"containers": [{"name": "a"}]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"metadata": {"annotations": annotations}, "spec": spec})
        };
        let chosen = |pod: &Value| default_container(pod).unwrap();
        assert_eq!(chosen(&pod(&json!({}), &Value::Null)), ("a".into(), None));
        let debugged = json!({"ephemeralContainers": [{"name": "d"}], "initContainers": [{"name": "i"}]});
        let note = "Defaulted container \"a\" out of: a, d (ephem), i (init)";
        assert_eq!(chosen(&pod(&debugged, &Value::Null)), ("a".into(), Some(note.into())));
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(chosen(&pod(&two, &json!({DEFAULT_CONTAINER: "b"}))), ("b".into(), None));
        assert_eq!(chosen(&pod(&two, &json!({DEFAULT_CONTAINER: "gone"}))).0, "a");
    }

    #[test]
    fn pods_of_a_workload_are_ordered_as_kubectl_orders_them() {
        let pod = |name: &str, phase: &str, ready: &str, restarts: i64, node: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": name}, "spec": {"nodeName": node},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}],
                           "containerStatuses": [{"restartCount": restarts}]}})
        };
        let all = [
            pod("1-waits", "Pending", "False", 0, ""),
            pod("2-starts", "Pending", "False", 0, "n"),
            pod("3-unready", "Running", "False", 0, "n"),
            pod("4-restarts", "Running", "True", 3, "n"),
            pod("5-good", "Running", "True", 0, "n"),
            pod("6-younger", "Running", "True", 0, "n"),
        ];
        let sorted = |purpose| {
            let mut all = all.to_vec();
            all.sort_by_key(|p| order(p, purpose));
            all.iter().map(|p| p["metadata"]["name"].as_str().unwrap()[..1].to_owned()).collect::<String>()
        };
        assert_eq!((sorted(Purpose::Exec), sorted(Purpose::Logs)), ("564321".into(), "456321".into()));
    }

    #[test]
    fn selectors_of_services_and_of_workloads_become_queries() {
        assert_eq!(selector_of(&json!({"app": "a", "tier": "b"})).unwrap(), "app=a,tier=b");
        let expressions = json!([{"key": "x", "operator": "In", "values": ["1", "2"]}, {"key": "y", "operator": "Exists"},
                                 {"key": "z", "operator": "DoesNotExist"}, {"key": "w", "operator": "NotIn", "values": ["3"]}]);
        let selector = json!({"matchLabels": {"app": "a"}, "matchExpressions": expressions});
        assert_eq!(selector_of(&selector).unwrap(), "app=a,x in (1,2),y,!z,w notin (3)");
        assert_eq!(selector_of(&Value::Null), None);
        assert_eq!(selector_of(&json!({})), None);
    }
}
