//! The loop over a real API in memory and a data plane that can fail.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::*;
use crate::api::in_memory;
use crate::net::{Error, Protocol};

#[derive(Default)]
struct Recording {
    tables: Mutex<Vec<ServiceTable>>,
    failures: AtomicUsize,
}

#[async_trait]
impl Dataplane for Recording {
    async fn apply(&self, table: &ServiceTable) -> Result<Vec<Unpublished>, Error> {
        if self.failures.load(Ordering::SeqCst) > 0 {
            self.failures.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::Config("as the test wants".into()));
        }
        self.tables.lock().unwrap().push(table.clone());
        let taken = table.host_ports.iter().filter(|port| port.host_port == 6443);
        Ok(taken.map(|port| Unpublished { port: port.clone(), why: "it is this node's own".into() }).collect())
    }
}

// === impl Recording ===

impl Recording {
    async fn until(&self, what: &str, wanted: impl Fn(&ServiceTable) -> bool) -> ServiceTable {
        for _ in 0..1000 {
            if let Some(last) = self.tables.lock().unwrap().last().filter(|t| wanted(t)) {
                return last.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}: {:?}", self.tables.lock().unwrap().last());
    }

    fn count(&self) -> usize {
        self.tables.lock().unwrap().len()
    }
}

fn a_service(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"ports": [{"name": "web", "port": 80}]}})
}

fn a_slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a], "nodeName": "here"})).collect();
    json!({"metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}]})
}

struct Bench {
    client: Arc<dyn Client>,
    plane: Arc<Recording>,
    host_ports: watch::Sender<Vec<HostPort>>,
    unpublished: watch::Receiver<Vec<Unpublished>>,
    proxy: JoinHandle<Option<()>>,
}

async fn bench() -> Bench {
    let client = in_memory::client();
    let namespace = json!({"metadata": {"name": "default"}});
    client.create(&crate::kinds::core::namespace::KIND, "", namespace).await.unwrap();
    let plane = Arc::new(Recording::default());
    let (host_ports, receiver) = watch::channel(Vec::new());
    let unpublished = watch::Sender::new(Vec::new());
    let told = unpublished.subscribe();
    let options = Options { node_name: "here".into(), dns: None, host_ports: receiver, unpublished };
    let proxy = start(client.clone(), plane.clone(), options);
    plane.until("the first table", |t| *t == ServiceTable::default()).await;
    Bench { client, plane, host_ports, unpublished: told, proxy }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.proxy.abort();
    }
}

fn endpoints(table: &ServiceTable) -> usize {
    table.services.iter().map(|s| s.endpoints.len()).sum()
}

#[tokio::test]
async fn the_table_follows_services_slices_and_host_ports() {
    let mut b = bench().await;
    b.client.create(&service::KIND, "default", a_service("s")).await.unwrap();
    b.client.create(&endpointslice::KIND, "default", a_slice("s-1", "s", &["10.42.0.2"])).await.unwrap();
    let table = b.plane.until("one endpoint", |t| endpoints(t) == 1).await;
    let row = &table.services[0];
    assert_eq!((&*row.name, row.port, row.endpoints[0].local), ("s", 80, true));
    b.client.create(&endpointslice::KIND, "default", a_slice("s-2", "s", &["10.42.0.3", "10.42.0.4"])).await.unwrap();
    b.plane.until("three endpoints", |t| endpoints(t) == 3).await;
    let port = HostPort {
        host_ip: "0.0.0.0".parse().unwrap(),
        host_port: 8080,
        protocol: Protocol::Tcp,
        pod_address: "10.42.0.2".parse().unwrap(),
        pod_port: 80,
    };
    b.host_ports.send_replace(vec![port.clone()]);
    b.plane.until("a host port", |t| t.host_ports == [port.clone()]).await;
    assert!(b.unpublished.borrow().is_empty());
    let taken = HostPort { host_port: 6443, ..port.clone() };
    b.host_ports.send_replace(vec![port.clone(), taken.clone()]);
    let told = b.unpublished.wait_for(|all| !all.is_empty()).await.unwrap().clone();
    assert_eq!(told, [Unpublished { port: taken, why: "it is this node's own".into() }], "the node is told");
    b.host_ports.send_replace(vec![port.clone()]);
    b.unpublished.wait_for(Vec::is_empty).await.unwrap();
    b.client.delete(&endpointslice::KIND, "default", "s-1", Default::default()).await.unwrap();
    b.plane.until("two endpoints", |t| endpoints(t) == 2).await;
    b.client.delete(&service::KIND, "default", "s", Default::default()).await.unwrap();
    b.plane.until("no service", |t| t.services.is_empty()).await;
}

#[tokio::test]
async fn the_table_follows_ranges_of_service_addresses() {
    let b = bench().await;
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.196.0.0/24"]}});
    b.client.create(&servicecidr::KIND, "", range).await.unwrap();
    b.plane.until("a range", |t| t.ranges == ["10.196.0.0/24".parse().unwrap()]).await;
    b.client.delete(&servicecidr::KIND, "", "more", Default::default()).await.unwrap();
    b.plane.until("no range", |t| t.ranges.is_empty()).await;
}

#[tokio::test]
async fn many_changes_are_few_applies_and_none_is_lost() {
    let b = bench().await;
    let before = b.plane.count();
    let create = |i: usize| {
        let client = b.client.clone();
        async move {
            client.create(&service::KIND, "default", a_service(&format!("s{i}"))).await.unwrap();
            let slice = a_slice(&format!("s{i}-1"), &format!("s{i}"), &["10.42.0.2"]);
            client.create(&endpointslice::KIND, "default", slice).await.unwrap();
        }
    };
    futures::future::join_all((0..500).map(create)).await;
    b.plane.until("all endpoints", |t| endpoints(t) == 500).await;
    assert!(b.plane.count() - before < 250, "{} applies for 1000 changes", b.plane.count() - before);
}

#[tokio::test]
async fn a_failed_apply_is_tried_again_without_a_change() {
    let b = bench().await;
    b.plane.failures.store(2, Ordering::SeqCst);
    b.client.create(&service::KIND, "default", a_service("s")).await.unwrap();
    b.plane.until("applied in the end", |t| t.services.len() == 1).await;
    assert_eq!(b.plane.failures.load(Ordering::SeqCst), 0);
}
