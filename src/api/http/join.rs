//! The paths by which machines become nodes; they stand before authentication, because nobody is known yet.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Response};
use http_body_util::{BodyExt, Limited};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;

use super::negotiate::MediaType;
use super::{Body, answer};
use crate::api::Api;
use crate::api::cache::{Batch, KindCache};
use crate::api::identity::join::{JoinRequest, Joiner, check_member, node_of_password};
use crate::api::identity::node::is_image_source;
use crate::apimachinery::http::peer::{Peer, bearer};
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;
use crate::base::object::Meta;
use crate::kinds::core::{node, secret};
use crate::wire::images::{BlobRequest, DIGEST};

/// The CA's certificate, for agents to pin by the hash in their token.
pub const CA_PATH: &str = "/cacerts";
/// A machine with a token gets a certificate.
pub const JOIN_PATH: &str = "/v1-amphipod/join";
/// A node with a certificate gets a new one.
pub const RENEW_PATH: &str = "/v1-amphipod/renew";

/// The longest application: a name, a password and a certificate request.
const JOIN_BODY_BYTES_MAX: usize = 16 << 10;
/// How long one may take to come.
const JOIN_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Machines that join at the same time.
static JOINS: Semaphore = Semaphore::const_new(32);

/// A server, and who lets machines join it; nobody where none may.
#[derive(Clone)]
pub(super) struct Joining {
    pub api: Api,
    pub joiner: Option<Arc<Joiner>>,
}

/// The CA's certificate.
pub(super) async fn ca(State(joining): State<Joining>, request: Request) -> Result<Response<Body>> {
    let (_, desk) = desk(&joining, &request, &Method::GET)?;
    Ok(answer::text(200, String::from_utf8_lossy(desk.ca()).into_owned()))
}

/// A machine with a token becomes a node.
pub(super) async fn join(State(joining): State<Joining>, request: Request) -> Result<Response<Body>> {
    let (api, desk) = desk(&joining, &request, &Method::POST)?;
    let token = bearer(request.headers()).unwrap_or_default().to_owned();
    // Who has no token takes nobody's place.
    desk.check_known(api, &token).inspect_err(|status| tracing::warn!(why = status.message, "a join was refused"))?;
    // Nobody has shown who they are: few at a time.
    let _turn = JOINS.try_acquire().map_err(|_| Status::too_many_requests("too many machines join at once", 1))?;
    let application = application(request).await?;
    let joined = desk.join(api, &token, &application).await;
    match &joined {
        Ok(_) => tracing::info!(node = application.node_name, "a machine has joined"),
        Err(status) => tracing::warn!(node = application.node_name, why = status.message, "a join was refused"),
    }
    welcome(joined?)
}

/// A node gets a new certificate.
pub(super) async fn renew(State(joining): State<Joining>, peer: Peer, request: Request) -> Result<Response<Body>> {
    let (api, desk) = desk(&joining, &request, &Method::POST)?;
    let node = node_of(api, &peer).inspect_err(|s| tracing::warn!(why = s.message, "a renewal was refused"))?;
    welcome(desk.renew(api, &node, &peer.key, &application(request).await?).await?)
}

/// A node opens its tunnel.
pub(super) async fn tunnel(State(joining): State<Joining>, peer: Peer, request: Request) -> Result<Response<Body>> {
    let (api, _) = desk(&joining, &request, &Method::GET)?;
    super::tunnel::accept(api, &node_of(api, &peer)?, request)
}

/// A node asks for a part of an image.
pub(super) async fn image(State(joining): State<Joining>, peer: Peer, request: Request) -> Result<Response<Body>> {
    let (api, _) = desk(&joining, &request, &Method::GET)?;
    image_for(api, &node_of(api, &peer)?, request.uri()).await
}

/// Where machines join, if any may, for a request of the one method that its path takes.
fn desk<'a>(joining: &'a Joining, request: &Request, method: &Method) -> Result<(&'a Api, &'a Joiner)> {
    let joiner = joining.joiner.as_deref().ok_or_else(Status::no_such_path)?;
    if request.method() == method { Ok((&joining.api, joiner)) } else { Err(Status::method_not_allowed()) }
}

/// A part of an image that another node has.
async fn image_for(api: &Api, node: &str, uri: &http::Uri) -> Result<Response<Body>> {
    let ask = BlobRequest::parse(uri.path(), uri.query()).ok_or_else(Status::no_such_path)?;
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

/// The node whose certificate was shown, if it is still one.
fn node_of(api: &Api, peer: &Peer) -> Result<String> {
    let node = peer.user.as_ref().and_then(|u| u.node_name()).map(str::to_owned);
    let node = node.ok_or_else(Status::unauthorized).inspect_err(|_| peer.connection.refuse())?;
    check_member(api, &node)?;
    Ok(node)
}

/// Ends the connections of machines whose Node is deleted, or whose name is free for another machine: what they have open
/// lasts no longer than their right to it. Never returns.
pub async fn end_connections_of_deleted_nodes(api: Api) {
    let (nodes, secrets) = (api.cache.kind(&node::KIND), api.cache.kind(&secret::KIND));
    let (mut node_changes, mut secret_changes) = (nodes.subscribe(), secrets.subscribe());
    let (mut nodes_seen, mut secrets_seen) = (nodes.last(), secrets.last());
    loop {
        let node = |meta: &Meta| Some(meta.name.to_string());
        let password = |meta: &Meta| node_of_password(&meta.namespace, &meta.name);
        end_deleted(&api, &nodes, &mut nodes_seen, node);
        end_deleted(&api, &secrets, &mut secrets_seen, password);
        tokio::select! {
            told = node_changes.changed() => if told.is_err() { return },
            told = secret_changes.changed() => if told.is_err() { return },
        }
    }
}

fn end_deleted(api: &Api, kind_cache: &KindCache, seen: &mut u64, node: impl Fn(&Meta) -> Option<String>) {
    const AT_ONCE: Batch = Batch::of_count(256);
    loop {
        let Some(events) = kind_cache.changes(*seen, AT_ONCE) else {
            // Too much has happened to tell of what: who still is a node comes again.
            api.connections.end_nodes();
            *seen = kind_cache.last();
            return;
        };
        let Some(last) = events.last() else { return };
        *seen = last.revision;
        for name in events.iter().filter(|event| event.deleted).filter_map(|event| node(&event.object.meta)) {
            api.connections.end(&User::node(&name).name);
        }
    }
}

async fn application(request: Request) -> Result<JoinRequest> {
    // Anybody may send this, so it is short.
    let body = Limited::new(request.into_body(), JOIN_BODY_BYTES_MAX).collect();
    let body = tokio::time::timeout(JOIN_BODY_TIMEOUT, body).await;
    let body = body.map_err(|_| Status::bad_request("the application to join did not come in time"))?;
    let body = body.map_err(|e| Status::bad_request(format!("the application to join was not received whole: {e}")))?;
    let body = body.to_bytes();
    serde_json::from_slice(&body).map_err(|e| Status::bad_request(format!("the application to join is malformed: {e}")))
}

fn welcome(welcome: crate::api::identity::join::JoinResponse) -> Result<Response<Body>> {
    let value = serde_json::to_value(welcome).map_err(|e| Status::internal(e.to_string()))?;
    Ok(answer::value(200, MediaType::default(), &value))
}
