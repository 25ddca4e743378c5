//! The composition root: one call per room in start order; stop order is its reverse.

pub mod address;
pub mod agent;
mod cluster_configuration;
mod images;
pub mod join;
pub mod manifests;
mod memory;
pub mod snapshot;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::cache::Cache;
use crate::api::http::site::ApiServer;
use crate::api::identity::join::{Cluster, Joiner};
use crate::api::identity::pki::{Names, Pki, renewal_due};
use crate::api::identity::token::Tokens;
use crate::api::local::Local;
use crate::api::{Api, Options, aggregate, bootstrap, definitions, flowcontrol};
use crate::apimachinery::http::listen;
use crate::apimachinery::status;
use crate::base::clock::Clock;
use crate::base::file::{make_private_dir, make_public_dir, write_atomically};
use crate::base::{metrics, task};
use crate::containers::image::Policy;
use crate::node::access::Access;
use crate::node::http::port::Port;
use crate::node_paths::{NodePaths, ServerRecord};
use crate::reconcile::Client;
use crate::store::sqlite::{Retention, Sqlite};
use crate::store::{self, Store};
use crate::{api, controllers, scheduler, wire};
use agent::Taint;
use cluster_configuration::ClusterConfiguration;

/// The issuer of service-account tokens, as Kubernetes' own default.
const ISSUER: &str = "https://kubernetes.default.svc";
/// How long running requests may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Everything the user has decided.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub config_dir: PathBuf,
    pub bind: SocketAddr,
    pub advertise: IpAddr,
    pub tls_sans: Vec<String>,
    pub node: NodeOptions,
    pub api_cluster_ip: IpAddr,
    pub cluster: Cluster,
    pub node_ports: (u16, u16),
    /// Ranges that Services may name addresses of in `externalIPs`.
    pub external_ips: Vec<IpNet>,
    pub kubeconfig: PathBuf,
    pub kubeconfig_mode: u32,
    pub token: Option<String>,
    pub snapshots: snapshot::Schedule,
    /// What `--disable` named: built-in manifests and parts of the server.
    pub disabled: Vec<String>,
    pub node_cidr: bool,
    pub scheduler: bool,
    pub agent: bool,
}

/// What the user has decided about the node itself.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// The address is that of the default route, and is followed when it changes.
    pub follows_address: bool,
    pub external_addresses: Vec<IpAddr>,
    pub labels: Vec<(String, String)>,
    pub taints: Vec<Taint>,
    /// Where the node's own endpoints listen; 0 for nowhere.
    pub kubelet_port: u16,
    /// Kernel parameters beyond the safe ones that pods may set.
    pub unsafe_sysctls: Vec<String>,
    pub offline: bool,
    pub default_registry: Option<String>,
    /// When images go that nobody uses.
    pub image_gc: Policy,
}

/// Runs the server until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<()> {
    if config.agent && !nix::unistd::geteuid().is_root() {
        bail!("a node needs root: run as root, or with --disable-agent for the API alone");
    }
    match runtime()?.block_on(serve(config))? {
        Ended::Told => Ok(()),
        Ended::Moved => Err(address::begin_anew()),
    }
}

/// Why a server or an agent has stopped, in order.
enum Ended {
    /// It was told to.
    Told,
    /// The machine has another address.
    Moved,
}

/// What stops a server or an agent.
struct Reasons {
    terminate: Signal,
    interrupt: Signal,
}

impl Reasons {
    /// From here on, a signal no longer ends the process at once.
    fn new() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns when there is a reason.
    async fn next(&mut self, node: &NodeOptions) -> Ended {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Ended::Told,
            _ = self.interrupt.recv() => Ended::Told,
            () = moved(node) => Ended::Moved,
        }
    }
}

/// Tells whoever watches the process.
fn stopping_now(ended: &Ended) {
    tracing::info!("stopping; containers go on");
    notify(if matches!(ended, Ended::Told) { "STOPPING=1" } else { "RELOADING=1" });
}

/// Returns when the machine's address is no longer the node's; never if the user chose it.
async fn moved(node: &NodeOptions) {
    match node.addresses.first() {
        Some(was) if node.follows_address => {
            let now = address::moved(*was).await;
            tracing::warn!(%was, %now, "this machine has another address; beginning anew, containers go on");
        }
        _ => std::future::pending().await,
    }
}

/// The threads of a server or an agent.
fn runtime() -> Result<tokio::runtime::Runtime> {
    crate::containers::memory::keep_little();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 4))
        .max_blocking_threads(32)
        .thread_keep_alive(Duration::from_secs(5))
        .enable_all()
        .build()
        .context("the runtime cannot be started")
}

