//! Who is connected: how many may be, and who goes when there are too many.
//!
//! A connection is a stranger until a client certificate or a request says whose it is. Strangers have a short time and a
//! small pool, in which the oldest of the busiest address makes room for whoever comes: silent connections keep nobody
//! out. This machine itself and addresses from which nodes came have pools of their own. A known user has so many
//! connections and all users together have so many; among them, too, whoever has most makes room for those who have less.
//! Invariant: what is open is bounded, whatever comes.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};

use crate::apimachinery::status::{RETRY_AFTER_SECONDS, Result, Status};
use crate::apimachinery::user::{MASTERS, NODE_PREFIX, User};

/// Connections that have not yet said whose they are: of strangers, of nodes' addresses, of this machine.
const STRANGERS: PoolSpec = PoolSpec { connections: 256, of_address: 64 };
const OF_NODES: PoolSpec = PoolSpec { connections: 256, of_address: 64 };
const OF_LOOPBACK: PoolSpec = PoolSpec { connections: 256, of_address: 256 };
/// Connections of all users that are neither nodes nor administrators, and of one user.
const USERS: usize = 768;
const OF_USER: usize = 128;
const OF_ADMINISTRATOR: usize = 512;
/// Addresses from which nodes came that are remembered.
const NODE_ADDRESSES: usize = 4096;

struct PoolSpec {
    connections: usize,
    of_address: usize,
}

/// All connections of a server; cheap to clone.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    strangers: Pool,
    of_nodes: Pool,
    of_loopback: Pool,
    /// Authenticated ones, with whose they are.
    known: HashMap<u64, Authenticated>,
    of_user: HashMap<Arc<str>, usize>,
    /// Those that count among those of all users, by whose they are in the end ([`User::owner`]).
    of_owner: HashMap<Arc<str>, usize>,
    users: usize,
    /// Kept in the order in which they were last seen.
    node_addresses: BTreeMap<u64, IpAddr>,
    node_address_seen: HashMap<IpAddr, u64>,
}

#[derive(Default)]
struct Pool {
    open: BTreeMap<u64, (IpAddr, watch::Sender<bool>)>,
    of_address: HashMap<IpAddr, usize>,
}

struct Authenticated {
    user: Arc<str>,
    /// Whose it is where it counts among those of all users.
    owner: Option<Arc<str>>,
    end: watch::Sender<bool>,
}

#[derive(Clone, Copy)]
enum Origin {
    Strangers,
    OfNodes,
    OfLoopback,
}

/// One connection, until it is dropped.
pub struct Connection {
    connections: Connections,
    id: u64,
    address: IpAddr,
    origin: Origin,
    known: OnceLock<()>,
    end: watch::Receiver<bool>,
    refused: Notify,
}

