//! What a rollout and an idle node cost in store commits: the real controllers, scheduler and node agent, with a
//! pretended runtime below. Each commit is a sync to the disk (an SD card's life), and most of a pod's time to Ready.

use std::sync::Arc;
use std::time::Duration;

use amphipod::api::local::Local;
use amphipod::containers::Runtime;
use amphipod::containers::fake::{FakeImages, FakeRuntime};
use amphipod::kinds::apps::deployment;
use amphipod::kinds::core::{event, node as node_kind, pod, serviceaccount};
use amphipod::net::pod::FakePodNetwork;
use amphipod::node::{self, Node, heartbeat};
use amphipod::reconcile::{Client, Recorder};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::world::World;
use amphipod::node::capacity;

const NAME: &str = "node-r";
/// More than any of these can take, in the simulation's time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of one real node agent that has come to rest.
pub struct Small {
    world: World,
    runtime: FakeRuntime,
    tasks: Vec<tokio::task::JoinHandle<Option<()>>>,
    _directory: tempfile::TempDir,
}

// === impl Small ===

impl Small {
    pub async fn new(seed: u64) -> Self {
        let world = World::new(seed, 0, 0, 0).await;
        let directory = tempfile::tempdir().unwrap();
        let client: Arc<dyn Client> = Arc::new(Local::new(world.api.clone(), "kubelet"));
        let config = node::Config {
            annotations: Vec::new(),
            name: NAME.into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            external_addresses: Vec::new(),
            labels: Vec::new(),
            taints: Vec::new(),
            kubelet_port: 0,
            grace: Duration::from_secs(40),
            data_dir: directory.path().join("data"),
            run_dir: directory.path().join("run"),
            log_dir: directory.path().join("logs"),
            cgroup_root: "amphipod".into(),
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            default_registry: None,
            unsafe_sysctls: Vec::new(),
        };
        heartbeat::register(&*client, &config).await.unwrap();
        let clock = world.clock.clone();
        let runtime = FakeRuntime::new(Arc::new(move || clock.now()));
        let node = Arc::new(Node {
            config,
            runtime: Arc::new(runtime.clone()),
            images: Arc::new(FakeImages::default()),
            network: Arc::new(FakePodNetwork::new("10.42.0.0/24".parse().unwrap())),
            clock: world.clock.clone(),
            recorder: Recorder::new(client.clone(), world.clock.clone(), "kubelet", NAME),
            capacity: capacity::Capacity { cpus: 4, memory_bytes: 8 << 30, disk_bytes: 100 << 30 },
            host_ports: watch::Sender::new(Vec::new()),
            unpublished: watch::channel(Vec::new()).1,
            probe_results: node::probe_results::Results::default(),
            ca: b"ca".to_vec(),
            client,
        });
        let (ready, _) = watch::channel(false);
        let tasks = vec![
            amphipod::base::task::spawn("pods", node::pods::run(node.clone(), ready)),
            amphipod::base::task::spawn("heartbeat", heartbeat::run(node)),
        ];
        let small = Self { world, runtime, tasks, _directory: directory };
        small.until("the node is Ready", || small.read(&node_kind::KIND, "", NAME).is_some_and(|n| is_ready(&n))).await;
        let account = || small.read(&serviceaccount::KIND, "default", "default").is_some();
        small.until("the default account is there", account).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        small
    }

    fn read(&self, kind: &'static amphipod::kinds::KindRef, namespace: &str, name: &str) -> Option<Value> {
        self.world.user.informer(kind).get(namespace, name).map(|o| o.value())
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// The keys of each durable commit since the last call.
    fn commits(&self) -> Vec<String> {
        std::mem::take(&mut self.world.checkers.lock().unwrap().commits)
    }

    fn end(self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        let outcome = self.world.end();
        assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
    }
}

fn is_ready(object: &Value) -> bool {
    let all = object["status"]["conditions"].as_array();
    all.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Every durable commit from the creation of a Deployment of one replica until nothing moves any more.
pub async fn of_a_rollout(seed: u64) -> Vec<String> {
    let small = Small::new(seed).await;
    small.commits();
    let template =
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "image:1"}]}});
    let spec = json!({"selector": {"matchLabels": {"app": "a"}}, "template": template});
    let object = json!({"metadata": {"name": "a"}, "spec": spec});
    small.world.user.create(&deployment::KIND, "default", object).await.unwrap();
    let complete = || {
        small.read(&deployment::KIND, "default", "a").is_some_and(|d| {
            let all = d["status"]["conditions"].as_array();
            d["status"]["availableReplicas"] == 1
                && all.into_iter().flatten().any(|c| c["reason"] == "NewReplicaSetAvailable")
        })
    };
    small.until("the Deployment is complete", complete).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let commits = small.commits();
    small.end();
    commits
}

/// What is told of a pod with users of its own on a node that lacks what they take, of which nothing is made.
pub async fn of_users_that_cannot_be(lacks: &str) -> Vec<String> {
    let small = Small::new(1).await;
    small.runtime.lack_users(lacks);
    let spec = json!({"nodeName": NAME, "hostUsers": false, "containers": [{"name": "c", "image": "image:1"}]});
    let object = json!({"metadata": {"name": "p"}, "spec": spec});
    small.world.user.create(&pod::KIND, "default", object).await.unwrap();
    let told = || -> Vec<String> {
        let all = small.world.user.informer(&event::KIND).list("default").into_iter().map(|o| o.value());
        let of_it = all.filter(|e| e["reason"] == "FailedCreatePodSandBox" && e["involvedObject"]["name"] == "p");
        of_it.map(|e| e["message"].as_str().unwrap_or_default().to_owned()).collect()
    };
    small.until("it is told", || !told().is_empty()).await;
    assert_eq!(small.read(&pod::KIND, "default", "p").unwrap()["status"]["phase"], "Pending");
    assert!(small.runtime.list().await.is_empty() && small.runtime.users_list().await.is_empty());
    let told = told();
    small.end();
    told
}

/// Every durable commit of a cluster at rest in an hour.
pub async fn of_an_idle_hour() -> Vec<String> {
    let small = Small::new(1).await;
    small.commits();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let commits = small.commits();
    small.end();
    commits
}
