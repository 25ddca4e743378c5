//! What dashboards ask of an API server: requests by verb, resource and answer, how long they took, and what is stored.
//!
//! Invariant: labels are words of ours. A path that leads to no kind that is served has empty ones, whatever it says.

use std::cmp::Ordering;
use std::fmt::Write;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::extract::Request;
use futures::TryFutureExt;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use tokio::time::Instant;
use tower::service_fn;
use tracing::Level;

use super::layer::Next;
use super::route::{Route, Target};
use crate::api::Api;
use crate::apimachinery::version;
use crate::base::metrics::{self, Bound, Counters, Histograms, Labels};
use crate::kinds::registry::{self, Registry, Snapshot};
use crate::kinds::{KindRef, Subresource};

/// Of `apiserver_request_duration_seconds`; those of the indicator begin with the third.
const BOUNDS: &[Bound] = &[
    (0.005, "0.005"),
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.2, "0.2"),
    (0.4, "0.4"),
    (0.6, "0.6"),
    (0.8, "0.8"),
    (1.0, "1"),
    (1.25, "1.25"),
    (1.5, "1.5"),
    (2.0, "2"),
    (3.0, "3"),
    (4.0, "4"),
    (5.0, "5"),
    (6.0, "6"),
    (8.0, "8"),
    (10.0, "10"),
    (15.0, "15"),
    (20.0, "20"),
    (30.0, "30"),
    (45.0, "45"),
    (60.0, "60"),
];
/// Rows of the counters beyond which it is looked whether all of their kinds are there still.
const ROWS_MIN: usize = 4096;
static ROWS: AtomicUsize = AtomicUsize::new(ROWS_MIN);
/// Paths that are told apart.
const PATHS: [&str; 8] =
    ["/healthz", "/livez", "/readyz", "/metrics", "/version", "/openapi/v2", "/openapi/v3", "/apis"];

static REQUESTS: Counters<RequestLabels> = Counters::new(
    "apiserver_request_total",
    "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, \
     component, and HTTP response code.",
);
static DURATIONS: Histograms<RequestLabels> = Histograms::new(
    "apiserver_request_duration_seconds",
    "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, \
     subresource, scope and component.",
    BOUNDS,
);
static SLI_DURATIONS: Histograms<RequestLabels> = Histograms::new(
    "apiserver_request_sli_duration_seconds",
    "[ALPHA] Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in \
     seconds for each verb, group, version, resource, subresource, scope and component.",
    BOUNDS.split_at(2).1,
);

static TERMINATIONS: Counters<RequestLabels> = Counters::new(
    "apiserver_request_terminations_total",
    "[ALPHA] Number of requests which apiserver terminated in self-defense.",
);

/// A request as it is counted.
#[derive(Clone, Debug)]
pub struct RequestLabels {
    /// None: a path that is no kind's.
    kind: Option<KindRef>,
    subresource: &'static str,
    scope: &'static str,
    verb: &'static str,
    /// None: it is no label.
    dry_run: Option<&'static str>,
    code: Option<u16>,
    /// It may last as long as the client likes, which says nothing of the server.
    is_long: bool,
}

// === impl RequestLabels ===

impl RequestLabels {
    /// What a routed request counts as.
    pub fn of(route: &Route, headers: &HeaderMap, kinds: &Registry) -> Self {
        let none = Self {
            kind: None,
            subresource: "",
            scope: "",
            verb: "",
            dry_run: Some(if route.query.has("dryRun") { "All" } else { "" }),
            code: None,
            is_long: route.is_long_running(),
        };
        let resource = match &route.target {
            Target::Path(path) => {
                let known = PATHS.iter().find(|p| path.starts_with(**p)).copied().unwrap_or_default();
                return Self { subresource: known, verb: verb(route.verb, false), ..none };
            }
            Target::Resource(resource) => resource,
        };
        let verb = verb(
            route.verb,
            headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/apply-patch")),
        );
        let (group, version, plural) = (&resource.group, &resource.version, &resource.plural);
        let builtin = registry::builtin().by_plural(group, version, plural).cloned();
        let Some(kind) = builtin.or_else(|| kinds.snapshot().by_plural(group, version, plural).cloned()) else {
            return Self { verb, ..none };
        };
        let sub = kind.subresources().iter().find(|s| s.name() == resource.subresource);
        let connects = matches!(
            sub,
            Some(Subresource::Exec | Subresource::Attach | Subresource::PortForward | Subresource::Proxy)
        );
        let scope = match () {
            () if !resource.name.is_empty() || verb == "POST" => "resource",
            () if !resource.namespace.is_empty() => "namespace",
            () => "cluster",
        };
        Self {
            subresource: sub.map_or("", |s| s.name()),
            scope,
            verb: if connects { "CONNECT" } else { verb },
            kind: Some(kind),
            ..none
        }
    }

