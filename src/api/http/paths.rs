//! Paths outside of the API groups: health, version, discovery, OpenAPI, metrics, keys.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use futures::future::{Either, ready};
use http::{Method, Response};
use serde_json::json;
use tower::service_fn;

use super::layer::Next;
use super::negotiate::{self, MediaType, Offer};
use super::route::{self, Route, Target};
use super::{Body, aggregate, answer, discovery, resource_metrics, verbs};
use crate::api::Api;
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;
use crate::apimachinery::version;
use crate::kinds::registry;

/// The checks that the health paths name.
const CHECKS: &[&str] = &["ping", "log", "etcd", "informer-sync"];

/// Refuses what Go's server does not read, before anything else is known of the request.
pub(super) fn refuse_bad_escapes<S: Next>(mut inner: S) -> impl Next {
    service_fn(move |request: Request| match route::has_bad_escape(request.uri()) {
        true => Either::Right(ready(Ok(answer::text(400, "400 Bad Request")))),
        false => Either::Left(inner.call(request)),
    })
}

/// `/api`, `/apis` and everything below: discovery, and the resources of kinds.
pub(super) async fn resource(
    State(api): State<Api>,
    Extension(user): Extension<Arc<User>>,
    route: Route,
    request: Request,
) -> Result<Response<Body>> {
    if let Some(remote) = aggregate::remote_of(&api, &route) {
        return aggregate::respond(&api, &remote, &user, &route, request).await;
    }
    if api.options.resource_metrics && resource_metrics::is_asked(&route) {
        return resource_metrics::respond(&api, &route, request.method(), request.headers()).await;
    }
    let path = match &route.target {
        Target::Resource(_) => return verbs::respond(&api, user, route, request).await,
        Target::Path(path) => path,
    };
    // Kubernetes' aggregator lists the groups whatever the method is.
    let is_groups = path.trim_end_matches('/') == "/apis";
    match (discovery::answer(&api, path, request.headers()), request.method()) {
        (Some(_), &Method::HEAD) => Err(Status::method_not_allowed()),
        (Some((value, media)), method) if is_groups || *method == Method::GET => {
            if media == "application/json" {
                negotiate::accept(request.headers(), Offer::Plain)?;
            }
            Ok(answer::typed(200, media, answer::full(serde_json::to_vec(&value).unwrap_or_default())))
        }
        (Some(_), _) => Err(Status::method_not_allowed()),
        (None, method) => {
            read_only(method)?;
            let is_group = path.starts_with("/apis/") && path.trim_end_matches('/').matches('/').count() <= 2;
            let group = path.strip_prefix("/apis/").and_then(|rest| rest.split('/').next());
            let is_foreign = group.is_some_and(|group| registry::builtin().iter().all(|k| k.group() != group));
            if is_group || is_foreign { Ok(answer::unknown()) } else { Err(Status::no_such_path()) }
        }
    }
}

/// Health, which any method asks for.
pub(super) async fn health(route: Route, request: Request) -> Result<Response<Body>> {
    let path = path_of(&route)?;
    let root = path.split('/').nth(1).unwrap_or("");
    Ok(health_of(root, path, request.uri().query().unwrap_or("")))
}

/// `/version`.
pub(super) async fn version(route: Route, request: Request) -> Result<Response<Body>> {
    let path = path_of(&route)?;
    if path.trim_end_matches('/') != "/version" {
        return not_found(route, request).await;
    }
    if *request.method() != Method::GET {
        return Err(Status::method_not_allowed());
    }
    let form = negotiate::accept(request.headers(), Offer::Plain)?;
    Ok(answer::value(200, form, &version::build()))
}

/// `/`: all paths that there are.
pub(super) async fn index(State(api): State<Api>, request: Request) -> Result<Response<Body>> {
    read_only(request.method())?;
    Ok(answer::value(200, MediaType::default(), &json!({"paths": all(&api)})))
}

