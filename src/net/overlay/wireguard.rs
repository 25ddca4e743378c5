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
use netlink_packet_generic::{GenlFamily, GenlMessage};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};

use super::WIREGUARD_PORT;
use crate::net::netlink::Socket;

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
pub(super) struct DevicePeer {
    /// Where it was last, as far as is known.
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) ranges: BTreeSet<IpNet>,
}

pub(super) type DevicePeers = BTreeMap<PublicKey, DevicePeer>;

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

/// From what is there to what should be there. `configured` are the endpoints that were set before: one that the kernel has learned
/// since, from a packet that only the peer can have sent, is better than ours and stays.
pub(super) fn changes(
    present: &DevicePeers,
    wanted: &DevicePeers,
    configured: &BTreeMap<PublicKey, SocketAddr>,
) -> Vec<Change> {
    let gone = present.keys().filter(|key| !wanted.contains_key(key)).map(|key| Change::Remove(*key));
    let set = wanted.iter().filter_map(|(key, device_peer)| {
        let before = present.get(key);
        let moved = match (before, configured.get(key)) {
            (None, _) => true,
            (Some(_), Some(configured)) => Some(*configured) != device_peer.endpoint,
            (Some(before), None) => before.endpoint != device_peer.endpoint,
        };
        let endpoint = device_peer.endpoint.filter(|_| moved);
        let ranges = Some(&device_peer.ranges).filter(|r| before.is_none_or(|b| b.ranges != **r)).cloned();
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
        let family = socket.family(WireguardMessage::family_name())?;
        Ok(Self { name: name.to_owned(), socket, family })
    }

    /// Gives the link its key and its port. The same ones again change nothing.
    pub(super) fn set_key(&mut self, key: &PrivateKey, port: u16) -> io::Result<()> {
        self.set(key_and_port(key, port))
    }

    /// What the link is known by, and its peers.
    pub(super) fn read(&mut self) -> io::Result<(Option<PublicKey>, DevicePeers)> {
        let question = self.message(WireguardCmd::GetDevice, Vec::new());
        let mut key = None;
        let mut device_peers = DevicePeers::new();
        self.socket.dump(question, |answer| read_answer(&answer.payload, &mut key, &mut device_peers))?;
        Ok((key, device_peers))
    }

    pub(super) fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        for portion in changes.chunks(PEERS_PER_MESSAGE) {
            self.set(vec![WireguardAttribute::Peers(portion.iter().map(changed).collect())])?;
        }
        let new = |change: &Change| match change {
            Change::Set { key, is_new: true, .. } => Some(*key),
            _ => None,
        };
        self.initiate_handshakes(&changes.iter().filter_map(new).collect::<Vec<_>>())
    }

    /// Speaks to peers, without leaving them something to repeat.
    pub(super) fn initiate_handshakes(&mut self, keys: &[PublicKey]) -> io::Result<()> {
        for portion in keys.chunks(PEERS_PER_MESSAGE) {
            for seconds in [1, 0] {
                let peers = portion.iter().map(|key| kept_alive(key, seconds)).collect();
                self.set(vec![WireguardAttribute::Peers(peers)])?;
            }
        }
        Ok(())
    }

    fn set(&mut self, attributes: Vec<WireguardAttribute>) -> io::Result<()> {
        let message = self.message(WireguardCmd::SetDevice, attributes);
        self.socket.request(message)
    }

    fn message(&self, cmd: WireguardCmd, attributes: Vec<WireguardAttribute>) -> GenlMessage<WireguardMessage> {
        let mut message = GenlMessage::from_payload(about(&self.name, cmd, attributes));
        message.set_resolved_family_id(self.family);
        message
    }
}

/// A command for the link of this name.
fn about(name: &str, cmd: WireguardCmd, mut attributes: Vec<WireguardAttribute>) -> WireguardMessage {
    attributes.insert(0, WireguardAttribute::IfName(name.to_owned()));
    WireguardMessage { cmd, attributes }
}

fn key_and_port(key: &PrivateKey, port: u16) -> Vec<WireguardAttribute> {
    vec![WireguardAttribute::PrivateKey(key.0), WireguardAttribute::ListenPort(port)]
}