/// Addresses that one party has for the asking are one.
fn grouped(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

// === impl Connections ===

impl Connections {
    /// Counts a connection that was accepted. Another stranger may have to go for it.
    pub fn open(&self, address: IpAddr) -> Connection {
        let (end, ended) = watch::channel(false);
        let is_loopback = address.to_canonical().is_loopback();
        let address = if is_loopback { address } else { grouped(address) };
        let mut state = self.lock();
        let origin = match () {
            () if is_loopback => Origin::OfLoopback,
            () if state.node_address_seen.contains_key(&address) => Origin::OfNodes,
            () => Origin::Strangers,
        };
        let id = state.next;
        state.next += 1;
        let (pool, spec) = state.pool(origin);
        pool.make_room(address, &spec);
        pool.insert(id, address, end);
        let connections = self.clone();
        Connection { connections, id, address, origin, known: OnceLock::new(), end: ended, refused: Notify::new() }
    }

    /// Ends every connection of a user.
    pub fn end(&self, user: &str) {
        for known in self.lock().known.values().filter(|known| &*known.user == user) {
            known.end.send_replace(true);
        }
    }

    /// Ends every connection of every node.
    pub fn end_nodes(&self) {
        for known in self.lock().known.values().filter(|known| known.user.starts_with(NODE_PREFIX)) {
            known.end.send_replace(true);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connections")
    }
}

// === impl State ===

impl State {
    fn pool(&mut self, origin: Origin) -> (&mut Pool, PoolSpec) {
        match origin {
            Origin::Strangers => (&mut self.strangers, STRANGERS),
            Origin::OfNodes => (&mut self.of_nodes, OF_NODES),
            Origin::OfLoopback => (&mut self.of_loopback, OF_LOOPBACK),
        }
    }

    fn keep(&mut self, id: u64, known: Authenticated) {
        *self.of_user.entry(known.user.clone()).or_default() += 1;
        if let Some(owner) = &known.owner {
            *self.of_owner.entry(owner.clone()).or_default() += 1;
            self.users += 1;
        }
        self.known.insert(id, known);
    }

    fn forget(&mut self, id: u64) -> Option<Authenticated> {
        let known = self.known.remove(&id)?;
        count_down(&mut self.of_user, &known.user);
        if let Some(owner) = &known.owner {
            count_down(&mut self.of_owner, owner);
            self.users -= 1;
        }
        Some(known)
    }

    /// Ends the oldest connection of the owner who has most, if that is more than `owner` would have; false if nobody has.
    fn make_room(&mut self, owner: &str) -> bool {
        let own = self.of_owner.get(owner).copied().unwrap_or(0) + 1;
        let most = self.of_owner.iter().max_by_key(|(_, count)| **count).filter(|(_, count)| **count > own);
        let Some(most) = most.map(|(owner, _)| owner.clone()) else { return false };
        let oldest =
            self.known.iter().filter(|(_, known)| known.owner.as_ref() == Some(&most)).map(|(id, _)| *id).min();
        let ended = oldest.and_then(|id| self.forget(id));
        ended.map(|known| known.end.send_replace(true)).is_some()
    }

    fn remember_node(&mut self, address: IpAddr) {
        let seen = self.next;
        self.next += 1;
        if let Some(before) = self.node_address_seen.insert(address, seen) {
            self.node_addresses.remove(&before);
        }
        self.node_addresses.insert(seen, address);
        if self.node_addresses.len() > NODE_ADDRESSES
            && let Some((_, oldest)) = self.node_addresses.pop_first()
        {
            self.node_address_seen.remove(&oldest);
        }
    }
}

// === impl Pool ===

impl Pool {
    fn insert(&mut self, id: u64, address: IpAddr, end: watch::Sender<bool>) {
        self.open.insert(id, (address, end));
        *self.of_address.entry(address).or_default() += 1;
    }

    fn remove(&mut self, id: u64) -> Option<watch::Sender<bool>> {
        let (address, end) = self.open.remove(&id)?;
        if let Some(count) = self.of_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&address);
            }
        }
        Some(end)
    }

    /// Ends the oldest connection of the address that has its share already, or of the one that has most.
    fn make_room(&mut self, address: IpAddr, spec: &PoolSpec) {
        let busiest = if self.of_address.get(&address).is_some_and(|count| *count >= spec.of_address) {
            address
        } else if self.open.len() >= spec.connections {
            let most = self.of_address.iter().max_by_key(|(_, count)| **count);
            most.map_or(address, |(address, _)| *address)
        } else {
            return;
        };
        let oldest = self.open.iter().find(|(_, (other, _))| *other == busiest).map(|(id, _)| *id);
        if let Some(end) = oldest.and_then(|id| self.remove(id)) {
            end.send_replace(true);
        }
    }
}

// === impl Connection ===