async fn serve(config: Config) -> Result<Ended> {
    let clock = Clock::system();
    let mut reasons = Reasons::new()?;

    // Before anything is touched: one process a run directory, and one a data directory.
    let place = NodePaths::new(&config.data_dir, &config.run_dir);
    let _claims = (place.claim()?, place.claim_data()?);
    let server_dir = config.data_dir.join("server");
    // The ports first: a second server on the same port must not touch anything.
    let listener = listen(config.bind).await?;
    let kubelet_port = if config.agent { kubelet_port(config.node.kubelet_port)? } else { None };
    make_private_dir(&server_dir).with_context(|| {
        format!("--data-dir: {} cannot be written: make it writable or choose another", config.data_dir.display())
    })?;
    let store: Arc<dyn Store> = Arc::new(open(&server_dir, &config.snapshots, &clock)?);
    let pki = Pki::load(&server_dir, &names(&config), config.token.as_deref(), &clock)
        .with_context(|| format!("keys and certificates under {}", server_dir.display()))?;
    let cache = Cache::load(&*store)?;
    ClusterConfiguration::of(&config.cluster).agree(&server_dir, &cache)?;
    let api = api_over(store.clone(), cache, &clock, &config, &pki)?;
    let desk = Joiner::new(&server_dir, &pki, config.cluster.clone(), clock.clone());
    let desk = if config.agent { desk.reserving(&config.node.name) } else { desk };
    let manifests = server_dir.join("manifests");
    make_private_dir(&manifests).with_context(|| format!("{} cannot be made", manifests.display()))?;
    let mut deployer = manifests::Deployer::new(api.clone(), clock.clone(), manifests);
    first_objects(&api, &config, &mut deployer).await.context("the first objects cannot be written")?;
    let options = options_of(&config, &pki, &api)?;
    let shared = controllers::context(local(&api, controllers::MANAGER), clock.clone(), options);
    let mut loops = controllers::start_over(&shared);
    if config.scheduler {
        loops.extend(scheduler::start(local(&api, scheduler::MANAGER), clock.clone()));
    }
    loops.extend(loops_of_api(&api, &config, shared));

    let (stop, stopping) = watch::channel(false);
    let tls = watch::Sender::new(tls(&pki)?);
    let site = ApiServer { api: api.clone(), joiner: Some(Arc::new(desk)) };
    let serving = task::spawn("api", listen::serve(site, listener, tls.subscribe(), stopping.clone()));
    let tls_shown = tls.subscribe();
    write_kubeconfig(&config, &pki)?;
    if let Err(error) = place.record_server(&record_of(&config)) {
        tracing::warn!(%error, "commands on this machine do not find a kubeconfig that is elsewhere");
    }
    loops.push(task::spawn("manifests", deployer.run()));
    let snapshots =
        snapshot::run(server_dir.clone(), config.snapshots.clone(), config.node.name.clone(), clock.clone());
    loops.push(task::spawn("snapshots", snapshots));
    let renewing = task::spawn("certificate renewal", renew(config.clone(), clock.clone(), tls, api.clone()));
    notify("READY=1");
    tracing::info!(address = %config.bind, "the API is ready");
    let agent = match config.agent {
        true => {
            let mut node = node_config(&config.node, place, &config.config_dir, config.cluster.clone(), true);
            node.api = vec![(config.advertise, config.bind.port()).into()];
            node.api_port = Some(config.bind.port());
            let peers = Arc::new(images::Agents { api: api.clone(), own: node.name.clone() });
            let client = local(&api, "kubelet");
            let (mut agent, access) = agent::start(&node, client.clone(), &clock, &pki.ca, peers).await?;
            api.nodes.register(&node.name, access.clone());
            if let Some(listener) = kubelet_port {
                agent.keep(serve_kubelet_port(access, client, listener, tls_shown));
            }
            Some(agent)
        }
        false => None,
    };
    memory::end_start();

    let ended = reasons.next(&config.node).await;
    stopping_now(&ended);
    let _ = stop.send(true);
    renewing.abort();
    drop(agent);
    loops.iter().for_each(JoinHandle::abort);
    let _ = tokio::time::timeout(DRAIN, serving).await;
    store.close();
    Ok(ended)
}

/// What goes on beside the API as long as it serves.
fn loops_of_api(api: &Api, config: &Config, shared: Arc<controllers::Context>) -> [JoinHandle<Option<()>>; 7] {
    let ended = api::http::join::end_connections_of_deleted_nodes(api.clone());
    let (counted, kept) = (api.clone(), api.clone());
    let work = move || metrics::REQUESTS.value() + counted.cache.head();
    let let_go = move || {
        // What the indexes have not seen yet is in what the cache lets go of.
        shared.keep_fresh();
        kept.cache.keep_fresh();
        kept.resource_metrics.keep_fresh();
    };
    [
        task::spawn("connections of deleted nodes", ended),
        task::spawn("custom kinds", definitions::keep(api.clone())),
        task::spawn("aggregation", aggregate::keep(api.clone())),
        task::spawn("priority and fairness", flowcontrol::objects::keep(api.clone())),
        task::spawn("the API's own Service", bootstrap::keep(api.clone(), endpoints(config))),
        task::spawn("memory of large requests", memory::follow(api.flow.large_ended())),
        task::spawn("memory", memory::run(work, let_go)),
    ]
}

