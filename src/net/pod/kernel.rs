//! The real pod network.
//!
//! A pod's `eth0` has its address as a host address (/32) and one way out: the node's gateway address through the veth.
//! The host has one route per pod into that veth and a fixed neighbour entry on both sides, so no ARP is needed and
//! pods never talk past the host. The gateway address sits on the `bridge` link, a bridge without ports: a link that
//! every kernel can make and that is up without a cable.
//!
//! Invariant: `attach` ends with all parts in place or with an error; parts left by a kill are found and made anew.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use netlink_packet_route::link::InfoKind;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::ipam::Ipam;
use super::name::{group, host_link};
use super::netns;
use crate::net::netlink::Connection;
use crate::net::netlink::link::{Link, Mac, NewLink};
use crate::net::netlink::route::{NextHop, Route, host_net};
use crate::net::nft::Guard;
use crate::net::settings::{configure_link, ignore_routers, is_configured};
use crate::net::{Attached, Config, Error, PodAttachment, PodNetwork, own_address};

const POD_LINK: &str = "eth0";
const LOOPBACK_INDEX: u32 = 1;
/// The host end of every pod link. Set by us so that udev does not change it behind the pods' neighbour entries.
const HOST_MAC: Mac = [0x0a, 0x58, 0, 0, 0, 1];

/// Pods of this node, in the kernel.
pub struct KernelPodNetwork {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    ipam: Mutex<Ipam>,
    locks: PodLocks,
    guard: Arc<Guard>,
}

impl KernelPodNetwork {
    /// Prepares the node: the rules that guard it, forwarding on, gateway addresses, routes for unused pod addresses; reads the
    /// reservations.
    /// Works in the network namespace of the calling thread. Idempotent.
    pub fn open(config: Config) -> Result<Self, Error> {
        check(&config)?;
        let ipam = Ipam::open(&config.addresses_dir(), &config.pod_cidrs)?;
        let pins = config.netns_dir();
        fs::create_dir_all(&pins).map_err(Error::file("cannot make", &pins))?;
        let guard = Arc::new(Guard::open(config.clone())?);
        prepare_node(&config)?;
        Ok(Self { inner: Arc::new(Inner { config, ipam: Mutex::new(ipam), locks: PodLocks::default(), guard }) })
    }

    /// The rules that guard the node, for whoever knows the other nodes.
    pub fn guard(&self) -> Arc<Guard> {
        self.inner.guard.clone()
    }

    /// Runs on a thread of its own, because the work may move the thread into another namespace.
    async fn on_thread<T: Send + 'static>(
        &self,
        id: &str,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (send, receive) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        let id = id.to_owned();
        let lost = id.clone();
        std::thread::Builder::new()
            .name("netns".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                let _lock = inner.locks.lock(&id);
                let _ = send.send(work(&inner));
            })
            .map_err(Error::kernel("cannot start a thread"))?;
        receive.await.map_err(|_| Error::Lost(lost))?
    }
}

#[async_trait]
impl PodNetwork for KernelPodNetwork {
    async fn attach(&self, pod: PodAttachment) -> Result<Attached, Error> {
        check_id(&pod.id)?;
        let id = pod.id.clone();
        self.on_thread(&id, move |inner| inner.attach(&pod)).await
    }

    async fn detach(&self, id: &str) -> Result<(), Error> {
        check_id(id)?;
        let own = id.to_owned();
        self.on_thread(id, move |inner| inner.detach(&own)).await
    }

    async fn list(&self) -> Result<Vec<(String, Vec<IpAddr>)>, Error> {
        Ok(self.inner.ipam().list())
    }

    async fn connect(&self, id: &str, port: u16) -> io::Result<TcpStream> {
        check_id(id).map_err(io::Error::other)?;
        let path = self.inner.config.netns_path(id);
        let (send, receive) = oneshot::channel();
        // Beside the turns of attach and detach: it changes nothing, and may take long.
        std::thread::Builder::new().name("netns".into()).stack_size(256 * 1024).spawn(move || {
            let _ = send.send(netns::connect_in(&path, port));
        })?;
        let stream = receive.await.map_err(io::Error::other)??;
        let _ = stream.set_nodelay(true);
        TcpStream::from_std(stream)
    }

