//! serviceaccounts/token: a token that is bound to its account, and to a pod, secret or node if asked.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api::admission::Review;
use crate::api::identity::token::{Private, Reference, reference};
use crate::api::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::clock::seconds_text;
use crate::base::json::{at, int, list, set, text};
use crate::kinds::core::{node, pod, secret};
use crate::kinds::field;
use crate::kinds::{Subresource, registry};
use crate::schema::apply::{self, FieldSet, managed};

/// The definition of what goes through it.
pub const SCHEMA: &str = "io.k8s.api.authentication.v1.TokenRequest";
/// Shortest and longest life of a token.
const SECONDS: std::ops::RangeInclusive<i64> = 600..=(1 << 32);
/// What a client gets that asks for nothing.
const DEFAULT_SECONDS: i64 = 3600;

impl Api {
    /// Answers a TokenRequest for the named service account.
    pub async fn request_token(&self, request: &Request, asked: Value) -> Result<Value> {
        let request = &request.clone().on(Subresource::Token);
        let account = self.get(request)?;
        check_place(request, &asked)?;
        let mut asked = asked;
        Review::create(self, request).mutate(&mut asked).await?;
        let seconds = int(&asked, "spec.expirationSeconds").unwrap_or(DEFAULT_SECONDS);
        if !SECONDS.contains(&seconds) {
            let why = if seconds < 600 {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            let error = field::invalid("spec.expirationSeconds", seconds, why);
            return Err(refusal(request, "", error));
        }
        let mut private = Private {
            namespace: request.namespace.clone(),
            serviceaccount: Reference { name: request.name.clone(), uid: account.meta.uid.to_string() },
            ..Private::default()
        };
        if let Some(bound) = at(&asked, "spec.boundObjectRef").filter(|b| !b.is_null()) {
            self.bind_token(request, bound, &mut private)?;
        }
        let audiences: Vec<String> =
            list(&asked, "spec.audiences").iter().filter_map(|a| a.as_str().map(str::to_owned)).collect();
        let token = self.tokens.sign(&audiences, Duration::from_secs(seconds as u64), private);
        let mut answer = asked;
        set(&mut answer, "spec.expirationSeconds", seconds);
        self.track_token(request, &mut answer);
        if audiences.is_empty() {
            set(&mut answer, "spec.audiences", json!([self.tokens.issuer()]));
        }
        set(&mut answer, "kind", "TokenRequest");
        set(&mut answer, "apiVersion", "authentication.k8s.io/v1");
        set(&mut answer, "metadata.name", request.name.as_str());
        set(&mut answer, "metadata.namespace", request.namespace.as_str());
        set(&mut answer, "metadata.creationTimestamp", self.clock.now_text());
        set(&mut answer, "spec.expirationSeconds", seconds);
        let end = seconds_text(self.clock.now() + Duration::from_secs(seconds as u64));
        set(&mut answer, "status", json!({"token": token, "expirationTimestamp": end}));
        Ok(answer)
    }

    fn bind_token(&self, request: &Request, bound: &Value, private: &mut Private) -> Result<()> {
        let (kind, slot) = match (text(bound, "apiVersion"), text(bound, "kind")) {
            ("v1", "Pod") => (&pod::KIND, &mut private.pod),
            ("v1", "Secret") => (&secret::KIND, &mut private.secret),
            ("v1", "Node") => (&node::KIND, &mut private.node),
            // What cannot be a version names nothing.
            (version, "Pod" | "Secret" | "Node") if version.matches('/').count() > 1 => {
                let plural = format!("{}s", text(bound, "kind").to_lowercase());
                let kind = registry::builtin().by_plural("", "v1", &plural).unwrap_or(&pod::KIND);
                return Err(Status::not_found(kind, text(bound, "name")));
            }
            (version, kind) => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to object type {version}, Kind={kind}",
                    request.name
                )));
            }
        };
        let name = text(bound, "name");
        let Some(object) = self.cache.kind(kind).get(&kind.key(&request.namespace, name)) else {
            return Err(Status::not_found(kind, name));
        };
        let uid = text(bound, "uid");
        if !uid.is_empty() && *uid != *object.meta.uid {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            let mut status = Status::conflict(kind, name, why);
            status.details.kind = kind.kind().into();
            return Err(status);
        }
        let value = object.value();
        *slot = Some(reference(&value));
        if kind == &pod::KIND {
            if text(&value, "spec.serviceAccountName") != request.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    request.name
                )));
            }
            let on = text(&value, "spec.nodeName");
            let found = self.cache.kind(&node::KIND).get(&node::KIND.key("", on));
            private.node = found.map(|n| Reference { name: on.into(), uid: n.meta.uid.to_string() });
        }
        Ok(())
    }
}

impl Api {
    /// Who asked for what, as every created object says.
    fn track_token(&self, request: &Request, asked: &mut Value) {
        let Some(shape) = crate::schema::type_of(SCHEMA) else { return };
        let writer = managed::Writer {
            manager: &request.manager,
            api_version: "authentication.k8s.io/v1",
            subresource: "token",
            now: &self.clock.now_text(),
            reset: &FieldSet::default(),
            versions: None,
        };
        // There is one version.
        let _ = apply::after_update(None, asked, &shape, &writer);
        set(asked, "metadata.uid", self.clock.uuid());
    }
}

