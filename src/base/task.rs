//! The one place that spawns asynchronous tasks.
//!
//! Every task has a name for logs, and a panic in a task is logged, never lost: a detached `tokio::spawn` would
//! swallow it. Clippy bans the other doors.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinHandle;

/// Runs `future` in the background; `None` is its result after a panic, which is logged with `name` while the
/// process goes on. Dropping the handle detaches the task; aborting it stops the future.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<Option<F::Output>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    watched(name, Box::pin(future))
}

/// The future comes in a box, so that the runtime's code of a task is there once for each result and not once for each future.
fn watched<T: Send + 'static>(name: &'static str, future: BoxFuture<'static, T>) -> JoinHandle<Option<T>> {
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(async move {
        let result = AssertUnwindSafe(future).catch_unwind().await;
        if result.is_err() {
            tracing::error!(task = name, "a background task panicked");
        }
        result.ok()
    })
}

/// Runs work that blocks, off the threads that run tasks. It goes on when the handle is dropped.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    // In a box, as a task.
    let work: Box<dyn FnOnce() -> T + Send> = Box::new(work);
    #[allow(clippy::disallowed_methods)]
    tokio::task::spawn_blocking(work)
}

/// Runs work here and now. Where it is `long`, the other tasks of this thread are handed to another one meanwhile.
pub fn in_place<T>(long: bool, work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    // A runtime of one thread, as tests have it, has nobody to hand them to.
    let others = long && Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
    if others { tokio::task::block_in_place(work) } else { work() }
}
