//! When a request runs (`api::flowcontrol`), and what its answer keeps until it has been sent: its seat among those that run,
//! and its room (`api::sending`).
//!
//! Bodies go out in pieces. Invariant: what a body holds is counted, and let go when it has to make room, also while nothing
//! looks at it: a connection whose client does not read asks its bodies for nothing.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Method, Response, Version};
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;
use tower::service_fn;

use super::Body;
use super::layer::Next;
use super::route::Route;
use crate::api::Api;
use crate::api::flowcontrol::{Admission, Classified, LongRunning};
use crate::api::sending::{Held, PIECE_BYTES, Room, STREAM_BYTES, no_room};
use crate::apimachinery::http::connections::Connection;
use crate::apimachinery::http::peer::Peer;
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;

/// An answer of more than this keeps its seat until it has been sent: who gets much waits for their turn.
const LARGE_BYTES: u64 = PIECE_BYTES as u64;
/// The uids of the FlowSchema and the PriorityLevelConfiguration of a request.
pub(super) static SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
pub(super) static LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// An answer of no more than this is not counted.
const TINY_BYTES: u64 = 1 << 10;

/// What an answer holds that is not what it is long: in the extensions of a response, from whoever made it.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldBytes(pub usize);

/// Room in which a stream's beginning is counted already: in the extensions of a response.
#[derive(Clone, Debug)]
pub(super) struct BegunRoom(pub Arc<Room>);

/// An answer keeps objects of the cache: in the extensions of a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepsObjects;

/// Lets a request run when its user has a seat: an `Arc<Admission>` in its extensions, for what reads its body.
pub(super) fn priority_and_fairness<S: Next>(api: Api, inner: S) -> impl Next {
    service_fn(move |request: Request| {
        let (api, inner) = (api.clone(), inner.clone());
        async move {
            let (parts, body) = request.into_parts();
            let place = place_of(&api, &parts);
            let mut response = match admit(&api, &parts, place.as_ref()).await {
                Ok(admitted) => run(inner, admitted, parts, body).await?,
                Err(status) => status.into_response(),
            };
            if let Some(place) = place {
                tell(&mut response, &place);
            }
            Ok(response)
        }
    })
}

/// What a request has while it runs.
struct Admitted {
    is_long_running: bool,
    long_running: Option<LongRunning>,
    admission: Arc<Admission>,
}

fn asked(parts: &Parts) -> Option<(&Route, &Arc<User>)> {
    parts.extensions.get::<Route>().zip(parts.extensions.get::<Arc<User>>())
}

/// Where a request takes its seat. A watch has one until it has begun; what waits for a backend has none.
fn place_of(api: &Api, parts: &Parts) -> Option<Classified> {
    let (route, user) = asked(parts)?;
    let has_seat = !route.is_long_running() || route.verb == "watch";
    has_seat.then(|| api.flow.place(user, &route.flow_target()))
}

/// Tells a client which objects its request was of.
fn tell(response: &mut Response<Body>, place: &Classified) {
    let (schema, level) = place.uids();
    for (name, uid) in [(&SCHEMA_UID, schema), (&LEVEL_UID, level)] {
        if !uid.is_empty() {
            response.headers_mut().insert(name, uid.clone());
        }
    }
}

async fn admit(api: &Api, parts: &Parts, place: Option<&Classified>) -> Result<Admitted> {
    let (route, user) = asked(parts).ok_or_else(|| Status::internal("a request without a route or a user"))?;
    let is_long_running = route.is_long_running();
    let long_running = if is_long_running { api.flow.begin_long_running(user)? } else { None };
    let admission = match place {
        None => api.flow.unseated(user),
        Some(place) => api.flow.enter(user, place).await?,
    };
    Ok(Admitted { is_long_running, long_running, admission: Arc::new(admission) })
}

async fn run<S: Next>(
    mut inner: S,
    admitted: Admitted,
    mut parts: Parts,
    body: Body,
) -> std::result::Result<Response<Body>, Infallible> {
    let Admitted { is_long_running, long_running, admission } = admitted;
    parts.extensions.insert(admission.clone());
    // A stream of HTTP/1 that nobody reads has nothing else on its connection.
    let connection = (parts.version < Version::HTTP_2).then(|| parts.extensions.get::<Peer>()).flatten();
    let connection = connection.map(|peer| peer.connection.clone());
    let is_read = parts.method == Method::GET || parts.method == Method::HEAD;
    let response = inner.call(Request::from_parts(parts, body)).await?;
    Ok(match is_long_running {
        true => until_closed(response, &admission, long_running, connection),
        false => until_sent(response, admission, is_read, connection),
    })
}

