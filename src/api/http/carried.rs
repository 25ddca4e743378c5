//! Connections that were taken over: exec and attach, forwarded ports, logs and watches in websockets.
//!
//! What they hold is counted (`api::sending`): while a client takes nothing of what is ready, what may wait for it; and what
//! has come from a client that nobody has taken yet. Where there is no room for it, the connection ends.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Body;
use crate::api::flowcontrol::Admission;
use crate::api::sending::{Held, Room};
use crate::apimachinery::http::connections::Connection;
use crate::apimachinery::http::peer::Peer;

/// What is read at once, and pieces of it that may wait, for a pod and for the client.
pub(super) const PIECE_BYTES: usize = 32 << 10;
pub(super) const PIECES: usize = 4;
/// What may wait for a client: a few pieces, pipes, and what is on its way from an agent.
const READY_BYTES: usize = 512 << 10;
/// What has come and waits is not counted up to this.
const WAITING_BYTES_FREE: usize = 64 << 10;

/// What one connection holds; cheap to clone.
#[derive(Clone)]
pub(super) struct Carried(Arc<Counts>);

struct Counts {
    /// `None` where nobody counts.
    room: Option<Room>,
    state: Arc<State>,
}

/// What is held, and since when. Others may keep it; the room is not in it.
struct State {
    ready_bytes: AtomicUsize,
    /// What was read and is in no queue.
    read_bytes: AtomicUsize,
    queued_bytes: AtomicUsize,
    counted_bytes: Mutex<usize>,
    begun: Instant,
    /// Milliseconds after `begun` when something was taken last while more was held, and one; 0 while nothing is counted.
    stalled_at: AtomicU64,
    connection: Option<Arc<Connection>>,
}

/// A connection that was taken over.
pub(super) struct CarriedStream {
    stream: TokioIo<Upgraded>,
    carried: Carried,
}

/// What has come and waits in a queue, until it is dropped.
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    carried: Carried,
}

// === impl Carried ===

impl Carried {
    /// What the connection of a request will hold.
    pub(super) fn of(http: &http::Request<Body>) -> Self {
        let extensions = http.extensions();
        let room = extensions.get::<Arc<Admission>>().map(|admission| {
            let (sending, asker) = admission.sending();
            sending.begin_stream(asker)
        });
        Self::new(room, extensions.get::<Peer>().map(|peer| peer.connection.clone()))
    }

    fn new(room: Option<Room>, connection: Option<Arc<Connection>>) -> Self {
        let state = Arc::new(State {
            ready_bytes: AtomicUsize::new(0),
            read_bytes: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
            counted_bytes: Mutex::new(0),
            begun: Instant::now(),
            stalled_at: AtomicU64::new(0),
            connection,
        });
        if let Some(room) = &room {
            let held: Weak<dyn Held> = Arc::<State>::downgrade(&state);
            room.attach(held);
        }
        Self(Arc::new(Counts { room, state }))
    }

    /// The connection's stream, which counts.
    pub(super) fn stream(&self, upgraded: Upgraded) -> CarriedStream {
        CarriedStream { stream: TokioIo::new(upgraded), carried: self.clone() }
    }

    /// Of what was read so much waits to be whole; the rest is queued or taken.
    pub(super) fn settle(&self, read_bytes: usize) {
        self.0.state.read_bytes.store(read_bytes, Ordering::SeqCst);
        self.count();
    }

    /// What waits in a queue from now on.
    pub(super) fn queue(&self, bytes: Bytes) -> Piece {
        self.0.state.queued_bytes.fetch_add(bytes.len(), Ordering::SeqCst);
        Piece { bytes, carried: self.clone() }
    }

