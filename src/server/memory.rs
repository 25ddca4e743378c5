//! Returns the memory of a burst when the burst is over.
//!
//! Nothing is done on a quiet server beside reading two counters; a server that is always busy returns memory at times.

use std::time::Duration;

use crate::api::Api;
use crate::base::metrics;
use crate::containers::memory;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(10);
/// Requests and changes since the last time that make it worth the while.
const BURST: u64 = 200;
/// Requests and changes in one interval below which a burst is over.
const QUIET: u64 = 50;
/// Intervals after which a burst that is not over is interrupted.
const PATIENCE: u32 = 6;

/// Runs until aborted.
pub async fn run(api: Api) {
    let work = || metrics::REQUESTS.value() + api.cache.head();
    // The start is a burst too.
    let (mut returned_at, mut before, mut waited) = (0, work(), 0);
    loop {
        tokio::time::sleep(EVERY).await;
        let now = work();
        let quiet = now - before < QUIET;
        waited = if quiet { 0 } else { waited + 1 };
        if now - returned_at >= BURST && (quiet || waited >= PATIENCE) {
            let _ = tokio::task::spawn_blocking(memory::give_back).await;
            (returned_at, waited) = (now, 0);
        }
        before = now;
    }
}
