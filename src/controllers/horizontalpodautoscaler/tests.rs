//! Autoscalers on a paused clock, with numbers that the test says.

use crate::api::in_memory;
use crate::api::local::Local;
use crate::apimachinery::metrics::{ContainerMetrics, Described, MetricValue, Metrics, PodMetrics};
use crate::apimachinery::status::Status;
use crate::base::clock::Clock;
use crate::controllers::{Options, context};
use crate::kinds::apps::deployment;
use crate::kinds::autoscaling::horizontalpodautoscaler::v1;
use crate::kinds::core::{event, namespace, serviceaccount};
use crate::reconcile::Client;

use super::*;

/// What every pod uses of the CPU, in thousandths; nothing is known where that is negative.
#[derive(Debug, Default)]
struct Numbers {
    cpu: Mutex<i64>,
    external: Mutex<i64>,
    pods: Mutex<Vec<String>>,
}

#[async_trait]
impl Metrics for Numbers {
    async fn pods(&self, _: &str, _: &str) -> Result<Vec<PodMetrics>> {
        let cpu = *self.cpu.lock().unwrap();
        let of = |pod: &String| PodMetrics {
            pod: pod.clone(),
            at: Timestamp::MAX,
            window: Duration::from_secs(15),
            containers: vec![ContainerMetrics { name: "c".into(), milli: vec![("cpu".into(), cpu)] }],
        };
        Ok(if cpu < 0 { Vec::new() } else { self.pods.lock().unwrap().iter().map(of).collect() })
    }

    async fn custom(&self, _: &str, _: Described<'_>, _: &str, _: &str) -> Result<Vec<MetricValue>> {
        Err(Status::unavailable("no custom metrics API (custom.metrics.k8s.io) registered"))
    }

    async fn external(&self, _: &str, _: &str, _: &str) -> Result<Vec<i64>> {
        Ok(vec![*self.external.lock().unwrap()])
    }
}

struct World {
    client: Arc<dyn Client>,
    numbers: Arc<Numbers>,
}

