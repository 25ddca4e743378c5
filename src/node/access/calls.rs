//! The calls themselves.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::Access;
use crate::apimachinery::node_access::{
    self, Destination, Duplex, ExecOptions, LogOptions, NodeAccess, Target, VolumeRequest,
};
use crate::apimachinery::status::{Result, Status};
use crate::base::error::chain;
use crate::base::task;
use crate::containers::ExecSpec;
use crate::node::volumes::local;
use crate::node::{Node, http, logs};
use crate::wire::images::{BlobRequest, BlobResponse};

/// Pieces of a log that may wait for the client.
const PIECES: usize = 2;
/// How long a connection to a pod may take to come up.
const DIAL: Duration = Duration::from_secs(30);

#[async_trait]
impl NodeAccess for Access {
    async fn logs(&self, target: &Target, options: &LogOptions) -> Result<mpsc::Receiver<Bytes>> {
        let status = self.status(target)?;
        let attempt = match (options.previous, status.restart_count) {
            (true, 0) => {
                let Target { pod, container, .. } = target;
                return Err(Status::bad_request(format!(
                    "previous terminated container {container:?} in pod {pod:?} not found"
                )));
            }
            (true, n) => n - 1,
            (false, n) => {
                let waiting = status.state.as_ref().and_then(|s| s.waiting.as_ref());
                // While it waits to be started again, the log is that of the run before.
                match (waiting, status.last_state.as_ref().is_some_and(|l| l.terminated.is_some())) {
                    (Some(w), false) => return Err(self.not_begun(target, w.reason.as_deref().unwrap_or("waiting"))),
                    _ => n,
                }
            }
        };
        let path = self
            .node
            .pod_log_dir(&target.namespace, &target.pod, &target.uid)
            .join(format!("{}/{attempt}.log", target.container));
        let (send, queue) = mpsc::channel(PIECES);
        let (over, ended) =
            tokio::sync::watch::channel(!options.follow || status.state.as_ref().is_none_or(|s| s.running.is_none()));
        let id = status.container_id.as_deref().and_then(|id| id.strip_prefix("amphipod://")).map(str::to_owned);
        if let (true, Some(id)) = (options.follow, id) {
            task::spawn("log end", until_exit(self.node.clone(), id, over));
        }
        task::spawn("log", logs::send(path, options.clone(), send, ended));
        Ok(queue)
    }

    async fn exec(&self, target: &Target, options: &ExecOptions) -> Result<node_access::Session> {
        let id = self.running(target)?;
        let spec =
            ExecSpec { args: options.command.clone(), tty: options.tty, stdin: options.stdin, ..ExecSpec::default() };
        let session = self.node.runtime.exec(&id, spec).await.map_err(|e| Status::internal(chain(&e)))?;
        Ok(Self::carry(session))
    }

    async fn attach(&self, target: &Target, options: &ExecOptions) -> Result<node_access::Session> {
        let id = self.running(target)?;
        let session = self.node.runtime.attach(&id, options.stdin).await.map_err(|e| Status::internal(chain(&e)))?;
        Ok(Self::carry(session))
    }

    async fn image(&self, ask: &BlobRequest) -> Result<BlobResponse> {
        self.node.images.offer(ask).await.ok_or_else(|| Status::new(404, "NotFound", "no such image here"))
    }

    async fn volume(&self, ask: &VolumeRequest) -> Result<String> {
        let storage = self.node.config.data_dir.join(local::STORAGE);
        let ask = ask.clone();
        let done = task::blocking(move || match &ask {
            VolumeRequest::Make(of) => local::make(&storage, of),
            VolumeRequest::Remove(of) => local::remove(&storage, of),
        });
        let failed =
            |error: std::io::Error| Status::new(500, "InternalError", format!("the volume's directory: {error}"));
        let path = done.await.map_err(|error| Status::internal(error.to_string()))?.map_err(failed)?;
        path.into_os_string().into_string().map_err(|_| Status::internal("the path of the volume is no text"))
    }

    fn is_here(&self) -> bool {
        true
    }

    async fn dial(&self, to: &Destination) -> Result<Box<dyn Duplex>> {
        let address = match to {
            Destination::Endpoints => return Ok(Box::new(http::serve(self.clone()))),
            Destination::Address(address) => *address,
        };
        let failed = |why: &str| Status::unavailable(format!("dial tcp {address}: {why}"));
        match tokio::time::timeout(DIAL, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Ok(Err(error)) => {
                let number = error.raw_os_error().map(nix::errno::Errno::from_raw);
                let words = number.map_or_else(|| error.to_string(), |n| n.desc().to_lowercase());
                Err(failed(&format!("connect: {words}")))
            }
            Err(_) => Err(failed("i/o timeout")),
        }
    }

    async fn connect(&self, target: &Target, port: u16) -> Result<Box<dyn Duplex>> {
        let pod = self.pod(target)?;
        let stream = match pod.spec.as_ref().and_then(|s| s.host_network) {
            Some(true) => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await,
            _ => self.node.network.connect(&target.uid, port).await,
        };
        let failed =
            |e| Status::internal(format!("failed to connect to localhost:{port} inside pod {}: {e}", target.pod));
        Ok(Box::new(stream.map_err(failed)?))
    }
}

/// Turns `over` true when the container has ended.
async fn until_exit(node: Arc<Node>, id: String, over: tokio::sync::watch::Sender<bool>) {
    let mut events = node.runtime.events();
    loop {
        if node.runtime.container(&id).await.is_none_or(|c| !c.is_running()) {
            let _ = over.send(true);
            return;
        }
        tokio::select! {
            _ = events.recv() => {}
            () = over.closed() => return,
        }
    }
}
