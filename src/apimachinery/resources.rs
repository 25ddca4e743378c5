//! Amounts of resources: what pods ask for and what nodes have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::base::quantity::Quantity;

/// What a container without requests counts for when nodes are compared.
const CPU_DEFAULT: i64 = 100;
const MEMORY_DEFAULT: i64 = 200 << 20;

/// Amounts by name: `cpu` in thousandths, everything else in units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(pub BTreeMap<String, i64>);

// === impl Resources ===

impl Resources {
    /// From a `resources.requests` or `status.allocatable`.
    pub fn of(list: Option<&BTreeMap<String, Text>>) -> Self {
        let amount = |(name, text): (&String, &Text)| {
            let quantity: Quantity = text.0.parse().ok()?;
            Some((name.clone(), if name == "cpu" { quantity.milli() } else { quantity.units() }))
        };
        Self(list.into_iter().flatten().filter_map(amount).collect())
    }

    /// The amount of one resource.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds other amounts.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let here = self.0.entry(name.clone()).or_default();
            *here = here.saturating_add(*amount);
        }
    }

    /// Takes other amounts away.
    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            if let Some(here) = self.0.get_mut(name) {
                *here = here.saturating_sub(*amount);
            }
        }
    }

    fn max(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let here = self.0.entry(name.clone()).or_default();
            *here = (*here).max(*amount);
        }
    }
}

/// What a pod asks for: its containers together or its hungriest start, and its overhead.
pub fn requests(pod: &Pod) -> Resources {
    pod.spec.as_ref().map(|s| total(s, &|c| requested(c.resources.as_ref()))).unwrap_or_default()
}

/// As [`requests`], with something for containers that ask for nothing, so that these are spread too.
pub fn weight(pod: &Pod) -> Resources {
    let one = |c: &Container| {
        let mut r = requested(c.resources.as_ref());
        r.0.entry("cpu".into()).or_insert(CPU_DEFAULT);
        r.0.entry("memory".into()).or_insert(MEMORY_DEFAULT);
        r
    };
    pod.spec.as_ref().map(|s| total(s, &one)).unwrap_or_default()
}

fn requested(resources: Option<&ResourceRequirements>) -> Resources {
    Resources::of(resources.and_then(|r| r.requests.as_ref()))
}

fn total(spec: &PodSpec, one: &dyn Fn(&Container) -> Resources) -> Resources {
    let mut run = Resources::default();
    spec.containers.iter().for_each(|c| run.add(&one(c)));
    // Sidecars run on; other init containers run alone beside the sidecars before them.
    let (mut start, mut sidecars) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let mut now = one(container);
        if container.restart_policy.as_deref() == Some("Always") {
            run.add(&now);
            sidecars.add(&now);
            now = sidecars.clone();
        } else {
            now.add(&sidecars);
        }
        start.max(&now);
    }
    run.max(&start);
    // What the pod as a whole asks for replaces the sum.
    for (name, amount) in requested(spec.resources.as_ref()).0 {
        run.0.insert(name, amount);
    }
    run.add(&Resources::of(spec.overhead.as_ref()));
    run
}
