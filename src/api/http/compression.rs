//! Compression of long answers, as Kubernetes' `APIResponseCompression`: objects and lists of more than 128 KiB, for clients
//! that accept gzip, at the level that costs least.
//!
//! An answer is compressed while it is sent, a piece at a time: nothing of it waits for the rest. Streams (watches, logs,
//! proxied requests) are left alone, and so is what is encoded already. Invariant: what compression takes is bounded, in
//! memory by the number of encoders, in work by the seat that the request keeps until its answer was sent. Who finds no
//! encoder free gets the answer as it is.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::extract::Request;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::TryFutureExt;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, VARY};
use http::{HeaderMap, Method, Response};
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::sync::{Semaphore, SemaphorePermit};
use tower::service_fn;

use super::Body;
use super::layer::Next;
use super::route::Route;

/// What is no longer than this is sent as it is.
const BYTES_MIN: u64 = 128 << 10;
/// What is compressed at once, before others have their turn.
const PIECE_BYTES: usize = 64 << 10;
/// The level that Kubernetes chose: the least work, for nearly the same result.
const LEVEL: u32 = 1;

/// Answers that are compressed at the same time. An encoder has about 300 KiB.
const ENCODERS: usize = 32;
static FREE: Semaphore = Semaphore::const_new(ENCODERS);

/// Compresses what is worth it.
pub(super) fn compression<S: Next>(mut inner: S) -> impl Next {
    service_fn(move |request: Request| {
        let is_wanted = *request.method() == Method::GET
            && accepts_gzip(request.headers())
            && request.extensions().get::<Route>().is_some_and(|route| !route.is_long_running());
        inner.call(request).map_ok(move |response| match is_wanted && is_worth_it(&response) {
            true => compressed(response, &FREE),
            false => response,
        })
    })
}

/// Whether gzip is among what is accepted, in the one way of writing it that Kubernetes reads.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|encoding| encoding.trim() == "gzip")
}

fn is_worth_it(response: &Response<Body>) -> bool {
    let media = response.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    response.body().size_hint().lower() > BYTES_MIN
        && !response.headers().contains_key(CONTENT_ENCODING)
        && [&b"application/json"[..], b"application/yaml"].iter().any(|objects| media.starts_with(objects))
}

fn compressed(response: Response<Body>, free: &'static Semaphore) -> Response<Body> {
    let Ok(permit) = free.try_acquire() else { return response };
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    let encoder = Some(GzEncoder::new(Vec::new(), Compression::new(LEVEL)));
    Response::from_parts(parts, Body::new(Gzip { body, rest: Bytes::new(), encoder, _permit: permit }))
}

/// A body that is compressed as it is read.
struct Gzip {
    body: Body,
    /// What came and is not compressed yet.
    rest: Bytes,
    /// None: the end was written.
    encoder: Option<GzEncoder<Vec<u8>>>,
    _permit: SemaphorePermit<'static>,
}

impl hyper::body::Body for Gzip {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        loop {
            let Some(encoder) = &mut this.encoder else { return Poll::Ready(None) };
            let written = if this.rest.is_empty() {
                match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        // Objects and lists have no trailers.
                        this.rest = frame.into_data().unwrap_or_default();
                        continue;
                    }
                    Some(Err(error)) => {
                        this.encoder = None;
                        return Poll::Ready(Some(Err(error)));
                    }
                    None => this.encoder.take().map(GzEncoder::finish).unwrap_or_else(|| Ok(Vec::new())),
                }
            } else {
                let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
                encoder.write_all(&piece).map(|()| std::mem::take(encoder.get_mut()))
            };
            match written {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes.into())))),
                Err(error) => return Poll::Ready(Some(Err(axum::Error::new(error)))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.encoder.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use futures::FutureExt;
    use http_body_util::BodyExt;

    use super::super::answer;
    use super::*;

    fn headers(accepted: &str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, accepted.parse().unwrap())])
    }

    #[test]
    fn gzip_is_accepted_as_kubernetes_reads_it() {
        for accepted in ["gzip", "deflate, gzip", " br ,gzip , x"] {
            assert!(accepts_gzip(&headers(accepted)), "{accepted}");
        }
        for other in ["", "*", "gzip;q=1", "x-gzip", "GZIP", "identity"] {
            assert!(!accepts_gzip(&headers(other)), "{other}");
        }
    }

    #[test]
    fn only_long_objects_that_are_not_encoded_are_worth_it() {
        let response = |media, bytes| answer::typed(200, media, answer::full(vec![b'x'; bytes]));
        let (short, long) = (128 << 10, (128 << 10) + 1);
        assert!(!is_worth_it(&response("application/json", short)));
        assert!(is_worth_it(&response("application/json", long)));
        assert!(is_worth_it(&response("application/yaml", long)));
        assert!(!is_worth_it(&response("text/plain; charset=utf-8", long)));
        let mut encoded = response("application/json", long);
        encoded.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(!is_worth_it(&encoded));
        let endless = answer::streamed(futures::stream::pending());
        assert!(!is_worth_it(&answer::typed(200, "application/json", endless)), "a watch");
    }

    #[tokio::test]
    async fn an_answer_is_compressed_as_it_comes() {
        let text: Vec<u8> = (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let (send, queue) = tokio::sync::mpsc::channel(1);
        let body = answer::streamed(tokio_stream::wrappers::ReceiverStream::new(queue));
        let response = compressed(answer::typed(200, "application/json", body), &FREE);
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        assert_eq!(response.headers()[VARY], "Accept-Encoding");
        let mut body = response.into_body();
        let (mut packed, mut sent) = (Vec::new(), 0);
        for piece in text.chunks(100_000) {
            send.try_send(Bytes::copy_from_slice(piece)).unwrap();
            sent += piece.len();
            while let Some(Some(frame)) = body.frame().now_or_never() {
                let frame = frame.unwrap().into_data().unwrap();
                assert!(frame.len() <= 2 * PIECE_BYTES, "{} bytes at once", frame.len());
                packed.extend_from_slice(&frame);
            }
            // It can hardly be packed: what came is out before the next comes.
            assert!(packed.len() + PIECE_BYTES > sent * 3 / 4, "{} of {sent}", packed.len());
        }
        drop(send);
        packed.extend_from_slice(&body.collect().await.unwrap().to_bytes());
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut plain).unwrap();
        assert!(plain == text);
    }

    #[test]
    fn an_answer_for_which_no_encoder_is_free_goes_as_it_is() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let long = || answer::typed(200, "application/json", answer::full(vec![b'x'; 200 << 10]));
        let first = compressed(long(), &ONE);
        assert!(first.headers().contains_key(CONTENT_ENCODING));
        let second = compressed(long(), &ONE);
        assert!(!second.headers().contains_key(CONTENT_ENCODING));
        assert_eq!(second.body().size_hint().exact(), Some(200 << 10));
        drop(first);
        assert!(compressed(long(), &ONE).headers().contains_key(CONTENT_ENCODING));
    }
}
