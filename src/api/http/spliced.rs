//! An object's bytes with a text in front of them, of which no more than a piece is copied at a time.
//!
//! What is given to a connection is a copy: a part of the object's own text would keep all of it, and nobody would know
//! (`api::evicted`).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::api::sending::PIECE_BYTES;
use crate::base::object::Object;

/// A body of known length that is a text and the rest of an object's.
pub(super) struct Spliced {
    pub head: Bytes,
    pub object: Arc<Object>,
    /// Where the rest begins.
    pub at: usize,
}

impl hyper::body::Body for Spliced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.head.is_empty() {
            false => std::mem::take(&mut self.head),
            true => {
                let rest = &self.object.body()[self.at..];
                let piece = Bytes::copy_from_slice(&rest[..rest.len().min(PIECE_BYTES)]);
                self.at += piece.len();
                piece
            }
        };
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty() && self.at == self.object.body().len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.head.len() + self.object.body().len() - self.at) as u64)
    }
}
