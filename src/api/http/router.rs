//! The routes of the API server, and the stack of layers that a request passes before it comes to one.
//!
//! Kubernetes' kinds are read from the path, not matched: `/api/...` and `/apis/...` lead to one handler, which looks the
//! parsed path up among the kinds that are served. Routes are services rather than axum's method routers: which methods a
//! path takes depends on what it names, and method routers add `Allow` and `Content-Length` headers to answers that have
//! none here (`101 Switching Protocols`, `304 Not Modified`).
//!
//! Invariant: what decides (flow control, authorization) and what answers see the same [`Route`], parsed once.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::handler::Handler;
use axum::response::Response;
use axum::{Extension, Router, routing};
use http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tower::layer::layer_fn;
use tower::{Layer, Service, service_fn};

use super::join::Joining;
use super::layer::{Next, answered};
use super::route::{Route, Target};
use super::{access, answer, compression, flow_control, join, metrics, paths};
use crate::api::Api;
use crate::api::identity::join::Joiner;
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;
use crate::wire::images::IMAGES_PATH;
use crate::wire::tunnel;

/// What a path can have unescaped.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b'/');

/// A layer made of a function that also gets the API, as [`layer_fn`] makes one of a function that does not.
#[derive(Clone)]
struct WithApi<F>(Api, F);

impl<S, T, F: Fn(Api, S) -> T> Layer<S> for WithApi<F> {
    type Service = T;

    fn layer(&self, inner: S) -> T {
        (self.1)(self.0.clone(), inner)
    }
}

/// Everything that the API server serves.
pub fn router(api: &Api, joiner: Option<Arc<Joiner>>) -> Router {
    // Nobody is known on these paths yet, or by a certificate alone.
    let joining = joining(Joining { api: api.clone(), joiner }).layer((
        layer_fn(metrics::count),
        layer_fn(paths::refuse_bad_escapes),
        layer_fn(answer::write_failures),
    ));
    joining.merge(kubernetes(api).layer(stack(api.clone())))
}

/// The layers around everything of Kubernetes, from the outside to the inside, in the order of its handler chain.
///
/// There is no audit: its layer belongs between authentication (which includes impersonation here, so that both users have
/// to be handed on) and flow control.
fn stack(api: Api) -> impl Layer<routing::Route, Service = impl Next> + Clone + Send + Sync {
    (
        layer_fn(metrics::count),
        layer_fn(paths::refuse_bad_escapes),
        layer_fn(answer::write_failures),
        layer_fn(parsed_path),
        WithApi(api.clone(), metrics::observe),
        layer_fn(metrics::trace),
        WithApi(api.clone(), access::authentication),
        WithApi(api.clone(), flow_control::priority_and_fairness),
        WithApi(api, access::authorization),
        // Its work is the request's, which keeps its seat meanwhile.
        layer_fn(compression::compression),
    )
}

fn joining(joining: Joining) -> Router {
    let images = join::image.with_state(joining.clone());
    Router::new()
        .route_service(join::CA_PATH, join::ca.with_state(joining.clone()))
        .route_service(join::JOIN_PATH, join::join.with_state(joining.clone()))
        .route_service(join::RENEW_PATH, join::renew.with_state(joining.clone()))
        .route_service(tunnel::PATH, join::tunnel.with_state(joining))
        .route_service(IMAGES_PATH, images.clone())
        .route_service(&format!("{IMAGES_PATH}{{*part}}"), images)
}

fn kubernetes(api: &Api) -> Router {
    let plain = paths_of_kubernetes(api).fallback_service(paths::not_found.with_state(()));
    paths_of_kubernetes(api).fallback_service(elsewhere.with_state((api.clone(), plain)))
}

fn paths_of_kubernetes(api: &Api) -> Router {
    let (health, version) = (paths::health.with_state(()), paths::version.with_state(()));
    let (openapi, resource) = (paths::openapi.with_state(api.clone()), paths::resource.with_state(api.clone()));
    let mut router = Router::new()
        .route_service("/", paths::index.with_state(api.clone()))
        .route_service("/metrics", paths::metrics.with_state(api.clone()))
        .route_service("/openid/v1/jwks", paths::keys.with_state(api.clone()))
        .route_service("/.well-known/openid-configuration", paths::openid_configuration.with_state(api.clone()));
    for root in ["/healthz", "/livez", "/readyz"] {
        router = below(router, root, health.clone());
    }
    router = below(router, "/version", version);
    router = below(router, "/openapi", openapi);
    router = below(router, "/api", resource.clone());
    below(router, "/apis", resource)
}

/// A path and everything below it.
fn below(router: Router, root: &str, service: impl Next) -> Router {
    router
        .route_service(root, service.clone())
        .route_service(&format!("{root}/"), service.clone())
        .route_service(&format!("{root}/{{*rest}}"), service)
}

/// Answers where no route is: also paths that are written with escapes where none are needed (`/%76ersion`, `/api%2Fv1`),
/// which lead where their plain form leads, as in Go's multiplexer.
async fn elsewhere(
    State((api, mut plain)): State<(Api, Router)>,
    user: Extension<Arc<User>>,
    route: Route,
    mut request: Request,
) -> Result<Response> {
    let path = match &route.target {
        Target::Resource(_) => return paths::resource(State(api), user, route, request).await,
        Target::Path(path) => path,
    };
    if !request.uri().path().contains('%') {
        return paths::not_found(route, request).await;
    }
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let written = format!("{}{query}", utf8_percent_encode(path, IN_PATH));
    *request.uri_mut() = written.parse().map_err(Status::internal)?;
    request.extensions_mut().insert(route);
    plain.call(request).await.map_err(|never| match never {})
}

/// Reads method and path once for all that follows; [`Route`] and `Arc<User>` are extractors of handlers.
fn parsed_path<S: Next>(mut inner: S) -> impl Next {
    service_fn(move |mut request: Request| {
        let answering = Route::parse(request.method(), request.uri()).map(|route| {
            request.extensions_mut().insert(route);
            inner.call(request)
        });
        answered(answering)
    })
}

impl<S: Sync> FromRequestParts<S> for Route {
    type Rejection = Status;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        parts.extensions.remove().ok_or_else(|| Status::internal("a request without a route"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_room_for_its_layers_once() {
        let api = crate::api::in_memory::api();
        let routes = kubernetes(&api);
        let inner = size_of_val(&routes.clone().call(Request::<axum::body::Body>::default()));
        let around = layer_fn(move |route: routing::Route| {
            let mut all = stack(api.clone()).layer(route);
            let answering = all.call(Request::default());
            let bytes = size_of_val(&answering);
            assert!(bytes < 4 * inner + 2048, "{bytes} bytes for layers around {inner}");
            all
        });
        drop(routes.layer(around));
    }
}
