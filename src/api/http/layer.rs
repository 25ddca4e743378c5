//! What a layer of the stack is made of.

use std::convert::Infallible;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::future::{Either, Ready, ready};
use tower::Service;

use crate::apimachinery::status::Result;

/// What a layer is around: the layers below it and the route at their end.
pub(super) trait Next:
    Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Next for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

/// What is to come of a request at a layer that may refuse it.
pub(super) type Answering<F> = Either<F, Ready<std::result::Result<Response, Infallible>>>;

/// The answer of what is below a layer, or the layer's own refusal. An asynchronous block in its place would have room for
/// that future twice, and so the outermost of ten layers for it a thousand times.
pub(super) fn answered<F>(answering: Result<F>) -> Answering<F> {
    match answering {
        Ok(answering) => Either::Left(answering),
        Err(status) => Either::Right(ready(Ok(status.into_response()))),
    }
}
