//! Paths outside of the API groups: health, version, discovery, OpenAPI, metrics, keys.

use http::{Method, Response};
use hyper::body::Incoming;
use serde_json::json;

use super::negotiate::{self, Form, Offer};
use super::{Body, answer, discovery, openapi};
use crate::api::Api;
use crate::api::identity::User;
use crate::api::status::{Result, Status};
use crate::kinds::registry::Snapshot;

/// The Kubernetes version that is served.
pub const GIT_VERSION: &str = concat!("v1.37.0+amphipod", env!("CARGO_PKG_VERSION"));

/// The checks that the health paths name.
const CHECKS: &[&str] = &["ping", "log", "etcd", "informer-sync"];

/// Answers a path that is no resource.
pub fn respond(api: &Api, _user: &User, path: &str, request: &http::Request<Incoming>) -> Result<Response<Body>> {
    let kinds = api.kinds.snapshot();
    let is_health = ["/healthz", "/livez", "/readyz"].iter().any(|p| path.starts_with(p));
    if *request.method() == Method::HEAD
        && !is_health
        && (discovery::answer(&kinds, path, request.headers()).is_some() || path.starts_with("/version"))
    {
        return Err(Status::method_not_allowed());
    }
    // Kubernetes' aggregator lists the groups whatever the method is.
    let is_groups = path.trim_end_matches('/') == "/apis";
    if !matches!(*request.method(), Method::GET | Method::HEAD) && !is_health && !is_groups {
        return Err(if discovery::answer(&kinds, path, request.headers()).is_some() || is_version(path) {
            Status::method_not_allowed()
        } else {
            Status::no_such_path()
        });
    }
    if let Some((value, media)) = discovery::answer(&kinds, path, request.headers()) {
        if media == "application/json" {
            negotiate::accept(request.headers(), Offer::Plain)?;
        }
        return Ok(answer::typed(200, media, answer::full(serde_json::to_vec(&value).unwrap_or_default())));
    }
    let root = path.split('/').nth(1).unwrap_or("");
    match (root, path) {
        ("healthz" | "livez" | "readyz", _) => health(root, path, request.uri().query().unwrap_or("")),
        (_, path) if is_version(path) => {
            let form = negotiate::accept(request.headers(), Offer::Plain)?;
            Ok(answer::value(200, form, &version()))
        }
        (_, "/") => Ok(answer::value(200, Form::default(), &json!({"paths": index(&kinds)}))),
        (_, "/metrics") => Ok(answer::text(200, super::metrics::text(api))),
        (_, "/openid/v1/jwks") => {
            let keys = serde_json::to_vec(&api.tokens.jwks()).unwrap_or_default();
            Ok(answer::typed(200, "application/jwk-set+json", answer::full(keys)))
        }
        (_, "/.well-known/openid-configuration") => {
            Ok(answer::value(200, Form::default(), &openid(api.tokens.issuer())))
        }
        ("openapi", _) => match openapi::respond(&kinds, request.uri(), path, request.headers()) {
            Err(status) if status.code == 404 => Ok(answer::text(404, "")),
            answered => answered,
        },
        ("api", _) => Err(Status::no_such_path()),
        ("apis", path) if path.trim_end_matches('/').matches('/').count() > 2 => Err(Status::no_such_path()),
        _ => Ok(unknown()),
    }
}

fn is_version(path: &str) -> bool {
    path.trim_end_matches('/') == "/version"
}

/// What Go's own multiplexer says.
pub(super) fn unknown() -> Response<Body> {
    answer::text(404, "404 page not found\n")
}

/// The body of `/version`.
pub fn version() -> serde_json::Value {
    let platform = format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    json!({
        "major": "1", "minor": "37", "emulationMajor": "1", "emulationMinor": "37",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
        "gitVersion": GIT_VERSION, "gitCommit": option_env!("AMPHIPOD_COMMIT").unwrap_or(""), "gitTreeState": "clean",
        "buildDate": option_env!("AMPHIPOD_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": concat!("rust", env!("CARGO_PKG_RUST_VERSION")), "compiler": "rustc", "platform": platform,
    })
}

fn health(root: &str, path: &str, query: &str) -> Result<Response<Body>> {
    let excluded: Vec<String> =
        form_urlencoded::parse(query.as_bytes()).filter(|(k, _)| k == "exclude").map(|(_, v)| v.into_owned()).collect();
    let verbose = form_urlencoded::parse(query.as_bytes()).any(|(k, _)| k == "verbose");
    if let Some(check) = path.strip_prefix(&format!("/{root}/")).filter(|c| !c.is_empty()) {
        return if CHECKS.contains(&check) { Ok(answer::text(200, "ok")) } else { Ok(unknown()) };
    }
    if !verbose {
        return Ok(answer::text(200, "ok"));
    }
    let mut out = String::new();
    for check in CHECKS {
        let excluded = excluded.iter().any(|e| e == check);
        out.push_str(&format!("[+]{check} {}\n", if excluded { "excluded: ok" } else { "ok" }));
    }
    Ok(answer::text(200, format!("{out}{root} check passed\n")))
}

fn openid(issuer: &str) -> serde_json::Value {
    json!({
        "issuer": issuer, "jwks_uri": format!("{issuer}/openid/v1/jwks"), "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
    })
}

fn index(kinds: &Snapshot) -> Vec<String> {
    let mut paths: Vec<String> =
        vec!["/.well-known/openid-configuration".into(), "/api".into(), "/api/v1".into(), "/apis".into()];
    for group in discovery::groups(kinds).into_iter().filter(|g| !g.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(discovery::versions(kinds, group).iter().map(|v| format!("/apis/{group}/{v}")));
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]
            .map(str::to_owned),
    );
    paths
}
