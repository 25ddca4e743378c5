//! The host ports of a pod: where its node takes connections for it, and what of them it cannot have.
//!
//! A `hostIP` is taken at its word. What is no address, is of a family that the pod has none of, or is not this machine's is told
//! to the pod's owner: nothing else would show that nobody can reach the port. The rules of the data plane ask the kernel whether
//! an address is local, so a port at an address that comes to the machine later (of a failover pair, say) works from then on, and
//! none takes anything from another machine.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use crate::base::object::Object;
use crate::kinds::check::parse_ip_sloppy;
use crate::net::{HostPort, Protocol, Unpublished};

/// The host ports that a pod asks for, once it has an address and is no part of the host's own network.
pub fn published(object: &Object) -> Vec<HostPort> {
    let Ok(pod) = object.typed::<Pod>() else { return Vec::new() };
    let status = pod.status.as_ref();
    if status.is_some_and(|s| matches!(s.phase.as_deref(), Some("Succeeded" | "Failed"))) {
        return Vec::new();
    }
    let listed = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
    let first = status.and_then(|s| s.pod_ip.as_deref());
    let mut addresses: Vec<IpAddr> = first.into_iter().chain(listed).filter_map(|ip| ip.parse().ok()).collect();
    addresses.dedup();
    asked(&pod).filter_map(|port| port.at(&addresses).ok()).flatten().collect()
}

/// Why ports of a pod with these addresses cannot be reached, a sentence each.
pub fn unreachable(pod: &Pod, addresses: &[IpAddr], is_local: impl Fn(IpAddr) -> bool) -> Vec<String> {
    let say = |port: Asked<'_>| {
        let why = match port.at(addresses) {
            Err(why) => why,
            Ok(all) if all.iter().all(|p| p.host_ip.is_unspecified() || is_local(p.host_ip)) => return None,
            Ok(_) => "is not an address of this node",
        };
        Some(format!(
            "{}.hostIP: {:?} {why}: host port {}/{} is not published",
            port.path,
            port.port.host_ip.as_deref().unwrap_or_default(),
            port.number,
            port.port.protocol.as_deref().unwrap_or("TCP"),
        ))
    };
    asked(pod).filter_map(say).collect()
}

/// What a pod is told of a host port that it does not get.
pub fn conflict(of: &Unpublished) -> String {
    let (number, protocol) = (of.port.host_port, of.port.protocol.name().to_uppercase());
    format!("host port {number}/{protocol} is not published: {}", of.why)
}

/// A port that is to be the host's, too.
struct Asked<'a> {
    path: String,
    port: &'a ContainerPort,
    number: u16,
}

// === impl Asked ===

impl Asked<'_> {
    /// The port for each address that it leads to; none for a pod without an address.
    fn at(&self, addresses: &[IpAddr]) -> Result<Vec<HostPort>, &'static str> {
        let wanted = match self.port.host_ip.as_deref().unwrap_or_default() {
            "" => None,
            text => Some(parse_ip_sloppy(text).ok_or("is no IP address")?.to_canonical()),
        };
        let of_family = |a: &&IpAddr| wanted.is_none_or(|ip| ip.is_ipv4() == a.is_ipv4());
        let found: Vec<&IpAddr> = addresses.iter().filter(of_family).collect();
        if found.is_empty() && !addresses.is_empty() {
            return Err("is of a family of which the pod has no address");
        }
        let publish = |address: &IpAddr| HostPort {
            host_ip: wanted.unwrap_or(if address.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() }),
            host_port: self.number,
            protocol: match self.port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
            pod_address: *address,
            pod_port: self.port.container_port as u16,
        };
        Ok(found.into_iter().map(publish).collect())
    }
}

fn asked(pod: &Pod) -> impl Iterator<Item = Asked<'_>> {
    let spec = pod.spec.as_ref().filter(|spec| spec.host_network != Some(true));
    let lists = spec.into_iter().flat_map(|spec| {
        [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)]
    });
    lists.flat_map(|(list, containers)| {
        containers.iter().enumerate().flat_map(move |(c, container)| {
            container.ports.iter().flatten().enumerate().filter_map(move |(p, port)| {
                let number = port.host_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)?;
                Some(Asked { path: format!("spec.{list}[{c}].ports[{p}]"), port, number })
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const V4: &str = "10.42.0.7";
    const V6: &str = "fd00:42::7";

    fn object(ports: &serde_json::Value, ips: &[&str]) -> Object {
        let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"},
            "spec": {"initContainers": [{"name": "i", "ports": [{"containerPort": 1, "hostPort": 11}]}],
                     "containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": "Running", "podIP": ips.first().map(|ip| ip["ip"].clone()), "podIPs": ips}});
        Object::new("p".into(), 1, &value, Box::default())
    }

    fn places(object: &Object) -> Vec<String> {
        let place = |p: HostPort| format!("{}:{} to {}:{}", p.host_ip, p.host_port, p.pod_address, p.pod_port);
        published(object).into_iter().map(place).collect()
    }

    #[test]
    fn a_host_ip_is_taken_at_its_word_or_not_at_all() {
        let port = |ip: &str| json!({"containerPort": 2, "hostPort": 22, "hostIP": ip});
        let all =
            json!([port("192.0.2.1"), port("nonsense"), port("fd00::1"), port("010.0.0.1"), port("::"), port("")]);
        let first = "0.0.0.0:11 to 10.42.0.7:1";
        assert_eq!(
            places(&object(&all, &[V4])),
            [first, "192.0.2.1:22 to 10.42.0.7:2", "10.0.0.1:22 to 10.42.0.7:2", "0.0.0.0:22 to 10.42.0.7:2"]
        );
        let both = places(&object(&json!([port("fd00::1"), port("::ffff:192.0.2.1"), port("")]), &[V4, V6]));
        let expected = [first, ":::11 to fd00:42::7:1", "fd00::1:22 to fd00:42::7:2", "192.0.2.1:22 to 10.42.0.7:2"];
        assert_eq!(both[..4], expected);
        assert_eq!(both[4..], ["0.0.0.0:22 to 10.42.0.7:2", ":::22 to fd00:42::7:2"]);
        assert!(places(&object(&all, &[])).is_empty(), "no address yet");
    }

    #[test]
    fn ports_that_nobody_reaches_are_named() {
        let port = |ip: &str| json!({"containerPort": 2, "hostPort": 22, "hostIP": ip, "protocol": "UDP"});
        let all = json!([port("192.0.2.1"), port("192.0.2.9"), port("nonsense"), port("fd00::1"), port("0.0.0.0")]);
        let object = object(&all, &[V4]);
        let pod = object.typed::<Pod>().unwrap();
        let is_local = |ip: IpAddr| ip.to_string() == "192.0.2.1";
        assert_eq!(
            unreachable(&pod, &[V4.parse().unwrap()], is_local),
            [
                "spec.containers[0].ports[1].hostIP: \"192.0.2.9\" is not an address of this node: \
                 host port 22/UDP is not published",
                "spec.containers[0].ports[2].hostIP: \"nonsense\" is no IP address: host port 22/UDP is not published",
                "spec.containers[0].ports[3].hostIP: \"fd00::1\" is of a family of which the pod has no address: \
                 host port 22/UDP is not published",
            ]
        );
    }
}
