//! A pod network without a kernel, for simulations and tests of the node.
//!
//! It keeps the same promises as the real one (the same suite runs over both) with a counter for addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::net::TcpStream;

use super::ipam::next_free;
use crate::net::{Attached, Error, PodAttachment, PodNetwork};

/// Addresses in memory only.
#[derive(Debug)]
pub struct FakePodNetwork {
    range: IpNet,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<String, IpAddr>,
    last: Option<IpAddr>,
}

impl FakePodNetwork {
    /// Hands out addresses of `range`.
    pub fn new(range: IpNet) -> Self {
        Self { range, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl PodNetwork for FakePodNetwork {
    async fn attach(&self, pod: PodAttachment) -> Result<Attached, Error> {
        let mut state = self.state();
        let address = match state.held.get(&pod.id) {
            Some(address) => *address,
            None => {
                let used = state.held.values().copied().collect();
                let free = next_free(self.range, state.last, &used);
                free.ok_or(Error::Exhausted { range: self.range, used: state.held.len() })?
            }
        };
        state.last = Some(address);
        state.held.insert(pod.id.clone(), address);
        Ok(Attached { netns: PathBuf::from("/fake/netns").join(&pod.id), addresses: vec![address] })
    }

    async fn connect(&self, _id: &str, _port: u16) -> std::io::Result<TcpStream> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }

    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback()
    }

    async fn detach(&self, id: &str) -> Result<(), Error> {
        self.state().held.remove(id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(String, Vec<IpAddr>)>, Error> {
        Ok(self.state().held.iter().map(|(id, address)| (id.clone(), vec![*address])).collect())
    }

    async fn adopt(&self, in_use: &[String]) -> Result<Vec<String>, Error> {
        let mut state = self.state();
        let gone: Vec<String> = state.held.keys().filter(|id| !in_use.contains(id)).cloned().collect();
        state.held.retain(|id, _| in_use.contains(id));
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fake_passes_the_suite() {
        super::super::suite::run(&FakePodNetwork::new("10.9.0.0/24".parse().unwrap())).await;
    }
}