    /// It was answered with this code, after so long.
    pub fn observe(self, code: u16, took: Duration, kinds: &Registry) {
        let rows = REQUESTS.add(Self { code: Some(code), ..self.clone() });
        if rows > ROWS.load(Relaxed) {
            forget_gone(kinds);
        }
        // An eviction that has to wait is refused for the pods' sake, not for the server's.
        if matches!(code, 429 | 504) && self.subresource != Subresource::Eviction.name() {
            TERMINATIONS.add(Self { code: Some(code), dry_run: None, ..self.clone() });
        }
        if !self.is_long {
            DURATIONS.observe(self.clone(), took);
            SLI_DURATIONS.observe(Self { dry_run: None, ..self }, took);
        }
    }

    /// Group, version and resource.
    fn kind(&self) -> (&str, &str, &str) {
        self.kind.as_ref().map_or(("", "", ""), |kind| (kind.group(), kind.version(), kind.plural()))
    }

    fn order(&self) -> impl Ord {
        let Self { subresource, scope, verb, dry_run, code, is_long, .. } = *self;
        (subresource, scope, verb, dry_run, code, is_long)
    }

    fn is_gone(&self, kinds: &Snapshot) -> bool {
        let (group, version, resource) = self.kind();
        self.kind.is_some() && kinds.by_plural(group, version, resource).is_none()
    }
}

impl Ord for RequestLabels {
    fn cmp(&self, other: &Self) -> Ordering {
        self.kind().cmp(&other.kind()).then_with(|| self.order().cmp(&other.order()))
    }
}

impl PartialOrd for RequestLabels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for RequestLabels {}

impl PartialEq for RequestLabels {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

/// Forgets what was asked of kinds that are no more: whoever defines and removes kinds must not fill the memory.
fn forget_gone(kinds: &Registry) {
    let kinds = kinds.snapshot();
    let is_there = |labels: &RequestLabels| !labels.is_gone(&kinds);
    let rows = REQUESTS.retain(is_there);
    ROWS.store((rows * 2).max(ROWS_MIN), Relaxed);
    TERMINATIONS.retain(is_there);
    DURATIONS.retain(is_there);
    SLI_DURATIONS.retain(is_there);
}

fn verb(verb: &str, applies: bool) -> &'static str {
    match verb {
        "get" | "head" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" if applies => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "other",
    }
}

impl Labels for RequestLabels {
    fn write(&self, out: &mut String) {
        let Self { subresource, scope, verb, dry_run, code, .. } = self;
        let (group, version, resource) = self.kind();
        if let Some(code) = code {
            let _ = write!(out, "code=\"{code}\",");
        }
        out.push_str("component=\"apiserver\",");
        if let Some(dry_run) = dry_run {
            let _ = write!(out, "dry_run=\"{dry_run}\",");
        }
        let _ = write!(
            out,
            "group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",subresource=\"{subresource}\",verb=\"{verb}\",\
             version=\"{version}\""
        );
    }
}

/// Counts every answer.
pub(super) fn count<S: Next>(mut inner: S) -> impl Next {
    service_fn(move |request: Request| {
        inner.call(request).inspect_ok(|response| {
            metrics::REQUESTS.add();
            if response.status().is_server_error() {
                metrics::REQUEST_ERRORS.add();
            }
        })
    })
}

