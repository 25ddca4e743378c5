//! Servers of the cluster's users that are asked in the course of a request: how they are reached, and one question to one.
//!
//! Whoever asks says how long it may take and how long the answer may be; nothing else of such a server is relied upon.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::Value;

use super::{Api, form, service_endpoint};
use crate::apimachinery::node_access::Duplex;
use crate::base::budget::Budget;
use crate::base::{error, task};
use crate::schema;
use crate::wire::webhook::{self, Reply};
use crate::wire::{resolve, tls};

/// How a webhook is reached.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ClientConfiguration {
    pub url: Option<String>,
    pub service: Option<ServiceReference>,
    ca_bundle: Option<String>,
    #[serde(skip)]
    tls: OnceLock<Result<Arc<ClientConfig>, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceReference {
    pub namespace: String,
    pub name: String,
    pub path: Option<String>,
    pub port: Option<u16>,
}

/// What a question may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub seconds: u64,
    pub answer_bytes: usize,
}

/// Where a webhook is.
struct Address {
    host: String,
    port: u16,
    path: String,
}

// === impl ClientConfiguration ===

impl ClientConfiguration {
    /// Whom to believe: the given authorities, or those of the system.
    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let made = self.tls.get_or_init(|| {
            let config = match self.ca_bundle.as_deref().filter(|bundle| !bundle.is_empty()) {
                Some(bundle) => {
                    let pem = STANDARD.decode(bundle).map_err(|error| format!("caBundle: {error}"))?;
                    tls::client(&pem, None)
                }
                None => tls::trusting_the_system(),
            };
            config.map_err(|error| format!("unable to load root certificates: {error}"))
        });
        made.clone()
    }

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

    /// What is said where no answer comes in time.
    pub fn late(&self, limits: Limits) -> String {
        self.failed(limits, "context deadline exceeded")
    }

    fn failed(&self, limits: Limits, why: &str) -> String {
        format!("Post {:?}: {why}", self.shown(limits.seconds))
    }

    /// The address that is posted to, for messages.
    fn shown(&self, seconds: u64) -> String {
        match (&self.service, self.address()) {
            (Some(_), Ok(at)) => format!("https://{}:{}{}?timeout={seconds}s", at.host, at.port, at.path),
            _ => format!("{}?timeout={seconds}s", self.url.as_deref().unwrap_or_default()),
        }
    }
}

/// Posts a question and reads the answer; the error says in the client's words why there is none.
pub(super) async fn ask(
    api: &Api,
    config: &ClientConfiguration,
    question: &Value,
    limits: Limits,
) -> Result<Value, String> {
    let posting = post(api, config, question, limits);
    let reply = tokio::time::timeout(Duration::from_secs(limits.seconds), posting).await;
    let reply = reply.map_err(|_| config.late(limits))?.map_err(|why| config.failed(limits, &why))?;
    task::in_place(reply.body.len() > form::LONG_BYTES, || read(&reply))
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

async fn post(api: &Api, config: &ClientConfiguration, question: &Value, limits: Limits) -> Result<Reply, String> {
    let tls = config.tls()?;
    let body = serde_json::to_vec(question).map_err(|error| error.to_string())?;
    let address = config.address()?;
    let stream: Box<dyn Duplex> = match &config.service {
        Some(service) => service_endpoint::dial(api, &service.namespace, &service.name, address.port).await?,
        None => {
            let connecting = resolve::connect(&address.host, address.port).await;
            Box::new(connecting.map_err(|why| format!("dial tcp {}:{}: {why}", address.host, address.port))?)
        }
    };
    let path = format!("{}?timeout={}s", address.path, limits.seconds);
    let asked = webhook::Question { host: &address.host, port: address.port, path: &path, body };
    let posted = webhook::post(stream, tls, asked, limits.answer_bytes).await;
    posted.map_err(|error| error::chain(&error))
}
