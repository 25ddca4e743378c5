//! Durable and removed: what is done to whole directories of the store.

use std::fs;
use std::path::Path;

use super::Result;
use super::error::io;

/// Makes everything written so far durable, with one call for a whole layer.
pub(super) fn sync_file_system(path: &Path) -> Result<()> {
    let directory = fs::File::open(path).map_err(io("opening", path))?;
    rustix::fs::syncfs(&directory).map_err(io("syncing", path))
}

pub(super) fn remove_all(path: &Path) -> Result<()> {
    crate::base::tree::remove(path).map_err(io("removing", path))
}
