//! The encrypted tunnel: one WireGuard link per node, a peer for each other node, spoken to over generic netlink.
//!
//! A peer's allowed addresses are its pod ranges, so the kernel drops what another node sends with foreign sources, and who has
//! no key of a node cannot send at all. Peers that did not change are not touched: their sessions go on over restarts.
//!
//! Invariant: the private key never leaves the kernel and the file that it is kept in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

use super::WIREGUARD_PORT;
use crate::net::netlink::generic::{attributes, command};
use crate::net::netlink::message::Attributes;
use crate::net::netlink::route::{address_of, family, octets};
use crate::net::netlink::{Buffer, Socket};

const NAME: &str = "wireguard";
const VERSION: u8 = 1;
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_IFNAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_ALLOWED: u16 = 9;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_LENGTH: u16 = 3;
const REMOVE_ME: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
const UPDATE_ONLY: u32 = 4;
/// An attribute holds less than 64 KiB.
const PEERS_PER_MESSAGE: usize = 100;

/// What a node is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// What only the node has.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PrivateKey([u8; 32]);

// === impl PublicKey ===

impl FromStr for PublicKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes = STANDARD.decode(text).map_err(|_| ())?;
        let key: [u8; 32] = bytes.try_into().map_err(|_| ())?;
        // Nobody can have this one; the kernel takes it for none.
        if key == [0; 32] { Err(()) } else { Ok(Self(key)) }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl PrivateKey ===

impl PrivateKey {
    /// A scalar of Curve25519 from random bytes.
    pub(super) fn new(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = bytes[31] & 127 | 64;
        Self(bytes)
    }

    pub(super) fn to_text(&self) -> String {
        STANDARD.encode(self.0)
    }

    pub(super) fn from_text(text: &str) -> Option<Self> {
        Some(Self::new(STANDARD.decode(text).ok()?.try_into().ok()?))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// Another node as the link has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partner {
    /// Where it was last, as far as is known.
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) ranges: BTreeSet<IpNet>,
}

pub(super) type Partners = BTreeMap<PublicKey, Partner>;

/// One change of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Remove(PublicKey),
    Set {
        key: PublicKey,
        /// It is new: it is spoken to at once, so that both ends know that the other one is there.
        is_new: bool,
        endpoint: Option<SocketAddr>,
        ranges: Option<BTreeSet<IpNet>>,
    },
}

/// From what is there to what should be there. `told` are the endpoints that were set before: one that the kernel has learned
/// since, from a packet that only the peer can have sent, is better than ours and stays.
pub(super) fn changes(present: &Partners, wanted: &Partners, told: &BTreeMap<PublicKey, SocketAddr>) -> Vec<Change> {
    let gone = present.keys().filter(|key| !wanted.contains_key(key)).map(|key| Change::Remove(*key));
    let set = wanted.iter().filter_map(|(key, partner)| {
        let before = present.get(key);
        let moved = match (before, told.get(key)) {
            (None, _) => true,
            (Some(_), Some(told)) => Some(*told) != partner.endpoint,
            (Some(before), None) => before.endpoint != partner.endpoint,
        };
        let endpoint = partner.endpoint.filter(|_| moved);
        let ranges = Some(&partner.ranges).filter(|r| before.is_none_or(|b| b.ranges != **r)).cloned();
        let is_new = before.is_none();
        (is_new || endpoint.is_some() || ranges.is_some()).then_some(Change::Set {
            key: *key,
            is_new,
            endpoint,
            ranges,
        })
    });
    // First those that go, so that no range is at two.
    gone.chain(set).collect()
}

/// The kernel's side.
pub(super) struct Device {
    name: String,
    socket: Socket,
    family: u16,
}

// === impl Device ===

impl Device {
    /// The link of this name, which must be there.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let mut socket = Socket::generic()?;
        let family = socket.family(NAME)?;
        Ok(Self { name: name.to_owned(), socket, family })
    }

    /// Gives the link its key and its port. The same ones again change nothing.
    pub(super) fn set_key(&mut self, key: &PrivateKey, port: u16) -> io::Result<()> {
        let name = self.name.clone();
        self.socket.request(self.family, 0, |b| write_key(b, &name, key, port))
    }

    /// What the link is known by, and its peers.
    pub(super) fn read(&mut self) -> io::Result<(Option<PublicKey>, Partners)> {
        let name = self.name.clone();
        let answers = self.socket.dump(self.family, |b| {
            command(b, GET_DEVICE, VERSION);
            b.attr_str(DEVICE_IFNAME, &name);
        })?;
        let mut key = None;
        let mut partners = Partners::new();
        for answer in &answers {
            key = key.or_else(|| public_key(attributes(answer).find(DEVICE_PUBLIC_KEY)?));
            for (_, peer) in Attributes(attributes(answer).find(DEVICE_PEERS).unwrap_or_default()) {
                read_peer(peer, &mut partners);
            }
        }
        Ok((key, partners))
    }

    pub(super) fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        for portion in changes.chunks(PEERS_PER_MESSAGE) {
            let name = self.name.clone();
            self.socket.request(self.family, 0, |b| write_peers(b, &name, portion))?;
        }
        let new = |change: &Change| match change {
            Change::Set { key, is_new: true, .. } => Some(*key),
            _ => None,
        };
        self.greet(&changes.iter().filter_map(new).collect::<Vec<_>>())
    }

    /// Speaks to peers, without leaving them something to repeat.
    pub(super) fn greet(&mut self, keys: &[PublicKey]) -> io::Result<()> {
        for portion in keys.chunks(PEERS_PER_MESSAGE) {
            for seconds in [1u16, 0] {
                let name = self.name.clone();
                self.socket.request(self.family, 0, |b| write_keepalive(b, &name, portion, seconds))?;
            }
        }
        Ok(())
    }
}

