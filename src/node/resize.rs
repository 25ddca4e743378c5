//! Resources of a pod that change while it runs: what is granted, and in which order it is made so.
//!
//! Three things are told apart, as Kubernetes does: what the spec wants, what the node has granted
//! (`allocatedResources`, which counts against the node), and what the control groups have (`resources`). Pure: the worker
//! asks, and does what [`plan`] answers. What is granted survives a restart of the node in the pod's status.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::reported::reported;
use super::spec;
use crate::base::quantity::Quantity;
use crate::containers::Resources;

/// Resources by container, and those of the pod as a whole, if it says any, as those of [`WHOLE`].
pub type Shares = BTreeMap<String, ResourceRequirements>;
/// The pod as a whole among its containers: none of them has this name.
pub const WHOLE: &str = "";

/// Requests that count against a node, in thousandths of a CPU and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
}

/// What becomes of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is what is granted already.
    Same,
    Granted,
    /// Refused for now: there may be room when other pods go.
    Deferred(String),
    /// The node will never have as much.
    Infeasible(String),
}

/// One step from what the control groups have to what is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Limits of the pod as a whole, which must never be less than those of its containers.
    Pod(Resources),
    /// New limits for a running container.
    Container { name: String, limits: Resources, memory_shrinks: bool },
    /// It wants to begin anew to take notice.
    Restart { name: String },
}

// === impl Amounts ===

impl Amounts {
    /// What a pod requests while it runs: as a whole, or its containers and sidecars together.
    pub fn of(pod: &Pod) -> Self {
        let mut sum = Self::default();
        for c in resizable(pod) {
            let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
            sum.cpu_milli += quantity(requests, "cpu").map_or(0, |q| q.milli());
            sum.memory_bytes += quantity(requests, "memory").map_or(0, |q| q.units());
        }
        let whole = pod.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
        if let Some(cpu) = quantity(whole, "cpu") {
            sum.cpu_milli = cpu.milli();
        }
        if let Some(memory) = quantity(whole, "memory") {
            sum.memory_bytes = memory.units();
        }
        sum
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }
}

/// Amounts by name, as the API has them.
pub type Quantities = BTreeMap<String, Text>;

fn quantity(map: Option<&Quantities>, name: &str) -> Option<Quantity> {
    map?.get(name)?.0.parse().ok()
}

/// Containers whose resources may change: those that run beside one another.
fn resizable(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
    let sidecars = inits.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    sidecars.chain(spec.into_iter().flat_map(|s| &s.containers))
}

/// What the spec wants for each container, init ones included, and for the pod as a whole.
pub fn wanted(pod: &Pod) -> Shares {
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten();
    let all = inits.chain(spec.into_iter().flat_map(|s| &s.containers));
    let whole = spec.and_then(|s| s.resources.clone()).map(|r| (WHOLE.to_owned(), r));
    all.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).chain(whole).collect()
}

/// What was granted before, as the status has it; what the spec says for containers of which it says nothing.
pub fn granted(pod: &Pod) -> Shares {
    let mut all = wanted(pod);
    for s in reported(pod) {
        if let (Some(share), Some(resources)) = (all.get_mut(&s.name), &s.resources) {
            let requests = s.allocated_resources.clone().or_else(|| resources.requests.clone());
            // What nobody may change is as the spec has it.
            *share = ResourceRequirements { limits: resources.limits.clone(), requests, ..share.clone() };
        }
    }
    let status = pod.status.as_ref();
    let requests = status.and_then(|s| s.allocated_resources.clone());
    match (all.remove(WHOLE), status.and_then(|s| s.resources.as_ref())) {
        (Some(share), Some(has)) => {
            let requests = requests.or_else(|| has.requests.clone());
            all.insert(WHOLE.to_owned(), ResourceRequirements { limits: has.limits.clone(), requests, ..share });
        }
        (Some(share), None) if requests.is_none() => {
            all.insert(WHOLE.to_owned(), share);
        }
        // The pod was told what its containers have together: it has come to want something as a whole since then.
        _ => {}
    }
    all
}

