//! Owners and modes of this machine's files.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Failed, Line, NotApplicable, Passed, Verdict, line};
use crate::cli::{Directories, kubeconfig};

/// What nobody but root may do with a file: all of it, or writing alone.
const SECRET: u32 = 0o077;
const WRITING: u32 = 0o022;

/// The lines about files.
pub(super) fn look(directories: &Directories) -> Vec<Line> {
    let Directories { data_dir, run_dir, config_dir } = directories;
    let server = data_dir.join("server");
    let keys = below(&server.join("tls"), ".key");
    let unit = Path::new("/etc/systemd/system/amphipod.service");
    let no_unit = "it is not installed as a service";
    let (credentials, config) = (data_dir.join("agent/tls"), config_dir.join("config.yaml"));
    vec![
        line("1.1.11", "the store's directory is root's alone", judge(&[server.clone(), data_dir.clone()], SECRET)),
        line("1.1.12", "the store's file is root's alone", judge(&[server.join("state.db")], SECRET)),
        line(
            "1.1.13-14",
            "the administrator's kubeconfig is root's alone",
            judge(&[kubeconfig::path(directories)], SECRET),
        ),
        line(
            "1.1.19-20",
            "certificates are changed by root alone",
            judge(&below(&server.join("tls"), ".crt"), WRITING),
        ),
        line("1.1.21", "keys are root's alone", judge(&keys, SECRET)),
        line("1.2.22", "keys of service accounts are root's alone", judge(&keys, SECRET)),
        line("4.1.1-2", "the service's file is changed by root alone", if_there(unit, WRITING, no_unit)),
        line(
            "4.1.5-8",
            "a node's credentials are root's alone",
            if_there(&credentials, SECRET, "this machine is no agent"),
        ),
        line("4.1.9-10", "the node's state is root's alone", judge(std::slice::from_ref(run_dir), SECRET)),
        line("4.1.11", "the configuration is root's alone", if_there(&config, SECRET, "there is no such file")),
    ]
}

/// The files of a directory whose names end so.
fn below(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    found.sort();
    if found.is_empty() { vec![directory.join(format!("*{ending}"))] } else { found }
}

fn if_there(path: &Path, forbidden: u32, otherwise: &'static str) -> Verdict {
    if path.exists() { judge(&[path.to_owned()], forbidden) } else { NotApplicable(otherwise) }
}

/// Whether all of them are root's, without the forbidden bits.
fn judge(paths: &[PathBuf], forbidden: u32) -> Verdict {
    let wrong = paths.iter().find_map(|path| fault(path, fs::symlink_metadata(path), forbidden));
    match wrong {
        Some(wrong) => Failed(wrong),
        None if paths.len() == 1 => Passed(paths[0].display().to_string()),
        None => Passed(format!("{} of them", paths.len())),
    }
}

fn fault(path: &Path, metadata: io::Result<Metadata>, forbidden: u32) -> Option<String> {
    let path = path.display();
    let found = match metadata {
        Ok(found) => found,
        Err(error) => {
            return Some(format!("{path} cannot be looked at ({error}): run this as root on a server's machine"));
        }
    };
    let mode = found.permissions().mode() & 0o777;
    match () {
        () if found.uid() != 0 => Some(format!("{path} is not root's: chown root: {path}")),
        () if mode & forbidden != 0 => {
            let letters = if forbidden == SECRET { "go=" } else { "go-w" };
            Some(format!("{path} has the mode {mode:o}: chmod {letters} {path}"))
        }
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_that_others_have_are_told_with_what_helps() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.key");
        fs::write(&file, "").unwrap();
        assert_eq!(fs::symlink_metadata(&file).unwrap().uid(), 0, "this test needs root, like those with containers");
        let judged = |mode: u32, forbidden: u32| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            fault(&file, fs::symlink_metadata(&file), forbidden)
        };
        assert!(judged(0o600, SECRET).is_none() && judged(0o644, WRITING).is_none());
        assert!(judged(0o640, SECRET).unwrap().contains("has the mode 640: chmod go= "));
        assert!(judged(0o664, WRITING).unwrap().contains("chmod go-w "));
        let missing = judge(&below(directory.path(), ".crt"), SECRET);
        assert!(matches!(missing, Failed(why) if why.contains("*.crt cannot be looked at")));
        assert_eq!(below(directory.path(), ".key"), [file]);
    }
}
