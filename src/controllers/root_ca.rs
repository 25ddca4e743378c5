//! The `kube-root-ca.crt` ConfigMap of every namespace, from which pods learn whom to trust.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::Context;
use crate::apimachinery::status::Result;
use crate::base::json::map;
use crate::kinds::core::{configmap, namespace};
use crate::reconcile::{Changed, Controller, Key, Outcome, Reconciler};

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
     such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
     Kubernetes clusters.";

struct RootCa(Arc<Context>);

/// The controller; its keys are namespaces.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let ours = |c: &Changed| match &*c.object.meta.name == NAME {
        true => vec![Key::new("", &c.object.meta.namespace)],
        false => Vec::new(),
    };
    Controller::new("root-ca", Arc::new(RootCa(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &namespace::KIND)
        .watches(&*cx.client, &configmap::KIND, Box::new(ours))
}

#[async_trait]
impl Reconciler for RootCa {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let client = &self.0.client;
        let living = client.informer(&namespace::KIND).get("", &key.name).is_some_and(|n| n.meta.deleted.is_none());
        if !living {
            return Ok(Outcome::Done);
        }
        let content = json!({FILE: self.0.options.root_ca});
        let Some(found) = client.informer(&configmap::KIND).get(&key.name, NAME) else {
            let object = json!({
                "metadata": {"name": NAME, "annotations": {"kubernetes.io/description": DESCRIPTION}}, "data": content,
            });
            client.create(&configmap::KIND, &key.name, object).await?;
            return Ok(Outcome::Done);
        };
        let mut value = found.value();
        if map(&value, "data").is_none_or(|d| Value::Object(d.clone()) != content) {
            value["data"] = content;
            client.update(&configmap::KIND, &key.name, NAME, None, value).await?;
        }
        Ok(Outcome::Done)
    }
}