/// Observes the requests whose path could be parsed, as dashboards ask for them.
pub(super) fn observe<S: Next>(api: Api, mut inner: S) -> impl Next {
    service_fn(move |request: Request| {
        let begun = Instant::now();
        let route = request.extensions().get::<Route>();
        let labels = route.map(|route| RequestLabels::of(route, request.headers(), &api.kinds));
        let kinds = api.kinds.clone();
        inner.call(request).inspect_ok(move |response| {
            if let Some(labels) = labels {
                labels.observe(response.status().as_u16(), begun.elapsed(), &kinds);
            }
        })
    })
}

/// Writes a line for each answer, where such lines are wanted.
pub(super) fn trace<S: Next>(mut inner: S) -> impl Next {
    service_fn(move |request: Request| {
        let wanted = tracing::enabled!(Level::DEBUG).then(|| {
            let verb = request.extensions().get::<Route>().map_or("", |route| route.verb);
            // Without the query, which has the arguments of commands.
            (Instant::now(), verb, request.uri().path().to_owned())
        });
        inner.call(request).inspect_ok(move |response| {
            if let Some((begun, verb, path)) = wanted {
                let code = response.status().as_u16();
                tracing::debug!(verb, path, code, milliseconds = begun.elapsed().as_millis(), "answered");
            }
        })
    })
}

/// Everything that the API server tells.
pub fn text(api: &Api) -> String {
    let mut out = metrics::text();
    forget_gone(&api.kinds);
    REQUESTS.write(&mut out);
    DURATIONS.write(&mut out);
    SLI_DURATIONS.write(&mut out);
    TERMINATIONS.write(&mut out);
    let help = "Number of stored objects at the time of last check split by kind.";
    for name in ["apiserver_storage_objects", "apiserver_resource_objects"] {
        let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} gauge");
        for kind in api.kinds.snapshot().stored() {
            let count = api.cache.kind(kind).len();
            let _ = match name {
                "apiserver_storage_objects" => {
                    writeln!(out, "{name}{{resource=\"{}\"}} {count}", crate::apimachinery::status::resource(kind))
                }
                _ => writeln!(out, "{name}{{group=\"{}\",resource=\"{}\"}} {count}", kind.group(), kind.plural()),
            };
        }
    }
    build(&mut out);
    out
}

