//! What `--disable` understands: the built-in manifests and parts of the server, by our names and by those of k3s.
//!
//! Somebody who comes from k3s brings flags along. Parts of k3s that are not here are off already, so naming one is no
//! mistake; a name that nobody knows is, because what it was meant for would go on running.

use crate::server::manifests::builtin;

/// Parts of the server that no manifest stands for.
const PARTS: [&str; 5] = ["metrics-server", "network-policy", "node-cidr", "scheduler", "service-proxy"];
/// Other names of ours.
const ALIASES: [(&str, &str); 2] = [("coredns", "dns"), ("kube-proxy", "service-proxy")];
/// What k3s has and we have not.
const ELSEWHERE: [&str; 6] = ["ccm", "helm-controller", "rolebindings", "runtimes", "servicelb", "traefik"];

/// Something that was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Component {
    /// By our name for it.
    Ours(&'static str),
    /// It is not here.
    Elsewhere(&'static str),
    /// Nothing, as an empty variable names it.
    Nothing,
}

/// Reads one name.
pub fn part(text: &str) -> Result<Component, String> {
    let name = text.trim();
    let ours = || builtin::ALL.iter().map(|c| c.name).chain(PARTS);
    if name.is_empty() {
        return Ok(Component::Nothing);
    }
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, ours)| ours);
    if let Some(known) = ours().find(|p| *p == name) {
        return Ok(Component::Ours(known));
    }
    if let Some(known) = ELSEWHERE.iter().find(|p| **p == name) {
        return Ok(Component::Elsewhere(known));
    }
    let mut known: Vec<&str> = ours().chain(ALIASES.iter().map(|(alias, _)| *alias)).collect();
    known.sort_unstable();
    Err(format!("expected one of {}; of k3s, without effect: {}", known.join(", "), ELSEWHERE.join(", ")))
}

/// Our names of all that was named; what is not here is told of.
pub fn names(parts: &[Component]) -> Vec<String> {
    let mut ours = Vec::new();
    let mut elsewhere = Vec::new();
    for part in parts {
        match part {
            Component::Ours(name) => ours.push((*name).to_owned()),
            Component::Elsewhere(name) => elsewhere.push(*name),
            Component::Nothing => {}
        }
    }
    if !elsewhere.is_empty() {
        tracing::info!(
            parts = elsewhere.join(", "),
            "--disable: there is nothing to disable, amphipod does not have these"
        );
    }
    ours.sort();
    ours.dedup();
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_those_of_k3s_and_no_others() {
        let all: Vec<Component> =
            ["dns", "coredns", " traefik ", "", "kube-proxy"].iter().map(|n| part(n).unwrap()).collect();
        assert_eq!(all[..2], [Component::Ours("dns"), Component::Ours("dns")]);
        assert_eq!(all[2..4], [Component::Elsewhere("traefik"), Component::Nothing]);
        assert_eq!(names(&all), ["dns", "service-proxy"]);
        let why = part("dsn").unwrap_err();
        assert!(
            why.starts_with(
                "expected one of coredns, dns, kube-proxy, local-storage, metrics-server, network-policy, node-cidr, \
                 scheduler, service-proxy"
            ),
            "{why}"
        );
    }
}