impl Connection {
    /// From now on it is this user's; 429 where the user, or all users together, have too many.
    pub fn identify(&self, user: &User) -> Result<()> {
        if self.known.get().is_some() {
            return Ok(());
        }
        let mut state = self.connections.lock();
        let is_node = user.node_name().is_some();
        let is_administrator = user.is_in(MASTERS);
        let counted = !is_node && !is_administrator;
        let limit = if is_administrator { OF_ADMINISTRATOR } else { OF_USER };
        let of_user = state.of_user.get(user.name.as_str()).copied().unwrap_or(0);
        if of_user >= limit {
            return Err(Status::too_many_requests(
                format!("{} has {limit} connections already", user.name),
                RETRY_AFTER_SECONDS,
            ));
        }
        if counted && state.users >= USERS && !state.make_room(user.owner()) {
            return Err(Status::too_many_requests(
                format!("the users of this server have {USERS} connections already"),
                RETRY_AFTER_SECONDS,
            ));
        }
        let (pool, _) = state.pool(self.origin);
        // One that was ended meanwhile is nobody's.
        let Some(end) = pool.remove(self.id) else { return Ok(()) };
        let name: Arc<str> = user.name.as_str().into();
        let owner = counted.then(|| Arc::from(user.owner()));
        state.keep(self.id, Authenticated { user: name, owner, end });
        if is_node && !self.address.is_loopback() {
            state.remember_node(self.address);
        }
        let _ = self.known.set(());
        Ok(())
    }

    /// Whether somebody has said whose it is.
    pub fn is_known(&self) -> bool {
        self.known.get().is_some()
    }

    /// Returns when it has to make room, or when its user is none any more.
    pub async fn ended(&self) {
        let mut end = self.end.clone();
        let _ = end.wait_for(|end| *end).await;
    }

    /// Ends it, also while its client does not read.
    pub fn close(&self) {
        let mut state = self.connections.lock();
        if let Some(known) = state.known.get(&self.id) {
            known.end.send_replace(true);
        } else if let Some(end) = state.pool(self.origin).0.remove(self.id) {
            end.send_replace(true);
        }
    }

    /// Somebody who is nobody asked for something.
    pub fn refuse(&self) {
        if !self.is_known() {
            self.refused.notify_one();
        }
    }

    /// Returns when nobody in particular was refused: such a connection is not kept.
    pub async fn refused(&self) {
        self.refused.notified().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        state.pool(self.origin).0.remove(self.id);
        state.forget(self.id);
    }
}