    fn is_local(&self, address: IpAddr) -> bool {
        own_address::is_local(address)
    }

    async fn adopt(&self, in_use: &[String]) -> Result<Vec<String>, Error> {
        let keep: BTreeSet<&String> = in_use.iter().collect();
        let mut known: BTreeSet<String> = self.inner.ipam().list().into_iter().map(|(id, _)| id).collect();
        known.extend(pinned_ids(&self.inner.config.netns_dir())?);
        let gone: Vec<String> = known.into_iter().filter(|id| !keep.contains(id)).collect();
        let mut errors = Vec::new();
        for id in &gone {
            errors.extend(self.detach(id).await.err());
        }
        Error::gather(errors).map(|()| gone)
    }
}

/// Names in the directory of pins.
pub(crate) fn pinned_ids(directory: &Path) -> Result<Vec<String>, Error> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::file("cannot read", directory)(e)),
    }
}

impl Inner {
    fn ipam(&self) -> MutexGuard<'_, Ipam> {
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attach(&self, pod: &PodAttachment) -> Result<Attached, Error> {
        let addresses = self.ipam().reserve(&pod.id)?;
        let attached = Attached { netns: self.config.netns_path(&pod.id), addresses };
        let mut host = Connection::open().map_err(Error::kernel("cannot open a netlink socket"))?;
        if self.is_complete(&mut host, pod, &attached) {
            return Ok(attached);
        }
        self.remove_kernel_parts(&mut host, &pod.id)?;
        if let Err(error) = self.build(&mut host, pod, &attached) {
            let _ = self.remove_kernel_parts(&mut host, &pod.id);
            return Err(error);
        }
        Ok(attached)
    }

    /// The host routes are made last: where they are, all is.
    fn is_complete(&self, host: &mut Connection, pod: &PodAttachment, attached: &Attached) -> bool {
        let is_there = match &pod.netns {
            None => netns::is_pinned(&attached.netns),
            Some(given) => netns::is_same(given, &attached.netns),
        };
        if !is_there {
            return false;
        }
        let Ok(Some(link)) = host.link(&host_link(&self.config, &pod.id)) else { return false };
        let Ok(routes) = host.own_routes() else { return false };
        let leads = |address: &IpAddr| {
            routes.iter().any(|r| {
                r.destination == host_net(*address)
                    && matches!(r.next_hop, NextHop::Link { index, .. } if index == link.index)
            })
        };
        link.up && attached.addresses.iter().all(leads)
    }

    /// Moves this thread into the pod's new namespace; `host` stays a socket of the host's.
    fn build(&self, host: &mut Connection, pod: &PodAttachment, attached: &Attached) -> Result<(), Error> {
        let what = |part: &str| Error::kernel(format!("cannot {part} of pod {}/{}", pod.namespace, pod.name));
        let host_namespace = netns::current().map_err(what("find the host's namespace"))?;
        match &pod.netns {
            None => netns::enter_new(&attached.netns).map_err(what("make the network namespace"))?,
            Some(given) => netns::enter_given(given, &attached.netns).map_err(what("join the network namespace"))?,
        }
        let mut inside = Connection::open().map_err(what("enter the network namespace"))?;
        let pod_mac = mac(&attached.addresses);
        let outer_name = host_link(&self.config, &pod.id);
        let mtu = self.config.mtu;
        let inner_end = NewLink { name: POD_LINK, mac: pod_mac, group: 0, mtu };
        let outer_end = NewLink { name: &outer_name, mac: HOST_MAC, group: group(&self.config), mtu };
        inside.set_up(LOOPBACK_INDEX).map_err(what("set up the loopback"))?;
        inside.add_veth(&inner_end, &outer_end, host_namespace.as_fd()).map_err(what("make the link"))?;
        self.fill_inside(&mut inside, attached).map_err(what("set the addresses"))?;
        // Switches of a link are seen from its own namespace.
        netns::enter(&host_namespace).map_err(what("leave the network namespace"))?;
        self.fill_outside(host, &outer_name, pod_mac, attached).map_err(what("set the routes"))
    }

