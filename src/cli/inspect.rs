//! `amphipod check` and `amphipod killall`

use anyhow::Result;

use super::Directories;

pub fn check(_directories: &Directories) -> Result<()> {
    anyhow::bail!("not there yet")
}

pub fn killall(_directories: &Directories) -> Result<()> {
    anyhow::bail!("not there yet")
}