/// What counts against the node: the requests of the pod as a whole, or those of its containers together.
pub fn allocated(pod: &Pod, granted: &Shares) -> Quantities {
    if let Some(requests) = granted.get(WHOLE).and_then(|share| share.requests.clone()) {
        return requests;
    }
    let pod = with(pod, granted);
    let Some(spec) = &pod.spec else { return Quantities::new() };
    let requests = |c: &Container| -> BTreeMap<String, Quantity> {
        let all = c.resources.as_ref().and_then(|r| r.requests.as_ref()).into_iter().flatten();
        all.filter_map(|(name, text)| Some((name.clone(), text.0.parse().ok()?))).collect()
    };
    let (mut runs, mut starts) = (BTreeMap::new(), BTreeMap::<String, Quantity>::new());
    spec.containers.iter().for_each(|c| add(&mut runs, requests(c)));
    let mut sidecars = BTreeMap::new();
    for c in spec.init_containers.iter().flatten() {
        let mut now = sidecars.clone();
        add(&mut now, requests(c));
        if c.restart_policy.as_deref() == Some("Always") {
            add(&mut runs, requests(c));
            sidecars = now.clone();
        }
        for (name, amount) in now {
            let most = starts.remove(&name).map_or(amount, |most| most.max(amount));
            starts.insert(name, most);
        }
    }
    for (name, amount) in starts {
        let most = runs.remove(&name).map_or(amount, |most: Quantity| most.max(amount));
        runs.insert(name, most);
    }
    runs.into_iter().map(|(name, amount)| (name, Text(amount.to_string()))).collect()
}

fn add(sum: &mut BTreeMap<String, Quantity>, more: BTreeMap<String, Quantity>) {
    for (name, amount) in more {
        let total = sum.remove(&name).map_or(amount, |before| before + amount);
        sum.insert(name, total);
    }
}

/// The pod with these resources instead of those that it wants.
pub fn with<'a>(pod: &'a Pod, shares: &Shares) -> Cow<'a, Pod> {
    if wanted(pod) == *shares {
        return Cow::Borrowed(pod);
    }
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        for c in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(share) = shares.get(&c.name) {
                c.resources = Some(share.clone());
            }
        }
        spec.resources = shares.get(WHOLE).cloned();
    }
    Cow::Owned(pod)
}

/// CPU request, CPU limit, memory request, memory limit.
fn amounts(r: &ResourceRequirements) -> [Option<i64>; 4] {
    let cpu = |map| quantity(map, "cpu").map(|q| q.milli());
    let memory = |map| quantity(map, "memory").map(|q| q.units());
    let (requests, limits) = (r.requests.as_ref(), r.limits.as_ref());
    [cpu(requests), cpu(limits), memory(requests), memory(limits)]
}

/// Whether two are the same, however they are written.
pub fn is_same(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    amounts(a) == amounts(b)
}

/// Whether all that matter are the same.
pub fn are_same(a: &Shares, b: &Shares) -> bool {
    a.len() == b.len() && a.iter().all(|(name, share)| b.get(name).is_some_and(|other| is_same(share, other)))
}

/// What becomes of the wish of a pod on a node with this capacity where the other pods have so much.
pub fn decide(pod: &Pod, granted: &Shares, others: Amounts, capacity: Amounts) -> Decision {
    if are_same(&wanted(pod), granted) {
        return Decision::Same;
    }
    let (now, had) = (Amounts::of(pod), Amounts::of(&with(pod, granted)));
    let rows = [
        ("cpu", now.cpu_milli, had.cpu_milli, others.cpu_milli, capacity.cpu_milli),
        ("memory", now.memory_bytes, had.memory_bytes, others.memory_bytes, capacity.memory_bytes),
    ];
    for (name, now, _, _, capacity) in rows {
        if now > capacity {
            let why = format!("Node didn't have enough capacity: {name}, requested: {now}, capacity: {capacity}");
            return Decision::Infeasible(why);
        }
    }
    for (name, now, had, others, capacity) in rows {
        // Whoever asks for less is never refused.
        if now > had && now.saturating_add(others) > capacity {
            let why = format!(
                "Node didn't have enough resource: {name}, requested: {now}, used: {others}, capacity: {capacity}"
            );
            return Decision::Deferred(why);
        }
    }
    Decision::Granted
}

/// The limits of the pod as a whole with these resources.
pub fn of_pod(pod: &Pod, shares: &Shares) -> Resources {
    spec::pod_resources(&with(pod, shares))
}

