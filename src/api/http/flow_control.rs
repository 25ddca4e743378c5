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
use super::route::Route;
use super::router::Next;
use crate::api::Api;
use crate::api::flowcontrol::{Admission, LongRunning};
use crate::api::identity::User;
use crate::api::status::{Result, Status};

/// How long a client may take to read an answer that is made while it reads.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

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
    _seat: T,
    end: Option<Pin<Box<Sleep>>>,
}

/// An answer to a request that runs: what is there already needs no seat any more.
fn until_sent(response: Response<Body>, admission: Arc<Admission>) -> Response<Body> {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let end = Some(Box::pin(tokio::time::sleep(RESPONSE_TIMEOUT)));
    response.map(|body| Body::new(SeatedBody { body, _seat: admission, end }))
}

/// An answer that goes on for as long as the client likes.
fn until_closed(response: Response<Body>, long_running: Option<LongRunning>) -> Response<Body> {
    match long_running {
        None => response,
        Some(kept) => response.map(|body| Body::new(SeatedBody { body, _seat: kept, end: None })),
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
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