impl World {
    /// A Deployment of `count` pods that run, and the controller.
    async fn begin(count: usize) -> Self {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), "test"));
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        client.create(&serviceaccount::KIND, "n", json!({"metadata": {"name": "default"}})).await.unwrap();
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i",
            "resources": {"requests": {"cpu": "100m"}}}]}});
        let workload = json!({"metadata": {"name": "web"}, "spec": {"replicas": count,
            "selector": {"matchLabels": {"a": "b"}}, "template": template}});
        client.create(&deployment::KIND, "n", workload).await.unwrap();
        let world = Self { client: client.clone(), numbers: Arc::default() };
        world.run_pods(count).await;
        let options = Options { metrics: Some(world.numbers.clone()), ..Options::default() };
        let cx = context(client, Clock::system(), options);
        controller(&cx).spawn();
        world
    }

    /// Makes pods that run, as many as there are to be.
    async fn run_pods(&self, count: usize) {
        let there = self.numbers.pods.lock().unwrap().len();
        for i in there..count {
            let name = format!("p{i}");
            let made = json!({"metadata": {"name": name, "labels": {"a": "b"}}, "spec": {"containers": [{"name": "c",
                "image": "i", "resources": {"requests": {"cpu": "100m"}}}]}});
            self.client.create(&pod::KIND, "n", made).await.unwrap();
            let status = json!({"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}]}});
            let patch = Patch::Merge(status);
            self.client.patch(&pod::KIND, "n", &name, Some(Subresource::Status), patch).await.unwrap();
            self.numbers.pods.lock().unwrap().push(name);
        }
    }

    async fn autoscale(&self, name: &str, more: Value) {
        let mut hpa = json!({"metadata": {"name": name}, "spec": {"minReplicas": 2, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}});
        hpa["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.client.create(&KIND, "n", hpa).await.unwrap();
    }

    fn replicas(&self) -> i32 {
        count(&self.client.informer(&deployment::KIND).get("n", "web").unwrap().value(), "spec.replicas")
    }

    fn hpa(&self, name: &str) -> Value {
        self.client.informer(&KIND).get("n", name).unwrap().value()
    }

    /// Status and reason of a condition.
    fn condition(&self, name: &str, of_type: &str) -> (String, String) {
        let hpa = self.hpa(name);
        let found =
            list(&hpa, "status.conditions").iter().find(|c| text(c, "type") == of_type).cloned().unwrap_or_default();
        (text(&found, "status").to_owned(), text(&found, "reason").to_owned())
    }

    fn events(&self) -> Vec<String> {
        let all = self.client.informer(&event::KIND).list("n");
        all.iter().map(|e| format!("{} {}", text(&e.value(), "reason"), text(&e.value(), "message"))).collect()
    }
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_workload_grows_with_its_use_and_shrinks_when_it_is_silent() {
    let world = World::begin(2).await;
    *world.numbers.cpu.lock().unwrap() = 70;
    let behavior = json!({"scaleDown": {"stabilizationWindowSeconds": 0}});
    world
        .autoscale(
            "web",
            json!({"behavior": behavior, "metrics": [{"type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]}),
        )
        .await;
    pass(20).await;
    assert_eq!(world.replicas(), 2, "at the target");
    assert_eq!(world.condition("web", ABLE), is("True", "ReadyForNewScale"));
    assert_eq!(world.condition("web", ACTIVE), is("True", "ValidMetricFound"));
    assert_eq!(world.condition("web", LIMITED), is("False", "DesiredWithinRange"));
    let current = world.hpa("web")["status"]["currentMetrics"][0]["resource"]["current"].take();
    assert_eq!(current, json!({"averageUtilization": 70, "averageValue": "70m"}));
    *world.numbers.cpu.lock().unwrap() = 400;
    pass(20).await;
    assert_eq!(world.replicas(), 5);
    assert_eq!(world.condition("web", ABLE), is("True", "SucceededRescale"));
    assert_eq!(world.condition("web", LIMITED), is("True", "TooManyReplicas"));
    let reason = "SuccessfulRescale New size: 5; reason: cpu resource utilization (percentage of request) above target";
    assert!(world.events().iter().any(|e| e == reason), "{:?}", world.events());
    let fields =
        world.client.informer(&deployment::KIND).get("n", "web").unwrap().value()["metadata"]["managedFields"].take();
    assert!(fields.as_array().unwrap().iter().any(|f| f["subresource"] == "scale"), "{fields}");
    world.run_pods(5).await;
    *world.numbers.cpu.lock().unwrap() = 1;
    pass(40).await;
    assert_eq!(world.replicas(), 2);
    assert!(world.events().iter().any(|e| e.contains("New size: 2; reason: All metrics below target")));
    assert_eq!(world.condition("web", LIMITED), is("True", "TooFewReplicas"));
    let written = world.client.informer(&KIND).get("n", "web").unwrap().revision;
    pass(60).await;
    assert_eq!(
        world.client.informer(&KIND).get("n", "web").unwrap().revision,
        written,
        "nothing changes, nothing is written"
    );
    let first = world.client.get(&v1::KIND, "n", "web").await.unwrap();
    assert_eq!(first.meta.name, "web".into());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_changes_nothing_and_is_told() {
    let world = World::begin(3).await;
    *world.numbers.cpu.lock().unwrap() = -1;
    world.autoscale("web", json!({})).await;
    pass(20).await;
    assert_eq!(world.replicas(), 3);
    assert_eq!(world.condition("web", ACTIVE), is("False", "FailedGetResourceMetric"));
    let why = "failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API";
    assert!(world.events().iter().any(|e| e == &format!("FailedGetResourceMetric {why}")), "{:?}", world.events());
    let whole = format!(
        "FailedComputeMetricsReplicas invalid metrics (1 invalid out of 1), first error is: failed to get cpu \
        resource metric value: {why}"
    );
    assert!(world.events().contains(&whole), "{:?}", world.events());
    *world.numbers.external.lock().unwrap() = 8_600;
    let external = json!({"type": "External", "external": {"metric": {"name": "queue"},
        "target": {"type": "AverageValue", "averageValue": "2150m"}}});
    let patch = Patch::Merge(json!({"spec": {"metrics": [external, world.hpa("web")["spec"]["metrics"][0]]}}));
    world.client.patch(&KIND, "n", "web", None, patch).await.unwrap();
    pass(20).await;
    assert_eq!(world.replicas(), 4, "what is known may ask for more");
    assert_eq!(world.condition("web", ACTIVE), is("True", "ValidMetricFound"));
    *world.numbers.external.lock().unwrap() = 2_150;
    pass(400).await;
    assert_eq!(world.replicas(), 4, "and not for less");
    assert_eq!(world.condition("web", ACTIVE), is("False", "FailedGetResourceMetric"));
}

#[tokio::test(start_paused = true)]
async fn targets_that_are_missing_shared_or_off_are_left_alone() {
    let world = World::begin(3).await;
    *world.numbers.cpu.lock().unwrap() = 80;
    world
        .autoscale("lost", json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "no"}}))
        .await;
    world.autoscale("odd", json!({"scaleTargetRef": {"apiVersion": "v1", "kind": "Thing", "name": "no"}})).await;
    world.autoscale("one", json!({})).await;
    world.autoscale("two", json!({})).await;
    pass(20).await;
    assert_eq!(world.condition("lost", ABLE), is("False", "FailedGetScale"));
    assert_eq!(world.condition("odd", ABLE), is("False", "FailedGetScale"));
    for name in ["one", "two"] {
        assert_eq!(world.condition(name, ACTIVE), is("False", "AmbiguousSelector"));
    }
    let why = "pods by selector a=b are controlled by multiple HPAs: [{one n} {two n}]";
    assert!(world.events().iter().any(|e| e == &format!("AmbiguousSelector {why}")), "{:?}", world.events());
    world.client.delete(&KIND, "n", "two", Default::default()).await.unwrap();
    let off = Patch::Merge(json!({"spec": {"replicas": 0}}));
    world.client.patch(&deployment::KIND, "n", "web", None, off).await.unwrap();
    pass(20).await;
    assert_eq!((world.replicas(), world.condition("one", ACTIVE)), (0, is("False", "ScalingDisabled")));
    let on = Patch::Merge(json!({"spec": {"replicas": 9}}));
    world.client.patch(&deployment::KIND, "n", "web", None, on).await.unwrap();
    pass(20).await;
    assert_eq!(world.replicas(), 5, "more than there may be");
}
