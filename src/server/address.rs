//! The address of this machine, and what happens when it becomes another one.
//!
//! Whoever did not choose an address has that of the default route (or of the first card), which may change with every
//! lease of a router. Certificates, the API's endpoints, the tunnel and the Node all carry it, so the process then begins
//! anew in place: it keeps its process number, its containers go on, and a start takes less time than the change itself.

use std::net::{IpAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::net::address::AddressWatch;
use crate::net::own_address::{self, own_address};

/// A new address counts when it has stayed for this long.
const SETTLED: Duration = Duration::from_secs(1);

/// Where this machine is reached: the address of the default route or, on a network without a router, of its first card;
/// loopback where there is no network at all.
pub fn default_address() -> IpAddr {
    own_address().unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// The same for a node that has an address: while there is no default route, the one it has is kept if it is still there.
fn address_after(was: IpAddr) -> IpAddr {
    let kept = || (!was.is_loopback() && UdpSocket::bind((was, 0)).is_ok()).then_some(was);
    own_address::by_default_route().or_else(kept).unwrap_or_else(default_address)
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
    let mut seen = address_after(was);
    loop {
        let settled = tokio::time::timeout(SETTLED, watch.changed()).await.is_err();
        let now = address_after(was);
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
    let error = std::process::Command::new(&path).args(&crate::base::arguments::given()[1..]).exec();
    anyhow::anyhow!("{} cannot be started anew: {error}", path.display())
}
