//! One webhook asked once.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::configured::{ClientConfiguration, Webhook};
use super::matching::Invocation;
use super::question::{Answer, Question, refusal};
use crate::api::admission::Review;
use crate::api::admission::presented::{Unfit, is_changeable, is_dry_run, shown, taken_back};
use crate::api::service_endpoint;
use crate::api::{Api, FieldValidation};
use crate::apimachinery::node_access::Duplex;
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::Budget;
use crate::base::{error, task};
use crate::schema::{self, patch};
use crate::wire::resolve;
use crate::wire::webhook::{self, Reply};

/// How long a webhook has that says nothing of it.
const TIMEOUT_SECONDS: u64 = 10;

/// Why there is no consent.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be asked, or its answer is none; the failure policy says what that means.
    Call(String),
    Refused(Status),
}

/// What became of the object.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub changed: bool,
    pub warnings: Vec<String>,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Call(why)
    }
}

/// Lets a mutating webhook change the object.
pub(super) async fn mutate(
    review: &Review<'_>,
    webhook: &Webhook,
    invocation: &Invocation,
    object: &mut Value,
) -> Result<Changed, Failure> {
    let answer = ask(review, webhook, invocation, object, true).await?;
    let mut done = Changed { changed: false, warnings: answer.warnings };
    if let Some(patch) = answer.patch {
        let name = &webhook.of().name;
        let new = task::in_place(review.request.heavy, || patched(review, invocation, object, name, &patch));
        let new = new.map_err(Failure::Refused)?;
        done.changed = new != *object;
        *object = new;
    }
    Ok(done)
}

/// Lets a validating webhook refuse the object; answers its warnings.
pub(super) async fn validate(
    review: &Review<'_>,
    webhook: &Webhook,
    invocation: &Invocation,
    object: &Value,
) -> Result<Vec<String>, Failure> {
    Ok(ask(review, webhook, invocation, object, false).await?.warnings)
}

async fn ask(
    review: &Review<'_>,
    webhook: &Webhook,
    invocation: &Invocation,
    object: &Value,
    mutating: bool,
) -> Result<Answer, Failure> {
    let spec = webhook.of();
    if is_dry_run(review) && !matches!(spec.side_effects.as_deref(), Some("None" | "NoneOnDryRun")) {
        let why = format!("admission webhook {:?} does not support dry run", spec.name);
        return Err(Failure::Refused(Status::bad_request(why)));
    }
    let question = Question::of(review, spec, invocation, object)?;
    let seconds = spec.timeout_seconds.unwrap_or(TIMEOUT_SECONDS);
    let posting = post(review.api, &spec.client_config, &question.body, seconds);
    let reply = tokio::time::timeout(Duration::from_secs(seconds), posting).await;
    let address = || spec.client_config.shown(seconds);
    let failed = |why: &str| format!("failed to call webhook: Post {:?}: {why}", address());
    let reply = reply.map_err(|_| failed("context deadline exceeded"))?.map_err(|why| failed(&why))?;
    let answer = question.read(&read(&reply).map_err(|why| format!("failed to call webhook: {why}"))?, mutating)?;
    if answer.allowed { Ok(answer) } else { Err(Failure::Refused(refusal(&spec.name, &answer.result))) }
}

/// The object with a webhook's patch.
fn patched(review: &Review<'_>, invocation: &Invocation, object: &Value, webhook: &str, patch: &str) -> Result<Value> {
    if !is_changeable(review, object) {
        return Err(Status::internal(format!(
            "admission webhook {webhook:?} attempted to modify the object, which is not supported for this operation"
        )));
    }
    let broken = |why: &dyn std::fmt::Display| Status::internal(format!("admission webhook {webhook:?}: {why}"));
    let mut budget = Budget::new();
    let bytes = STANDARD.decode(patch).map_err(|error| broken(&format!("response.patch: {error}")))?;
    let patch = schema::parse_json(&bytes, &mut budget).map_err(|error| broken(&error))?.0;
    let mut new = shown(review, &invocation.kind, object).into_owned();
    patch::json::apply(&mut new, &patch, &mut budget).map_err(|error| broken(&error))?;
    let taken = taken_back(review, &invocation.kind, object, new, FieldValidation::Ignore, &mut budget);
    taken.map_err(|unfit| match unfit {
        Unfit::Broken(why) => broken(&why),
        Unfit::Status(status) => status,
    })
}

/// The body of an answer as a value.
fn read(reply: &Reply) -> Result<Value, String> {
    if !(200..300).contains(&reply.status) {
        return Err(match reply.status {
            404 => "the server could not find the requested resource".to_owned(),
            500.. => {
                format!("an error on the server ({:?}) has prevented the request from succeeding", reply.beginning())
            }
            status => format!("the server answered with status {status} ({:?})", reply.beginning()),
        });
    }
    let parsed = schema::parse_json(&reply.body, &mut Budget::new());
    parsed.map(|(value, _)| value).map_err(|error| format!("the response is not JSON that can be read: {error}"))
}

async fn post(api: &Api, config: &ClientConfiguration, body: &Value, seconds: u64) -> Result<Reply, String> {
    let tls = config.tls()?;
    let body = serde_json::to_vec(body).map_err(|error| error.to_string())?;
    let address = config.address()?;
    let stream: Box<dyn Duplex> = match &config.service {
        Some(service) => service_endpoint::dial(api, &service.namespace, &service.name, address.port).await?,
        None => {
            let connecting = resolve::connect(&address.host, address.port).await;
            Box::new(connecting.map_err(|why| format!("dial tcp {}:{}: {why}", address.host, address.port))?)
        }
    };
    let path = format!("{}?timeout={seconds}s", address.path);
    let posted = webhook::post(stream, tls, &address.host, address.port, &path, body).await;
    posted.map_err(|error| error::chain(&error))
}

/// Where a webhook is.
struct Address {
    host: String,
    port: u16,
    path: String,
}

// === impl ClientConfiguration ===

impl ClientConfiguration {
    fn address(&self) -> Result<Address, String> {
        if let Some(service) = &self.service {
            let path = service.path.as_deref().unwrap_or_default();
            return Ok(Address {
                host: format!("{}.{}.svc", service.name, service.namespace),
                port: service.port.unwrap_or(443),
                path: if path.starts_with('/') { path.into() } else { format!("/{path}") },
            });
        }
        let url = self.url.as_deref().unwrap_or_default();
        let uri: http::Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        let (host, port) = crate::wire::client::address_of(&uri).map_err(|error| error.to_string())?;
        Ok(Address { host, port, path: uri.path().to_owned() })
    }

    /// The address that is posted to, for messages.
    fn shown(&self, seconds: u64) -> String {
        match (&self.service, self.address()) {
            (Some(_), Ok(at)) => format!("https://{}:{}{}?timeout={seconds}s", at.host, at.port, at.path),
            _ => format!("{}?timeout={seconds}s", self.url.as_deref().unwrap_or_default()),
        }
    }
}
