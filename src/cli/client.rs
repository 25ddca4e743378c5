//! A small client for machines without kubectl.

use anyhow::Result;
use clap::Args;

#[derive(Clone, Debug, Args)]
pub struct ApplyArgs {}
#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {}
#[derive(Clone, Debug, Args)]
pub struct GetArgs {}
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {}
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {}

pub fn apply(_: &ApplyArgs) -> Result<()> {
    anyhow::bail!("not there yet")
}
pub fn delete(_: &DeleteArgs) -> Result<()> {
    anyhow::bail!("not there yet")
}
pub fn get(_: &GetArgs) -> Result<()> {
    anyhow::bail!("not there yet")
}
pub fn logs(_: &LogsArgs) -> Result<()> {
    anyhow::bail!("not there yet")
}
pub fn exec(_: &ExecArgs) -> Result<()> {
    anyhow::bail!("not there yet")
}
