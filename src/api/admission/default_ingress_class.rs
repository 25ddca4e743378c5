//! The class of an Ingress that names none (DefaultIngressClass): the newest of those that are marked as default.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::{Plugin, Review};
use crate::api::Api;
use crate::apimachinery::status::Result;
use crate::base::json::{set, text};
use crate::base::object::Object;
use crate::kinds::networking::{ingress, ingressclass};

pub(super) struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&ingress::KIND)
    }

    async fn mutate(&self, review: &Review<'_>, ingress: &mut Value) -> Result<()> {
        default_class(review.api, ingress);
        Ok(())
    }

    async fn validate(&self, review: &Review<'_>, _ingress: &Value) -> Result<Vec<String>> {
        Ok(without_controller(review.api).into_iter().collect())
    }
}

/// There is no ingress controller here; whoever installs one makes a class that names it. Kubernetes stores an Ingress that
/// nobody serves without a word.
fn without_controller(api: &Api) -> Option<String> {
    let kind = &ingressclass::KIND;
    let has_controller = |class: &Arc<Object>| !text(&class.value(), "spec.controller").is_empty();
    let any = api.cache.kind(kind).list(&kind.prefix(), "").iter().any(has_controller);
    let warning = "no IngressClass names a controller, so nothing serves this Ingress until an ingress controller is \
                   installed: there is none in this version";
    (!any).then(|| warning.to_owned())
}

fn default_class(api: &Api, value: &mut Value) {
    if !text(value, "spec.ingressClassName").is_empty() || !ingress::class_annotation(value).is_empty() {
        return;
    }
    let kind = &ingressclass::KIND;
    let classes = api.cache.kind(kind).list(&kind.prefix(), "");
    let marked = classes.into_iter().filter(|c| ingressclass::is_default(&c.value()));
    // Of those made in one second, the first by name.
    let age = |c: &Arc<Object>| {
        (text(&c.value(), "metadata.creationTimestamp").to_owned(), std::cmp::Reverse(c.meta.name.clone()))
    };
    if let Some(class) = marked.max_by_key(age) {
        set(value, "spec.ingressClassName", &*class.meta.name);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Request;
    use crate::api::in_memory;
    use crate::kinds::core::namespace;

    #[tokio::test]
    async fn an_ingress_that_nothing_serves_is_warned_of_when_it_is_made() {
        let api = in_memory::api();
        let request = |kind, name: &str| Request::internal("test", kind, "n", name);
        api.create(&request(&namespace::KIND, ""), json!({"metadata": {"name": "n"}})).await.unwrap();
        let ingress = |name: &str| {
            let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
            json!({"metadata": {"name": name}, "spec": {"defaultBackend": backend}})
        };
        let first = api.create(&request(&ingress::KIND, ""), ingress("a")).await.unwrap();
        let warning = without_controller(&api).unwrap();
        assert!(warning.starts_with("no IngressClass names a controller, so nothing serves this Ingress"));
        assert_eq!(first.warnings, [warning]);
        let mut changed = first.object.value();
        changed["metadata"]["labels"] = json!({"a": "b"});
        let change = crate::api::write::Change::Replace(changed);
        let again = api.update(&request(&ingress::KIND, "a"), change).await.unwrap();
        assert!(again.warnings.is_empty(), "once: {:?}", again.warnings);
        let class = json!({"metadata": {"name": "c"}, "spec": {"controller": "example.com/c"}});
        api.create(&request(&ingressclass::KIND, ""), class).await.unwrap();
        assert!(api.create(&request(&ingress::KIND, ""), ingress("b")).await.unwrap().warnings.is_empty());
    }
}
