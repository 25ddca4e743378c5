//! The other end of a connection, and what a request says of it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::request::Parts;

use super::connections::Connection;
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;

/// What a connection knows of its other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// From a verified client certificate.
    pub user: Option<Arc<User>>,
    /// The digest of its key; empty without one.
    pub key: Arc<str>,
    pub connection: Arc<Connection>,
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Status;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        parts.extensions.get().cloned().ok_or_else(|| Status::internal("a request without a connection"))
    }
}

/// The other end of the connection that a request came over, in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Origin(pub IpAddr);

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|t| !t.is_empty())
}
