//! Address management: which pod holds which addresses.
//!
//! A reservation is one file per address, named by it and holding the pod's id, linked into place in one step before
//! the address is used. After kill -9 the directory is the truth: an address is either reserved with its owner or free.
//! Addresses are handed out in rotation, so that a freed one rests as long as possible before it returns.
//!
//! Invariant: no two ids ever hold the same address, also across processes that share the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::base::file::{claim_private_dir, read_text};
use crate::net::Error;

/// Names of files in the directory that are no reservation start with this.
const HIDDEN: char = '.';

/// Longer than any pod's id.
const ID_BYTES_MAX: u64 = 4096;

/// The reservations of one node.
#[derive(Debug)]
pub struct Ipam {
    directory: PathBuf,
    ranges: Vec<IpNet>,
    used: BTreeSet<IpAddr>,
    owners: BTreeMap<String, Vec<IpAddr>>,
    /// Per range the address handed out last.
    last: Vec<Option<IpAddr>>,
}

impl Ipam {
    /// Reads what is reserved in `directory`, which is made if missing.
    pub fn open(directory: &Path, ranges: &[IpNet]) -> Result<Self, Error> {
        claim_private_dir(directory).map_err(Error::file("cannot make", directory))?;
        let mut ipam = Self {
            directory: directory.to_owned(),
            ranges: ranges.to_vec(),
            used: BTreeSet::new(),
            owners: BTreeMap::new(),
            last: Vec::new(),
        };
        for entry in fs::read_dir(directory).map_err(Error::file("cannot read", directory))? {
            let path = entry.map_err(Error::file("cannot read", directory))?.path();
            ipam.read_reservation(&path)?;
        }
        ipam.last = ranges.iter().map(|range| ipam.read_cursor(*range)).collect();
        Ok(ipam)
    }

    fn read_reservation(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with(".new-") {
            let _ = fs::remove_file(path); // left by a kill between writing and linking: not a reservation
            return Ok(());
        }
        let Ok(address) = name.parse::<IpAddr>() else { return Ok(()) };
        match read_text(path, ID_BYTES_MAX) {
            Ok(id) => self.note(&id, address),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Whose it is cannot be told, so nobody gets it.
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "an address is reserved for nobody that is known");
                self.used.insert(address);
            }
        }
        Ok(())
    }

    fn note(&mut self, id: &str, address: IpAddr) {
        self.used.insert(address);
        let held = self.owners.entry(id.to_owned()).or_default();
        if !held.contains(&address) {
            held.push(address);
            held.sort();
        }
    }

    /// The addresses `id` holds.
    pub fn held(&self, id: &str) -> Option<&[IpAddr]> {
        self.owners.get(id).map(Vec::as_slice)
    }

    /// Every id with its addresses.
    pub fn list(&self) -> Vec<(String, Vec<IpAddr>)> {
        self.owners.iter().map(|(id, addresses)| (id.clone(), addresses.clone())).collect()
    }

    /// Reserves one address per family for `id`, or answers those it holds already.
    pub fn reserve(&mut self, id: &str) -> Result<Vec<IpAddr>, Error> {
        if let Some(held) = self.held(id) {
            return Ok(held.to_vec());
        }
        let mut got = Vec::new();
        for ipv6 in [false, true] {
            match self.reserve_family(id, ipv6) {
                Ok(address) => got.extend(address),
                Err(error) => {
                    let _ = self.release(id);
                    return Err(error);
                }
            }
        }
        Ok(got)
    }

    /// One address from the first range of the family that has one; `None` if the family is not configured.
    fn reserve_family(&mut self, id: &str, ipv6: bool) -> Result<Option<IpAddr>, Error> {
        let mut full = None;
        for position in 0..self.ranges.len() {
            let range = self.ranges[position];
            if range.addr().is_ipv6() != ipv6 {
                continue;
            }
            while let Some(address) = next_free(range, self.last[position], &self.used) {
                if self.claim(id, address)? {
                    self.note(id, address);
                    self.last[position] = Some(address);
                    self.write_cursor(range, address);
                    return Ok(Some(address));
                }
                self.used.insert(address); // another process holds it
            }
            full = Some(Error::Exhausted { range, used: self.used.len() });
        }
        full.map_or(Ok(None), Err)
    }

    /// Frees what `id` holds.
    pub fn release(&mut self, id: &str) -> Result<(), Error> {
        let mut errors = Vec::new();
        for address in self.owners.get(id).cloned().unwrap_or_default() {
            let path = self.directory.join(address.to_string());
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => errors.push(Error::file("cannot remove", &path)(e)),
                _ => {
                    self.used.remove(&address);
                }
            }
        }
        if errors.is_empty() {
            self.owners.remove(id);
        }
        Error::gather(errors)
    }

    /// Writes the id to a hidden file and links it to its name, which fails if the address is taken.
    fn claim(&self, id: &str, address: IpAddr) -> Result<bool, Error> {
        let path = self.directory.join(address.to_string());
        let fresh = self.directory.join(format!(".new-{address}-{}", std::process::id()));
        let write = || -> io::Result<bool> {
            fs::File::create(&fresh)?.write_all(id.as_bytes())?;
            match fs::hard_link(&fresh, &path) {
                Ok(()) => Ok(true),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(e) => Err(e),
            }
        };
        let result = write().map_err(Error::file("cannot reserve", &path));
        let _ = fs::remove_file(&fresh);
        result
    }

    fn cursor_path(&self, range: IpNet) -> PathBuf {
        self.directory.join(format!("{HIDDEN}last-{}", range.to_string().replace('/', "-")))
    }

    fn read_cursor(&self, range: IpNet) -> Option<IpAddr> {
        read_text(&self.cursor_path(range), ID_BYTES_MAX).ok()?.trim().parse().ok()
    }

    /// Only fairness hangs on it, so a failure is no error.
    fn write_cursor(&self, range: IpNet, address: IpAddr) {
        let _ = fs::write(self.cursor_path(range), address.to_string());
    }
}