fn write_key(b: &mut Buffer, name: &str, key: &PrivateKey, port: u16) {
    command(b, SET_DEVICE, VERSION);
    b.attr_str(DEVICE_IFNAME, name);
    b.attr(DEVICE_PRIVATE_KEY, &key.0);
    b.attr(DEVICE_LISTEN_PORT, &port.to_ne_bytes());
}

fn write_peers(b: &mut Buffer, name: &str, changes: &[Change]) {
    command(b, SET_DEVICE, VERSION);
    b.attr_str(DEVICE_IFNAME, name);
    b.nest(DEVICE_PEERS, |b| {
        for change in changes {
            b.nest(0, |b| write_change(b, change));
        }
    });
}

fn write_change(b: &mut Buffer, change: &Change) {
    match change {
        Change::Remove(key) => {
            b.attr(PEER_PUBLIC_KEY, &key.0);
            b.attr_u32(PEER_FLAGS, REMOVE_ME);
        }
        Change::Set { key, endpoint, ranges, is_new } => {
            b.attr(PEER_PUBLIC_KEY, &key.0);
            let update = if *is_new { 0 } else { UPDATE_ONLY };
            b.attr_u32(PEER_FLAGS, update | if ranges.is_some() { REPLACE_ALLOWED } else { 0 });
            if let Some(endpoint) = endpoint {
                b.attr(PEER_ENDPOINT, &socket_address(endpoint));
            }
            if let Some(ranges) = ranges {
                b.nest(PEER_ALLOWED, |b| ranges.iter().for_each(|range| b.nest(0, |b| write_range(b, range))));
            }
        }
    }
}

fn write_range(b: &mut Buffer, range: &IpNet) {
    b.attr(ALLOWED_FAMILY, &u16::from(family(range.addr())).to_ne_bytes());
    b.attr(ALLOWED_ADDRESS, &octets(range.network()));
    b.attr(ALLOWED_LENGTH, &[range.prefix_len()]);
}

fn write_keepalive(b: &mut Buffer, name: &str, keys: &[PublicKey], seconds: u16) {
    command(b, SET_DEVICE, VERSION);
    b.attr_str(DEVICE_IFNAME, name);
    b.nest(DEVICE_PEERS, |b| {
        for key in keys {
            b.nest(0, |b| {
                b.attr(PEER_PUBLIC_KEY, &key.0);
                b.attr_u32(PEER_FLAGS, UPDATE_ONLY);
                b.attr(PEER_KEEPALIVE, &seconds.to_ne_bytes());
            });
        }
    });
}

fn public_key(bytes: &[u8]) -> Option<PublicKey> {
    bytes.try_into().ok().filter(|key| *key != [0; 32]).map(PublicKey)
}

/// One peer; of one with many ranges the rest comes in the next message, under the same key.
fn read_peer(bytes: &[u8], partners: &mut Partners) {
    let Some(key) = Attributes(bytes).find(PEER_PUBLIC_KEY).and_then(public_key) else { return };
    let endpoint = Attributes(bytes).find(PEER_ENDPOINT).and_then(read_socket_address);
    let partner = partners.entry(key).or_insert(Partner { endpoint: None, ranges: BTreeSet::new() });
    partner.endpoint = partner.endpoint.or(endpoint);
    for (_, range) in Attributes(Attributes(bytes).find(PEER_ALLOWED).unwrap_or_default()) {
        let address = Attributes(range).find(ALLOWED_ADDRESS).and_then(address_of);
        let length = Attributes(range).find(ALLOWED_LENGTH).and_then(|l| l.first().copied());
        partner.ranges.extend(address.zip(length).and_then(|(address, length)| IpNet::new(address, length).ok()));
    }
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn socket_address(address: &SocketAddr) -> Vec<u8> {
    let head = [&u16::from(family(address.ip())).to_ne_bytes()[..], &address.port().to_be_bytes()].concat();
    match address.ip() {
        IpAddr::V4(a) => [&head[..], &a.octets(), &[0; 8]].concat(),
        IpAddr::V6(a) => [&head[..], &[0; 4], &a.octets(), &[0; 4]].concat(),
    }
}

fn read_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let address = match u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) {
        2 => address_of(bytes.get(4..8)?)?,
        10 => address_of(bytes.get(8..24)?)?,
        _ => return None,
    };
    Some((address, port).into())
}

