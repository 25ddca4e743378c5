//! An object's bytes with a text in front of them, which are sent without a copy.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::api::sending::PIECE_BYTES;

/// A body of known length that is a text and the rest of an object's, which is not copied.
pub(super) struct Spliced {
    pub head: Bytes,
    pub rest: Bytes,
}

impl hyper::body::Body for Spliced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.head.is_empty() {
            false => std::mem::take(&mut self.head),
            true => {
                let bytes = self.rest.len().min(PIECE_BYTES);
                self.rest.split_to(bytes)
            }
        };
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty() && self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.head.len() + self.rest.len()) as u64)
    }
}
