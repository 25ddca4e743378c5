//! `amphipod agent`: joins a server's cluster and runs the node half against its API.
//!
//! The CA is believed only by the hash in the token, and before that nothing secret is sent. What the machine got is
//! kept under `<data-dir>/agent`, so that it starts again while the server is away; the token is needed only once. Invariant:
//! each file is made from those before it, so a start that was killed at any instant is completed by the next one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use jiff::Timestamp;
use rustls::{ClientConfig, ServerConfig};
use serde_json::Value;
use tokio::sync::watch;

use super::{
    Ended, NodeOptions, Reasons, address, agent, kubelet_port, memory, node_config, notify, runtime,
    serve_kubelet_port, stopping_now,
};
use crate::api::http::join::{CA_PATH, JOIN_PATH, RENEW_PATH};
use crate::api::identity::join::{Cluster, JoinRequest, JoinResponse};
use crate::api::identity::join_token::{JoinToken, ca_hash};
use crate::api::identity::pki::{
    RENEW_SECONDS, RENEWAL_RETRY, new_key, node_certificate_end, node_request, renewal_due, serves_as_well,
};
use crate::base::clock::Clock;
use crate::base::error::chain;
use crate::base::file::{make_private_dir, write_atomically};
use crate::base::json::text;
use crate::base::metrics;
use crate::base::task;
use crate::kinds::core::node;
use crate::node_paths::NodePaths;
use crate::reconcile::{Checkpoint, Client, Remote};
use crate::wire;
use crate::wire::channel::Channel;
use crate::wire::client::Target;

/// Waits between attempts while the server is away.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same where the machine has pods that wait for their node.
const IMPATIENCE: Duration = Duration::from_secs(3);
/// How long the server's name may take to be looked up.
const NAME_PATIENCE: Duration = Duration::from_secs(2);
const ANSWER_BYTES: usize = 1 << 20;

/// Everything the user has decided.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub config_dir: PathBuf,
    /// `https://host:port`.
    pub server: Uri,
    /// Not needed by a machine that has joined.
    pub token: Option<JoinToken>,
    pub node: NodeOptions,
}

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a node needs root: run as root");
    }
    match runtime()?.block_on(serve(config))? {
        Ended::Told => Ok(()),
        Ended::Moved => Err(address::begin_anew()),
    }
}

async fn serve(config: Config) -> Result<Ended> {
    let clock = Clock::system();
    let mut reasons = Reasons::new()?;
    let place = NodePaths::new(&config.data_dir, &config.run_dir);
    let keep = Keep::new(&config, clock.clone());
    // Before anything is made on a machine that cannot be a node.
    keep.check(config.token.as_ref())?;
    let _claims = (place.claim()?, place.claim_data()?);
    let kubelet_port = kubelet_port(config.node.kubelet_port)?;
    let running = async {
        let known_dir = place.run_dir.join("known");
        let membership = keep.membership(&config, &known_dir).await?;
        let known = membership.known(&known_dir, &config.node.name);
        let tls = watch::Sender::new(membership.tls()?);
        let channel = Arc::new(Channel::new(&config.server, tls.subscribe(), &user_agent()).context("--server")?);
        let client: Arc<dyn Client> = Arc::new(Remote::new(channel.clone(), &config.node.name, known));
        let mut node = node_config(&config.node, place, &config.config_dir, membership.cluster.clone(), false);
        node.api = api_addresses(&config.server).await;
        tracing::info!(server = channel.address(), node = config.node.name, "this machine is a node of the cluster");
        // On a connection of their own, so that images do not hold up what the node is told.
        let peers = Arc::new(Channel::new(&config.server, tls.subscribe(), &user_agent()).context("--server")?);
        let (mut agent, access) = agent::start(&node, client.clone(), &clock, &membership.ca, peers).await?;
        let serving = membership.serving_tls().map(watch::Sender::new);
        match (kubelet_port, &serving) {
            (Some(listener), Ok(serving)) => {
                agent.keep(serve_kubelet_port(access.clone(), client, listener, serving.subscribe()));
            }
            (Some(_), Err(error)) => tracing::warn!(
                why = format!("{error:#}"),
                "--kubelet-port: nothing listens, as the server has signed no certificate for it: start again when the server is there"
            ),
            (None, _) => {}
        }
        agent.keep(task::spawn("tunnel", crate::node::tunnel::run(channel, access)));
        agent.keep(task::spawn("memory", memory::run(|| metrics::TOLD.value(), || {})));
        notify("READY=1");
        memory::end_start();
        Ok::<_, anyhow::Error>((agent, tls, serving.ok()))
    };
    let (agent, tls, serving) = tokio::select! {
        biased;
        ended = reasons.next(&config.node) => return Ok(ended),
        started = running => started?,
    };
    let renewing = task::spawn("certificate renewal", renew(keep, config.clone(), tls, serving));
    let ended = reasons.next(&config.node).await;
    stopping_now(&ended);
    renewing.abort();
    drop(agent);
    Ok(ended)
}