fn changed(change: &Change) -> WireguardPeer {
    match change {
        Change::Remove(key) => WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
        ]),
        Change::Set { key, endpoint, ranges, is_new } => {
            let mut flags = WireguardPeerFlags::empty();
            flags.set(WireguardPeerFlags::UpdateOnly, !is_new);
            flags.set(WireguardPeerFlags::ReplaceAllowedIps, ranges.is_some());
            let mut attributes = vec![WireguardPeerAttribute::PublicKey(key.0), WireguardPeerAttribute::Flags(flags)];
            attributes.extend(endpoint.map(WireguardPeerAttribute::Endpoint));
            let ranges = ranges.as_ref().map(|ranges| ranges.iter().map(allowed).collect());
            attributes.extend(ranges.map(WireguardPeerAttribute::AllowedIps));
            WireguardPeer(attributes)
        }
    }
}

fn allowed(range: &IpNet) -> WireguardAllowedIp {
    let family = match range {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(range.network()),
        WireguardAllowedIpAttr::Cidr(range.prefix_len()),
    ])
}

fn kept_alive(key: &PublicKey, seconds: u16) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
        WireguardPeerAttribute::PersistentKeepalive(seconds),
    ])
}

fn public_key(bytes: &[u8; 32]) -> Option<PublicKey> {
    (*bytes != [0; 32]).then_some(PublicKey(*bytes))
}

/// One piece of the description of a link.
fn read_answer(answer: &WireguardMessage, key: &mut Option<PublicKey>, device_peers: &mut DevicePeers) {
    for attribute in &answer.attributes {
        match attribute {
            WireguardAttribute::PublicKey(bytes) => *key = key.or(public_key(bytes)),
            WireguardAttribute::Peers(peers) => peers.iter().for_each(|peer| read_peer(peer, device_peers)),
            _ => {}
        }
    }
}

/// One peer; of one with many ranges the rest comes in the next message, under the same key.
fn read_peer(peer: &WireguardPeer, device_peers: &mut DevicePeers) {
    let key = |attribute: &WireguardPeerAttribute| match attribute {
        WireguardPeerAttribute::PublicKey(bytes) => public_key(bytes),
        _ => None,
    };
    let Some(key) = peer.iter().find_map(key) else { return };
    let device_peer = device_peers.entry(key).or_insert(DevicePeer { endpoint: None, ranges: BTreeSet::new() });
    for attribute in peer.iter() {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => {
                device_peer.endpoint = device_peer.endpoint.or(Some(plain(*endpoint)))
            }
            WireguardPeerAttribute::AllowedIps(ranges) => {
                device_peer.ranges.extend(ranges.iter().filter_map(read_range))
            }
            _ => {}
        }
    }
}

/// Without the flow label and the scope, which differ between what is set and what is read.
fn plain(endpoint: SocketAddr) -> SocketAddr {
    (endpoint.ip(), endpoint.port()).into()
}

