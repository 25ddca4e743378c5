//! What an answer keeps until it has been sent: its place among those that run.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;

use super::Body;
use crate::api::flowcontrol::{Admission, LongRunning};

/// How long a client may take to read an answer that is made while it reads.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// A body and what goes with its end.
struct Held<T> {
    body: Body,
    _kept: T,
    end: Option<Pin<Box<Sleep>>>,
}

/// An answer to a request that runs: what is there already needs no seat any more.
pub(super) fn answer(response: Response<Body>, admission: Arc<Admission>) -> Response<Body> {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let end = Some(Box::pin(tokio::time::sleep(ANSWER_PATIENCE)));
    response.map(|body| Held { body, _kept: admission, end }.boxed_unsync())
}

/// An answer that goes on for as long as the client likes.
pub(super) fn open(response: Response<Body>, long_running: Option<LongRunning>) -> Response<Body> {
    match long_running {
        None => response,
        Some(kept) => response.map(|body| Held { body, _kept: kept, end: None }.boxed_unsync()),
    }
}

impl<T: Send + Unpin> hyper::body::Body for Held<T> {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, std::io::Error>>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "the client does not read its answer");
            return Poll::Ready(Some(Err(late)));
        }
        Poll::Ready(ready!(Pin::new(&mut self.body).poll_frame(cx)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