/// What the limits of each container are with these resources: one that says none has those of the pod as a whole.
pub fn of_containers(pod: &Pod, shares: &Shares) -> Limits {
    let pod = with(pod, shares);
    let all = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    all.map(|c| (c.name.clone(), spec::resources(&pod, c))).collect()
}

/// Limits by container.
pub type Limits = BTreeMap<String, Resources>;

/// What the control groups have.
#[derive(Clone, Copy, Debug)]
pub struct Has<'a> {
    pub shares: &'a Shares,
    pub limits: &'a Limits,
    pub pod: &'a Resources,
}

/// The way from what the control groups have, that of the pod as a whole included, to what is granted; for the containers
/// that run. It narrows the pod only when no container must begin anew for it: whoever must has more until then.
pub fn plan(pod: &Pod, has: Has<'_>, granted: &Shares, runs: impl Fn(&str) -> bool) -> Vec<Step> {
    let after = with(pod, granted);
    let mut steps = Vec::new();
    for c in resizable(&after) {
        let (Some(was), Some(now)) = (has.shares.get(&c.name), granted.get(&c.name)) else { continue };
        let (limits, old) = (spec::resources(&after, c), has.limits.get(&c.name).cloned().unwrap_or_default());
        if !runs(&c.name) || is_same(was, now) && limits == old {
            continue;
        }
        let ([request, limit, _, memory], [old_request, old_limit, _, old_memory]) = (amounts(now), amounts(was));
        // Who says no limit has that of the pod, and takes notice of its changes as of those of its own.
        let of_cpu = (limits.cpu_shares, limits.cpu_quota) != (old.cpu_shares, old.cpu_quota);
        let of_memory = limits.memory_limit_bytes != old.memory_limit_bytes;
        let changes = [
            ("cpu", of_cpu || (request, limit) != (old_request, old_limit)),
            ("memory", of_memory || memory != old_memory),
        ];
        let restarts = |name: &str| {
            let policies = c.resize_policy.iter().flatten();
            policies.into_iter().any(|p| p.resource_name == name && p.restart_policy == "RestartContainer")
        };
        let name = c.name.clone();
        steps.push(match changes.into_iter().any(|(name, changes)| changes && restarts(name)) {
            true => Step::Restart { name },
            false => {
                let memory_shrinks = shrinks(&old, &limits);
                Step::Container { name, limits, memory_shrinks }
            }
        });
    }
    let new = spec::pod_resources(&after);
    if *has.pod == new {
        return steps;
    }
    let wider = wider(has.pod, &new);
    let restarts = steps.iter().any(|s| matches!(s, Step::Restart { .. }));
    let first = (wider != *has.pod).then(|| Step::Pod(wider.clone()));
    let last = (wider != new && !restarts).then_some(Step::Pod(new));
    first.into_iter().chain(steps).chain(last).collect()
}

/// Whether less memory may be used than before.
pub fn shrinks(old: &Resources, new: &Resources) -> bool {
    let (old, new) = (old.memory_limit_bytes, new.memory_limit_bytes);
    new.is_some_and(|new| old.is_none_or(|old| new < old))
}

