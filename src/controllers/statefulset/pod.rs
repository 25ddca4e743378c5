//! The pod of a StatefulSet with one number: its name, its labels, and what follows from them.

use serde_json::Value;

use crate::base::json::{map_mut, set};
use crate::base::object::Object;
use crate::controllers::history::HASH;
use crate::controllers::{Member, pod_writer};
use crate::kinds::apps::statefulset::KIND;

/// The label with the pod's own name, for Services of one pod.
pub(super) const NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label with the pod's number.
pub(super) const INDEX: &str = "apps.kubernetes.io/pod-index";

/// The name of a pod.
pub(super) fn name(set: &str, ordinal: i64) -> String {
    format!("{set}-{ordinal}")
}

/// The number of a pod by its name; `None` where no pod of this set is called so.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i64> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let ordinal = i64::from(digits.parse::<u32>().ok()?);
    // Not `-01`, which would be a second pod of the same number.
    (name(set, ordinal) == pod).then_some(ordinal)
}

/// The pod of a revision's template with this number.
pub(super) fn new_pod(owner: &Object, template: &Value, revision: &str, service: &str, ordinal: i64) -> Value {
    let mut pod = pod_writer::new_pod(&KIND, owner, template);
    let name = name(&owner.meta.name, ordinal);
    set(&mut pod, "metadata.name", name.as_str());
    let labels = map_mut(&mut pod, "metadata.labels");
    labels.insert(HASH.into(), revision.into());
    for (key, value) in labels_of(&name, ordinal) {
        labels.insert(key.into(), value.into());
    }
    // Its names in the network stay the same wherever it runs.
    set(&mut pod, "spec.hostname", name.as_str());
    if !service.is_empty() {
        set(&mut pod, "spec.subdomain", service);
    }
    pod
}

/// The labels that follow from a pod's number.
pub(super) fn labels_of(name: &str, ordinal: i64) -> [(&'static str, String); 2] {
    [(NAME, name.to_owned()), (INDEX, ordinal.to_string())]
}

/// Whether a pod has the labels that follow from its number.
pub(super) fn has_labels(member: &Member, ordinal: i64) -> bool {
    labels_of(&member.object.meta.name, ordinal).iter().all(|(key, value)| member.label(key) == value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_number_has_one_name_and_a_name_one_number() {
        for (pod, want) in [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-01", None),
            ("web-", None),
            ("web", None),
            ("webs-0", None),
        ] {
            assert_eq!(ordinal("web", pod), want, "{pod}");
        }
        assert_eq!(ordinal("web", "web-1-0"), None);
        assert_eq!(ordinal("web-1", "web-1-0"), Some(0));
        assert_eq!(ordinal("web", "web-99999999999"), None);
        assert_eq!(ordinal("web", "web-+1"), None);
        // The last of as many as there can be, from as far as they can begin.
        assert_eq!(ordinal("web", &name("web", 2 * i64::from(i32::MAX))), Some(2 * i64::from(i32::MAX)));
    }

    #[test]
    fn a_pod_is_called_as_its_host_and_labelled_by_its_number() {
        let value = json!({"metadata": {"name": "web", "uid": "u"}});
        let owner = Object::new("web".into(), 1, &value, Box::default());
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}});
        let pod = new_pod(&owner, &template, "web-x", "s", 3);
        let metadata = &pod["metadata"];
        assert_eq!((&metadata["name"], &metadata["generateName"]), (&json!("web-3"), &json!("web-")));
        assert_eq!(metadata["labels"], json!({"a": "b", HASH: "web-x", NAME: "web-3", INDEX: "3"}));
        assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("web-3"), &json!("s")));
    }
}