fn read_range(range: &WireguardAllowedIp) -> Option<IpNet> {
    let (mut address, mut length) = (None, None);
    for attribute in range.iter() {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(found) => address = Some(*found),
            WireguardAllowedIpAttr::Cidr(found) => length = Some(*found),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}

/// Where a node is spoken to.
pub(super) fn endpoint(address: IpAddr) -> SocketAddr {
    (address, WIREGUARD_PORT).into()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, NetlinkDeserializable, NetlinkHeader};

    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn device_peer(address: &str, range: &str) -> DevicePeer {
        DevicePeer { endpoint: Some(endpoint(address.parse().unwrap())), ranges: [range.parse().unwrap()].into() }
    }

    fn bytes(attributes: Vec<WireguardAttribute>) -> String {
        let message = GenlMessage::from_payload(about("wg", WireguardCmd::SetDevice, attributes));
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        hex::encode(bytes)
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
        assert_eq!(bytes(key_and_port(&private, WIREGUARD_PORT)), want.replace("07000200776730", "07000200776700"));
    }

    #[test]
    fn peers_are_written_as_the_kernel_reads_them_and_read_back() {
        let new = device_peer("192.0.2.2", "10.42.1.0/24");
        let set = Change::Set { key: key(7), is_new: true, endpoint: new.endpoint, ranges: Some(new.ranges.clone()) };
        let six: SocketAddr = "[2001:db8::2]:51871".parse().unwrap();
        let moved = Change::Set { key: key(8), is_new: false, endpoint: Some(six), ranges: None };
        let peers = [Change::Remove(key(9)), set.clone(), moved].iter().map(changed).collect();
        let got = bytes(vec![WireguardAttribute::Peers(peers)]);
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
        let mut device_peers = DevicePeers::new();
        read_peer(&changed(&set), &mut device_peers);
        assert_eq!(device_peers, DevicePeers::from([(key(7), new)]));
    }

    #[test]
    fn peers_are_read_as_the_kernel_lists_them() {
        // A link with a key, a port and one peer, that has been heard from.
        let peer = [
            "24000100",
            &"07".repeat(32),
            "24000200",
            &"00".repeat(32), // no key is shared beforehand
            "14000600",
            &"01".repeat(16), // the last handshake
            "0600050000000000",
            "0c000800",
            "0900000000000000",
            "0c000700",
            "0900000000000000",
            "08000a0001000000",
            "14000400",
            "0200ca9fc00002020000000000000000",
            "20000980",
            "1c000080",
            "0500030018000000",
            "0600010002000000",
            "080002000a2a0100",
        ]
        .concat();
        let length = |bytes: usize| hex::encode(u16::try_from(bytes).unwrap().to_le_bytes());
        let peers = format!("{}0080{peer}", length(peer.len() / 2 + 4));
        let body = [
            "00010000",
            "06000600ca9f0000",
            "0800070000000000",
            "0800010005000000",
            "0700020077670000",
            "24000400",
            &"05".repeat(32),
            &length(peers.len() / 2 + 4),
            "0880",
            &peers,
        ]
        .concat();
        let header = NetlinkHeader::default();
        let answer = GenlMessage::<WireguardMessage>::deserialize(&header, &hex::decode(body).unwrap()).unwrap();
        let (mut public, mut device_peers) = (None, DevicePeers::new());
        read_answer(&answer.payload, &mut public, &mut device_peers);
        assert_eq!(public, Some(key(5)));
        assert_eq!(device_peers, DevicePeers::from([(key(7), device_peer("192.0.2.2", "10.42.1.0/24"))]));
    }

    #[test]
    fn only_what_changed_is_set_and_what_a_peer_told_of_itself_stays() {
        let a = device_peer("192.0.2.1", "10.42.1.0/24");
        let roamed = DevicePeer { endpoint: Some("198.51.100.7:9999".parse().unwrap()), ..a.clone() };
        let wanted = DevicePeers::from([(key(1), a.clone())]);
        let configured = BTreeMap::from([(key(1), a.endpoint.unwrap())]);
        assert_eq!(changes(&wanted, &wanted, &configured), []);
        assert_eq!(
            changes(&DevicePeers::from([(key(1), roamed.clone())]), &wanted, &configured),
            [],
            "it is behind a translator"
        );
        let after_restart = changes(&DevicePeers::from([(key(1), roamed)]), &wanted, &BTreeMap::new());
        assert!(matches!(&after_restart[..], [Change::Set { is_new: false, endpoint: Some(_), ranges: None, .. }]));
        // A node with a new key: the old one goes in the same message.
        let rotated = changes(&wanted, &DevicePeers::from([(key(2), a.clone())]), &configured);
        assert!(
            matches!(&rotated[..], [Change::Remove(old), Change::Set { key: new, is_new: true, .. }] if *old == key(1) && *new == key(2))
        );
        let other = DevicePeers::from([(key(1), device_peer("192.0.2.1", "10.42.9.0/24"))]);
        assert!(matches!(
            &changes(&wanted, &other, &configured)[..],
            [Change::Set { endpoint: None, ranges: Some(_), .. }]
        ));
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
