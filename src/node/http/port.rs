//! The node's endpoints as a port of the machine, with TLS, as the kubelet's 10250.
//!
//! Who asks says so by a client certificate of the cluster's CA or by a bearer token, and the API says whose the token
//! is and what its owner may do (TokenReview, SubjectAccessReview on `nodes/...`): the kubelet's webhook modes with their
//! lifetimes. Nobody in particular gets 401, whatever the path. Invariant: the path that is decided on is the one that is answered.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::{Extension, Router};
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::path_of;
use crate::apimachinery::http::connections::Connections;
use crate::apimachinery::http::listen::Site;
use crate::apimachinery::http::peer::Peer;
use crate::apimachinery::http::peer::bearer;
use crate::apimachinery::http::{Body, answer};
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::{AUTHENTICATED, User};
use crate::base::json::{at, list, map, text};
use crate::kinds::authentication::tokenreview;
use crate::kinds::authorization::subjectaccessreview;
use crate::node::access::Access;
use crate::reconcile::Client;

/// How long the API's word on a token, on what somebody may do, and on what they may not, counts.
const TOKEN: Duration = Duration::from_secs(120);
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);
/// Answers of the API that are remembered, of each kind.
const REMEMBERED: usize = 1024;
/// Questions to the API that may be under way; the others wait.
const REVIEWS: usize = 4;
/// Requests that are answered at a time; the others wait.
const REQUESTS: usize = 4;

/// The port of one node; cheap to clone.
#[derive(Clone)]
pub struct Port(Arc<Shared>);

struct Shared {
    access: Arc<Access>,
    client: Arc<dyn Client>,
    connections: Connections,
    reviews: Semaphore,
    requests: Semaphore,
    /// By the token's digest.
    tokens: Memory<[u8; 32], Option<Arc<User>>>,
    /// By user, verb and subresource.
    decisions: Memory<(Identity, &'static str, &'static str), bool>,
}

/// What of a user decisions depend on.
type Identity = (String, String, Vec<String>, Vec<(String, Vec<String>)>);

/// Answers for a time.
struct Memory<Key, Answer>(Mutex<HashMap<Key, (Instant, Answer)>>);

/// What a request is, for the API: a verb, and the subresources of the node of which one must be allowed.
fn asked(method: &Method, path: &str) -> (&'static str, &'static [&'static str]) {
    let verb = match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources: &[&str] = match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "configz" => &["configz", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        _ => &["proxy"],
    };
    (verb, subresources)
}

// === impl Port ===

impl Port {
    /// The endpoints of a node, for whom the API of `client` lets ask.
    pub fn new(access: Arc<Access>, client: Arc<dyn Client>) -> Self {
        Self(Arc::new(Shared {
            access,
            client,
            connections: Connections::default(),
            reviews: Semaphore::new(REVIEWS),
            requests: Semaphore::new(REQUESTS),
            tokens: Memory::default(),
            decisions: Memory::default(),
        }))
    }
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Port")
    }
}

impl Site for Port {
    fn connections(&self) -> &Connections {
        &self.0.connections
    }

    fn user_of(&self, certificate: &[u8]) -> Option<(User, String)> {
        User::from_certificate(certificate).map(|user| (user, String::new()))
    }

    fn router(&self) -> Router {
        // Each is around those before it.
        super::router()
            .layer(middleware::from_fn_with_state(self.clone(), in_turn))
            .layer(middleware::from_fn_with_state(self.clone(), authorization))
            .layer(middleware::from_fn_with_state(self.clone(), authentication))
            .layer(middleware::map_request(written_plainly))
    }
}

async fn written_plainly(mut request: Request) -> Request {
    super::written_plainly(request.uri_mut());
    request
}

/// Finds out who asks: an `Arc<User>` in the request's extensions.
async fn authentication(State(port): State<Port>, peer: Peer, mut request: Request, next: Next) -> Response<Body> {
    let user = match bearer(request.headers()) {
        Some(token) => port.0.user_of(token).await,
        None => Ok(peer.user.clone()),
    };
    let user = match user {
        Ok(Some(user)) => user,
        Ok(None) => return nobody(&peer),
        Err(error) => {
            tracing::warn!(%error, "whose token it is cannot be asked");
            return nobody(&peer);
        }
    };
    if let Err(status) = peer.connection.identify(&user) {
        return answer::text(status.code, status.message);
    }
    request.extensions_mut().insert(user);
    next.run(request).await
}

/// Refuses what the user may not do.
async fn authorization(
    State(port): State<Port>,
    Extension(user): Extension<Arc<User>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let (verb, subresources) = asked(request.method(), &path_of(&request));
    let about = || {
        let (user, subresources) = (&user.name, subresources.join(" "));
        format!("(user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])\n")
    };
    match port.0.may(&user, verb, subresources).await {
        Ok(true) => next.run(request).await,
        Ok(false) => answer::text(403, format!("Forbidden {}", about())),
        Err(error) => {
            tracing::warn!(%error, user = user.name, "what a user may do cannot be asked");
            answer::text(500, format!("Authorization error {}", about()))
        }
    }
}

