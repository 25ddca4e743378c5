//! When a request runs (`api::flowcontrol`), and what its answer keeps until it has been sent: its seat among those that run.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::Response;
use http::request::Parts;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;
use tower::service_fn;

use super::Body;
use super::layer::Next;
use super::route::Route;
use crate::api::Api;
use crate::api::flowcontrol::{Admission, LongRunning};
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;

/// How long a client may take to read an answer that is made while it reads.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// An answer of more than this keeps its seat until it has been sent: so many are in memory as there are seats.
const LARGE_BYTES: u64 = 64 << 10;
/// What of an answer is handed to the connection at once, which keeps what its client does not read.
const PIECE_BYTES: usize = 64 << 10;

/// Lets a request run when its user has a seat: an `Arc<Admission>` in its extensions, for what reads its body.
pub(super) fn priority_and_fairness<S: Next>(api: Api, inner: S) -> impl Next {
    service_fn(move |request: Request| {
        let (api, inner) = (api.clone(), inner.clone());
        async move {
            let (parts, body) = request.into_parts();
            match admit(&api, &parts).await {
                Ok(admitted) => run(inner, admitted, parts, body).await,
                Err(status) => Ok(status.into_response()),
            }
        }
    })
}

/// What a request has while it runs.
struct Admitted {
    is_long_running: bool,
    long_running: Option<LongRunning>,
    admission: Arc<Admission>,
}

async fn admit(api: &Api, parts: &Parts) -> Result<Admitted> {
    let (route, user) = (parts.extensions.get::<Route>(), parts.extensions.get::<Arc<User>>());
    let (route, user) = route.zip(user).ok_or_else(|| Status::internal("a request without a route or a user"))?;
    let is_long_running = route.is_long_running();
    let long_running = if is_long_running { api.flow.begin_long_running(user)? } else { None };
    // A watch has a seat until it has begun; what waits for a backend has none.
    let admission = match is_long_running && route.verb != "watch" {
        true => api.flow.unseated(user),
        false => api.flow.admit(user, &route.flow_target()).await?,
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
    let response = inner.call(Request::from_parts(parts, body)).await?;
    Ok(match is_long_running {
        true => until_closed(response, long_running),
        false => until_sent(response, admission),
    })
}

/// A body and what goes with its end.
struct SeatedBody<T> {
    body: Body,
    /// What of the last frame has not been sent.
    rest: Bytes,
    _seat: T,
    end: Option<Pin<Box<Sleep>>>,
}

/// An answer to a request that runs: a small one that is there already needs no seat any more.
fn until_sent<T: Send + Unpin + 'static>(response: Response<Body>, seat: T) -> Response<Body> {
    if response.body().size_hint().exact().is_some_and(|bytes| bytes <= LARGE_BYTES) {
        return response;
    }
    let end = Some(Box::pin(tokio::time::sleep(RESPONSE_TIMEOUT)));
    response.map(|body| Body::new(SeatedBody { body, rest: Bytes::new(), _seat: seat, end }))
}

/// An answer that goes on for as long as the client likes.
fn until_closed(response: Response<Body>, long_running: Option<LongRunning>) -> Response<Body> {
    match long_running {
        None => response,
        Some(kept) => response.map(|body| Body::new(SeatedBody { body, rest: Bytes::new(), _seat: kept, end: None })),
    }
}

impl<T: Send + Unpin> hyper::body::Body for SeatedBody<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "the client does not read its answer");
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        }
        if !self.rest.is_empty() {
            let bytes = self.rest.len().min(PIECE_BYTES);
            return Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(bytes)))));
        }
        let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let frame = match frame.into_data() {
            Ok(mut data) => {
                self.rest = data.split_off(data.len().min(PIECE_BYTES));
                Frame::data(data)
            }
            Err(trailers) => trailers,
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_goes_piece_by_piece_and_keeps_its_seat_until_the_last() {
        let seat = Arc::new(());
        let small = until_sent(Response::new(Body::from(vec![0; 1 << 10])), seat.clone());
        assert_eq!(Arc::strong_count(&seat), 1, "a small one has none");
        assert_eq!(small.into_body().collect().await.unwrap().to_bytes().len(), 1 << 10);
        let large = vec![7; (1 << 20) + 5];
        let mut body = until_sent(Response::new(Body::from(large.clone())), seat.clone()).into_body();
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
        // Who does not read it does not have the seat for long.
        let mut unread = until_sent(Response::new(Body::from(large)), seat.clone()).into_body();
        unread.frame().await.unwrap().unwrap();
        tokio::time::sleep(RESPONSE_TIMEOUT + Duration::from_secs(1)).await;
        assert!(unread.frame().await.unwrap().is_err());
    }
}
