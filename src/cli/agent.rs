//! `amphipod agent`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use http::Uri;

use super::node::{LogArgs, NodeArgs};
use super::{Directories, Usage};
use crate::server::join::{self, Config};

/// Flags of the agent; each also as `AMPHIPOD_*` variable (and by the `K3S_*` name that users know) and as a key of
/// config.yaml.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// A file with flags as keys [default: /etc/amphipod/config.yaml]
    #[arg(long, short = 'c', env = "AMPHIPOD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    directories: Directories,
    /// The server to join, such as https://192.0.2.1:6443
    #[arg(long, short = 's', env = "AMPHIPOD_URL")]
    server: String,
    /// The token of the server: what is in its <data-dir>/server/token, or what `amphipod token create` prints
    #[arg(long, short = 't', env = "AMPHIPOD_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the token
    #[arg(long, env = "AMPHIPOD_TOKEN_FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// Runs the agent until it is told to stop.
pub fn run(args: AgentArgs) -> Result<()> {
    crate::base::file::keep_new_files_private();
    args.log.start()?;
    join::run(resolve(args)?)
}

fn resolve(args: AgentArgs) -> Result<Config> {
    let wrong =
        || Usage(format!("--server: {:?}: expected https://HOST:PORT, such as https://192.0.2.1:6443", args.server));
    let server: Uri = args.server.trim_end_matches('/').parse().map_err(|_| wrong())?;
    if server.scheme_str() != Some("https")
        || server.host().is_none()
        || server.path() != "/"
        || server.query().is_some()
    {
        return Err(wrong().into());
    }
    let server = match server.port_u16() {
        Some(_) => server,
        None => format!("https://{}:6443", server.host().unwrap_or_default()).parse().map_err(|_| wrong())?,
    };
    let token = super::node::token(args.token, args.token_file.as_deref())?;
    Ok(Config {
        data_dir: args.directories.data_dir,
        run_dir: args.directories.run_dir,
        config_dir: args.directories.config_dir,
        server,
        token,
        node: args.node.resolve()?,
    })
}
