//! The records of the cluster zone, kept by informers.
//!
//! Namespaces are looked up in their informer when they are asked for. Services need more: their slices and who has an
//! address, so a task keeps an index of ready-made records, which a query only borrows. As CoreDNS does, headless
//! Services publish the endpoints that their slices call ready, which with `publishNotReadyAddresses` are all.
//!
//! Invariant: once [`Informed::filled`] has returned, the index holds every change that the informers have shown, in
//! their order; a reader sees each Service as it was at one instant.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{EndpointRecord, Pointer, PortRecord, Records, ServiceRecord};
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::core::{namespace, service};
use crate::kinds::discovery::endpointslice;
use crate::net::Protocol;
use crate::reconcile::label_index::SERVICE_NAME;
use crate::reconcile::{Client, Informer, Key, LabelIndex};

/// [`Records`] from the API.
#[derive(Debug)]
pub struct Informed {
    namespaces: Namespaces,
    index: Arc<RwLock<Index>>,
    filled: watch::Receiver<bool>,
    following: JoinHandle<Option<()>>,
}

struct Namespaces(Informer);

// === impl Informed ===

impl Informed {
    /// Starts to follow the API; the task ends when this is dropped.
    pub fn new(client: &dyn Client) -> Arc<Self> {
        let index = Arc::new(RwLock::new(Index::default()));
        let (services, slices) = (client.informer(&service::KIND), client.informer(&endpointslice::KIND));
        let (done, filled) = watch::channel(false);
        let following = task::spawn("dns records", follow(services, slices, index.clone(), done));
        Arc::new(Self { namespaces: Namespaces(client.informer(&namespace::KIND)), index, filled, following })
    }

    /// Returns when everything that was there at the start is in the index.
    pub async fn filled(&self) {
        self.namespaces.0.synced().await;
        // An error means that the task is gone, and then nobody should wait for it.
        let _ = self.filled.clone().wait_for(|filled| *filled).await;
    }

    fn read<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Informed {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl std::fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Namespaces")
    }
}

impl Records for Informed {
    fn namespace(&self, namespace: &str) -> bool {
        self.namespaces.0.get("", namespace).is_some()
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceRecord>> {
        self.read(|index| index.records.get(&Key::new(namespace, name)).cloned())
    }

    fn pointers(&self, address: IpAddr) -> Vec<Pointer> {
        self.read(|index| index.pointers(address))
    }
}

async fn follow(services: Informer, slices: Informer, index: Arc<RwLock<Index>>, filled: watch::Sender<bool>) {
    services.synced().await;
    slices.synced().await;
    let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
    let write = || index.write().unwrap_or_else(PoisonError::into_inner);
    write().replace_slices(&slices.list(""));
    write().replace_services(&services.list(""));
    filled.send_replace(true);
    loop {
        tokio::select! {
            biased;
            changes = service_changes.next() => match changes {
                Some(changes) => {
                    let mut index = write();
                    changes.iter().for_each(|c| index.take_service(&c.object, c.deleted));
                }
                None => write().replace_services(&services.list("")),
            },
            changes = slice_changes.next() => match changes {
                Some(changes) => {
                    let mut index = write();
                    changes.iter().for_each(|c| index.take_slice(&c.object, c.deleted));
                }
                None => write().replace_slices(&slices.list("")),
            },
        }
    }
}

/// Services as DNS sees them, and who has which address.
#[derive(Debug)]
struct Index {
    services: HashMap<Key, Arc<Object>>,
    slices: LabelIndex,
    records: HashMap<Key, Arc<ServiceRecord>>,
    addresses: HashMap<IpAddr, BTreeSet<Key>>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            services: HashMap::new(),
            slices: LabelIndex::by(SERVICE_NAME),
            records: HashMap::new(),
            addresses: HashMap::new(),
        }
    }
}

// === impl Index ===

impl Index {
    fn take_service(&mut self, object: &Arc<Object>, deleted: bool) {
        let key = Key::of(object);
        if deleted {
            self.services.remove(&key);
        } else {
            self.services.insert(key.clone(), object.clone());
        }
        self.renew(&key);
    }

