//! `amphipod image`

use anyhow::Result;
use clap::Args;

/// Work with the node's images.
#[derive(Clone, Debug, Args)]
pub struct ImageArgs {}

pub fn run(_args: ImageArgs) -> Result<()> {
    anyhow::bail!("not there yet")
}
