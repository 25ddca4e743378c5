//! Pages of a backend: held back until they are whole, to mend their links.
//!
//! What is held is counted with all answers that are on their way (`api::sending`), from the first byte until the client has
//! taken it. Where there is no room, and where a page does not come, it is handed on as it is. Invariant: a page makes room as
//! any answer does, also while its backend says nothing.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::flow_control::BegunRoom;
use super::super::{Body, answer};
use super::response::{headers_back, with_parts};
use super::rewrite::Links;
use super::target::unreachable;
use crate::api::flowcontrol::Admission;
use crate::api::sending::{Held, Room, no_room};
use crate::apimachinery::status::Result;

/// Pages beyond this are handed on as they are.
const PAGE_BYTES: usize = 4 << 20;
/// How long a page may take to come.
const PAGE_WAIT: Duration = Duration::from_secs(10);

/// A page that comes.
struct Coming {
    begun: Instant,
    /// Milliseconds since `begun` at which something came last.
    came_at: AtomicU64,
    end: Notify,
}

impl Held for Coming {
    fn stalled_since(&self) -> Option<Instant> {
        Some(self.begun + Duration::from_millis(self.came_at.load(Ordering::Relaxed)))
    }

    fn let_go(&self) {
        self.end.notify_one();
    }
}

/// The page with its links mended.
pub(super) async fn mended(
    response: Response<Incoming>,
    links: &Links,
    encoding: &str,
    admission: &Admission,
) -> Result<Response<Body>> {
    let (mut parts, mut body) = response.into_parts();
    headers_back(&mut parts.headers);
    let (sending, asker) = admission.sending();
    let room = Arc::new(sending.begin_stream(asker));
    let (page, is_whole) = match body.size_hint().lower() > PAGE_BYTES as u64 {
        true => (Bytes::new(), false),
        false => collect(&mut body, &room).await?,
    };
    let answer = if is_whole {
        let mended = answer::in_turn(page.len(), || links.encoded_page(&page, encoding, PAGE_BYTES));
        // What has become longer has to have room, too.
        let mended = mended.filter(|mended| mended.len() <= page.len() || room.resize(mended.len(), false));
        let page = mended.map_or(page, Bytes::from);
        room.resize(page.len(), true);
        parts.headers.remove(header::CONTENT_LENGTH);
        answer::full(page)
    } else {
        let first = futures::stream::once(std::future::ready(Ok(Frame::data(page))));
        let rest = futures::stream::unfold(body, |mut body| async move {
            let frame = body.frame().await?.map_err(std::io::Error::other);
            Some((frame, body))
        });
        Body::new(StreamBody::new(futures::StreamExt::chain(first, rest)))
    };
    let mut out = with_parts(parts, answer);
    out.extensions_mut().insert(BegunRoom(room));
    Ok(out)
}

/// What has come of a page when it is whole, is too long, takes too long or has no room; true where it is whole.
async fn collect(body: &mut Incoming, room: &Room) -> Result<(Bytes, bool)> {
    let coming = Arc::new(Coming { begun: Instant::now(), came_at: AtomicU64::new(0), end: Notify::new() });
    let held: Weak<dyn Held> = Arc::<Coming>::downgrade(&coming);
    room.attach(held);
    let mut late = pin!(tokio::time::sleep(PAGE_WAIT));
    let mut page = Vec::new();
    while page.len() <= PAGE_BYTES {
        let frame = tokio::select! {
            biased;
            () = coming.end.notified() => return Err(no_room()),
            () = &mut late => break,
            frame = body.frame() => frame,
        };
        let frame = match frame {
            None => return Ok((page.into(), true)),
            Some(frame) => frame.map_err(|error| unreachable(&error.to_string()))?,
        };
        let Some(data) = frame.data_ref() else { continue };
        coming.came_at.store(u64::try_from(coming.begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        page.extend_from_slice(data);
        // A vector that grows is half empty.
        if !room.resize(2 * page.len(), false) {
            break;
        }
    }
    Ok((page.into(), false))
}
