//! Names of other machines to addresses, without the C library: it is linked statically and could not load what its own
//! look-ups need.
//!
//! The host's own file first, then DNS. Nothing is remembered: a name that leads elsewhere is followed with the next
//! connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::net::TcpStream;

/// How long an address may take to answer while there are others to try.
const EACH: Duration = Duration::from_secs(2);

/// The addresses of a name; of an address (IPv6 also in brackets), itself.
pub async fn addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    let bare = name.trim_matches(['[', ']']);
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    if bare.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let listed = in_hosts_file(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), bare);
    if !listed.is_empty() {
        return Ok(listed);
    }
    let failed = |error: &dyn std::fmt::Display| io::Error::other(format!("looking up {bare}: {error}"));
    let resolver = hickory_resolver::TokioResolver::builder_tokio().and_then(|builder| builder.build());
    let found = resolver.map_err(|e| failed(&e))?.lookup_ip(bare).await;
    Ok(found.map_err(|e| failed(&e))?.iter().collect())
}

/// Connects to the first address of a host that answers.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut left = addresses(host).await?.into_iter().peekable();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    while let Some(address) = left.next() {
        let connecting = TcpStream::connect((address, port));
        let connected = match left.peek() {
            Some(_) => {
                tokio::time::timeout(EACH, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            None => connecting.await,
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn in_hosts_file(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let address = words.next().and_then(|word| word.parse().ok());
        if let Some(address) = address
            && words.any(|word| word.eq_ignore_ascii_case(name))
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_is_read() {
        let hosts = "127.0.0.1 localhost\n10.0.0.1 Registry.lan reg # comment\n";
        assert_eq!(in_hosts_file(hosts, "registry.lan"), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(in_hosts_file(hosts, "comment").is_empty());
    }

    #[tokio::test]
    async fn the_next_address_is_tried() {
        // localhost is 127.0.0.1 and ::1; only the second one listens.
        let Ok(listener) = tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else { return };
        let port = listener.local_addr().unwrap().port();
        assert!(connect("localhost", port).await.unwrap().peer_addr().unwrap().is_ipv6());
        assert_eq!(addresses("[::1]").await.unwrap(), [IpAddr::from(Ipv6Addr::LOCALHOST)]);
    }
}