    fn fill_inside(&self, inside: &mut Connection, attached: &Attached) -> io::Result<()> {
        let link = inside.link(POD_LINK)?.ok_or(io::ErrorKind::NotFound)?;
        for address in &attached.addresses {
            inside.add_address(link.index, host_net(*address))?;
            let Some(gateway) = self.gateway_of(*address) else { continue };
            let default = IpNet::new(if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0)
                .expect("prefix length 0 is valid");
            let next_hop = NextHop::Link { index: link.index, source: None };
            inside.add_neighbour(link.index, gateway, HOST_MAC)?;
            inside.add_route(&Route { destination: host_net(gateway), next_hop })?;
            inside.add_route(&Route {
                destination: default,
                next_hop: NextHop::Gateway { index: link.index, gateway },
            })?;
        }
        Ok(())
    }

    fn fill_outside(&self, host: &mut Connection, name: &str, pod_mac: Mac, attached: &Attached) -> io::Result<()> {
        let link = host.link(name)?.ok_or(io::ErrorKind::NotFound)?;
        ignore_routers(name)?;
        host.configure_pod_link(link.index)?;
        for address in &attached.addresses {
            let source = self.gateway_of(*address);
            host.add_neighbour(link.index, *address, pod_mac)?;
            host.add_route(&Route {
                destination: host_net(*address),
                next_hop: NextHop::Link { index: link.index, source },
            })?;
        }
        Ok(())
    }

    fn gateway_of(&self, address: IpAddr) -> Option<IpAddr> {
        let same_family = |g: &IpAddr| g.is_ipv4() == address.is_ipv4();
        self.config.gateways().into_iter().find(same_family)
    }

    fn remove_kernel_parts(&self, host: &mut Connection, id: &str) -> Result<(), Error> {
        let mut errors = Vec::new();
        let name = host_link(&self.config, id);
        let removed = host.link(&name).and_then(|link| link.map_or(Ok(()), |link| host.delete_link(link.index)));
        errors.extend(removed.map_err(Error::kernel(format!("cannot delete the link {name}"))).err());
        let path = self.config.netns_path(id);
        errors.extend(netns::unpin(&path).map_err(Error::file("cannot remove the namespace", &path)).err());
        Error::gather(errors)
    }

    fn detach(&self, id: &str) -> Result<(), Error> {
        let mut host = Connection::open().map_err(Error::kernel("cannot open a netlink socket"))?;
        // The address stays reserved when the kernel may still use it.
        self.remove_kernel_parts(&mut host, id)?;
        self.ipam().release(id)
    }
}

fn check_id(id: &str) -> Result<(), Error> {
    let usable = !id.is_empty() && id.len() <= 200 && !id.starts_with('.') && !id.contains(['/', '\0']);
    if usable { Ok(()) } else { Err(Error::BadId(id.to_owned())) }
}

fn check(config: &Config) -> Result<(), Error> {
    if config.bridge.is_empty() || config.bridge.len() > 12 || config.bridge.contains(['/', ' ']) {
        return Err(Error::Config(format!(
            "bridge name `{}` must have 1 to 12 characters, no slash or blank",
            config.bridge
        )));
    }
    if config.pod_cidrs.is_empty() {
        return Err(Error::Config("at least one pod CIDR is needed".into()));
    }
    let small = |net: &&IpNet| net.max_prefix_len() - net.prefix_len() < 2;
    match config.pod_cidrs.iter().find(small) {
        Some(net) => Err(Error::Config(format!("pod CIDR {net} has no room for a gateway and a pod"))),
        None => Ok(()),
    }
}

/// Makes what all pods share.
fn prepare_node(config: &Config) -> Result<(), Error> {
    for (ipv6, path) in [(false, "/proc/sys/net/ipv4/ip_forward"), (true, "/proc/sys/net/ipv6/conf/all/forwarding")] {
        if config.pod_cidrs.iter().any(|net| net.addr().is_ipv6() == ipv6) {
            turn_on(Path::new(path))?;
        }
    }
    let name = &config.bridge;
    let mut host = Connection::open().map_err(Error::kernel("cannot open a netlink socket"))?;
    let mut shared = || -> io::Result<()> {
        if host.link(name)?.is_none() {
            host.add_plain_link(InfoKind::Bridge, &NewLink { name, mac: HOST_MAC, group: group(config), mtu: 0 })?;
        }
        // Also those of pods that an older build made.
        let is_new = |l: &&Link| l.group == group(config) && (l.name == *name || !is_configured(&l.name));
        for link in host.links()?.iter().filter(is_new) {
            configure_link(&mut host, link.index, &link.name)?;
        }
        let link = host.link(name)?.ok_or(io::ErrorKind::NotFound)?;
        host.set_up(link.index)?;
        for gateway in config.gateways() {
            host.add_address(link.index, host_net(gateway))?;
        }
        plan_node_routes(config, link.index).iter().try_for_each(|route| host.add_route(route))
    };
    shared().map_err(Error::kernel(format!("cannot prepare the link {name}")))
}

