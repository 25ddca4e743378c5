//! What every cluster begins with: namespaces, roles, priority classes, the API's own Service.
//!
//! Only what is missing is written, all of it at once, so a start with everything there writes nothing.

use std::net::IpAddr;

use futures::future::join_all;
use serde_json::{Value, json};

use super::status::Result;
use super::write::Change;
use super::{Api, Request};
use crate::base::json::text;
use crate::kinds::{Kind, core, discovery, rbac, scheduling};

/// The manager of what is made here.
const MANAGER: &str = "amphipod";

/// Facts of Kubernetes' own bootstrap policy.
const DATA: &[(&Kind, &str)] = &[
    (&rbac::clusterrole::KIND, include_str!("../../manifests/bootstrap/clusterroles.json")),
    (&rbac::clusterrolebinding::KIND, include_str!("../../manifests/bootstrap/clusterrolebindings.json")),
    (&rbac::role::KIND, include_str!("../../manifests/bootstrap/roles.json")),
    (&rbac::rolebinding::KIND, include_str!("../../manifests/bootstrap/rolebindings.json")),
    (&scheduling::priorityclass::KIND, include_str!("../../manifests/bootstrap/priorityclasses.json")),
];

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// What the API's own Service is made of.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// Where the API is reached from pods.
    pub api: Vec<IpAddr>,
    pub api_port: u16,
    /// The first address of the Service range, which is the API's.
    pub api_cluster_ip: IpAddr,
}

/// Writes the namespaces that are missing.
pub async fn namespaces(api: &Api) -> Result<()> {
    let all = NAMESPACES.iter().map(|n| (&core::namespace::KIND, json!({"metadata": {"name": n}})));
    create_missing(api, all.collect()).await
}

/// Writes what is missing.
pub async fn run(api: &Api, endpoints: &Endpoints) -> Result<()> {
    namespaces(api).await?;
    let mut objects = Vec::new();
    for (kind, text) in DATA {
        let all: Vec<Value> = serde_json::from_str(text).expect("the bootstrap manifests are JSON");
        objects.extend(all.into_iter().map(|o| (*kind, o)));
    }
    objects.push((&core::service::KIND, api_service(endpoints)));
    create_missing(api, objects).await?;
    write_api_endpoints(api, endpoints).await
}

async fn create_missing(api: &Api, objects: Vec<(&'static Kind, Value)>) -> Result<()> {
    let missing = objects.into_iter().filter_map(|(kind, object)| {
        let (namespace, name) =
            (text(&object, "metadata.namespace").to_owned(), text(&object, "metadata.name").to_owned());
        let there = api.cache.shelf(kind).get(&kind.key(&namespace, &name)).is_some();
        (!there).then(|| async move {
            let request = Request::internal(MANAGER, kind, &namespace, &name);
            match api.create(&request, object).await {
                Err(status) if status.code != 409 => Err(status),
                _ => Ok(()),
            }
        })
    });
    join_all(missing).await.into_iter().collect()
}

fn api_service(e: &Endpoints) -> Value {
    json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": e.api_cluster_ip.to_string(),
                 "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": e.api_port}]},
    })
}

/// The API's own Endpoints and EndpointSlice, which no controller makes because the Service selects nothing.
async fn write_api_endpoints(api: &Api, e: &Endpoints) -> Result<()> {
    let port = json!({"name": "https", "port": e.api_port, "protocol": "TCP"});
    // A machine without any network is only on its own loopback, which is no endpoint for anyone.
    let reached: Vec<String> = e.api.iter().filter(|a| !a.is_loopback()).map(IpAddr::to_string).collect();
    let addresses: Vec<Value> = reached.iter().map(|a| json!({"ip": a})).collect();
    let subsets = if addresses.is_empty() { json!([]) } else { json!([{"addresses": addresses, "ports": [port]}]) };
    let classic = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    });
    let slice = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": reached.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect::<Vec<_>>(),
        "ports": [port],
    });
    for (kind, object) in [(&core::endpoints::KIND, classic), (&discovery::endpointslice::KIND, slice)] {
        let request = Request::internal(MANAGER, kind, "default", "kubernetes");
        match api.update(&request, Change::Replace(object.clone())).await {
            Err(status) if status.code == 404 => drop(api.create(&request, object).await?),
            other => drop(other?),
        }
    }
    Ok(())
}