/// A few requests are answered at a time.
async fn in_turn(State(port): State<Port>, mut request: Request, next: Next) -> Response<Body> {
    let Ok(_turn) = port.0.requests.acquire().await else { return answer::text(503, "stopping") };
    request.extensions_mut().insert((*port.0.access).clone());
    next.run(request).await
}

// === impl Shared ===

impl Shared {
    /// The user whose token it is, if it is anybody's.
    async fn user_of(&self, token: &str) -> Result<Option<Arc<User>>> {
        let mut key = [0; 32];
        key.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref());
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        let review = self.review(&tokenreview::KIND, json!({"token": token})).await?;
        let status = at(&review, "status").cloned().unwrap_or_default();
        let user = (status["authenticated"] == true).then(|| Arc::new(user(&status["user"])));
        self.tokens.insert(key, user.clone(), TOKEN);
        Ok(user)
    }

    /// Whether the user may use the verb on one of the subresources.
    async fn may(&self, user: &User, verb: &'static str, subresources: &[&'static str]) -> Result<bool> {
        let identity: Identity = (user.name.clone(), user.uid.clone(), user.groups.clone(), user.extra.clone());
        for subresource in subresources {
            let key = (identity.clone(), verb, *subresource);
            let allowed = match self.decisions.get(&key) {
                Some(known) => known,
                None => {
                    let allowed = self.ask(user, verb, subresource).await?;
                    self.decisions.insert(key, allowed, if allowed { ALLOWED } else { DENIED });
                    allowed
                }
            };
            if allowed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn ask(&self, user: &User, verb: &str, subresource: &str) -> Result<bool> {
        let node = self.access.node_name();
        let extra: serde_json::Map<String, Value> = user.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let spec = json!({
            "user": user.name, "uid": user.uid, "groups": user.groups, "extra": extra,
            "resourceAttributes": {"verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": node},
        });
        let review = self.review(&subjectaccessreview::KIND, spec).await?;
        Ok(at(&review, "status.allowed") == Some(&Value::Bool(true)))
    }

    async fn review(&self, kind: &crate::kinds::KindRef, spec: Value) -> Result<Value> {
        let _turn = self.reviews.acquire().await.map_err(Status::internal)?;
        self.client.review(kind, spec).await
    }
}

/// As whoever has not said who they are, or not rightly.
fn nobody(peer: &Peer) -> Response<Body> {
    peer.connection.refuse();
    answer::text(StatusCode::UNAUTHORIZED.as_u16(), "Unauthorized")
}

/// A review's user.
fn user(value: &Value) -> User {
    let texts = |values: &[Value]| values.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect::<Vec<_>>();
    let extra = map(value, "extra").into_iter().flatten();
    let mut user = User {
        name: text(value, "username").into(),
        uid: text(value, "uid").into(),
        groups: texts(list(value, "groups")),
        extra: extra.map(|(k, v)| (k.clone(), texts(v.as_array().map_or(&[], Vec::as_slice)))).collect(),
    };
    if !user.is_in(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

// === impl Memory ===

impl<Key, Answer> Default for Memory<Key, Answer> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Key: Eq + Hash, Answer: Clone> Memory<Key, Answer> {
    fn get(&self, key: &Key) -> Option<Answer> {
        let all = self.0.lock().expect("no panic while held");
        all.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, answer)| answer.clone())
    }

    /// Whoever asks with much that is new makes the rest be asked for again, and nothing grow.
    fn insert(&self, key: Key, answer: Answer, lasts: Duration) {
        let mut all = self.0.lock().expect("no panic while held");
        let now = Instant::now();
        if all.len() >= REMEMBERED {
            all.retain(|_, (until, _)| *until > now);
        }
        if all.len() >= REMEMBERED {
            all.clear();
        }
        all.insert(key, (now + lasts, answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_subresource_of_the_node_as_the_kubelet_has_it() {
        let of = |method: Method, path: &str| asked(&method, path);
        assert_eq!(of(Method::GET, "/metrics"), ("get", &["metrics"][..]));
        assert_eq!(of(Method::GET, "/metrics/cadvisor"), ("get", &["metrics"][..]));
        assert_eq!(of(Method::GET, "/metricsx"), ("get", &["proxy"][..]));
        assert_eq!(of(Method::POST, "/stats/summary"), ("create", &["stats"][..]));
        assert_eq!(of(Method::HEAD, "/logs/"), ("get", &["log"][..]));
        assert_eq!(of(Method::GET, "/pods"), ("get", &["pods", "proxy"][..]));
        assert_eq!(of(Method::GET, "/healthz/ping"), ("get", &["healthz", "proxy"][..]));
        assert_eq!(of(Method::GET, "/configz"), ("get", &["configz", "proxy"][..]));
        assert_eq!(of(Method::GET, "/containerLogs/a/b/c"), ("get", &["proxy"][..]));
        assert_eq!(of(Method::GET, "/"), ("get", &["proxy"][..]));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_remembered_for_their_time_and_not_without_end() {
        let memory: Memory<usize, bool> = Memory::default();
        memory.insert(0, true, Duration::from_secs(30));
        assert_eq!(memory.get(&0), Some(true));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(memory.get(&0), None);
        for key in 0..10 * REMEMBERED {
            memory.insert(key, false, Duration::from_secs(30));
        }
        assert!(memory.0.lock().unwrap().len() <= REMEMBERED);
    }
}