/// Routes that do not depend on pods: unused pod addresses are refused at once instead of leaving the node, and Service
/// addresses are reachable from the host even without a default route (translation happens before they are used).
fn plan_node_routes(config: &Config, bridge: u32) -> Vec<Route> {
    let services = config.service_cidrs.iter().map(|net| {
        let source = config.gateways().into_iter().find(|g| g.is_ipv4() == net.addr().is_ipv4());
        Route { destination: net.trunc(), next_hop: NextHop::Link { index: bridge, source } }
    });
    node_routes(config).into_iter().chain(services).collect()
}

/// Those of them that hang on no link.
pub(crate) fn node_routes(config: &Config) -> Vec<Route> {
    config.pod_cidrs.iter().map(|net| Route { destination: net.trunc(), next_hop: NextHop::Unreachable }).collect()
}

fn turn_on(path: &Path) -> Result<(), Error> {
    // Writing resets other switches of the namespace, so only when needed.
    let now = fs::read_to_string(path).map_err(Error::file("cannot read", path))?;
    if now.trim() == "1" { Ok(()) } else { fs::write(path, "1").map_err(Error::file("cannot write", path)) }
}

/// The pod's hardware address, made from its IP so that it is the same after a repair.
fn mac(addresses: &[IpAddr]) -> Mac {
    let [.., a, b, c, d] = match addresses.first() {
        Some(IpAddr::V4(address)) => address.to_ipv6_mapped().octets(),
        Some(IpAddr::V6(address)) => address.octets(),
        None => [0; 16],
    };
    [0x0a, 0x58, a, b, c, d]
}

/// Lets one piece of work per id run at a time.
#[derive(Default)]
struct PodLocks {
    ids: Mutex<BTreeSet<String>>,
    released: Condvar,
}

struct PodLock<'a> {
    locks: &'a PodLocks,
    id: String,
}

impl PodLocks {
    fn lock(&self, id: &str) -> PodLock<'_> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ids = self.released.wait_while(ids, |ids| ids.contains(id)).unwrap_or_else(PoisonError::into_inner);
        ids.insert(id.to_owned());
        PodLock { locks: self, id: id.to_owned() }
    }
}

impl Drop for PodLock<'_> {
    fn drop(&mut self) {
        self.locks.ids.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_differ_by_node_and_pod() {
        let a = Config::new("/run/x", vec!["10.42.0.0/24".parse().unwrap()]);
        let b = Config { bridge: "other0".into(), ..a.clone() };
        assert_eq!(host_link(&a, "pod").len(), 15);
        assert_ne!(host_link(&a, "pod"), host_link(&b, "pod"));
        assert_ne!(host_link(&a, "pod"), host_link(&a, "pod2"));
        assert_ne!(group(&a), group(&b));
        assert_eq!(mac(&["10.42.0.5".parse().unwrap()]), [0x0a, 0x58, 10, 42, 0, 5]);
    }

    #[test]
    fn bad_configuration_is_refused_with_what_is_wrong() {
        let good = Config::new("/run/x", vec!["10.42.0.0/24".parse().unwrap()]);
        assert!(check(&good).is_ok());
        let long = check(&Config { bridge: "muchtoolongname".into(), ..good.clone() }).unwrap_err();
        assert!(long.to_string().contains("`muchtoolongname`"));
        let tiny = check(&Config { pod_cidrs: vec!["10.1.1.0/31".parse().unwrap()], ..good }).unwrap_err();
        assert!(tiny.to_string().contains("10.1.1.0/31"));
        for id in ["", "a/b", ".x"] {
            assert!(check_id(id).is_err());
        }
    }
}