/// `/metrics`.
pub(super) async fn metrics(State(api): State<Api>, request: Request) -> Result<Response<Body>> {
    read_only(request.method())?;
    Ok(answer::text(200, super::metrics::text(&api)))
}

/// The keys that service-account tokens are signed with.
pub(super) async fn keys(State(api): State<Api>, request: Request) -> Result<Response<Body>> {
    read_only(request.method())?;
    let keys = serde_json::to_vec(&api.tokens.jwks()).unwrap_or_default();
    Ok(answer::typed(200, "application/jwk-set+json", answer::full(keys)))
}

/// Where those keys are.
pub(super) async fn openid_configuration(State(api): State<Api>, request: Request) -> Result<Response<Body>> {
    read_only(request.method())?;
    Ok(answer::value(200, MediaType::default(), &openid(api.tokens.issuer())))
}

/// `/openapi` and everything below.
pub(super) async fn openapi(
    State(api): State<Api>,
    Extension(user): Extension<Arc<User>>,
    route: Route,
    request: Request,
) -> Result<Response<Body>> {
    read_only(request.method())?;
    let path = path_of(&route)?;
    if let Some(remote) = aggregate::remote_documented(&api, path) {
        return aggregate::respond(&api, &remote, &user, &route, request).await;
    }
    match super::openapi::respond(&api, request.uri(), path, request.headers()).await {
        Err(status) if status.code == 404 => Ok(answer::text(404, "")),
        answered => answered,
    }
}

/// What leads nowhere. Kubernetes' handlers for `/version` and for health are asked for their methods by the beginning of a
/// path alone.
pub(super) async fn not_found(route: Route, request: Request) -> Result<Response<Body>> {
    let path = path_of(&route)?;
    if *request.method() == Method::HEAD && path.starts_with("/version") {
        return Err(Status::method_not_allowed());
    }
    if !["/healthz", "/livez", "/readyz"].iter().any(|health| path.starts_with(health)) {
        read_only(request.method())?;
    }
    Ok(answer::unknown())
}

fn read_only(method: &Method) -> Result<()> {
    if matches!(*method, Method::GET | Method::HEAD) { Ok(()) } else { Err(Status::no_such_path()) }
}

fn path_of(route: &Route) -> Result<&str> {
    match &route.target {
        Target::Path(path) => Ok(path),
        Target::Resource(_) => Err(Status::no_such_path()),
    }
}

fn health_of(root: &str, path: &str, query: &str) -> Response<Body> {
    let excluded: Vec<String> =
        form_urlencoded::parse(query.as_bytes()).filter(|(k, _)| k == "exclude").map(|(_, v)| v.into_owned()).collect();
    let verbose = form_urlencoded::parse(query.as_bytes()).any(|(k, _)| k == "verbose");
    if let Some(check) = path.strip_prefix(&format!("/{root}/")).filter(|c| !c.is_empty()) {
        return if CHECKS.contains(&check) { answer::text(200, "ok") } else { answer::unknown() };
    }
    if !verbose {
        return answer::text(200, "ok");
    }
    let mut out = String::new();
    for check in CHECKS {
        let excluded = excluded.iter().any(|e| e == check);
        out.push_str(&format!("[+]{check} {}\n", if excluded { "excluded: ok" } else { "ok" }));
    }
    answer::text(200, format!("{out}{root} check passed\n"))
}

fn openid(issuer: &str) -> serde_json::Value {
    json!({
        "issuer": issuer, "jwks_uri": format!("{issuer}/openid/v1/jwks"), "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
    })
}

fn all(api: &Api) -> Vec<String> {
    let mut paths: Vec<String> =
        vec!["/.well-known/openid-configuration".into(), "/api".into(), "/api/v1".into(), "/apis".into()];
    for (group, versions) in api.groups().into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{group}/{}", v.version)));
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]
            .map(str::to_owned),
    );
    paths
}
