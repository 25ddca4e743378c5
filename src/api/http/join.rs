//! The paths by which machines become nodes; they stand before authentication, because nobody is known yet.

use std::sync::OnceLock;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio_stream::wrappers::ReceiverStream;

use super::{Body, Peer, answer, negotiate::Form};
use crate::api::Api;
use crate::api::identity::join::{Application, Desk, check_member};
use crate::api::identity::node::is_image_source;
use crate::api::status::{Result, Status};
use crate::wire::images::{Ask, DIGEST, IMAGES_PATH};

/// The authority's certificate, for agents to pin by the hash in their token.
pub const AUTHORITY_PATH: &str = "/cacerts";
/// A machine with a token gets a certificate.
pub const JOIN_PATH: &str = "/v1-amphipod/join";
/// A node with a certificate gets a new one.
pub const RENEW_PATH: &str = "/v1-amphipod/renew";

/// A node with a certificate lets itself be reached.
pub const TUNNEL_PATH: &str = "/v1-amphipod/tunnel";

/// The longest application: a name, a password and a certificate request.
const APPLICATION_BYTES: usize = 16 << 10;

/// Set once by a server that lets machines join.
pub type Joining = OnceLock<Desk>;

/// Whether the path is one of these.
pub fn is_for(path: &str) -> bool {
    matches!(path, AUTHORITY_PATH | JOIN_PATH | RENEW_PATH | TUNNEL_PATH) || path.starts_with(IMAGES_PATH)
}

/// Answers one of these paths.
pub async fn respond(api: &Api, peer: &Peer, request: http::Request<Incoming>) -> Result<Response<Body>> {
    let desk = api.joining.get().ok_or_else(Status::no_such_path)?;
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, AUTHORITY_PATH) => Ok(answer::text(200, String::from_utf8_lossy(desk.authority()).into_owned())),
        (&Method::POST, JOIN_PATH) => {
            let token = super::access::bearer(request.headers()).unwrap_or_default().to_owned();
            let application = application(request).await?;
            let joined = desk.join(api, &token, &application).await;
            match &joined {
                Ok(_) => tracing::info!(node = application.node_name, "a machine has joined"),
                Err(status) => tracing::warn!(node = application.node_name, why = status.message, "a join was refused"),
            }
            welcome(joined?)
        }
        (&Method::GET, TUNNEL_PATH) => super::tunnel::accept(api, &node_of(peer)?, request),
        (&Method::GET, path) if path.starts_with(IMAGES_PATH) => image(api, &node_of(peer)?, request.uri()).await,
        (&Method::POST, RENEW_PATH) => {
            let node = node_of(peer)?;
            check_member(api, &node).inspect_err(|s| tracing::warn!(node, why = s.message, "a renewal was refused"))?;
            welcome(desk.renew(&node, &application(request).await?)?)
        }
        _ => Err(Status::method_not_allowed()),
    }
}

/// A part of an image that another node has.
async fn image(api: &Api, node: &str, uri: &http::Uri) -> Result<Response<Body>> {
    let ask = Ask::parse(uri.path(), uri.query()).ok_or_else(Status::no_such_path)?;
    let found = api.nodes.image(&ask, node, |other| is_image_source(&api.cache, other)).await;
    let found = found.ok_or_else(|| Status::new(404, "NotFound", "no other node has this image"))?;
    let body = answer::streamed(ReceiverStream::new(found.pieces));
    let response = Response::builder()
        .header(CONTENT_TYPE, &found.head.media_type)
        .header(CONTENT_LENGTH, found.head.size_bytes)
        .header(DIGEST, &found.head.digest)
        .body(body);
    response.map_err(|e| Status::internal(e.to_string()))
}

/// The node whose certificate was shown.
fn node_of(peer: &Peer) -> Result<String> {
    let node = peer.user.as_ref().and_then(|u| u.node_name()).map(str::to_owned);
    node.ok_or_else(Status::unauthorized)
}

async fn application(request: http::Request<Incoming>) -> Result<Application> {
    // Anybody may send this, so it is short.
    let body = Limited::new(request.into_body(), APPLICATION_BYTES).collect().await;
    let body = body.map_err(|e| Status::bad_request(format!("the application to join was not received whole: {e}")))?;
    let body = body.to_bytes();
    serde_json::from_slice(&body).map_err(|e| Status::bad_request(format!("the application to join is malformed: {e}")))
}

fn welcome(welcome: crate::api::identity::join::Welcome) -> Result<Response<Body>> {
    let value = serde_json::to_value(welcome).map_err(|e| Status::internal(e.to_string()))?;
    Ok(answer::value(200, Form::default(), &value))
}