/// The larger of each limit: what fits both.
fn wider(a: &Resources, b: &Resources) -> Resources {
    let quota = match (a.cpu_quota, b.cpu_quota) {
        (Some(a), Some(b)) if a > 0 && b > 0 => Some(a.max(b)),
        (None, None) => None,
        // One of them has none.
        _ => Some(-1),
    };
    Resources {
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_quota: quota,
        memory_limit_bytes: a.memory_limit_bytes.zip(b.memory_limit_bytes).map(|(a, b)| a.max(b)),
        ..b.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn share(cpu: &str, memory: &str) -> Value {
        json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
    }

    fn pod(containers: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})).unwrap()
    }

    fn one(cpu: &str, memory: &str) -> Pod {
        pod(json!([{"name": "a", "resources": share(cpu, memory)}]))
    }

    fn steps(from: &Pod, to: &Pod, runs: impl Fn(&str) -> bool) -> Vec<Step> {
        let shares = wanted(from);
        let has = Has { shares: &shares, limits: &of_containers(from, &shares), pod: &of_pod(from, &shares) };
        plan(to, has, &wanted(to), runs)
    }

    fn as_a_whole(whole: Value, containers: Value) -> Pod {
        let mut pod = pod(containers);
        pod.spec.as_mut().unwrap().resources = serde_json::from_value(whole).unwrap();
        pod
    }

    #[test]
    fn who_says_no_limit_grows_and_shrinks_with_the_pod_as_a_whole() {
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        let of = |memory: &str, policy: &Value| {
            let own = json!({"limits": {"memory": "16Mi"}});
            let containers = json!([{"name": "own", "resources": own, "resizePolicy": policy}, {"name": "free", "resizePolicy": policy}]);
            as_a_whole(share("1", memory), containers)
        };
        let (small, large) = (of("64Mi", &json!([])), of("128Mi", &json!([])));
        let names = |steps: &[Step]| -> Vec<String> {
            let text = |s: &Step| match s {
                Step::Pod(r) => format!("pod {}", r.memory_limit_bytes.unwrap() >> 20),
                Step::Container { name, limits, memory_shrinks } => {
                    format!("{name} {} {memory_shrinks}", limits.memory_limit_bytes.unwrap() >> 20)
                }
                Step::Restart { name } => format!("restart {name}"),
            };
            steps.iter().map(text).collect()
        };
        assert_eq!(names(&steps(&small, &large, |_| true)), ["pod 128", "free 128 false"]);
        assert_eq!(names(&steps(&large, &small, |_| true)), ["free 64 true", "pod 64"]);
        let (small, large) = (of("64Mi", &policy), of("128Mi", &policy));
        assert_eq!(names(&steps(&large, &small, |_| true)), ["restart free"]);
        // Once it has begun anew with what was granted, it does not begin anew again.
        let shares = wanted(&large);
        let has =
            Has { shares: &shares, limits: &of_containers(&small, &wanted(&small)), pod: &of_pod(&large, &shares) };
        assert_eq!(names(&plan(&small, has, &wanted(&small), |_| true)), ["pod 64"]);
    }

    #[test]
    fn what_a_pod_as_a_whole_was_granted_is_in_its_status() {
        let containers = json!([{"name": "a", "resources": {"requests": {"cpu": "100m"}}}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]);
        let mut pod = as_a_whole(share("2", "200Mi"), containers);
        assert!(are_same(&granted(&pod), &wanted(&pod)), "nothing is known: as it wants");
        let status = |status: Value| serde_json::from_value(status).unwrap();
        pod.status =
            status(json!({"allocatedResources": {"cpu": "1", "memory": "100Mi"}, "resources": share("1", "100Mi")}));
        let before = granted(&pod);
        assert_eq!(before[WHOLE], serde_json::from_value(share("1", "100Mi")).unwrap());
        assert_eq!(Amounts::of(&with(&pod, &before)), Amounts { cpu_milli: 1000, memory_bytes: 100 << 20 });
        assert_eq!(allocated(&pod, &before), serde_json::from_value(json!({"cpu": "1", "memory": "100Mi"})).unwrap());
        assert!(matches!(
            decide(&pod, &before, Amounts { cpu_milli: 1, ..Amounts::default() }, NODE),
            Decision::Deferred(_)
        ));
        // It has come to want something as a whole.
        pod.status = status(json!({"allocatedResources": {"cpu": "1100m"}}));
        let before = granted(&pod);
        assert!(!before.contains_key(WHOLE) && with(&pod, &before).spec.as_ref().unwrap().resources.is_none());
        assert_eq!(allocated(&pod, &before), serde_json::from_value(json!({"cpu": "1100m"})).unwrap(), "all together");
        assert_eq!(decide(&pod, &before, Amounts::default(), NODE), Decision::Granted);
    }

    const NODE: Amounts = Amounts { cpu_milli: 2000, memory_bytes: 1 << 30 };

    #[test]
    fn a_wish_is_granted_where_there_is_room_deferred_where_others_are_and_infeasible_beyond_the_node() {
        let granted = wanted(&one("500m", "100Mi"));
        let decide = |cpu: &str, memory: &str, others: i64| {
            let others = Amounts { cpu_milli: others, memory_bytes: 0 };
            decide(&one(cpu, memory), &granted, others, NODE)
        };
        assert_eq!(decide("0.5", "102400Ki", 0), Decision::Same, "however it is written");
        assert_eq!(decide("1", "100Mi", 1000), Decision::Granted);
        let deferred = "Node didn't have enough resource: cpu, requested: 1000, used: 1001, capacity: 2000";
        assert_eq!(decide("1", "100Mi", 1001), Decision::Deferred(deferred.into()));
        let infeasible = "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000";
        assert_eq!(decide("3", "100Mi", 0), Decision::Infeasible(infeasible.into()));
        assert!(
            matches!(decide("1", "2Gi", 0), Decision::Infeasible(why) if why.contains("memory, requested: 2147483648"))
        );
        assert_eq!(decide("400m", "100Mi", 1900), Decision::Granted, "less is never refused");
        let mut whole = one("500m", "100Mi");
        whole.spec.as_mut().unwrap().resources = serde_json::from_value(json!({"requests": {"cpu": "1500m"}})).unwrap();
        assert_eq!(Amounts::of(&whole), Amounts { cpu_milli: 1500, memory_bytes: 100 << 20 });
    }

    #[test]
    fn a_pod_grows_before_its_containers_and_shrinks_after_them() {
        let (small, large) = (one("100m", "64Mi"), one("200m", "128Mi"));
        let names = |from: &Pod, to: &Pod| -> Vec<String> {
            let steps = steps(from, to, |_| true);
            let text = |s: &Step| match s {
                Step::Pod(r) => format!("pod {}", r.memory_limit_bytes.unwrap() >> 20),
                Step::Container { name, limits, memory_shrinks } => {
                    format!("{name} {} {memory_shrinks}", limits.memory_limit_bytes.unwrap() >> 20)
                }
                Step::Restart { name } => format!("restart {name}"),
            };
            steps.iter().map(text).collect()
        };
        assert_eq!(names(&small, &large), ["pod 128", "a 128 false"]);
        assert_eq!(names(&large, &small), ["a 64 true", "pod 64"]);
        assert!(names(&small, &small).is_empty());
        let moved = |a: &str, b: &str| {
            pod(json!([{"name": "a", "resources": share("1", a)}, {"name": "b", "resources": share("1", b)}]))
        };
        // What one gives the other takes: neither may be beyond the pod at any moment.
        assert_eq!(names(&moved("64Mi", "16Mi"), &moved("16Mi", "96Mi")), ["pod 112", "a 16 true", "b 96 false"]);
        let steps = steps(&small, &large, |_| false);
        assert!(steps.iter().all(|s| matches!(s, Step::Pod(_))), "who does not run is started with them: {steps:?}");
    }

    #[test]
    fn a_container_restarts_only_for_what_it_wants_to_restart_for() {
        let of = |cpu: &str, memory: &str| {
            let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"},
                {"resourceName": "cpu", "restartPolicy": "NotRequired"}]);
            pod(json!([{"name": "a", "resources": share(cpu, memory), "resizePolicy": policy}]))
        };
        let restarts = |to: &Pod| steps(&of("100m", "64Mi"), to, |_| true);
        let again = || Step::Restart { name: "a".into() };
        assert!(restarts(&of("100m", "65Mi")).contains(&again()) && restarts(&of("200m", "65Mi")).contains(&again()));
        assert!(!restarts(&of("200m", "64Mi")).contains(&again()));
        assert_eq!(restarts(&of("100m", "32Mi")), [again()], "the pod shrinks when it has begun anew");
        let (small, wide) = (of("100m", "32Mi"), of("100m", "64Mi"));
        let shares = wanted(&small);
        let has = Has { shares: &shares, limits: &of_containers(&small, &shares), pod: &of_pod(&wide, &wanted(&wide)) };
        let then = plan(&small, has, &shares, |_| true);
        assert_eq!(then, [Step::Pod(of_pod(&small, &wanted(&small)))]);
    }

    #[test]
    fn what_was_granted_is_in_the_status() {
        let mut pod = one("1", "200Mi");
        let status = json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": {"cpu": "500m", "memory": "100Mi"}, "resources": share("500m", "100Mi")}]});
        pod.status = serde_json::from_value(status).unwrap();
        assert!(are_same(&granted(&pod), &wanted(&one("500m", "100Mi"))));
        assert_eq!(Amounts::of(&with(&pod, &granted(&pod))), Amounts { cpu_milli: 500, memory_bytes: 100 << 20 });
        pod.status = None;
        assert!(are_same(&granted(&pod), &wanted(&one("1", "200Mi"))), "nothing is known: as it wants");
    }
}
