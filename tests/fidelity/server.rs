//! An API in this process, and the administrator's connection to it.

use std::net::IpAddr;
use std::sync::Arc;

use amphipod::api::cache::Cache;
use amphipod::api::http::site::ApiServer;
use amphipod::api::identity::pki::{Names, Pki};
use amphipod::api::identity::token::Tokens;
use amphipod::api::local::Local;
use amphipod::api::{Api, Options, aggregate, bootstrap, definitions, flowcontrol};
use amphipod::apimachinery::aggregated::Aggregated;
use amphipod::apimachinery::http::listen;
use amphipod::apimachinery::metrics::Metrics;
use amphipod::base::clock::Clock;
use amphipod::base::task;
use amphipod::store::Store;
use amphipod::store::memory::Memory;
use amphipod::wire::channel::Channel;
use amphipod::wire::client::{Client, Target};
use amphipod::wire::websocket::Socket;
use amphipod::{controllers, wire};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::watch;

const ISSUER: &str = "https://kubernetes.default.svc";

#[allow(dead_code)] // Not every test uses all of it.
pub struct Server {
    pub api: Api,
    client: Client,
    target: Target,
    _stop: watch::Sender<bool>,
    _keys: tempfile::TempDir,
}

pub struct Asked<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub headers: Vec<(String, String)>,
    pub body: Option<Vec<u8>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// With `metrics.k8s.io`, or without, as Kubernetes itself is.
    pub async fn start_with(resource_metrics: bool) -> Self {
        let clock = Clock::system();
        let loopback: IpAddr = [127, 0, 0, 1].into();
        let keys = tempfile::tempdir().unwrap();
        let names = Names { dns: vec!["localhost".into()], addresses: vec![loopback] };
        let pki = Pki::load(keys.path(), &names, None, &clock).unwrap();
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let cache = Cache::load(&*store).unwrap();
        let tokens = Tokens::new(&pki.token_key, ISSUER, clock.clone()).unwrap();
        let options = Options {
            external_ips: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            inner_cidrs: Vec::new(),
            service_cidrs: vec![([10, 43, 0, 0].into(), 16)],
            node_ports: (30000, 32767),
            issuer: ISSUER.into(),
            resource_metrics,
        };
        let api = Api::new(store, cache, clock.clone(), options, tokens);
        api.aggregate.identify((&pki).into());
        let listener = tokio::net::TcpListener::bind((loopback, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoints = bootstrap::Endpoints {
            api: vec![[192, 0, 2, 1].into()],
            api_port: address.port(),
            api_cluster_ip: [10, 43, 0, 1].into(),
        };
        bootstrap::run(&api, &endpoints).await.unwrap();
        task::spawn("custom kinds", definitions::keep(api.clone()));
        task::spawn("aggregation", aggregate::keep(api.clone()));
        task::spawn("priority and fairness", flowcontrol::objects::keep(api.clone()));
        let root_ca = String::from_utf8_lossy(&pki.ca).into_owned();
        let aggregated: Option<Arc<dyn Aggregated>> = Some(Arc::new(api.clone()));
        let metrics: Option<Arc<dyn Metrics>> = Some(Arc::new(api.clone()));
        let options = controllers::Options { root_ca, aggregated, metrics, ..controllers::Options::default() };
        controllers::start(Arc::new(Local::new(api.clone(), controllers::MANAGER)), clock, options);
        let (stop, stopping) = watch::channel(false);
        let tls = wire::tls::server(&pki.server.chain, &pki.server.key, &pki.ca).unwrap();
        let (_, tls) = watch::channel(tls);
        task::spawn("api", listen::serve(ApiServer { api: api.clone(), joiner: None }, listener, tls, stopping));
        let admin = Some((&*pki.admin.chain, &*pki.admin.key));
        let target = Target {
            server: format!("https://{address}").parse().unwrap(),
            tls: wire::tls::client(&pki.ca, admin).unwrap(),
            token: None,
            user_agent: "fidelity".into(),
        };
        Self { api, client: Client::new(target.clone()), target, _stop: stop, _keys: keys }
    }

    /// The JSON at a path.
    pub async fn get(&mut self, path: &str) -> Value {
        let (status, _, body) = self.ask(Asked { method: "GET", path, headers: Vec::new(), body: None }).await;
        assert_eq!(status, 200, "{path}");
        serde_json::from_slice(&body).unwrap()
    }

    /// Whether there is something at a path.
    pub async fn get_if_there(&mut self, path: &str) -> bool {
        self.ask(Asked { method: "GET", path, headers: Vec::new(), body: None }).await.0 == 200
    }

    /// Status, number of warnings and body of an answer; warnings of what this version does not do are not counted.
    pub async fn ask(&mut self, asked: Asked<'_>) -> (u16, usize, Bytes) {
        let response = self.client.send(asked.request()).await.unwrap();
        let (parts, body) = response.into_parts();
        let warnings = parts.headers.get_all("warning").iter().filter(|w| !is_of_this_version(w.as_bytes())).count();
        (parts.status.as_u16(), warnings, body.collect().await.unwrap().to_bytes())
    }

    /// The administrator's connection over HTTP/2.
    pub fn channel(&self) -> Channel {
        let (_, tls) = watch::channel(self.target.tls.clone());
        Channel::new(&self.target.server, tls, "fidelity").unwrap()
    }

    /// A websocket, or what is said in its place.
    pub async fn websocket(&self, path: &str, protocol: &str) -> Result<Socket, Response<Incoming>> {
        Client::new(self.target.clone()).websocket(path, protocol).await.unwrap()
    }

    /// An answer whose body comes as it happens, on a connection of its own.
    pub async fn open(&self, asked: Asked<'_>) -> Response<Incoming> {
        Client::new(self.target.clone()).send(asked.request()).await.unwrap()
    }
}

impl Asked<'_> {
    fn request(self) -> Request<Full<Bytes>> {
        let mut builder = Request::builder().method(self.method.parse::<Method>().unwrap()).uri(self.path);
        for (name, value) in self.headers {
            builder = builder.header(name, value);
        }
        builder.body(Full::new(self.body.unwrap_or_default().into())).unwrap()
    }
}

/// Such warnings end with the same words.
fn is_of_this_version(warning: &[u8]) -> bool {
    String::from_utf8_lossy(warning).trim_end_matches('"').ends_with("this version")
}