/// The database; a damaged one is replaced by the last good snapshot and what its log still says.
fn open(server: &Path, schedule: &snapshot::Schedule, clock: &Clock) -> Result<Sqlite> {
    let path = server.join("state.db");
    match Sqlite::open(&path, Retention::default()) {
        Err(damage @ store::Error::Corrupted { .. }) => {
            let Some(recovered) = snapshot::recover(server, &schedule.directory, clock)? else {
                return Err(damage.into());
            };
            tracing::error!(why = damage.to_string(), "{}", recovered.tell());
            Ok(Sqlite::open(&path, Retention::default())?)
        }
        opened => Ok(opened?),
    }
}

/// The API over what is stored.
fn api_over(store: Arc<dyn Store>, cache: Cache, clock: &Clock, config: &Config, pki: &Pki) -> Result<Api> {
    let tokens = Tokens::new(&pki.token_key, ISSUER, clock.clone())
        .map_err(|e| anyhow::anyhow!("the service-account key cannot be used: {e}"))?;
    let api = Api::new(store, cache, clock.clone(), options(config), tokens);
    api.aggregate.identify(pki.into());
    Ok(api)
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "--https-listen-port: port {} on {} is in use: stop what uses it, or choose another port",
            address.port(),
            address.ip()
        ),
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("--bind-address: this machine has no address {}", address.ip())
        }
        _ => anyhow::anyhow!("{address} cannot be listened on: {e}"),
    })
}

/// The port of a node's own endpoints, of all addresses of the machine.
fn kubelet_port(port: u16) -> Result<Option<TcpListener>> {
    if port == 0 {
        return Ok(None);
    }
    let any = |address: IpAddr| std::net::TcpListener::bind((address, port));
    // Where the kernel has no IPv6, of the other family alone.
    let bound = any(Ipv6Addr::UNSPECIFIED.into()).or_else(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Err(error),
        _ => any(Ipv4Addr::UNSPECIFIED.into()),
    });
    let listener = bound.with_context(|| {
        format!("--kubelet-port: port {port} cannot be listened on: choose another one, or 0 for none")
    })?;
    listener.set_nonblocking(true)?;
    Ok(Some(TcpListener::from_std(listener)?))
}

fn serve_kubelet_port(
    access: Arc<Access>,
    client: Arc<dyn Client>,
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
) -> JoinHandle<Option<()>> {
    task::spawn("kubelet port", async move {
        // Its end, with the node's other tasks, ends the connections.
        let (_end, ended) = watch::channel(false);
        listen::serve(Port::new(access, client), listener, tls, ended).await;
    })
}

/// The node half's part of what was decided; only the node beside the server says that it is the control plane's.
fn node_config(
    options: &NodeOptions,
    place: NodePaths,
    config_dir: &Path,
    cluster: Cluster,
    is_server: bool,
) -> agent::Config {
    let role = ("node-role.kubernetes.io/control-plane".to_owned(), "true".to_owned());
    agent::Config {
        place,
        config_dir: config_dir.to_owned(),
        name: options.name.clone(),
        addresses: options.addresses.clone(),
        external_addresses: options.external_addresses.clone(),
        labels: is_server.then_some(role).into_iter().chain(options.labels.iter().cloned()).collect(),
        taints: options.taints.clone(),
        kubelet_port: options.kubelet_port,
        unsafe_sysctls: options.unsafe_sysctls.clone(),
        cluster,
        api: Vec::new(),
        api_port: None,
        offline: options.offline,
        default_registry: options.default_registry.clone(),
        image_gc: options.image_gc,
    }
}

fn options(config: &Config) -> Options {
    Options {
        service_cidrs: config.cluster.service_cidrs.iter().map(|n| (n.network(), n.prefix_len())).collect(),
        external_ips: config.external_ips.clone(),
        inner_cidrs: [&config.cluster.cluster_cidrs[..], &config.cluster.service_cidrs[..]].concat(),
        node_ports: config.node_ports,
        issuer: ISSUER.into(),
        resource_metrics: !config.disabled.iter().any(|part| part == "metrics-server"),
    }
}

fn local(api: &Api, manager: &str) -> Arc<dyn Client> {
    Arc::new(Local::new(api.clone(), manager))
}

