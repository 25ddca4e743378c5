//! Returns the memory of a burst when the burst is over, and of a request that made much when it has ended.
//!
//! Nothing is done on a quiet machine beside reading a counter or two; one that is always busy returns memory at times.

use std::time::Duration;

use crate::base::signal::Receiver;
use crate::base::task;
use crate::containers::memory;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(10);
/// Steps of work since the last time that make it worth the while.
const BURST: u64 = 200;
/// Steps of work in one interval below which a burst is over.
const QUIET: u64 = 50;
/// Intervals after which a burst that is not over is interrupted.
const PATIENCE: u32 = 6;

/// How often memory is returned at most, also where every request makes much.
const AT_MOST_EVERY: Duration = Duration::from_millis(200);

/// Returns memory each time when `large_ended` tells, until that is over.
pub async fn follow(mut large_ended: Receiver) {
    while let Ok(()) = large_ended.changed().await {
        let _ = task::blocking(memory::give_back).await;
        tokio::time::sleep(AT_MOST_EVERY).await;
    }
}

/// Lets go of what only a start needs: most of the code that is mapped by then is not used again, and what is comes back.
pub fn end_start() {
    drop(task::blocking(memory::unmap_code));
}

/// Runs until aborted; `work` counts what was done so far, in steps of about the size of a request. What a burst has left and
/// nobody needs goes with `let_go`, once the burst is over.
pub async fn run(work: impl Fn() -> u64, let_go: impl Fn() + Clone + Send + 'static) {
    // The start is a burst too.
    let (mut returned_at, mut before, mut waited) = (0, work(), 0);
    loop {
        tokio::time::sleep(EVERY).await;
        let now = work();
        let quiet = now - before < QUIET;
        waited = if quiet { 0 } else { waited + 1 };
        if now - returned_at >= BURST && (quiet || waited >= PATIENCE) {
            let let_go = let_go.clone();
            let _ = task::blocking(move || {
                if quiet {
                    let_go();
                }
                memory::give_back();
                if quiet {
                    memory::unmap_code();
                }
            })
            .await;
            (returned_at, waited) = (now, 0);
        }
        before = now;
    }
}