/// Where the server is, as far as its name tells now; the addresses that it says itself are in the cluster's own Service.
async fn api_addresses(server: &Uri) -> Vec<SocketAddr> {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let looking = tokio::net::lookup_host((host, server.port_u16().unwrap_or(6443)));
    match tokio::time::timeout(NAME_PATIENCE, looking).await {
        Ok(Ok(found)) => found.collect(),
        _ => Vec::new(),
    }
}

fn user_agent() -> String {
    format!("amphipod-agent/{}", env!("CARGO_PKG_VERSION"))
}

/// What speaks for the machine in its cluster.
struct Membership {
    ca: Vec<u8>,
    key: Vec<u8>,
    certificate: Vec<u8>,
    /// What it shows to its own clients; empty where an older server gave none.
    serving_certificate: Vec<u8>,
    cluster: Cluster,
}

impl Membership {
    /// What the machine was told before, in this boot and cluster.
    fn known(&self, directory: &Path, node: &str) -> Option<Checkpoint> {
        let known = Checkpoint::open(directory, &ca_hash(&self.ca), node);
        let error = match known {
            Ok(known) => return Some(known),
            Err(error) => error,
        };
        tracing::warn!(%error, directory = %directory.display(), "what the server tells is not kept for a start without it");
        None
    }

    fn tls(&self) -> Result<Arc<ClientConfig>> {
        wire::tls::client(&self.ca, Some((&self.certificate, &self.key))).context("TLS cannot be set up")
    }

    fn serving_tls(&self) -> Result<Arc<ServerConfig>> {
        wire::tls::server(&self.serving_certificate, &self.key, &self.ca).context("TLS cannot be set up")
    }
}

/// A server's answer that no waiting will change.
#[derive(Debug, thiserror::Error)]
#[error("the server refuses this machine: {why}")]
struct Refused {
    why: String,
    /// It knows the machine, and that it is no node any more.
    forbidden: bool,
}

/// The agent's own files.
struct Keep {
    directory: PathBuf,
    node: String,
    addresses: Vec<IpAddr>,
    clock: Clock,
}

// === impl Keep ===

impl Keep {
    fn new(config: &Config, clock: Clock) -> Self {
        let directory = config.data_dir.join("agent");
        let addresses = [&config.node.addresses[..], &config.node.external_addresses[..]].concat();
        Self { directory, node: config.node.name.clone(), addresses, clock }
    }

    /// Makes the directories of what is kept, once there is a server that is believed.
    fn make(&self, config: &Config) -> Result<()> {
        NodePaths::new(&config.data_dir, &config.run_dir).take_data_dir()?;
        let made = make_private_dir(&self.directory).and_then(|()| make_private_dir(&self.directory.join("tls")));
        made.with_context(|| {
            format!("--data-dir: {} cannot be written: make it writable or choose another", config.data_dir.display())
        })
    }