fn options_of(config: &Config, pki: &Pki, api: &Api) -> Result<controllers::Options> {
    let authority = controllers::certificates::Authority::new(&pki.ca, &pki.ca_key);
    Ok(controllers::Options {
        root_ca: String::from_utf8_lossy(&pki.ca).into_owned(),
        authority: Some(Arc::new(authority.context("the certificate authority")?)),
        cluster_cidrs: if config.node_cidr { config.cluster.cluster_cidrs.clone() } else { Vec::new() },
        node_grace: config.cluster.node_grace(),
        nodes: api.nodes.clone(),
        aggregated: Some(Arc::new(api.clone())),
        metrics: Some(Arc::new(api.clone())),
        ..controllers::Options::default()
    })
}

/// Writes what every cluster has, before anybody else can take the addresses that it names; together, as few commits.
async fn first_objects(api: &Api, config: &Config, deployer: &mut manifests::Deployer) -> status::Result<()> {
    bootstrap::namespaces(api).await?;
    let (endpoints, values) = (endpoints(config), values(&config.cluster));
    tokio::join!(bootstrap::run(api, &endpoints), deployer.stage(&config.disabled, &values)).0
}

fn endpoints(config: &Config) -> bootstrap::Endpoints {
    bootstrap::Endpoints {
        api: vec![config.advertise],
        api_port: config.bind.port(),
        api_cluster_ip: config.api_cluster_ip,
    }
}

fn values(cluster: &Cluster) -> manifests::builtin::Values {
    manifests::builtin::Values { cluster_dns: cluster.cluster_dns, cluster_domain: cluster.cluster_domain.clone() }
}

fn names(config: &Config) -> Names {
    let mut dns: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).into();
    dns.push(format!("kubernetes.default.svc.{}", config.cluster.cluster_domain));
    dns.push(config.node.name.clone());
    let mut addresses: Vec<IpAddr> = vec!["127.0.0.1".parse().expect("an address"), "::1".parse().expect("an address")];
    addresses.extend([config.advertise, config.api_cluster_ip]);
    addresses.extend(&config.node.addresses);
    if !config.bind.ip().is_unspecified() {
        addresses.push(config.bind.ip());
    }
    for san in &config.tls_sans {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => dns.push(san.clone()),
        }
    }
    addresses.sort();
    addresses.dedup();
    dns.dedup();
    Names { dns, addresses }
}

fn tls(pki: &Pki) -> Result<Arc<ServerConfig>> {
    wire::tls::server(&pki.server.chain, &pki.server.key, &pki.ca).context("TLS cannot be set up")
}

fn record_of(config: &Config) -> ServerRecord {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    ServerRecord {
        address: config.bind,
        config_dir: absolute(&config.config_dir),
        kubeconfig: absolute(&config.kubeconfig),
    }
}

fn write_kubeconfig(config: &Config, pki: &Pki) -> Result<()> {
    let host =
        if config.bind.ip().is_unspecified() { "127.0.0.1".parse().expect("an address") } else { config.bind.ip() };
    let text = pki.kubeconfig(&format!("https://{}", SocketAddr::new(host, config.bind.port())));
    if std::fs::read_to_string(&config.kubeconfig).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let write = || -> std::io::Result<()> {
        if let Some(parent) = config.kubeconfig.parent() {
            make_public_dir(parent)?;
        }
        write_atomically(&config.kubeconfig, text.as_bytes(), config.kubeconfig_mode)
    };
    write().with_context(|| format!("--write-kubeconfig: {} cannot be written", config.kubeconfig.display()))
}

/// Renews certificates long before they end, in the running process.
async fn renew(config: Config, clock: Clock, shown: watch::Sender<Arc<ServerConfig>>, api: Api) {
    loop {
        renewal_due(&clock).await;
        let directory = config.data_dir.join("server");
        let renewed = Pki::load(&directory, &names(&config), config.token.as_deref(), &clock)
            .map_err(anyhow::Error::from)
            .and_then(|pki| {
                write_kubeconfig(&config, &pki)?;
                api.aggregate.identify((&pki).into());
                tls(&pki)
            });
        match renewed {
            Ok(tls) => drop(shown.send_replace(tls)),
            Err(error) => tracing::error!(%error, "certificates cannot be renewed; it is tried again in half a day"),
        }
    }
}

/// Tells systemd (`sd_notify`), if it asked to be told.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> std::io::Result<()> {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        let socket = UnixDatagram::unbound()?;
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
            None => std::os::unix::net::SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(state.as_bytes(), &address).map(|_| ())
    };
    if let Err(error) = send() {
        tracing::warn!(%error, "the service manager cannot be notified");
    }
}
