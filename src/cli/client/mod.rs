//! A small client for machines without kubectl: `apply`, `delete`, `get`, `logs`, `exec`.
//!
//! It knows no kinds: discovery says what there is, the server prints its own tables, and manifests go there as they
//! are, by server-side apply.

mod choose;
mod discovery;
mod fields;
mod manifest;
mod objects;
mod pods;
mod tables;
mod terminal;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;

use super::{Directories, kubeconfig};
use crate::wire::client::Client;

pub use objects::{ApplyArgs, DeleteArgs, GetArgs, apply, delete, get};
pub use pods::{ExecArgs, LogsArgs, exec, logs};

/// Which cluster, and where in it.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// The kubeconfig file [default: $KUBECONFIG, else the one that the server of these directories has written]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    directories: Directories,
    /// The namespace [default: that of the kubeconfig's context]
    #[arg(long, short = 'n')]
    namespace: Option<String>,
}

/// A server said no.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({reason})")]
struct Refused {
    code: u16,
    reason: String,
    message: String,
}

/// A connection to the cluster.
pub struct Cluster {
    client: Client,
    /// The namespace that is meant when none is named.
    namespace: String,
}

// === impl Where ===

impl Where {
    /// The cluster of the server in these directories, as its administrator.
    pub fn of(directories: &Directories) -> Self {
        let (directories, kubeconfig) = (directories.clone(), Some(kubeconfig::path(directories)));
        Self { kubeconfig, directories, namespace: None }
    }

    fn path(&self) -> PathBuf {
        // As kubectl does, except that several files are not merged: the first counts.
        let variable = || std::env::var_os("KUBECONFIG").and_then(|list| std::env::split_paths(&list).next());
        let given = self.kubeconfig.clone().or_else(variable).filter(|path| !path.as_os_str().is_empty());
        given.unwrap_or_else(|| kubeconfig::path(&self.directories))
    }

    /// Reads the kubeconfig; nothing is connected yet.
    pub fn open(&self) -> Result<Cluster> {
        let (target, namespace) = kubeconfig::load(&self.path())?;
        Ok(Cluster { client: Client::new(target), namespace: self.namespace.clone().unwrap_or(namespace) })
    }
}

// === impl Cluster ===

impl Cluster {
    /// Sends a request; what is no success is an error.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path).header(ACCEPT, accept);
        let bytes = match body {
            Some((kind, bytes)) => {
                request = request.header(CONTENT_TYPE, kind);
                Bytes::from(bytes)
            }
            None => Bytes::new(),
        };
        let response = self.client.send(request.body(Full::new(bytes))?).await?;
        if response.status().is_success() { Ok(response) } else { Err(refused(response).await.into()) }
    }

    /// Sends an object, if there is one, and reads one.
    pub async fn object(&mut self, method: Method, path: &str, object: Option<&Value>) -> Result<Value> {
        let bytes = object.map(serde_json::to_vec).transpose()?;
        let content = bytes.map(|bytes| ("application/json", bytes));
        body(self.send(method, path, "application/json", content).await?).await
    }

    /// The code and the object of an answer, whatever it is.
    pub async fn answer(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        object: Option<&Value>,
    ) -> Result<(u16, Value)> {
        let mut request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let bytes = object.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let response = self.client.send(request.body(Full::new(bytes.into()))?).await?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
        Ok((code, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    async fn json(&mut self, path: &str, accept: &str) -> Result<Value> {
        body(self.send(Method::GET, path, accept, None).await?).await
    }
}

async fn body(response: Response<Incoming>) -> Result<Value> {
    let bytes = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
    serde_json::from_slice(&bytes).context("the answer is not JSON")
}

/// Prints an answer as it comes.
async fn pass_on(response: Response<Incoming>) -> Result<()> {
    let (mut body, mut out) = (response.into_body(), std::io::stdout());
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame.context("the answer broke off")?.into_data() {
            out.write_all(&bytes)?;
            out.flush()?;
        }
    }
    Ok(())
}

/// The server's Status as an error.
async fn refused(response: Response<Incoming>) -> Refused {
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text = |key: &str| status[key].as_str().filter(|s| !s.is_empty()).map(str::to_owned);
    Refused {
        code,
        reason: text("reason").unwrap_or_else(|| code.to_string()),
        message: text("message").unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().to_owned()),
    }
}

/// Runs a command on a runtime of its own. What still reads from a terminal then does not keep it.
pub fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// A part of a path or query, with everything special escaped.
fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