    fn take_slice(&mut self, object: &Arc<Object>, deleted: bool) {
        for key in self.slices.take(object, deleted) {
            self.renew(&key);
        }
    }

    fn replace_services(&mut self, all: &[Arc<Object>]) {
        for key in std::mem::take(&mut self.services).into_keys().collect::<Vec<_>>() {
            self.renew(&key);
        }
        all.iter().for_each(|object| self.take_service(object, false));
    }

    fn replace_slices(&mut self, all: &[Arc<Object>]) {
        for key in self.slices.replace(all).into_iter().collect::<BTreeSet<_>>() {
            self.renew(&key);
        }
    }

    /// Makes a Service's record anew.
    fn renew(&mut self, key: &Key) {
        if let Some(old) = self.records.remove(key) {
            for address in addresses(&old) {
                if let Some(owners) = self.addresses.get_mut(&address) {
                    owners.remove(key);
                    if owners.is_empty() {
                        self.addresses.remove(&address);
                    }
                }
            }
        }
        let service = self.services.get(key).and_then(|object| object.typed::<Service>().ok());
        let slices: Vec<Arc<EndpointSlice>> = self.slices.members(key).filter_map(|slice| slice.typed().ok()).collect();
        let Some(record) = service.and_then(|service| record(&service, &slices)) else { return };
        for address in addresses(&record) {
            self.addresses.entry(address).or_default().insert(key.clone());
        }
        self.records.insert(key.clone(), Arc::new(record));
    }

    fn pointers(&self, address: IpAddr) -> Vec<Pointer> {
        let mut cluster = Vec::new();
        let mut endpoints = BTreeMap::new();
        for key in self.addresses.get(&address).into_iter().flatten() {
            let pointer =
                |endpoint| Pointer { namespace: key.namespace.to_string(), service: key.name.to_string(), endpoint };
            match self.records.get(key).map(AsRef::as_ref) {
                Some(ServiceRecord::Cluster { .. }) => cluster.push(pointer(None)),
                Some(ServiceRecord::Headless { endpoints: all }) => {
                    for label in all.iter().filter(|e| e.address == address).map(EndpointRecord::label) {
                        endpoints.insert((key.clone(), label.clone()), pointer(Some(label)));
                    }
                }
                _ => {}
            }
        }
        if cluster.is_empty() { endpoints.into_values().collect() } else { cluster }
    }
}

/// The addresses by which a record can be found.
fn addresses(record: &ServiceRecord) -> Vec<IpAddr> {
    match record {
        ServiceRecord::Cluster { addresses, .. } => addresses.clone(),
        ServiceRecord::Headless { endpoints } => endpoints.iter().map(|e| e.address).collect(),
        ServiceRecord::External { .. } => Vec::new(),
    }
}

/// What DNS says about a Service; nothing while it has no address yet.
fn record(service: &Service, slices: &[Arc<EndpointSlice>]) -> Option<ServiceRecord> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return spec.external_name.clone().map(|name| ServiceRecord::External { name });
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return Some(ServiceRecord::Headless { endpoints: slices.iter().flat_map(|slice| endpoints(slice)).collect() });
    }
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in all.filter_map(|text| text.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let ports = spec.ports.iter().flatten();
    let ports = ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), Some(p.port))).collect();
    (!addresses.is_empty()).then_some(ServiceRecord::Cluster { addresses, ports })
}

fn endpoints(slice: &EndpointSlice) -> impl Iterator<Item = EndpointRecord> {
    let ports = slice.ports.iter().flatten();
    let ports: Vec<PortRecord> = ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port)).collect();
    let ready =
        slice.endpoints.iter().flatten().filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    ready.flat_map(move |endpoint| {
        let addresses = endpoint.addresses.iter().filter_map(|text| text.parse().ok());
        let (hostname, ports) = (endpoint.hostname.clone().filter(|h| !h.is_empty()), ports.clone());
        addresses.map(move |address| EndpointRecord { hostname: hostname.clone(), address, ports: ports.clone() })
    })
}

