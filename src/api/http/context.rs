//! A request on its way to a verb.

use http::HeaderMap;

use crate::api::{Api, Request};
use crate::apimachinery::query::Query;

/// A request on its way to a verb.
pub(super) struct RequestContext {
    pub api: Api,
    pub request: Request,
    pub query: Query,
    pub headers: HeaderMap,
}
