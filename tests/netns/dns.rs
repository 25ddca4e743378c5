//! Cluster DNS from inside a pod, through the cluster DNS address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use amphipod::dns::{Forwarder, Listening, Pointer, PortRecord, Records, Server, ServiceRecord, Upstreams, Zone};
use amphipod::net::{DnsRedirect, Protocol, ServiceTable};

use crate::lab::{machine, run};

/// One Service.
pub struct One;

impl Records for One {
    fn namespace(&self, namespace: &str) -> bool {
        namespace == "default"
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceRecord>> {
        let ports = vec![PortRecord { name: "http".into(), protocol: Protocol::Tcp, port: 80 }];
        let record = ServiceRecord::Cluster { addresses: vec!["10.43.0.80".parse().unwrap()], ports };
        ((namespace, name) == ("default", "web")).then(|| Arc::new(record))
    }

    fn pointers(&self, _: IpAddr) -> Vec<Pointer> {
        Vec::new()
    }
}

/// Runs the server in the namespace of this thread until the sender is dropped.
pub fn serve(address: &str, upstream: Vec<SocketAddr>) -> (std::sync::mpsc::Sender<()>, SocketAddr) {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (started, start) = std::sync::mpsc::channel();
    let address: SocketAddr = address.parse().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let zone = Zone::new("cluster.local", vec!["10.43.0.10".parse().unwrap()]).unwrap();
        let server = Server::new(zone, Arc::new(One), Forwarder::new(Upstreams::fixed(upstream)));
        let listening: Listening = runtime.block_on(server.listen(&[address])).unwrap();
        started.send(listening.addresses()[0]).unwrap();
        let _ = stopped.recv();
    });
    let address = start.recv().unwrap();
    (stop, address)
}

#[test]
fn a_pod_asks_the_cluster_dns_address() {
    machine(|lab| {
        let (a, _) = lab.serving_pod("a");
        let (_stop, listener) = serve("10.42.0.1:1053", Vec::new());
        let dns = Some(DnsRedirect { cluster_ips: vec!["10.43.0.10".parse().unwrap()], listeners: vec![listener] });
        lab.dataplane.apply_now(&ServiceTable { dns, ..ServiceTable::default() }).unwrap();
        let dig = |what: &'static str| move || run(&format!("dig +tries=1 +time=3 @10.43.0.10 {what}"));
        assert_eq!(a.inside(dig("+short web.default.svc.cluster.local")).trim(), "10.43.0.80");
        assert_eq!(a.inside(dig("+short +tcp web.default.svc.cluster.local")).trim(), "10.43.0.80");
        let srv = a.inside(dig("+short SRV _http._tcp.web.default.svc.cluster.local"));
        assert_eq!(srv.trim(), "0 1 80 web.default.svc.cluster.local.");
        let none = a.inside(dig("nothing.default.svc.cluster.local"));
        assert!(
            none.contains("status: NXDOMAIN") && none.contains("SOA") && none.contains("SERVER: 10.43.0.10#53"),
            "{none}"
        );
        assert!(a.inside(dig("www.example.com")).contains("status: SERVFAIL"), "no upstream");
    });
}
