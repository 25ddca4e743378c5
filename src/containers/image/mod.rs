//! Images.
use super::error::{Error, Result};
use super::spec::User;
use std::path::Path;
/// Makes a directory inside a root file system.
pub(crate) fn make_directory_in(root: &Path, path: &Path, _user: &User) -> Result<()> {
    let path = root.join(path.strip_prefix("/").unwrap_or(path));
    std::fs::create_dir_all(&path).map_err(|source| Error::Io { what: "creating", path, source })
}
