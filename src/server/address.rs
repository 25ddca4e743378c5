//! The address of this machine, and what happens when it becomes another one.
//!
//! Whoever did not choose an address has that of the default route, which may change with every lease of a router. Certificates,
//! the API's endpoints, the tunnel and the Node all carry it, so the process then begins anew in place: it keeps its process
//! number, its containers go on, and a start takes less time than the change itself.

use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::net::address::AddressWatch;

/// A new address counts when it has stayed for this long.
const SETTLED: Duration = Duration::from_secs(1);

/// The address of the default route's interface, loopback where there is none. Nothing is sent.
pub fn default_address() -> IpAddr {
    let find = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    find().unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// Returns the new address once it is no longer `was`. A machine without a network keeps the old one.
pub async fn moved(was: IpAddr) -> IpAddr {
    let mut watch = match AddressWatch::new() {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%error, "changes of this machine's address will not be noticed");
            return std::future::pending().await;
        }
    };
    let mut seen = default_address();
    loop {
        let settled = tokio::time::timeout(SETTLED, watch.changed()).await.is_err();
        let now = default_address();
        if settled && now == seen {
            if now != was && !now.is_loopback() {
                return now;
            }
            watch.changed().await;
        }
        seen = now;
    }
}

/// Begins anew in place, with the same arguments. Returns only if that failed.
pub fn begin_anew() -> anyhow::Error {
    let executable = std::env::current_exe().unwrap_or_default();
    // After an upgrade in place, the new file has the old one's name.
    let named = executable.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    let path = if PathBuf::from(&named).exists() { named.into() } else { PathBuf::from("/proc/self/exe") };
    let error = std::process::Command::new(&path).args(std::env::args_os().skip(1)).exec();
    anyhow::anyhow!("{} cannot be started anew: {error}", path.display())
}
