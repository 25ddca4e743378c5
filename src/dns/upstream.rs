//! Which servers to ask about the world: a fixed list, or those of the host's `resolv.conf`.
//!
//! The file is looked at when somebody asks and at most once a second, so an idle node does nothing.
//! Invariant: never one of our own addresses, or a query would go round for ever.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// As in glibc.
const SERVERS_MAX: usize = 3;

/// Where queries go.
pub struct Upstreams {
    file: Option<PathBuf>,
    own: Vec<SocketAddr>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    servers: Vec<SocketAddr>,
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    /// Answered nothing lately: asked last.
    slow: Option<(SocketAddr, Instant)>,
}

impl Upstreams {
    /// Always these.
    pub fn fixed(servers: Vec<SocketAddr>) -> Self {
        Self { file: None, own: Vec::new(), state: Mutex::new(State { servers, ..State::default() }) }
    }

    /// Those in this file, without `own`, our listeners (and the cluster DNS addresses).
    pub fn resolv_conf(file: impl Into<PathBuf>, own: Vec<SocketAddr>) -> Self {
        Self { file: Some(file.into()), own, state: Mutex::default() }
    }

    /// The servers to try, in order.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(file) = &self.file
            && state.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_EVERY)
        {
            state.looked = Some(now);
            let modified = std::fs::metadata(file).and_then(|m| m.modified()).ok();
            if modified.is_none() || modified != state.modified {
                state.modified = modified;
                state.servers = parse(&std::fs::read_to_string(file).unwrap_or_default(), &self.own);
            }
        }
        let mut servers = state.servers.clone();
        if let Some((slow, since)) = state.slow
            && now.duration_since(since) < Duration::from_secs(10)
        {
            servers.sort_by_key(|server| *server == slow);
        }
        servers
    }

    /// Notes that this server did not answer.
    pub fn was_silent(&self, server: SocketAddr) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).slow = Some((server, Instant::now()));
    }
}

/// The `nameserver` lines.
fn parse(text: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next())??.parse::<IpAddr>().ok()
    });
    let mut servers = Vec::new();
    for address in addresses {
        let server = SocketAddr::new(address, 53);
        let is_own = own.iter().any(|o| o.ip() == address && o.port() == 53);
        let through_us = own.iter().any(|o| o.ip().is_unspecified()) && address.is_loopback();
        if !is_own && !through_us && !servers.contains(&server) && servers.len() < SERVERS_MAX {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_addresses_are_skipped() {
        let text =
            "# x\nsearch a b\nnameserver 10.43.0.10\nnameserver 127.0.0.53\n nameserver 192.0.2.7 \nnameserver bad\n";
        let texts = |own: &[&str]| {
            let own: Vec<SocketAddr> = own.iter().map(|o| o.parse().unwrap()).collect();
            parse(text, &own).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(&["10.43.0.10:53"]), ["127.0.0.53:53", "192.0.2.7:53"]);
        assert_eq!(texts(&["127.0.0.53:53", "10.43.0.10:53"]), ["192.0.2.7:53"]);
        assert_eq!(texts(&["0.0.0.0:53"]), ["10.43.0.10:53", "192.0.2.7:53"]);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        let upstreams = Upstreams::resolv_conf(&file, Vec::new());
        assert!(upstreams.servers().is_empty(), "no file, no servers");
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        upstreams.state.lock().unwrap().looked = None;
        assert_eq!(upstreams.servers(), ["192.0.2.1:53".parse().unwrap()]);
        upstreams.was_silent("192.0.2.1:53".parse().unwrap());
        assert_eq!(upstreams.servers().len(), 1, "still asked if there is no other");
    }
}
