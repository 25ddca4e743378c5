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