/// Where a node is spoken to.
pub(super) fn endpoint(address: IpAddr) -> SocketAddr {
    (address, WIREGUARD_PORT).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn partner(address: &str, range: &str) -> Partner {
        Partner { endpoint: Some(endpoint(address.parse().unwrap())), ranges: [range.parse().unwrap()].into() }
    }

    fn bytes(write: impl FnOnce(&mut Buffer)) -> String {
        let mut buffer = Buffer::default();
        write(&mut buffer);
        hex::encode(buffer.bytes())
    }

    #[test]
    fn a_key_is_written_as_the_kernel_reads_it() {
        let private = PrivateKey::new([0xff; 32]);
        let want = [
            "01010000", // set device, version 1
            "07000200",
            "77673000", // name wg0
            "24000300",
            "f8",
            &"ff".repeat(30),
            "7f", // clamped
            "06000600",
            "9fca",
            "0000", // port 51871, of the machine's order
        ]
        .concat();
        assert_eq!(
            bytes(|b| write_key(b, "wg", &private, WIREGUARD_PORT)),
            want.replace("07000200776730", "07000200776700")
        );
    }

    #[test]
    fn peers_are_written_as_the_kernel_reads_them_and_read_back() {
        let new = partner("192.0.2.2", "10.42.1.0/24");
        let set = Change::Set { key: key(7), is_new: true, endpoint: new.endpoint, ranges: Some(new.ranges.clone()) };
        let six: SocketAddr = "[2001:db8::2]:51871".parse().unwrap();
        let moved = Change::Set { key: key(8), is_new: false, endpoint: Some(six), ranges: None };
        let got = bytes(|b| write_peers(b, "wg", &[Change::Remove(key(9)), set, moved]));
        let want = [
            "01010000",
            "0700020077670000",
            "f8000880", // peers, nested
            "30000080",
            "24000100",
            &"09".repeat(32),
            "08000300",
            "01000000", // remove
            "64000080",
            "24000100",
            &"07".repeat(32),
            "08000300",
            "02000000", // replace allowed addresses
            "14000400",
            "0200",
            "ca9f",
            "c0000202",
            "0000000000000000",
            "20000980",
            "1c000080",
            "0600010002000000",
            "080002000a2a0100",
            "0500030018000000",
            "50000080",
            "24000100",
            &"08".repeat(32),
            "08000300",
            "04000000", // update only
            "20000400",
            "0a00",
            "ca9f",
            "00000000",
            "20010db8000000000000000000000002",
            "00000000",
        ]
        .concat();
        // Nothing above is padded by chance: the lengths add up.
        let total = 0x30 + 0x64 + 0x50 + 4;
        assert_eq!(got, want.replace("f8000880", &format!("{}0880", hex::encode((total as u16).to_le_bytes()))));
        let mut partners = Partners::new();
        let mut buffer = Buffer::default();
        write_change(
            &mut buffer,
            &Change::Set { key: key(7), is_new: true, endpoint: new.endpoint, ranges: Some(new.ranges.clone()) },
        );
        read_peer(buffer.bytes(), &mut partners);
        assert_eq!(partners, Partners::from([(key(7), new)]));
        for end in 0..buffer.bytes().len() {
            read_peer(&buffer.bytes()[..end], &mut Partners::new());
        }
    }

    #[test]
    fn only_what_changed_is_set_and_what_a_peer_told_of_itself_stays() {
        let a = partner("192.0.2.1", "10.42.1.0/24");
        let roamed = Partner { endpoint: Some("198.51.100.7:9999".parse().unwrap()), ..a.clone() };
        let wanted = Partners::from([(key(1), a.clone())]);
        let told = BTreeMap::from([(key(1), a.endpoint.unwrap())]);
        assert_eq!(changes(&wanted, &wanted, &told), []);
        assert_eq!(
            changes(&Partners::from([(key(1), roamed.clone())]), &wanted, &told),
            [],
            "it is behind a translator"
        );
        let after_restart = changes(&Partners::from([(key(1), roamed)]), &wanted, &BTreeMap::new());
        assert!(matches!(&after_restart[..], [Change::Set { is_new: false, endpoint: Some(_), ranges: None, .. }]));
        // A node with a new key: the old one goes in the same message.
        let rotated = changes(&wanted, &Partners::from([(key(2), a.clone())]), &told);
        assert!(
            matches!(&rotated[..], [Change::Remove(old), Change::Set { key: new, is_new: true, .. }] if *old == key(1) && *new == key(2))
        );
        let other = Partners::from([(key(1), partner("192.0.2.1", "10.42.9.0/24"))]);
        assert!(matches!(&changes(&wanted, &other, &told)[..], [Change::Set { endpoint: None, ranges: Some(_), .. }]));
    }

    #[test]
    fn keys_are_read_only_whole() {
        assert_eq!(key(7).to_string().parse(), Ok(key(7)));
        for bad in ["", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "!"] {
            assert_eq!(bad.parse::<PublicKey>(), Err(()), "{bad}");
        }
        let private = PrivateKey::new([5; 32]);
        assert_eq!(PrivateKey::from_text(&private.to_text()), Some(private));
    }
}
