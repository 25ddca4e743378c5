//! What containers of a sandbox are started with.

use std::net::IpAddr;

use super::env::DownwardValues;
use super::files::Files;
use super::volumes::Paths;
use crate::containers::Users;

/// Everything that starting a container needs beside the container itself.
#[derive(Clone, Debug)]
pub struct SandboxContext {
    pub sandbox: String,
    pub addresses: Vec<IpAddr>,
    /// The pod's own; `None` is the machine's.
    pub users: Option<Users>,
    pub volumes: Paths,
    pub files: Files,
    pub facts: DownwardValues,
    /// A volume is to be looked at again soon.
    pub stale: bool,
}
