//! Kernel parameters that belong to a namespace and not to the whole machine.
//!
//! Names are compared in one form: dots separate, and a slash stands for a dot inside a part (`net.ipv4.conf.eth0/1.x`).
//! Invariant: nothing that is not known to be namespaced is ever written for a pod.

use std::path::{Component, PathBuf};

/// The kind of namespace that a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    Ipc,
    Net,
}

/// What belongs to a namespace: whole names, and beginnings of names.
const NAMESPACED: &[(&str, bool, Namespace)] = &[
    ("kernel.sem", true, Namespace::Ipc),
    ("kernel.shm", false, Namespace::Ipc),
    ("kernel.msg", false, Namespace::Ipc),
    ("fs.mqueue.", false, Namespace::Ipc),
    ("net.", false, Namespace::Net),
];

/// A name with dots as separators, whichever way it was written.
pub fn normal(name: &str) -> String {
    let slashes = name.find(['.', '/']).is_some_and(|first| name.as_bytes()[first] == b'/');
    if slashes { swapped(name) } else { name.to_owned() }
}

fn swapped(name: &str) -> String {
    let swap = |c: char| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

/// The namespace of a parameter, or of all that a pattern ending in `*` names; `None` is the machine's.
pub fn namespace_of(name: &str) -> Option<Namespace> {
    let name = normal(name);
    let (name, pattern) = name.strip_suffix('*').map_or((name.as_str(), false), |begin| (begin, true));
    let matches = |(known, whole, _): &&(&str, bool, Namespace)| match whole {
        true => name == *known && !pattern,
        false => name.starts_with(known),
    };
    NAMESPACED.iter().find(matches).map(|(_, _, namespace)| *namespace)
}

/// Where a parameter is below `/proc/sys`; nowhere else, whatever the name says.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(swapped(&normal(name)));
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    plain.then_some(path).filter(|path| path.components().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn only_what_has_a_namespace_of_its_own_is_a_pods() {
        for (name, namespace) in [
            ("net.ipv4.ip_forward", Some(Namespace::Net)),
            ("net/ipv4/ip_forward", Some(Namespace::Net)),
            ("net.ipv4.conf.*", Some(Namespace::Net)),
            ("kernel.shm_rmid_forced", Some(Namespace::Ipc)),
            ("kernel.msg*", Some(Namespace::Ipc)),
            ("kernel.sem", Some(Namespace::Ipc)),
            ("kernel.semaphore", None),
            ("kernel.*", None),
            ("*", None),
            ("fs.lease-break-time", None),
            ("fs/lease-break-time", None),
            ("vm.swappiness", None),
            ("network.x", None),
        ] {
            assert_eq!(namespace_of(name), namespace, "{name}");
        }
    }

    #[test]
    fn names_cannot_leave_proc_sys() {
        assert_eq!(path("net.core.somaxconn").unwrap(), Path::new("net/core/somaxconn"));
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding").unwrap(), Path::new("net/ipv4/conf/eth0.1/forwarding"));
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").unwrap(), Path::new("net/ipv4/conf/eth0.1/forwarding"));
        for bad in ["../kernel/core_pattern", "net.//.//.kernel", "/etc/passwd", "net", ""] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }
}