    /// Counts what is held now; false where there is no room for it.
    fn count(&self) -> bool {
        let (Some(room), state) = (&self.0.room, &self.0.state) else { return true };
        let mut counted = state.lock();
        let waiting = state.read_bytes.load(Ordering::SeqCst) + state.queued_bytes.load(Ordering::SeqCst);
        let waiting = if waiting > WAITING_BYTES_FREE { waiting } else { 0 };
        let bytes = waiting + state.ready_bytes.load(Ordering::SeqCst);
        if bytes == *counted {
            return true;
        }
        // What takes something goes on; what only holds more is as slow as before.
        if bytes < *counted || *counted == 0 {
            let now = u64::try_from(state.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            state.stalled_at.store(if bytes == 0 { 0 } else { now.saturating_add(1) }, Ordering::SeqCst);
        }
        let has_room = room.resize(bytes, false);
        if has_room {
            *counted = bytes;
        }
        has_room
    }

    /// The client takes nothing, or something again.
    fn is_ready(&self, is_ready: bool) -> bool {
        let bytes = if is_ready { READY_BYTES } else { 0 };
        self.0.state.ready_bytes.swap(bytes, Ordering::SeqCst) == bytes || self.count()
    }

    fn has_read(&self, bytes: usize) -> bool {
        self.0.state.read_bytes.fetch_add(bytes, Ordering::SeqCst);
        self.count()
    }
}

// === impl State ===

impl State {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.counted_bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held for State {
    fn stalled_since(&self) -> Option<Instant> {
        let millis = self.stalled_at.load(Ordering::SeqCst).checked_sub(1)?;
        Some(self.begun + Duration::from_millis(millis))
    }

    fn let_go(&self) {
        if let Some(connection) = &self.connection {
            connection.close();
        }
    }
}

// === impl Piece ===

impl Drop for Piece {
    fn drop(&mut self) {
        self.carried.0.state.queued_bytes.fetch_sub(self.bytes.len(), Ordering::SeqCst);
        self.carried.count();
    }
}

// === impl CarriedStream ===

impl CarriedStream {
    /// What it holds.
    pub(super) fn carried(&self) -> &Carried {
        &self.carried
    }

    fn written<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.carried.is_ready(written.is_pending()) {
            true => written,
            false => Poll::Ready(Err(no_room())),
        }
    }
}

fn no_room() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the stream holds more than there is room for")
}

impl AsyncRead for CarriedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, to))?;
        let has_room = self.carried.has_read(to.filled().len() - before);
        Poll::Ready(if has_room { Ok(()) } else { Err(no_room()) })
    }
}

impl AsyncWrite for CarriedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sending::{Asker, POOL_BYTES, Sending};

    const JANE: Asker<'_> = Asker { user: "jane", is_privileged: false };

    fn carried(sending: &Sending) -> Carried {
        Carried::new(Some(sending.begin_stream(JANE)), None)
    }

    fn counted(carried: &Carried) -> usize {
        carried.0.room.as_ref().unwrap().bytes()
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_does_not_take_is_counted_until_it_does() {
        let sending = Sending::default();
        let stream = carried(&sending);
        assert!(stream.is_ready(false) && counted(&stream) == 0);
        assert!(stream.is_ready(true));
        let since = stream.0.state.stalled_since();
        assert_eq!((counted(&stream), since.is_some()), (READY_BYTES, true));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(stream.is_ready(true));
        assert_eq!(stream.0.state.stalled_since(), since, "it has taken nothing since");
        assert!(stream.is_ready(false));
        assert_eq!((counted(&stream), stream.0.state.stalled_since()), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_is_counted_until_somebody_has_taken_it() {
        let sending = Sending::default();
        let stream = carried(&sending);
        assert!(stream.has_read(WAITING_BYTES_FREE) && counted(&stream) == 0, "a little is free");
        assert!(stream.has_read(PIECE_BYTES));
        assert_eq!(counted(&stream), WAITING_BYTES_FREE + PIECE_BYTES);
        let pieces: Vec<_> = (0..3).map(|_| stream.queue(vec![0; PIECE_BYTES].into())).collect();
        stream.settle(0);
        assert_eq!(counted(&stream), 3 * PIECE_BYTES, "what is in no queue was taken");
        drop(pieces);
        assert_eq!(counted(&stream), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_held_than_there_is_room_for() {
        let sending = Sending::default();
        let streams: Vec<_> = std::iter::repeat_with(|| carried(&sending)).take(2 * POOL_BYTES / READY_BYTES).collect();
        let held = streams.iter().filter(|stream| stream.is_ready(true)).count();
        assert_eq!(held, POOL_BYTES / READY_BYTES);
        drop(streams);
        assert!(sending.try_begin(JANE, POOL_BYTES).is_some(), "nothing is left");
    }
}
