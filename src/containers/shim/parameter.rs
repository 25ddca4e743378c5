//! Kernel parameters of a pod's namespaces.

use std::fs;
use std::io::{self};
use std::path::{Path, PathBuf};

use super::super::sysctl;
use super::super::wire::ShimConfig;

/// In the namespaces that this process is in.
pub(super) fn write_parameter(name: &str, value: &str, config: &ShimConfig) -> io::Result<()> {
    let path = Path::new("/proc/sys").join(own_sysctl(name, config)?);
    fs::write(&path, value).map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}={value}: {error}")))
}

/// Where a parameter is, if it is one of a namespace that the sandbox does not share with the host.
pub(super) fn own_sysctl(name: &str, config: &ShimConfig) -> io::Result<PathBuf> {
    let own = match sysctl::namespace_of(name) {
        Some(sysctl::Namespace::Ipc) => !config.host_ipc,
        Some(sysctl::Namespace::Net) => config.netns.is_some(),
        None => false,
    };
    let path = sysctl::path(name).filter(|_| own);
    path.ok_or_else(|| io::Error::other(format!("sysctl {name:?} is not one of the pod's own namespaces")))
}
