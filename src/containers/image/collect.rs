//! Garbage collection on the store's own disk.

use jiff::Timestamp;

use super::gc::{Collected, Policy};
use super::store::Inner;
use super::{ImageError, Result};
use crate::base::fs_stats::FsStats;

impl Inner {
    fn space(&self) -> Result<FsStats> {
        let directory = &self.directory;
        match FsStats::of(directory).map_err(super::error::io("looking at the file system of", directory))? {
            FsStats { capacity_bytes: 0, .. } => Err(ImageError::invalid("capacity", "0 on the image file system")),
            space => Ok(space),
        }
    }

    /// Frees what the policy says. Blocks.
    pub(super) fn collect(&self, policy: &Policy) -> Result<Collected> {
        let space = self.space()?;
        let mut collected = Collected { space, wanted_bytes: policy.wanted_bytes(space), ..Collected::default() };
        if collected.wanted_bytes == 0 {
            return Ok(collected);
        }
        // Pulls wait meanwhile, and one that is under way is waited for by whoever asks again after it.
        let Some(_lock) = super::lock::nobody_pulls(&self.directory)? else {
            return Ok(Collected { postponed: true, ..collected });
        };
        let mut layers = self.drop_unused()?;
        loop {
            let available = self.space()?.available_bytes;
            // Some file systems are late to say what has become free.
            collected.freed_bytes = available.saturating_sub(space.available_bytes).max(layers);
            if collected.freed_bytes >= collected.wanted_bytes {
                return Ok(collected);
            }
            let gone = self.remove_one(|candidates| {
                let interest = self.interest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                policy.next(candidates, &interest, Timestamp::now())
            })?;
            let Some(id) = gone else { return Ok(collected) };
            self.interest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).forget(&id);
            layers += self.drop_unused()?;
            collected.removed.push(id);
        }
    }
}
