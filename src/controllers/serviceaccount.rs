//! The `default` ServiceAccount of every namespace.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;

use super::Context;
use crate::apimachinery::status::Result;
use crate::kinds::core::{namespace, serviceaccount};
use crate::reconcile::{Changed, Controller, Key, Outcome, Reconciler};

const NAME: &str = "default";

struct ServiceAccounts(Arc<Context>);

/// The controller; its keys are namespaces.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let gone = |c: &Changed| match c.deleted && &*c.object.meta.name == NAME {
        true => vec![Key::new("", &c.object.meta.namespace)],
        false => Vec::new(),
    };
    Controller::new("serviceaccount", Arc::new(ServiceAccounts(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &namespace::KIND)
        .watches(&*cx.client, &serviceaccount::KIND, Box::new(gone))
}

#[async_trait]
impl Reconciler for ServiceAccounts {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let client = &self.0.client;
        let living = client.informer(&namespace::KIND).get("", &key.name).is_some_and(|n| n.meta.deleted.is_none());
        if living && client.informer(&serviceaccount::KIND).get(&key.name, NAME).is_none() {
            client.create(&serviceaccount::KIND, &key.name, json!({"metadata": {"name": NAME}})).await?;
        }
        Ok(Outcome::Done)
    }
}