/// The first usable address after `last` that is not in `used`, going round once.
///
/// Not usable: the network's own address, the gateway (the first one after it) and the IPv4 broadcast address.
pub fn next_free(range: IpNet, last: Option<IpAddr>, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let size = if bits >= 128 { u128::MAX } else { 1u128 << bits };
    let spare_end = u128::from(range.addr().is_ipv4());
    let first = 2u128;
    let count = size.checked_sub(first + spare_end)?;
    if count == 0 {
        return None;
    }
    let base = number(range.network());
    let start = match last.filter(|last| range.contains(last)) {
        Some(last) => (number(last) - base + 1).saturating_sub(first) % count,
        None => 0,
    };
    // Each step that does not answer meets a used address, so this ends after `used.len()` steps.
    let steps = count.min(used.len() as u128 + 1);
    (0..steps).map(|step| address(range, base + first + (start + step) % count)).find(|a| !used.contains(a))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn address(range: IpNet, number: u128) -> IpAddr {
    match range {
        IpNet::V4(_) => IpAddr::V4(u32::try_from(number).expect("inside an IPv4 range").into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(text: &[&str]) -> Vec<IpNet> {
        text.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn gateway_network_and_broadcast_are_never_handed_out() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(directory.path(), &nets(&["10.1.2.0/29"])).unwrap();
        let got: Vec<String> = (0..5).map(|i| ipam.reserve(&format!("p{i}")).unwrap()[0].to_string()).collect();
        assert_eq!(got, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        let error = ipam.reserve("p5").unwrap_err();
        assert_eq!(error.to_string(), "no free pod address left in 10.1.2.0/29: 5 are in use");
        assert!(ipam.held("p5").is_none());
    }

    #[test]
    fn a_freed_address_rests_until_all_others_had_their_turn() {
        let directory = tempfile::tempdir().unwrap();
        let ranges = nets(&["10.1.2.0/28"]);
        let mut ipam = Ipam::open(directory.path(), &ranges).unwrap();
        let first = ipam.reserve("a").unwrap();
        ipam.release("a").unwrap();
        for turn in 0..12 {
            // Reopening must not forget the turn.
            ipam = Ipam::open(directory.path(), &ranges).unwrap();
            let id = format!("b{turn}");
            assert_ne!(ipam.reserve(&id).unwrap(), first, "turn {turn}");
            ipam.release(&id).unwrap();
        }
        assert_eq!(ipam.reserve("c").unwrap(), first);
    }

    #[test]
    fn one_address_per_family() {
        let directory = tempfile::tempdir().unwrap();
        let ranges = nets(&["10.1.0.0/30", "fd00:1::/64", "10.9.0.0/24"]);
        let mut ipam = Ipam::open(directory.path(), &ranges).unwrap();
        let texts = |a: Vec<IpAddr>| a.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(ipam.reserve("a").unwrap()), ["10.1.0.2", "fd00:1::2"]);
        assert_eq!(
            texts(ipam.reserve("b").unwrap()),
            ["10.9.0.2", "fd00:1::3"],
            "the second range when the first is full"
        );
        assert_eq!(ipam.reserve("b").unwrap(), ipam.held("b").unwrap());
    }

    #[test]
    fn a_kill_between_write_and_link_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(".new-10.1.2.2-77"), "ghost").unwrap();
        let ipam = Ipam::open(directory.path(), &nets(&["10.1.2.0/29"])).unwrap();
        assert!(ipam.list().is_empty());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Reserve(u8),
        Release(u8),
        Restart,
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn never_twice(steps in proptest::collection::vec(prop_oneof![
            4 => (0u8..20).prop_map(Step::Reserve),
            3 => (0u8..20).prop_map(Step::Release),
            1 => Just(Step::Restart),
        ], 1..80)) {
            let directory = tempfile::tempdir().unwrap();
            let ranges = nets(&["10.1.2.0/28", "fd00::/124"]);
            let mut ipam = Ipam::open(directory.path(), &ranges).unwrap();
            let mut model: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Reserve(n) => match ipam.reserve(&n.to_string()) {
                        Ok(got) => {
                            if let Some(had) = model.insert(n.to_string(), got.clone()) {
                                prop_assert_eq!(had, got);
                            }
                        }
                        Err(Error::Exhausted { .. }) => prop_assert_eq!(model.len(), 13),
                        Err(other) => return Err(TestCaseError::fail(other.to_string())),
                    },
                    Step::Release(n) => {
                        ipam.release(&n.to_string()).unwrap();
                        model.remove(&n.to_string());
                    }
                    // Another process opens the same directory: what a kill -9 leaves is all there is.
                    Step::Restart => ipam = Ipam::open(directory.path(), &ranges).unwrap(),
                }
                let all: Vec<IpAddr> = model.values().flatten().copied().collect();
                prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
                prop_assert_eq!(ipam.list(), model.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn two_processes_never_share_an_address() {
        let directory = tempfile::tempdir().unwrap();
        let ranges = nets(&["10.1.2.0/24"]);
        let mut one = Ipam::open(directory.path(), &ranges).unwrap();
        let mut two = Ipam::open(directory.path(), &ranges).unwrap();
        let a = one.reserve("a").unwrap();
        assert_ne!(two.reserve("b").unwrap(), a);
    }
}
