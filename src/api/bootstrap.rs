//! What every cluster begins with: namespaces, roles, priority classes, the API's own Service.
//!
//! Only what is missing is written, all of it at once, so a start with everything there writes nothing.

use std::net::IpAddr;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use super::write::Change;
use super::{Api, Request, aggregate, flowcontrol, resource_metrics};
use crate::apimachinery::status::Result;
use crate::base::json::text;
use crate::kinds::flowcontrol::{flowschema, prioritylevelconfiguration};
use crate::kinds::{KindRef, core, discovery, networking, rbac, scheduling};

/// The manager of what is made here.
const MANAGER: &str = "amphipod";

/// Facts of Kubernetes' own bootstrap policy.
const DATA: &[(&KindRef, &str)] = &[
    (&rbac::clusterrole::KIND, include_str!("../../manifests/bootstrap/clusterroles.json")),
    (&rbac::clusterrolebinding::KIND, include_str!("../../manifests/bootstrap/clusterrolebindings.json")),
    (&rbac::role::KIND, include_str!("../../manifests/bootstrap/roles.json")),
    (&rbac::rolebinding::KIND, include_str!("../../manifests/bootstrap/rolebindings.json")),
    (&scheduling::priorityclass::KIND, include_str!("../../manifests/bootstrap/priorityclasses.json")),
    (&prioritylevelconfiguration::KIND, prioritylevelconfiguration::SUGGESTED),
    (&flowschema::KIND, flowschema::SUGGESTED),
];

/// After a failure to keep the API's own Service.
const KEEP_RETRY: Duration = Duration::from_secs(1);

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
    if api.options.resource_metrics {
        objects.push((&rbac::clusterrole::KIND, resource_metrics::reader()));
    }
    objects.push((&core::service::KIND, api_service(endpoints)));
    objects.extend(service_range(api).map(|range| (&networking::servicecidr::KIND, range)));
    create_missing(api, objects).await?;
    aggregate::register(api).await?;
    flowcontrol::objects::configure(api);
    write_api_endpoints(api, endpoints).await
}

/// Keeps the API's own Service and its endpoints as they are: who deletes or changes them gets them back. Runs until it is
/// aborted.
pub async fn keep(api: Api, endpoints: Endpoints) {
    let kinds = [&core::service::KIND, &core::endpoints::KIND, &discovery::endpointslice::KIND];
    let kind_caches = kinds.map(|k| (api.cache.kind(k), k.key("default", "kubernetes")));
    let mut told = kind_caches.each_ref().map(|(kind_cache, _)| kind_cache.subscribe());
    let mut kept = None;
    loop {
        let now = kind_caches.each_ref().map(|(kind_cache, key)| kind_cache.get(key).map(|o| o.revision));
        if kept != Some(now) {
            match api_objects(&api, &endpoints).await {
                // Looked at again: until nothing is written any more.
                Ok(()) => kept = Some(now),
                Err(error) => {
                    tracing::warn!(%error, "the API's own Service cannot be kept");
                    tokio::time::sleep(KEEP_RETRY).await;
                }
            }
            continue;
        }
        let changed = told.iter_mut().map(|t| Box::pin(t.changed()));
        if futures::future::select_all(changed).await.0.is_err() {
            return;
        }
    }
}

async fn api_objects(api: &Api, endpoints: &Endpoints) -> Result<()> {
    create_missing(api, vec![(&core::service::KIND, api_service(endpoints))]).await?;
    write_api_endpoints(api, endpoints).await
}

async fn create_missing(api: &Api, objects: Vec<(&KindRef, Value)>) -> Result<()> {
    let missing = objects.into_iter().filter_map(|(kind, object)| {
        let (namespace, name) =
            (text(&object, "metadata.namespace").to_owned(), text(&object, "metadata.name").to_owned());
        let there = api.cache.kind(kind).get(&kind.key(&namespace, &name)).is_some();
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

/// The range that Services get their addresses from, as the cluster was made with.
fn service_range(api: &Api) -> Option<Value> {
    let ranges = &api.options.service_cidrs;
    let shown: Vec<String> = ranges.iter().map(|(network, length)| format!("{network}/{length}")).collect();
    let metadata =
        json!({"name": networking::servicecidr::DEFAULT, "finalizers": [networking::servicecidr::PROTECTION]});
    (!shown.is_empty()).then(|| json!({"metadata": metadata, "spec": {"cidrs": shown}}))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::apimachinery::delete_options::DeleteOptions;
    use crate::base::task;

    #[tokio::test(start_paused = true)]
    async fn the_apis_own_service_comes_back() {
        let api = in_memory::api();
        let endpoints =
            Endpoints { api: vec![[192, 0, 2, 1].into()], api_port: 6443, api_cluster_ip: [10, 43, 0, 1].into() };
        run(&api, &endpoints).await.unwrap();
        task::spawn("keep", keep(api.clone(), endpoints));
        let rest = || tokio::time::sleep(Duration::from_secs(1));
        rest().await;
        for (kind, path, was) in [
            (&core::service::KIND, "/spec/clusterIP", json!("10.43.0.1")),
            (&core::endpoints::KIND, "/subsets/0/addresses/0/ip", json!("192.0.2.1")),
            (&discovery::endpointslice::KIND, "/endpoints/0/addresses/0", json!("192.0.2.1")),
        ] {
            let request = Request::internal("test", kind, "default", "kubernetes");
            let before = api.get(&request).unwrap();
            api.delete(&request, &DeleteOptions::default()).await.unwrap();
            rest().await;
            let after = api.get(&request).unwrap();
            assert_ne!(before.meta.uid, after.meta.uid, "a new one");
            assert_eq!(after.value().pointer(path), Some(&was), "{kind:?}");
        }
        let request = Request::internal("test", &core::endpoints::KIND, "default", "kubernetes");
        let mut changed = |live: &Value| {
            let mut new = live.clone();
            new["subsets"] = json!([]);
            Ok(new)
        };
        api.update(&request, Change::Patch(&mut changed)).await.unwrap();
        rest().await;
        assert_eq!(api.get(&request).unwrap().value()["subsets"][0]["addresses"][0]["ip"], "192.0.2.1");
        let now = api.cache.head();
        rest().await;
        assert_eq!(api.cache.head(), now, "nothing is written when everything is there");
    }
}
