//! `amphipod kubeconfig`

use anyhow::{Context, Result};

use super::Directories;

/// Prints the administrator's kubeconfig.
pub fn run(directories: &Directories) -> Result<()> {
    let path = directories.config_dir.join("kubeconfig.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("{} cannot be read: start the server first, or name its --config-dir", path.display())
    })?;
    super::output(text.trim_end());
    Ok(())
}
