//! Turns: who wants the same thing waits for whoever has it.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::sync::{Mutex, MutexGuard};

/// How many turns are given out at once at most; names that fall together only wait longer.
const LANES: usize = 16;

/// Turns by name.
#[derive(Debug, Default)]
pub struct Turns {
    lanes: [Mutex<()>; LANES],
}

// === impl Turns ===

impl Turns {
    /// Waits until nobody else has the turn of this name.
    pub async fn take(&self, name: &str) -> MutexGuard<'_, ()> {
        // The same lane in every run: simulations must be alike.
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        self.lanes[hasher.finish() as usize % LANES].lock().await
    }
}