/// An answer to a request that runs: a small one needs no seat any more. What holds too much is refused, unless something was
/// done that has to be told.
fn until_sent(
    mut response: Response<Body>,
    admission: Arc<Admission>,
    is_read: bool,
    connection: Option<Arc<Connection>>,
) -> Response<Body> {
    let exact = response.body().size_hint().exact();
    let reserved = admission.answer_room();
    if exact.is_some_and(|bytes| bytes <= TINY_BYTES) {
        return response;
    }
    let told = response.extensions_mut().remove::<HeldBytes>().map(|held| held.0);
    let keeps_objects = response.extensions_mut().remove::<KeepsObjects>().is_some();
    let length = exact.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    // What is longer than a piece also fills the buffers of its connection.
    let whole = length.map(|bytes| if bytes > PIECE_BYTES { bytes.saturating_add(2 * PIECE_BYTES) } else { bytes });
    let room = match (reserved, told.or(whole)) {
        (Some(room), held) => match held.is_none_or(|bytes| room.resize(bytes, !is_read)) {
            true => room,
            false => return no_room().into_response(),
        },
        (None, held) => {
            let (sending, asker) = admission.sending();
            let bytes = held.unwrap_or(STREAM_BYTES);
            match is_read {
                false => Arc::new(sending.begin_anyway(asker, bytes)),
                true => match sending.begin_now(asker, bytes) {
                    Ok(room) => Arc::new(room),
                    Err(status) => return status.into_response(),
                },
            }
        }
    };
    let seat = exact.is_none_or(|bytes| bytes > LARGE_BYTES).then_some(Kept::Seat(admission));
    let kind = AnswerKind::Whole { keeps_objects };
    response.map(|body| Body::new(SentBody::new(body, room, seat, kind, connection)))
}

/// An answer that goes on for as long as the client likes.
fn until_closed(
    mut response: Response<Body>,
    admission: &Admission,
    long_running: Option<LongRunning>,
    connection: Option<Arc<Connection>>,
) -> Response<Body> {
    let begun = response.extensions_mut().remove::<BegunRoom>().map(|begun| begun.0);
    let behind_bytes = response.extensions_mut().remove::<HeldBytes>().map_or(0, |held| held.0);
    if response.body().size_hint().exact().is_some_and(|bytes| bytes <= TINY_BYTES) && long_running.is_none() {
        return response;
    }
    let (sending, asker) = admission.sending();
    let room = begun.unwrap_or_else(|| Arc::new(sending.begin_stream(asker)));
    let kept = long_running.map(Kept::LongRunning);
    let kind = AnswerKind::Stream { behind_bytes };
    response.map(|body| Body::new(SentBody::new(body, room, kept, kind, connection)))
}

/// Whether an answer has an end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AnswerKind {
    Whole {
        keeps_objects: bool,
    },
    /// It goes on for as long as its client likes. While something is ready, so much more is behind it.
    Stream {
        behind_bytes: usize,
    },
}

/// What goes with an answer's end.
#[allow(dead_code)] // Only dropped.
enum Kept {
    Seat(Arc<Admission>),
    LongRunning(LongRunning),
}

/// A body on its way to its client, in pieces.
struct SentBody(Arc<Slot>);

/// Where the body is, until it is sent or has to make room.
struct Slot {
    content: Mutex<Option<Content>>,
    is_gone: AtomicBool,
    /// Milliseconds since `begun` when the client had something to take last, and one; 0 while there is nothing.
    ready_at: AtomicU64,
    begun: Instant,
    kind: AnswerKind,
    connection: Option<Arc<Connection>>,
}

struct Content {
    body: Body,
    /// What of the last frame has not been sent.
    rest: Bytes,
    room: Arc<Room>,
    /// What the room was reserved for; of a stream, what is behind the piece that is ready.
    own_bytes: usize,
    is_stream: bool,
    _kept: Option<Kept>,
}

type Polled = Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>>;

// === impl SentBody ===

