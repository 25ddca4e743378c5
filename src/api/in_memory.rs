//! For tests: the whole API over the memory store, without HTTP.

use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use serde_json::{Value, json};

use super::local::Local;
use crate::api::cache::Cache;
use crate::api::identity::token::Tokens;
use crate::api::{Api, Options, Request};
use crate::apimachinery::status::Result;
use crate::base::clock::Clock;
use crate::kinds::{KindRef, core};
use crate::store::Store;
use crate::store::memory::Memory;

/// A client of a fresh API that holds nothing.
pub(crate) fn client() -> Arc<Local> {
    Arc::new(Local::new(api(), "test"))
}

/// A fresh API that holds nothing.
pub(crate) fn api() -> Api {
    api_allowing(&[])
}

/// One whose Services may name addresses in these ranges in `externalIPs`.
pub(crate) fn api_allowing(external_ips: &[&str]) -> Api {
    api_over(Arc::new(Memory::new()), external_ips)
}

/// The same over a store.
pub(crate) fn api_over(store: Arc<dyn Store>, external_ips: &[&str]) -> Api {
    let cache = Cache::load(&*store).unwrap();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    let issuer = "https://kubernetes.default.svc";
    let tokens = Tokens::new(key.as_ref(), issuer, Clock::system()).unwrap();
    let options = Options {
        service_cidrs: vec![("10.43.0.0".parse().unwrap(), 16)],
        external_ips: external_ips.iter().map(|range| range.parse().unwrap()).collect(),
        inner_cidrs: vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()],
        node_ports: (30000, 32767),
        issuer: issuer.into(),
        resource_metrics: true,
    };
    Api::new(store, cache, Clock::system(), options, tokens)
}

/// A way to create pods of one container with these resources in a namespace, which is made.
pub(crate) async fn pod_creator(api: &Api, namespace: &'static str) -> impl AsyncFn(&str, Value) -> Result<Value> {
    let make = |kind: &'static KindRef, namespace: &str, name: &str| {
        let request = Request::internal("test", kind, namespace, "");
        let value = json!({"metadata": {"name": name}});
        async move { api.create(&request, value).await.expect("nothing forbids it") }
    };
    make(&core::namespace::KIND, "", namespace).await;
    make(&core::serviceaccount::KIND, namespace, "default").await;
    let api = api.clone();
    async move |name: &str, resources: Value| {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]},
        });
        let request = Request::internal("test", &core::pod::KIND, namespace, "");
        Ok(api.create(&request, pod).await?.object.value())
    }
}