    /// Refuses a machine that has neither joined nor a token to join with.
    fn check(&self, token: Option<&JoinToken>) -> Result<()> {
        if self.kept(token)?.is_some() || token.is_some() {
            return Ok(());
        }
        if let Some(end) = self.ended() {
            bail!(
                "--token: the certificate with which this machine had joined ended at {end}: start it once with a token \
                 (`amphipod token create` on the server makes one); if that is not so, set the machine's clock"
            );
        }
        bail!(
            "--token: this machine has not joined yet: give the token that is in <data-dir>/server/token of the server"
        )
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.directory.join(name)).ok()
    }

    /// Writes a file, if it is not there already as it should be.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.read(name).is_some_and(|kept| kept == bytes) {
            return Ok(());
        }
        let path = self.directory.join(name);
        write_atomically(&path, bytes, 0o600).with_context(|| format!("{} cannot be written", path.display()))
    }

    fn kept_or(&self, name: &str, make: impl FnOnce() -> io::Result<Vec<u8>>) -> Result<Vec<u8>> {
        match std::fs::read(self.directory.join(name)) {
            Ok(bytes) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let bytes = make()?;
                self.write(name, &bytes)?;
                Ok(bytes)
            }
            Err(e) => Err(e).with_context(|| format!("{} cannot be read", self.directory.join(name).display())),
        }
    }

    /// What an earlier start has got, if it is still good.
    fn kept(&self, token: Option<&JoinToken>) -> Result<Option<Membership>> {
        let Some(ca) = self.read("tls/ca.crt") else { return Ok(None) };
        let other = token.and_then(|t| t.ca_hash.as_ref()).is_some_and(|h| *h != ca_hash(&ca));
        if other {
            bail!(
                "--token: it belongs to another cluster than the one that this machine has joined: use the token of its \
                 own cluster, or make the machine new by removing {}",
                self.directory.display()
            );
        }
        let parts = (self.read("tls/node.key"), self.read("tls/node.crt"), self.read("cluster.json"));
        let (Some(key), Some(certificate), Some(cluster)) = parts else { return Ok(None) };
        let end = node_certificate_end(&certificate, &ca, &format!("system:node:{}", self.node));
        let Ok(cluster) = serde_json::from_slice(&cluster) else { return Ok(None) };
        let good = end.is_some_and(|end| end > self.clock.now().as_second());
        let serving_certificate = self.read("tls/serving.crt").unwrap_or_default();
        Ok(good.then_some(Membership { ca, key, certificate, serving_certificate, cluster }))
    }

    /// When the kept certificate ended, if it has.
    fn ended(&self) -> Option<Timestamp> {
        let (certificate, ca) = (self.read("tls/node.crt")?, self.read("tls/ca.crt")?);
        let end = node_certificate_end(&certificate, &ca, &format!("system:node:{}", self.node))?;
        Timestamp::from_second(end).ok().filter(|end| *end <= self.clock.now())
    }

    /// What speaks for this machine: kept, else got by joining, which waits for the server.
    async fn membership(&self, config: &Config, known_dir: &Path) -> Result<Membership> {
        if let Some(kept) = self.kept(config.token.as_ref())? {
            // The cluster may have changed its mind meanwhile; a server that is away does not keep the node from starting,
            // and for long only one that has nothing else to begin with.
            let can_begin = kept.known(known_dir, &self.node).is_some_and(|known| known.has(&node::KIND));
            let patience = if can_begin { IMPATIENCE } else { PATIENCE };
            let renewed = tokio::time::timeout(patience, self.renew(config, &kept)).await;
            return match renewed.context("the server does not answer").flatten() {
                Ok(renewed) => Ok(renewed),
                Err(error) if error.downcast_ref::<Refused>().is_some_and(|r| r.forbidden) => match &config.token {
                    Some(token) => {
                        tracing::info!(why = format!("{error:#}"), "this machine joins again with its token");
                        self.joined(config, token).await
                    }
                    None => Err(error),
                },
                Err(error) => {
                    tracing::warn!(why = format!("{error:#}"), "the server cannot be asked; what it said last is used");
                    Ok(kept)
                }
            };
        }
        self.check(config.token.as_ref())?;
        let token = config.token.as_ref().context("--token: it is missing")?;
        self.joined(config, token).await
    }

    /// Joins, as often as it takes.
    async fn joined(&self, config: &Config, token: &JoinToken) -> Result<Membership> {
        let mut wait = RETRY_MIN;
        loop {
            match self.join(config, token).await {
                Err(error) if error.downcast_ref::<Refused>().is_none() => {
                    tracing::warn!(why = format!("{error:#}"), server = %config.server, "joining failed; it is tried again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
                ended => return ended,
            }
        }
    }

    async fn join(&self, config: &Config, token: &JoinToken) -> Result<Membership> {
        let unsure = wire::tls::trusting_anyone()?;
        let ca = ask(config, unsure, Method::GET, CA_PATH, None, None).await?;
        match &token.ca_hash {
            Some(hash) if *hash == ca_hash(&ca) => {}
            Some(hash) => {
                let why = format!(
                    "its certificate authority is not the one of the token (it has {}, the token says {hash}): this is \
                     another cluster's server, or somebody is in between; nothing secret was sent",
                    ca_hash(&ca)
                );
                return Err(Refused { why, forbidden: false }.into());
            }
            None => tracing::warn!(
                hash = ca_hash(&ca),
                "the token is a short one, so the server's CA is believed as it is; use the full token, K10..."
            ),
        }
        self.make(config).map_err(|error| Refused { why: format!("{error:#}"), forbidden: false })?;
        let key = self.kept_or("tls/node.key", new_key)?;
        let password = self.kept_or("node-password", || {
            let mut bytes = [0; 16];
            self.clock.random(&mut bytes);
            Ok(hex::encode(bytes).into_bytes())
        })?;
        let application = JoinRequest {
            node_name: self.node.clone(),
            password: String::from_utf8_lossy(&password).into_owned(),
            csr: node_request(&self.node, &key)?,
            addresses: self.addresses.clone(),
        };
        let sure = wire::tls::client(&ca, None).context("the server's certificate authority cannot be used")?;
        let answer = ask(config, sure, Method::POST, JOIN_PATH, Some(&token.secret), Some(&application)).await?;
        self.take(ca.to_vec(), key, &answer)
    }

    /// New settings, and a new certificate where the old one has less than a third of its time left.
    async fn renew(&self, config: &Config, old: &Membership) -> Result<Membership> {
        let csr = node_request(&self.node, &old.key)?;
        let (node_name, addresses) = (self.node.clone(), self.addresses.clone());
        let application = JoinRequest { node_name, password: String::new(), csr, addresses };
        let answer = ask(config, old.tls()?, Method::POST, RENEW_PATH, None, Some(&application)).await?;
        self.take(old.ca.clone(), old.key.clone(), &answer)
    }

    fn take(&self, ca: Vec<u8>, key: Vec<u8>, answer: &[u8]) -> Result<Membership> {
        let welcome: JoinResponse = serde_json::from_slice(answer).context("the server's answer cannot be read")?;
        let kept = self.read("tls/node.crt").unwrap_or_default();
        let name = format!("system:node:{}", self.node);
        let left = node_certificate_end(&kept, &ca, &name).map(|end| end - self.clock.now().as_second());
        let certificate = if left.is_some_and(|l| l > RENEW_SECONDS) { kept } else { welcome.certificate.into_bytes() };
        self.write("tls/ca.crt", &ca)?;
        self.write("tls/node.crt", &certificate)?;
        // Its names may be others each time; it is written only where they are, or where it would end soon.
        let serving_certificate = match self.read("tls/serving.crt") {
            Some(kept) if serves_as_well(&kept, &welcome.serving_certificate, self.clock.now().as_second()) => kept,
            _ => welcome.serving_certificate.into_bytes(),
        };
        self.write("tls/serving.crt", &serving_certificate)?;
        self.write("cluster.json", &serde_json::to_vec(&welcome.cluster)?)?;
        Ok(Membership { ca, key, certificate, serving_certificate, cluster: welcome.cluster })
    }
}

/// One request on a connection of its own.
async fn ask(
    config: &Config,
    tls: Arc<ClientConfig>,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: Option<&JoinRequest>,
) -> Result<Bytes> {
    let target = Target { server: config.server.clone(), tls, token: None, user_agent: user_agent() };
    let mut request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let request = request.body(Full::new(Bytes::from(bytes)))?;
    let exchange = async {
        let response = wire::client::Client::new(target).send(request).await.map_err(|e| anyhow::anyhow!(chain(&e)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("the answer broke off: {e}"))?.to_bytes();
        Ok::<_, anyhow::Error>((status, body))
    };
    let (status, body) = tokio::time::timeout(PATIENCE, exchange).await.context("the server does not answer")??;
    if status.is_success() {
        return Ok(body);
    }
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let why = match text(&value, "message") {
        "" => format!("it answers {status}"),
        message => message.to_owned(),
    };
    match status.is_client_error() && status != 429 {
        true => Err(Refused { why, forbidden: status == 403 }.into()),
        false => bail!("the server: {why}"),
    }
}

/// Renews the certificate long before it ends, in the running process.
async fn renew(
    keep: Keep,
    config: Config,
    shown: watch::Sender<Arc<ClientConfig>>,
    serving: Option<watch::Sender<Arc<ServerConfig>>>,
) {
    let mut failed = false;
    loop {
        match failed {
            true => tokio::time::sleep(RENEWAL_RETRY).await,
            false => renewal_due(&keep.clock).await,
        }
        let renewed = async {
            let kept = keep.kept(None)?.context("the kept certificate is gone")?;
            let renewed = keep.renew(&config, &kept).await?;
            anyhow::Ok((renewed.tls()?, renewed.serving_tls().ok()))
        };
        let renewed = renewed.await;
        failed = renewed.is_err();
        match renewed {
            Ok((tls, serving_tls)) => {
                shown.send_replace(tls);
                if let (Some(serving), Some(tls)) = (&serving, serving_tls) {
                    serving.send_replace(tls);
                }
            }
            Err(error) => {
                tracing::error!(
                    why = format!("{error:#}"),
                    "the certificate was not renewed; it is tried again in ten minutes"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::identity::join::Joiner;
    use crate::api::identity::pki::{Names, Pki};

    fn config(directory: &Path) -> Config {
        let node = NodeOptions {
            name: "one".into(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            follows_address: false,
            external_addresses: Vec::new(),
            labels: Vec::new(),
            taints: Vec::new(),
            kubelet_port: 0,
            unsafe_sysctls: Vec::new(),
            offline: false,
            default_registry: None,
            image_gc: crate::containers::image::Policy::default(),
        };
        Config {
            data_dir: directory.join("data"),
            run_dir: directory.join("run"),
            config_dir: directory.join("etc"),
            server: "https://127.0.0.1:1".parse().unwrap(),
            token: None,
            node,
        }
    }

    #[tokio::test]
    async fn without_a_token_a_machine_is_told_whether_it_never_joined_or_its_certificate_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (config, known) = (config(directory.path()), directory.path().join("known"));
        let keep = Keep::new(&config, Clock::system());
        let why = async |keep: &Keep| format!("{:#}", keep.membership(&config, &known).await.err().unwrap());
        assert!(why(&keep).await.contains("has not joined yet"));
        assert!(!config.data_dir.exists(), "nothing is made on a machine that is refused");
        keep.make(&config).unwrap();

        let names = Names { dns: vec!["localhost".into()], addresses: Vec::new() };
        let pki = Pki::load(&directory.path().join("server"), &names, None, &Clock::system()).unwrap();
        let desk = Joiner::new(directory.path(), &pki, Cluster::sample(), Clock::system());
        let key = keep.kept_or("tls/node.key", new_key).unwrap();
        let csr = node_request("one", &key).unwrap();
        let application = JoinRequest { node_name: "one".into(), password: String::new(), csr, addresses: Vec::new() };
        let api = crate::api::in_memory::api();
        let welcome = desk.renew(&api, "one", "", &application).await.unwrap();
        let welcome = serde_json::to_vec(&welcome).unwrap();
        keep.take(pki.ca.clone(), key, &welcome).unwrap();
        keep.membership(&config, &known).await.expect("the server is away, and what is kept is good");

        let later = Clock::simulated(Timestamp::now() + Duration::from_secs(20 * 366 * 86400), 1);
        let keep = Keep { clock: later, ..keep };
        let (said, end) = (why(&keep).await, keep.ended().unwrap());
        assert!(said.contains(&format!("ended at {end}")) && said.contains("token create"), "{said}");
    }
}
