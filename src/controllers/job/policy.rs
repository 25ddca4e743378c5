//! What failures and successes of single pods mean for the whole Job, where it says so.

use k8s_openapi::api::batch::v1::{PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::view::View;
use crate::kinds::batch::indexes::Indexes;

/// What becomes of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Ignore,
    Count,
    FailIndex,
    /// The Job fails, for this reason.
    FailJob(String),
}

/// What a Job says of a failed pod: the first rule that matches, else it counts.
pub(super) fn on_failure(view: &View<'_>, pod: &Pod) -> Action {
    let rules = view.spec.pod_failure_policy.iter().flat_map(|p| p.rules.iter().enumerate());
    let mut found = rules.filter_map(|(i, rule)| {
        let why = matching(rule, pod)?;
        match &*rule.action {
            "Ignore" => Some(Action::Ignore),
            "Count" => Some(Action::Count),
            "FailIndex" => Some(Action::FailIndex),
            "FailJob" => Some(Action::FailJob(format!("{why} matching {} rule at index {i}", rule.action))),
            // What a later version means by it is not known.
            _ => None,
        }
    });
    found.next().unwrap_or(Action::Count)
}

/// What a rule matches in a pod, in words.
fn matching(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let place = format!("{}/{}", namespace.unwrap_or(""), name.unwrap_or(""));
    if let Some(codes) = &rule.on_exit_codes {
        let containers = status.container_statuses.iter().flatten();
        let mut all = containers.chain(status.init_container_statuses.iter().flatten());
        let (container, code) = all.find_map(|c| Some((&c.name, exit_code(c, codes)?)))?;
        return Some(format!("Container {container} for pod {place} failed with exit code {code}"));
    }
    let patterns = rule.on_pod_conditions.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let found = conditions
        .find(|c| patterns.iter().any(|p| p.type_ == c.type_ && p.status.as_deref().unwrap_or("True") == c.status))?;
    Some(format!("Pod {place} has condition {}", found.type_))
}

/// The exit code of a failed container, if it is one that is meant.
fn exit_code(container: &ContainerStatus, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<i32> {
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    let named = wanted.container_name.as_ref().is_none_or(|name| *name == container.name);
    let listed = wanted.values.contains(&code);
    let meant = match &*wanted.operator {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    (named && code != 0 && meant).then_some(code)
}

/// The rule of a success policy that is met, in words.
pub(super) fn success(policy: Option<&SuccessPolicy>, completions: i64, succeeded: &Indexes) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let is_met = |rule: &k8s_openapi::api::batch::v1::SuccessPolicyRule| {
        let enough = |have: i64| rule.succeeded_count.is_some_and(|wanted| have >= i64::from(wanted));
        match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = Indexes::of_status(text, completions);
                let have = wanted.common(succeeded);
                !wanted.is_empty() && (have == wanted.count() || enough(have))
            }
            None => enough(succeeded.count()),
        }
    };
    let place = policy?.rules.iter().position(is_met)?;
    Some(format!("Matched rules at index {place}"))
}
