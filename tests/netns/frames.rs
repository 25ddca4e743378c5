//! Frames written byte by byte, as no honest sender writes them, and put on a link of the calling thread's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
/// The host end of every pod's link.
pub const HOST_END: Mac = [0x0a, 0x58, 0, 0, 0, 1];
const IP: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IP6: u16 = 0x86dd;

pub fn ether(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &kind.to_be_bytes(), payload].concat()
}

/// Of the sum of 16-bit words, as IP has it.
fn checksum(parts: &[&[u8]]) -> u16 {
    let all = parts.concat();
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = all.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn pseudo(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, length: usize) -> Vec<u8> {
    [&from.octets()[..], &to.octets(), &(length as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

/// An IP packet with its EtherType.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> (u16, Vec<u8>) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend(((20 + payload.len()) as u16).to_be_bytes());
            header.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (IP, [&header, payload].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((payload.len() as u16).to_be_bytes());
            header.extend([protocol, 255]);
            (IP6, [&header, &from.octets()[..], &to.octets(), payload].concat())
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

fn datagram(from: (IpAddr, u16), to: (IpAddr, u16), text: &[u8]) -> Vec<u8> {
    let length = ((8 + text.len()) as u16).to_be_bytes();
    let mut bytes = [&from.1.to_be_bytes()[..], &to.1.to_be_bytes(), &length, &[0, 0], text].concat();
    if let (IpAddr::V6(from), IpAddr::V6(to)) = (from.0, to.0) {
        let sum = checksum(&[&pseudo(from, to, 17, bytes.len()), &bytes]);
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// A UDP datagram with whatever source.
pub fn udp(macs: (Mac, Mac), from: (IpAddr, u16), to: (IpAddr, u16), text: &[u8]) -> Vec<u8> {
    let (kind, packet) = packet(from.0, to.0, 17, &datagram(from, to, text));
    ether(macs.1, macs.0, kind, &packet)
}

/// A frame inside of a tunnel's datagram.
pub fn vxlan(network: u32, inner: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(network << 8).to_be_bytes(), inner].concat()
}

/// A router advertisement: the sender is the way to everywhere, and `prefix` is on the link.
pub fn router_advertisement(from: Mac, router: Ipv6Addr, prefix: Ipv6Addr) -> Vec<u8> {
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let mut body = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    body.extend([1, 1]); // source link-layer address
    body.extend(from);
    body.extend([3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 1, 0x51, 0x80, 0, 0, 0, 0]); // prefix: on-link, autonomous
    body.extend(prefix.octets());
    let sum = checksum(&[&pseudo(router, all_nodes, 58, body.len()), &body]);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let (kind, packet) = packet(router.into(), all_nodes.into(), 58, &body);
    ether([0x33, 0x33, 0, 0, 0, 1], from, kind, &packet)
}

/// Who has `wanted`? Tell `asker`.
pub fn arp_question(from: Mac, asker: Ipv4Addr, wanted: Ipv4Addr) -> Vec<u8> {
    let question = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &from, &asker.octets(), &[0; 6], &wanted.octets()].concat();
    ether(BROADCAST, from, ARP, &question)
}

/// Puts frames on a link, in this order.
pub fn send(link: &str, frames: &[Vec<u8>]) {
    let name = std::ffi::CString::new(link).unwrap();
    // SAFETY: the name is a string that ends with zero and lives until the call returns.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{link}: {}", io::Error::last_os_error());
    // SAFETY: no pointers; the descriptor that comes back is ours and closed below.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    assert!(socket >= 0, "{}", io::Error::last_os_error());
    // SAFETY: all zero is a valid `sockaddr_ll`.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    for frame in frames {
        // SAFETY: the kernel reads the frame and the address, whose lengths are given, before the call returns.
        let sent = unsafe {
            libc::sendto(
                socket,
                frame.as_ptr().cast(),
                frame.len(),
                0,
                std::ptr::from_ref(&to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(sent, frame.len() as isize, "{link}: {}", io::Error::last_os_error());
    }
    // SAFETY: the descriptor is ours, and nobody uses it any more.
    unsafe { libc::close(socket) };
}
