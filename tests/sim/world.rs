//! One cluster: API, controllers, scheduler and nodes over a store that outlives them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod::api::cache::Cache;
use amphipod::api::identity::token::Tokens;
use amphipod::api::local::Local;
use amphipod::api::{Api, Options, bootstrap};
use amphipod::base::clock::Clock;
use amphipod::base::task;
use amphipod::kinds::apps::{deployment, replicaset};
use amphipod::kinds::core::pod;
use amphipod::reconcile::Client;
use amphipod::store::Store;
use amphipod::store::memory::Memory;
use amphipod::{controllers, scheduler};
use tokio::task::JoinHandle;

use crate::checkers::Checkers;
use crate::faults::Faulty;
use crate::follower::Follower;
use crate::node;

/// How a run ended.
pub struct Outcome {
    pub trace: Vec<String>,
    pub violations: Vec<String>,
}

/// The cluster.
pub struct World {
    pub clock: Clock,
    pub store: Arc<Faulty>,
    pub checkers: Arc<Mutex<Checkers>>,
    pub api: Api,
    pub user: Arc<dyn Client>,
    key: Vec<u8>,
    control: Vec<JoinHandle<Option<()>>>,
    nodes: BTreeMap<String, Option<JoinHandle<Option<()>>>>,
    pub failures: u64,
    pub followers: Vec<Arc<Follower>>,
}

impl World {
    pub async fn new(seed: u64, nodes: u64, conflicts: u64, failures: u64) -> Self {
        let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap(), seed);
        let checkers = Arc::new(Mutex::new(Checkers::new(clock.clone())));
        let inner = Arc::new(Memory::new());
        let store = Arc::new(Faulty { inner, clock: clock.clone(), checkers: checkers.clone(), conflicts });
        let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &ring::rand::SystemRandom::new()).unwrap();
        let key = key.as_ref().to_vec();
        let api = api(&store, &clock, &key);
        let user: Arc<dyn Client> = Arc::new(Local::new(api.clone(), "user"));
        let followed = [&pod::KIND, &replicaset::KIND, &deployment::KIND];
        let followers = followed.map(|kind| Follower::new(kind, checkers.clone())).into();
        let (control, running) = (Vec::new(), BTreeMap::new());
        let mut world = Self { clock, store, checkers, api, user, key, control, nodes: running, failures, followers };
        world.start_control().await;
        for i in 0..nodes {
            world.start_node(&format!("node-{i}"));
        }
        world
    }

    pub fn note(&self, line: &str) {
        self.checkers.lock().unwrap().note(line);
    }

    pub fn random(&self, below: u64) -> u64 {
        self.clock.random_u64() % below
    }

    pub fn node_names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    pub fn start_node(&mut self, name: &str) {
        let client: Arc<dyn Client> = Arc::new(Local::new(self.api.clone(), "kubelet"));
        let run = node::run(client, self.clock.clone(), name.to_owned(), self.failures);
        self.stop_node(name);
        self.nodes.insert(name.to_owned(), Some(task::spawn("node", run)));
    }

    pub fn stop_node(&mut self, name: &str) {
        if let Some(Some(handle)) = self.nodes.insert(name.to_owned(), None) {
            handle.abort();
        }
    }

    /// Ends everything but the store, and begins anew from it.
    pub async fn restart(&mut self) {
        self.control.iter().for_each(JoinHandle::abort);
        let running: Vec<String> = self.nodes.iter().filter(|(_, h)| h.is_some()).map(|(n, _)| n.clone()).collect();
        running.iter().for_each(|n| self.stop_node(n));
        tokio::time::sleep(Duration::from_millis(10 + self.random(5000))).await;
        self.api = api(&self.store, &self.clock, &self.key);
        self.user = Arc::new(Local::new(self.api.clone(), "user"));
        self.start_control().await;
        running.iter().for_each(|n| self.start_node(n));
    }

    async fn start_control(&mut self) {
        let endpoints = bootstrap::Endpoints {
            api: vec!["192.0.2.1".parse().unwrap()],
            api_port: 6443,
            api_cluster_ip: "10.43.0.1".parse().unwrap(),
        };
        while bootstrap::run(&self.api, &endpoints).await.is_err() {}
        let client = |manager| -> Arc<dyn Client> { Arc::new(Local::new(self.api.clone(), manager)) };
        let options = controllers::Options {
            root_ca: "ca".into(),
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            ..controllers::Options::default()
        };
        self.control = controllers::start(client(controllers::MANAGER), self.clock.clone(), options);
        self.control.extend(scheduler::start(client(scheduler::MANAGER), self.clock.clone()));
        self.control.extend(self.followers.iter().map(|f| f.follow(self.api.clone())));
    }

    pub fn end(self) -> Outcome {
        self.control.iter().for_each(JoinHandle::abort);
        self.nodes.values().flatten().for_each(JoinHandle::abort);
        let mut checkers = self.checkers.lock().unwrap();
        Outcome { trace: std::mem::take(&mut checkers.trace), violations: std::mem::take(&mut checkers.violations) }
    }
}

fn api(store: &Arc<Faulty>, clock: &Clock, key: &[u8]) -> Api {
    let store: Arc<dyn Store> = store.clone();
    let cache = Cache::load(&*store).unwrap();
    let issuer = "https://kubernetes.default.svc.";
    let tokens = Tokens::new(key, issuer, clock.clone()).unwrap();
    let options = Options {
        service_cidrs: vec![("10.43.0.0".parse().unwrap(), 16)],
        external_ips: Vec::new(),
        inner_cidrs: Vec::new(),
        node_ports: (30000, 32767),
        issuer: issuer.into(),
        resource_metrics: false,
    };
    Api::new(store, cache, clock.clone(), options, tokens)
}
