//! The one place that spawns asynchronous tasks.
//!
//! Every task has a name for logs, and a panic in a task is logged and counted, never lost: a detached `tokio::spawn`
//! would swallow it. Clippy bans the other doors.

use std::future::Future;

use tokio::task::JoinHandle;

/// Runs `future` in the background. A panic inside is logged with `name`; the process goes on.
/// Dropping the handle detaches the task.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<Option<F::Output>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(async move {
        #[allow(clippy::disallowed_methods)]
        match tokio::spawn(future).await {
            Ok(output) => Some(output),
            Err(error) if error.is_panic() => {
                tracing::error!(task = name, %error, "a background task panicked");
                None
            }
            Err(_) => None,
        }
    })
}