/// `kubernetes_build_info`, with what `/version` says.
fn build(out: &mut String) {
    const NAMES: [(&str, &str); 9] = [
        ("build_date", "buildDate"),
        ("compiler", "compiler"),
        ("git_commit", "gitCommit"),
        ("git_tree_state", "gitTreeState"),
        ("git_version", "gitVersion"),
        ("go_version", "goVersion"),
        ("major", "major"),
        ("minor", "minor"),
        ("platform", "platform"),
    ];
    let version = version::build();
    let label = |(name, key): &(&str, &str)| format!("{name}=\"{}\"", version[*key].as_str().unwrap_or_default());
    let labels = NAMES.iter().map(label).collect::<Vec<_>>().join(",");
    let name = "kubernetes_build_info";
    let help = "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, \
                build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.";
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{{labels}}} 1");
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::kinds::custom::{CustomKind, definition_name};
    use crate::schema::{CustomNames, Schema};

    fn widget() -> KindRef {
        let definition = definition_name("example.com", "v1", "Widget");
        let names = CustomNames { definition: &definition, group: "example.com", version: "v1", kind: "Widget" };
        KindRef::custom(CustomKind {
            group: "example.com".into(),
            version: "v1".into(),
            kind: "Widget".into(),
            plural: "widgets".into(),
            singular: "widget".into(),
            ..CustomKind::bare(Schema::custom(&names, &serde_json::json!({"type": "object"})).unwrap().into())
        })
    }

    fn labels_of(method: &str, path: &str) -> String {
        labels_in(&Registry::new(), method, path)
    }

    fn labels_in(kinds: &Registry, method: &str, path: &str) -> String {
        let route = Route::parse(&method.parse::<Method>().unwrap(), &path.parse().unwrap()).unwrap();
        let mut headers = HeaderMap::new();
        if method == "PATCH" {
            headers.insert(CONTENT_TYPE, "application/apply-patch+yaml".parse().unwrap());
        }
        let mut out = String::new();
        RequestLabels { code: Some(200), ..RequestLabels::of(&route, &headers, kinds) }.write(&mut out);
        out
    }

    #[test]
    fn requests_for_kinds_that_were_defined_at_run_time_say_which() {
        let (kinds, widget) = (Registry::new(), widget());
        let path = "/apis/example.com/v1/namespaces/n/widgets";
        assert!(labels_in(&kinds, "GET", path).contains("group=\"\",resource=\"\""), "nobody can make rows by asking");
        kinds.add(widget.clone());
        let of = "group=\"example.com\",resource=\"widgets\",scope=\"namespace\",subresource=\"\",verb=\"LIST\",version=\"v1\"";
        assert!(labels_in(&kinds, "GET", path).ends_with(of), "{}", labels_in(&kinds, "GET", path));
        let (method, uri) = (Method::GET, path.parse().unwrap());
        let labels = RequestLabels::of(&Route::parse(&method, &uri).unwrap(), &HeaderMap::new(), &kinds);
        // Rows of its own: the server's are of all tests.
        let rows = Counters::new("asked", "");
        rows.add(labels.clone());
        assert_eq!(rows.add(labels), 1, "equal labels are one row");
        let is_there = |labels: &RequestLabels| !labels.is_gone(&kinds.snapshot());
        assert_eq!(rows.retain(is_there), 1);
        kinds.remove(&widget);
        assert_eq!(rows.retain(is_there), 0, "whoever defines and removes kinds fills no memory");
    }

    #[test]
    fn requests_have_the_labels_of_kubernetes() {
        let labels = |dry: &str, group: &str, resource: &str, scope: &str, sub: &str, verb: &str, version: &str| {
            format!(
                "code=\"200\",component=\"apiserver\",dry_run=\"{dry}\",group=\"{group}\",resource=\"{resource}\",\
                 scope=\"{scope}\",subresource=\"{sub}\",verb=\"{verb}\",version=\"{version}\""
            )
        };
        let pods = "/api/v1/namespaces/n/pods";
        assert_eq!(labels_of("GET", pods), labels("", "", "pods", "namespace", "", "LIST", "v1"));
        assert_eq!(labels_of("GET", "/api/v1/pods?watch=1"), labels("", "", "pods", "cluster", "", "WATCH", "v1"));
        assert_eq!(labels_of("POST", pods), labels("", "", "pods", "resource", "", "POST", "v1"));
        assert_eq!(
            labels_of("POST", &format!("{pods}/p/exec")),
            labels("", "", "pods", "resource", "exec", "CONNECT", "v1")
        );
        assert_eq!(labels_of("GET", &format!("{pods}/p/log")), labels("", "", "pods", "resource", "log", "GET", "v1"));
        let apply = "/apis/apps/v1/namespaces/n/deployments/d?dryRun=All";
        assert_eq!(labels_of("PATCH", apply), labels("All", "apps", "deployments", "resource", "", "APPLY", "v1"));
        assert_eq!(labels_of("GET", "/healthz/ping"), labels("", "", "", "", "/healthz", "GET", ""));
    }

    #[test]
    fn what_is_not_served_has_no_labels_of_its_own() {
        let none = |verb: &str| {
            format!(
                "code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"\",scope=\"\",subresource=\"\",\
                 verb=\"{verb}\",version=\"\""
            )
        };
        assert_eq!(labels_of("GET", "/apix/anything"), none("GET"));
        assert_eq!(labels_of("GET", "/apis/example.com/v1/anythings/a"), none("GET"));
        assert_eq!(labels_of("BREW", "/api/v1/anythings/a"), none("other"));
        assert!(labels_of("GET", "/api/v1/pods/p/anything").contains("subresource=\"\""));
    }
}
