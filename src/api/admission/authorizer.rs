//! `authorizer` of expressions: who may do what, as the API itself would decide.

use std::fmt;
use std::sync::Arc;

use super::plugin::Review;
use crate::api::Api;
use crate::api::identity::attributes::Attributes;
use crate::api::identity::authorize::authorize;
use crate::apimachinery::user::User;
use crate::base::labels::{FieldSelector, Selector};
use crate::cel::{About, Authorizer, Decision, Query, ResourceQuery, Value};
use crate::kinds::Subresource;

/// Decides about the user of a request.
struct OfUser {
    api: Api,
    user: Arc<User>,
}

/// Nothing of the API is worth printing.
impl fmt::Debug for OfUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfUser").field("user", &self.user.name).finish_non_exhaustive()
    }
}

impl Authorizer for OfUser {
    fn decide(&self, query: &Query, verb: &str) -> Decision {
        let mut attributes = Attributes { verb: verb.to_owned(), ..Attributes::default() };
        match &query.about {
            About::Path(path) => attributes.path.clone_from(path),
            About::Resource(of) => match narrowed(of, &mut attributes) {
                Ok(()) => {}
                Err(error) => return Decision { error: Some(error), ..Decision::default() },
            },
            About::Nothing | About::Group(_) => return Decision::default(),
        }
        let account = query.service_account.as_ref().map(|(namespace, name)| User::service_account(namespace, name));
        let decided = authorize(&self.api, account.as_ref().unwrap_or(&self.user), &attributes);
        Decision { allowed: decided.allowed, reason: decided.reason.unwrap_or_default(), error: None }
    }
}

fn narrowed(of: &ResourceQuery, attributes: &mut Attributes) -> Result<(), String> {
    attributes.group.clone_from(&of.group);
    attributes.resource.clone_from(&of.resource);
    attributes.subresource.clone_from(&of.subresource);
    attributes.namespace.clone_from(&of.namespace);
    attributes.name.clone_from(&of.name);
    if !of.field_selector.is_empty() {
        attributes.fields = FieldSelector::parse(&of.field_selector).map_err(|e| e.to_string())?.0;
    }
    // Nobody is allowed more for asking about less by labels.
    Selector::parse(&of.label_selector).map_err(|e| e.to_string()).map(drop)
}

/// `authorizer` and `authorizer.requestResource` of a request.
pub(super) fn variables<'v>(review: &Review<'_>) -> [Value<'v>; 2] {
    let request = review.request;
    let user = OfUser { api: review.api.clone(), user: request.user.clone() };
    let all = Query::new(Arc::new(user));
    let about = About::Resource(Box::new(ResourceQuery {
        group: request.kind.group().to_owned(),
        resource: request.kind.plural().to_owned(),
        subresource: request.subresource.map_or("", Subresource::name).to_owned(),
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        ..ResourceQuery::default()
    }));
    let of_request = all.about(about);
    [Value::Query(Arc::new(all)), Value::Query(Arc::new(of_request))]
}