fn port(name: Option<&str>, protocol: Option<&str>, port: Option<i32>) -> Option<PortRecord> {
    let protocol = match protocol.unwrap_or("TCP") {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return None,
    };
    let port = u16::try_from(port?).ok()?;
    Some(PortRecord { name: name.unwrap_or("").to_owned(), protocol, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use serde_json::{Value, json};

    fn slice(name: &str, service: &str, endpoints: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "n", "labels": {SERVICE_NAME: service}}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}]})
    }

    fn a_service(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec})
    }

    async fn until(what: &str, mut wanted: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if wanted() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("{what}");
    }

    async fn filled() -> (Arc<Local>, Arc<Informed>) {
        let client = in_memory::client();
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        let headless = json!({"clusterIP": "None", "selector": {"a": "b"}, "ports": [{"name": "web", "port": 80}]});
        client.create(&service::KIND, "n", a_service("pets", headless)).await.unwrap();
        let endpoints = json!([
            {"addresses": ["10.42.0.5"], "hostname": "rex", "conditions": {"ready": true}},
            {"addresses": ["10.42.0.6"], "conditions": {}},
            {"addresses": ["10.42.0.7"], "conditions": {"ready": false}},
        ]);
        client.create(&endpointslice::KIND, "n", slice("pets-1", "pets", endpoints)).await.unwrap();
        let informed = Informed::new(&*client);
        informed.filled().await;
        (client, informed)
    }

    #[tokio::test]
    async fn what_was_there_at_the_start_is_answered() {
        let (_client, informed) = filled().await;
        assert!(informed.namespace("n") && !informed.namespace("m"));
        let Some(ServiceRecord::Headless { endpoints }) = informed.service("n", "pets").map(|r| (*r).clone()) else {
            panic!("{:?}", informed.service("n", "pets"));
        };
        let labels: Vec<String> = endpoints.iter().map(EndpointRecord::label).collect();
        assert_eq!(labels, ["rex", "10-42-0-6"], "what is not ready is not published");
        assert_eq!(endpoints[0].ports, [PortRecord { name: "web".into(), protocol: Protocol::Tcp, port: 8080 }]);
        let pointer =
            |endpoint: &str| Pointer { namespace: "n".into(), service: "pets".into(), endpoint: Some(endpoint.into()) };
        assert_eq!(informed.pointers("10.42.0.5".parse().unwrap()), [pointer("rex")]);
        assert_eq!(informed.pointers("10.42.0.6".parse().unwrap()), [pointer("10-42-0-6")]);
        assert!(informed.pointers("10.42.0.7".parse().unwrap()).is_empty());
    }

    #[tokio::test]
    async fn changes_are_followed() {
        let (client, informed) = filled().await;
        let spec = json!({"clusterIP": "10.43.0.77", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
        client.create(&service::KIND, "n", a_service("web", spec)).await.unwrap();
        until("the new Service", || informed.service("n", "web").is_some()).await;
        let ports = vec![PortRecord { name: "dns".into(), protocol: Protocol::Udp, port: 53 }];
        let addresses = vec!["10.43.0.77".parse().unwrap()];
        assert_eq!(*informed.service("n", "web").unwrap(), ServiceRecord::Cluster { addresses, ports });
        assert_eq!(informed.pointers("10.43.0.77".parse().unwrap())[0].endpoint, None);
        let away = json!({"type": "ExternalName", "externalName": "www.example.com"});
        client.create(&service::KIND, "n", a_service("away", away)).await.unwrap();
        until("the external one", || {
            informed
                .service("n", "away")
                .is_some_and(|r| *r == ServiceRecord::External { name: "www.example.com".into() })
        })
        .await;
        let moved = slice("pets-2", "pets", json!([{"addresses": ["10.42.0.9"]}]));
        client.create(&endpointslice::KIND, "n", moved).await.unwrap();
        until("the new endpoint", || informed.pointers("10.42.0.9".parse().unwrap()).len() == 1).await;
        client.delete(&endpointslice::KIND, "n", "pets-1", Default::default()).await.unwrap();
        until("the old endpoint goes", || informed.pointers("10.42.0.5".parse().unwrap()).is_empty()).await;
        client.delete(&service::KIND, "n", "pets", Default::default()).await.unwrap();
        until("the Service goes", || informed.service("n", "pets").is_none()).await;
        assert!(informed.pointers("10.42.0.9".parse().unwrap()).is_empty());
    }
}