fn refusal(request: &Request, name: &str, error: field::Error) -> Status {
    let mut status = Status::invalid(&request.kind, name, &[error]);
    (status.details.kind, status.details.group) = ("TokenRequest".into(), "authentication.k8s.io".into());
    status
}

/// The body may name the account that the path names, and no other.
fn check_place(request: &Request, asked: &Value) -> Result<()> {
    let (name, namespace) = (text(asked, "metadata.name"), text(asked, "metadata.namespace"));
    if !namespace.is_empty() && namespace != request.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if !name.is_empty() && name != request.name {
        let why = "must match the service account name if specified";
        return Err(refusal(request, &request.name, field::invalid("metadata.name", name, why)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::apimachinery::delete_options::DeleteOptions;
    use crate::apimachinery::user::User;
    use crate::kinds::KindRef;
    use crate::kinds::core::{namespace, serviceaccount};
    use crate::reconcile::{Client, Patch};

    async fn make(client: &Local, kind: &KindRef, namespace: &str, value: Value) {
        client.create(kind, namespace, value).await.unwrap();
    }

    /// A node with a pod that shows its token to a vault.
    async fn cluster() -> (Api, Local) {
        let api = in_memory::api();
        let client = Local::new(api.clone(), "test");
        make(&client, &namespace::KIND, "", json!({"metadata": {"name": "default"}})).await;
        make(&client, &serviceaccount::KIND, "default", json!({"metadata": {"name": "default"}})).await;
        make(&client, &node::KIND, "", json!({"metadata": {"name": "a"}})).await;
        let token = json!({"serviceAccountToken": {"path": "t", "audience": "vault"}});
        let spec = json!({"nodeName": "a", "containers": [{"name": "c", "image": "i"}],
                          "volumes": [{"name": "v", "projected": {"sources": [token]}}]});
        make(&client, &pod::KIND, "default", json!({"metadata": {"name": "p"}, "spec": spec})).await;
        (api, client)
    }

    async fn ask(api: &Api, user: Arc<User>, spec: Value) -> Result<String> {
        let kind = &serviceaccount::KIND;
        let request = Request { user, ..Request::internal("test", kind, "default", "default") };
        let answer = api.request_token(&request, json!({"spec": spec})).await?;
        Ok(text(&answer, "status.token").to_owned())
    }

    fn bound(api: &Api, kind: &KindRef, namespace: &str, name: &str) -> Value {
        let uid = api.cache.kind(kind).get(&kind.key(namespace, name)).unwrap().meta.uid.to_string();
        json!({"apiVersion": "v1", "kind": kind.kind(), "name": name, "uid": uid})
    }

    #[tokio::test]
    async fn a_token_ends_with_the_node_or_the_pod_that_it_is_bound_to() {
        let (api, client) = cluster().await;
        let holds = |token: &str| api.tokens.user(token, &[], &api.cache).is_some();
        let of_node =
            ask(&api, User::system(), json!({"boundObjectRef": bound(&api, &node::KIND, "", "a")})).await.unwrap();
        let of_pod = json!({"boundObjectRef": bound(&api, &pod::KIND, "default", "p")});
        let of_pod = ask(&api, User::system(), of_pod).await.unwrap();
        assert!(holds(&of_node) && holds(&of_pod));
        client.delete(&node::KIND, "", "a", DeleteOptions::default()).await.unwrap();
        assert!(!holds(&of_node), "another Node of the same name is another one");
        make(&client, &node::KIND, "", json!({"metadata": {"name": "a"}})).await;
        assert!(!holds(&of_node) && holds(&of_pod));
        let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
        client.patch(&pod::KIND, "default", "p", Some(crate::kinds::Subresource::Status), ended).await.unwrap();
        assert!(!holds(&of_pod), "the pod has ended, whatever keeps the object");
    }

    #[tokio::test]
    async fn a_node_asks_for_tokens_that_its_pods_have_somebody_to_show_to() {
        let (api, _client) = cluster().await;
        let bound = bound(&api, &pod::KIND, "default", "p");
        let ask = |audiences: Value| {
            ask(&api, Arc::new(User::node("a")), json!({"audiences": audiences, "boundObjectRef": bound}))
        };
        let refusal = async |audiences: Value| ask(audiences).await.unwrap_err().message;
        ask(json!(["vault"])).await.unwrap();
        ask(json!([])).await.expect("the API's own, for the volume that every pod has");
        assert_eq!(
            refusal(json!(["bank"])).await,
            "serviceaccounts \"default\" is forbidden: audience \"bank\" not found in pod spec volume, system:node:a is not \
             authorized to request tokens for this audience"
        );
        assert!(refusal(json!(["vault", "bank"])).await.ends_with("node may only request 0 or 1 audiences"));
    }
}
