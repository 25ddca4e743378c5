//! The API on the wire: one function from an HTTP request to an HTTP answer.
//!
//! A request passes the same named steps, in this order: [`route`] reads the path, [`access`] finds out who asks and
//! whether they may, then a verb of [`verbs`] runs, and [`answer`] writes what came of it in the negotiated form.

pub mod access;
pub mod answer;
pub mod connections;
pub mod discovery;
mod forward;
mod forward_channels;
mod held;
pub mod join;
pub mod list_options;
pub mod listen;
mod metrics;
pub mod negotiate;
pub mod openapi;
pub mod paths;
pub mod proxy;
pub mod route;
mod socket;
mod spdy_stream;
pub mod stream;
pub mod table;
pub mod tunnel;
pub mod verbs;
pub mod watching;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as _, Incoming};

use super::Api;
use super::flowcontrol::Admission;
use super::identity::{MASTERS, User};
use super::status::{Result, Status};

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The largest request body, as Kubernetes limits it.
const BODY_BYTES: usize = 3 << 20;

/// How long a body may take to come, as a request does in Kubernetes.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// What a connection knows of its other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// From a verified client certificate.
    pub user: Option<Arc<User>>,
    /// The digest of its key; empty without one.
    pub key: Arc<str>,
    pub connection: Arc<connections::Connection>,
}

/// Answers one request.
pub async fn respond(api: Api, peer: Peer, request: http::Request<Incoming>) -> Response<Body> {
    let wants_table_error = request.method() == http::Method::HEAD;
    if route::has_bad_escape(request.uri()) {
        return answer::text(400, "400 Bad Request");
    }
    let form = negotiate::accept(request.headers(), negotiate::Offer::Transformed).unwrap_or_default();
    let (begun, mut asked) = (tokio::time::Instant::now(), None);
    let response = match run(&api, &peer, request, &mut asked).await {
        Ok(response) => response,
        Err(status) => {
            let mut response = answer::status(&status, form);
            if wants_table_error {
                *response.body_mut() = answer::full(Bytes::new());
            }
            response
        }
    };
    if let Some(asked) = asked {
        asked.answered(response.status().as_u16(), begun.elapsed());
    }
    response
}

async fn run(
    api: &Api,
    peer: &Peer,
    mut request: http::Request<Incoming>,
    asked: &mut Option<metrics::Asked>,
) -> Result<Response<Body>> {
    if join::is_for(request.uri().path()) {
        return join::respond(api, peer, request).await;
    }
    let route = route::Route::parse(request.method(), request.uri())?;
    *asked = Some(metrics::Asked::of(&route, request.headers()));
    access::take_socket_token(request.headers_mut()).map_err(|s| access::about_target(s, &route))?;
    let user = access::authenticate(api, peer, request.headers())
        .inspect_err(|_| peer.connection.refuse())
        .map_err(|s| access::about_target(s, &route))?;
    let is_long_running = route.is_long_running();
    let long_running = if is_long_running { api.flow.begin_long_running(&user)? } else { None };
    // A watch has a seat until it has begun; what waits for a backend has none.
    let admission = match is_long_running && route.verb != "watch" {
        true => api.flow.unseated(&user),
        false => api.flow.admit(&user, &route.flow_target()).await?,
    };
    let admission = Arc::new(admission);
    request.extensions_mut().insert(admission.clone());
    if !user.is_in(MASTERS) {
        access::require(api, &user, &route.attributes())?;
    }
    let response = match &route.target {
        route::Target::Path(path) => paths::respond(api, &user, path, &request),
        route::Target::Resource(_) => verbs::respond(api, user, route, request).await,
    }?;
    Ok(match is_long_running {
        true => held::open(response, long_running),
        false => held::answer(response, admission),
    })
}

/// The whole body, refused where it is too long.
async fn body_of(request: http::Request<Incoming>) -> Result<Bytes> {
    let admission = request.extensions().get::<Arc<Admission>>().cloned();
    // A body whose length is not told may be as long as any.
    let told = request.body().size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
    let body_bytes = told.unwrap_or(BODY_BYTES).min(BODY_BYTES);
    let limited = http_body_util::Limited::new(request.into_body(), BODY_BYTES).collect();
    let limited = tokio::time::timeout(BODY_PATIENCE, limited);
    let reading = admission.as_ref().map(|admission| admission.begin_reading(body_bytes)).transpose()?;
    let read = match &reading {
        None => limited.await,
        Some(reading) => tokio::select! {
            read = limited => read,
            status = reading.ended() => return Err(status),
        },
    };
    let Ok(read) = read else { return Err(Status::new(504, "Timeout", "the request body did not come in time")) };
    let body = match read {
        Ok(body) => body.to_bytes(),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => {
            return Err(Status::too_large(format!("limit is {BODY_BYTES}")));
        }
        Err(e) => return Err(Status::bad_request(format!("the request body was not received whole: {e}"))),
    };
    if let Some(admission) = admission {
        admission.reserve_body(body.len()).await?;
    }
    Ok(body)
}