impl SentBody {
    fn new(
        body: Body,
        room: Arc<Room>,
        kept: Option<Kept>,
        kind: AnswerKind,
        connection: Option<Arc<Connection>>,
    ) -> Self {
        let is_stream = matches!(kind, AnswerKind::Stream { .. });
        let ready_bytes = room.bytes();
        let own_bytes = match kind {
            AnswerKind::Whole { .. } => ready_bytes,
            AnswerKind::Stream { behind_bytes } => behind_bytes,
        };
        let content = Content { body, rest: Bytes::new(), room: room.clone(), own_bytes, is_stream, _kept: kept };
        let slot = Arc::new(Slot {
            content: Mutex::new(Some(content)),
            is_gone: AtomicBool::new(false),
            // It is ready, and the client has not asked for it.
            ready_at: AtomicU64::new(u64::from(!is_stream || ready_bytes > 0)),
            begun: Instant::now(),
            kind,
            connection,
        });
        let held: Weak<dyn Held> = Arc::<Slot>::downgrade(&slot);
        room.attach(held);
        Self(slot)
    }
}

impl Drop for SentBody {
    fn drop(&mut self) {
        // Others may have the slot, but not what is in it.
        drop(self.0.take());
    }
}

impl hyper::body::Body for SentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let slot = &self.0;
        slot.ready_at.store(0, Ordering::SeqCst);
        let polled = match &mut *slot.lock() {
            None => Poll::Ready(Some(Err(late()))),
            Some(content) => content.poll(cx),
        };
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            let now = u64::try_from(slot.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            slot.ready_at.store(now.saturating_add(1), Ordering::SeqCst);
        }
        if slot.is_gone.load(Ordering::SeqCst) {
            drop(slot.take());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().as_ref().is_some_and(|content| content.rest.is_empty() && content.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let content = self.0.lock();
        let Some(content) = content.as_ref() else { return SizeHint::new() };
        let (body, rest) = (content.body.size_hint(), content.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

fn late() -> axum::Error {
    axum::Error::new(std::io::Error::new(std::io::ErrorKind::TimedOut, "the client does not read its answer"))
}

// === impl Slot ===

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Content>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Content> {
        self.lock().take()
    }
}

impl Held for Slot {
    fn stalled_since(&self) -> Option<Instant> {
        let millis = self.ready_at.load(Ordering::SeqCst).checked_sub(1)?;
        Some(self.begun + Duration::from_millis(millis))
    }

    fn let_go(&self) {
        self.is_gone.store(true, Ordering::SeqCst);
        // Whoever has the lock reads it at this moment, and sees to it afterwards.
        let content = self.content.try_lock().ok().and_then(|mut content| content.take());
        drop(content);
        if let Some(connection) = &self.connection {
            connection.close();
        }
    }

    fn keeps_objects(&self) -> bool {
        self.kind == AnswerKind::Whole { keeps_objects: true }
    }
}

// === impl Content ===

impl Content {
    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        if self.rest.is_empty() {
            let polled = Pin::new(&mut self.body).poll_frame(cx);
            if self.is_stream && polled.is_pending() {
                self.room.resize(0, true);
            }
            let frame = match std::task::ready!(polled) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
            let bytes = self.rest.len();
            let is_counted = if self.is_stream {
                self.room.resize(self.own_bytes + bytes, false)
            } else {
                bytes <= self.own_bytes || self.room.resize(self.own_bytes + bytes, false)
            };
            if !is_counted {
                self.rest = Bytes::new();
                return Poll::Ready(Some(Err(late())));
            }
        }
        let bytes = self.rest.len().min(PIECE_BYTES);
        // A piece that is still on its way keeps nothing that is larger.
        let piece = match self.rest.len() > 4 * PIECE_BYTES {
            true => Bytes::copy_from_slice(&self.rest.split_to(bytes)),
            false => self.rest.split_to(bytes),
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use http_body_util::BodyExt;

    use super::super::answer;
    use super::*;
    use crate::api::flowcontrol::FlowControl;
    use crate::api::sending::{POOL_BYTES, RESPONSE_TIMEOUT};

    fn user(name: &str) -> Arc<User> {
        Arc::new(User { name: name.into(), ..User::default() })
    }

    async fn admitted(flow: &FlowControl) -> Arc<Admission> {
        Arc::new(flow.admit(&user("jane"), &Default::default()).await.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_goes_piece_by_piece_and_keeps_its_seat_until_the_last() {
        let flow = FlowControl::default();
        let seat = admitted(&flow).await;
        let small = until_sent(Response::new(Body::from(vec![0; 1 << 10])), seat.clone(), true, None);
        assert_eq!(Arc::strong_count(&seat), 1, "a small one has none");
        assert_eq!(small.into_body().collect().await.unwrap().to_bytes().len(), 1 << 10);
        let large = vec![7; (1 << 20) + 5];
        let mut body = until_sent(Response::new(Body::from(large.clone())), seat.clone(), true, None).into_body();
        let mut read = Vec::new();
        while read.len() < large.len() {
            assert_eq!(body.size_hint().exact(), Some((large.len() - read.len()) as u64));
            assert_eq!(Arc::strong_count(&seat), 2);
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE_BYTES);
            read.extend_from_slice(&piece);
        }
        assert!(body.is_end_stream() && read == large);
        drop(body);
        assert_eq!(Arc::strong_count(&seat), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_lets_go_of_everything_while_nobody_looks() {
        let flow = FlowControl::default();
        let seat = admitted(&flow).await;
        let held = Arc::new(());
        let body = answer::streamed(futures::stream::repeat(Bytes::from(vec![7; 1 << 10])).map({
            let held = held.clone();
            move |piece| {
                let _ = &held;
                piece
            }
        }));
        let mut unread = until_sent(Response::new(body), seat.clone(), true, None).into_body();
        unread.frame().await.unwrap().unwrap();
        assert_eq!((Arc::strong_count(&seat), Arc::strong_count(&held)), (2, 2));
        tokio::time::sleep(RESPONSE_TIMEOUT + Duration::from_secs(1)).await;
        assert_eq!((Arc::strong_count(&seat), Arc::strong_count(&held)), (1, 1));
        assert!(unread.frame().await.unwrap().is_err(), "the client does not take it for whole");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_read_makes_room_and_what_was_done_is_told() {
        let flow = FlowControl::default();
        let jane = admitted(&flow).await;
        let answer = || Response::new(Body::from(vec![7; 1 << 20]));
        let mut unread = Vec::new();
        loop {
            let response = until_sent(answer(), jane.clone(), true, None);
            if response.extensions().get::<Status>().is_some_and(|status| status.code == 429) {
                break;
            }
            unread.push(response);
        }
        assert!(unread.len() > 20 && unread.len() <= POOL_BYTES >> 20, "{}", unread.len());
        let done = until_sent(answer(), jane.clone(), false, None);
        assert_eq!(done.body().size_hint().exact(), Some(1 << 20));
        let joe = Arc::new(flow.admit(&user("joe"), &Default::default()).await.unwrap());
        let other = until_sent(answer(), joe, true, None).into_body().collect().await.unwrap();
        assert_eq!(other.to_bytes().len(), 1 << 20);
        let whole = unread.into_iter().map(|response| response.into_body().collect()).collect::<Vec<_>>();
        let failed = futures::future::join_all(whole).await.into_iter().filter(|read| read.is_err()).count();
        assert!((2..5).contains(&failed), "{failed} made room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_nobody_reads_is_ended_when_room_is_needed() {
        let flow = FlowControl::default();
        let jane = flow.unseated(&user("jane"));
        let event = || Bytes::from(vec![7; 4 << 20]);
        let streams = |count: usize| {
            let streams = (0..count).map(|_| Response::new(answer::streamed(futures::stream::repeat(event()))));
            streams.map(|response| until_closed(response, &jane, None, None).into_body()).collect::<Vec<_>>()
        };
        let mut unread = streams(8);
        for stream in &mut unread {
            assert!(stream.frame().await.unwrap().is_ok());
        }
        let mut next = streams(1).remove(0);
        assert!(next.frame().await.unwrap().is_err(), "they have all there is");
        tokio::time::sleep(Duration::from_secs(6)).await;
        let mut next = streams(1).remove(0);
        assert!(next.frame().await.unwrap().is_ok(), "slow ones make room");
        let mut ended = 0;
        for stream in &mut unread {
            ended += usize::from(stream.frame().await.unwrap().is_err());
        }
        assert!((1..4).contains(&ended), "{ended}");
    }
}