fn count_down(counts: &mut HashMap<Arc<str>, usize>, whose: &Arc<str>) {
    if let Some(count) = counts.get_mut(whose) {
        *count -= 1;
        if *count == 0 {
            counts.remove(whose);
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({} of {})", self.id, self.address)
    }
}

/// The stream of a connection: it is counted as long as the stream lives, also after an upgrade, and breaks when it has to
/// end.
pub struct Counted<S> {
    stream: S,
    connection: Arc<Connection>,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<S> Counted<S> {
    /// Counts a stream as a connection.
    pub fn new(stream: S, connection: Arc<Connection>) -> Self {
        let mut end = connection.end.clone();
        let ended = Box::pin(async move {
            let _ = end.wait_for(|end| *end).await;
        });
        Self { stream, connection, ended }
    }

    /// What cannot be written to a connection that has to end fails. Whoever reads it is woken at its end, also for this.
    fn unless_ended<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Pending if *self.connection.end.borrow() => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            written => written,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, to) {
            Poll::Pending if self.ended.as_mut().poll(cx).is_ready() => {
                // Asked once more it would panic.
                self.ended = Box::pin(std::future::ready(()));
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
            read => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_ended(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.unless_ended(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.unless_ended(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn has_ended(connection: &Connection) -> bool {
        *connection.end.borrow()
    }

    fn open(connections: &Connections, from: &str, count: usize) -> Vec<Connection> {
        (0..count).map(|_| connections.open(address(from))).collect()
    }

    #[test]
    fn strangers_make_room_for_whoever_comes() {
        let connections = Connections::default();
        let silent = open(&connections, "192.0.2.1", 1000);
        assert_eq!(silent.iter().filter(|c| !has_ended(c)).count(), STRANGERS.of_address);
        let other = connections.open(address("192.0.2.2"));
        // From many addresses: those that have most give way.
        let many: Vec<_> = (0..20).flat_map(|n| open(&connections, &format!("198.51.100.{n}"), 60)).collect();
        let alive = silent.iter().chain(&many).filter(|c| !has_ended(c)).count();
        assert_eq!(alive + 1, STRANGERS.connections);
        assert!(!has_ended(&other), "the modest one stays");
        // A whole network of IPv6 is one address.
        let v6: Vec<_> = (0..500).map(|n| connections.open(address(&format!("2001:db8::{n:x}")))).collect();
        assert!(v6.iter().filter(|c| !has_ended(c)).count() <= STRANGERS.of_address);
        drop((silent, many, v6, other));
        let state = connections.lock();
        assert!(state.strangers.open.is_empty() && state.strangers.of_address.is_empty());
    }

    #[test]
    fn nodes_and_this_machine_have_pools_of_their_own() {
        let connections = Connections::default();
        let node = User::node("a");
        connections.open(address("192.0.2.7")).identify(&node).unwrap();
        let again = connections.open(address("192.0.2.7"));
        let local = connections.open(address("127.0.0.1"));
        let flood: Vec<_> = (0..100).flat_map(|n| open(&connections, &format!("198.51.100.{n}"), 60)).collect();
        assert!(!has_ended(&again) && !has_ended(&local));
        assert!(flood.iter().filter(|c| !has_ended(c)).count() <= STRANGERS.connections);
    }

    #[test]
    fn known_users_have_so_many_and_end_when_told() {
        let connections = Connections::default();
        let user = |n: usize| User { name: format!("u{n}"), ..User::default() };
        let known = |n: usize| {
            let connection = connections.open(address("192.0.2.1"));
            connection.identify(&user(n)).map(|()| connection)
        };
        let first: Vec<_> = (0..OF_USER).map(|_| known(0).unwrap()).collect();
        assert_eq!(known(0).unwrap_err().code, 429);
        let others: Vec<_> = (0..USERS - OF_USER).map(|n| known(1 + n / OF_USER).unwrap()).collect();
        let one_more = known(99).unwrap();
        let ended = first.iter().chain(&others).filter(|connection| has_ended(connection)).count();
        assert_eq!(ended, 1, "who has most makes room");
        let node = connections.open(address("192.0.2.1"));
        node.identify(&User::node("a")).unwrap();
        connections.end("u0");
        assert!(first.iter().all(has_ended) && !has_ended(&one_more) && !has_ended(&node));
        assert!(others.iter().filter(|connection| has_ended(connection)).count() <= 1);
        drop((first, others, one_more, node));
        let state = connections.lock();
        assert!(state.known.is_empty() && state.of_user.is_empty() && state.of_owner.is_empty());
        assert_eq!(state.users, 0);
    }

    #[test]
    fn accounts_of_one_namespace_make_room_together_for_whoever_has_less() {
        let connections = Connections::default();
        let known = |name: String| {
            let connection = connections.open(address("192.0.2.1"));
            connection.identify(&User { name, ..User::default() }).map(|()| connection)
        };
        let account = |n: usize| known(format!("system:serviceaccount:greedy:a{n}"));
        // None of them has more than one.
        let greedy: Vec<_> = (0..USERS).map(|n| account(n).unwrap()).collect();
        assert_eq!(account(USERS).unwrap_err().code, 429, "they have everything");
        let modest: Vec<_> = (0..100).map(|n| known(format!("system:serviceaccount:n{}:a", n / 10)).unwrap()).collect();
        assert_eq!(greedy.iter().take_while(|connection| has_ended(connection)).count(), 100, "the oldest first");
        assert!(!modest.iter().any(has_ended));
        assert_eq!(connections.lock().users, USERS);
    }
}
