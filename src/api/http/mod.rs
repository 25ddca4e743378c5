//! The API on the wire.
//!
//! A request comes to [`router`], whose layers are its way: [`route`] reads the path, [`access`] finds out who asks and
//! whether they may, [`flow_control`] when. Then a verb of [`verbs`] runs, and [`answer`] writes what came of it in the
//! negotiated form.

pub mod access;
mod aggregate;
pub mod answer;
mod carried;
mod compression;
mod context;
pub mod discovery;
mod flow_control;
mod forward;
mod forward_channels;
pub mod join;
mod layer;
pub mod list_options;
mod lists;
mod metrics;
pub mod negotiate;
pub mod openapi;
mod outcome;
mod patch;
mod paths;
pub mod proxy;
mod resource_metrics;
pub mod route;
pub mod router;
pub mod site;
mod socket;
mod spdy_stream;
mod spliced;
pub mod stream;
mod stream_target;
pub mod table;
pub mod tunnel;
pub mod verbs;
pub mod watching;

use std::sync::Arc;
use std::time::Duration;

pub use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;

use super::flowcontrol::Admission;
use crate::apimachinery::status::{Result, Status};
use crate::wire::linger;

/// The largest request body, as Kubernetes limits it.
const BODY_BYTES_MAX: usize = 3 << 20;

/// How long a body may take to come, as a request does in Kubernetes.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The whole body, refused where it is too long.
async fn body_of(request: Request) -> Result<Bytes> {
    let admission = request.extensions().get::<Arc<Admission>>().cloned();
    // A body whose length is not told may be as long as any.
    let told = request.body().size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
    let body_bytes = told.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX);
    let mut body = request.into_body();
    let limited = http_body_util::Limited::new(&mut body, BODY_BYTES_MAX).collect();
    let limited = tokio::time::timeout(BODY_TIMEOUT, limited);
    let reading = admission.as_ref().map(|admission| admission.begin_reading(body_bytes)).transpose()?;
    let read = match &reading {
        None => limited.await,
        Some(reading) => tokio::select! {
            read = limited => read,
            status = reading.ended() => return Err(status),
        },
    };
    let Ok(read) = read else { return Err(Status::new(504, "Timeout", "the request body did not come in time")) };
    let body = match read {
        Ok(body) => body.to_bytes(),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => {
            drop(reading);
            // Whoever writes all before reading would find the connection reset instead of this answer.
            linger::until_closed(body.into_data_stream()).await;
            return Err(Status::too_large(format!("limit is {BODY_BYTES_MAX}")));
        }
        Err(e) => return Err(Status::bad_request(format!("the request body was not received whole: {e}"))),
    };
    if let Some(admission) = admission {
        admission.reserve_body(body.len()).await?;
    }
    Ok(body)
}
