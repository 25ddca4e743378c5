//! The end of a connection that carried a stream each way.
//!
//! The kernel resets a connection that is closed while something is unread, or to which something comes afterwards, and a
//! reset takes along whatever the other side has not been sent yet. Whoever has said all therefore goes on reading until
//! the other side has closed, too.

use std::time::Duration;

use futures::{Stream, StreamExt};

/// A client that has seen the end closes at once; one that does not is not waited for any longer.
const LINGER: Duration = Duration::from_secs(5);

/// Drops what still comes until the other side has closed, or the patience is at its end.
pub async fn until_closed(stream: impl Stream) {
    let mut stream = std::pin::pin!(stream);
    let _ = tokio::time::timeout(LINGER, async { while stream.next().await.is_some() {} }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_is_waited_for_but_not_for_ever() {
        until_closed(futures::stream::iter([1, 2, 3])).await;
        let began = tokio::time::Instant::now();
        until_closed(futures::stream::pending::<()>()).await;
        assert_eq!(began.elapsed(), LINGER);
    }
}
