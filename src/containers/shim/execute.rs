//! Becoming another program: its file and its environment.

use std::ffi::CString;
use std::fs;
use std::io::{self};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Process;

use super::super::image;

/// The variables of a process that is about to begin, in their order. With `home_of_user` the home is what `/etc/passwd` of the
/// container says now, as with other runtimes, else `/`. Called in the container.
pub(super) fn environment(process: &Process, home_of_user: bool) -> Vec<String> {
    let mut env: Vec<String> = process.env().clone().unwrap_or_default();
    if home_of_user {
        env.retain(|entry| !entry.starts_with("HOME="));
        let passwd = image::read_in(Path::new("/"), Path::new("etc/passwd"));
        env.push(format!("HOME={}", image::home_in(&passwd, process.user().uid())));
    }
    env
}

/// The value of a variable: the last one counts.
pub(super) fn value_of<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// Looks `command` up in `path`; messages are those that users of container runtimes know.
pub(super) fn find_executable_in(command: &str, path: Option<&str>) -> Result<PathBuf, String> {
    if command.contains('/') {
        return match fs::metadata(command) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("exec: {command:?}: stat {command}: no such file or directory"))
            }
            Err(error) => Err(format!("exec: {command:?}: {error}")),
            Ok(metadata) if metadata.is_dir() => Err(format!("exec: {command:?}: is a directory")),
            Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
                Err(format!("exec: {command:?}: permission denied"))
            }
            Ok(_) => Ok(command.into()),
        };
    }
    let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(':')
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(command))
        .find(|file| fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0))
        .ok_or_else(|| format!("exec: {command:?}: executable file not found in $PATH"))
}

/// `execve`; returns only with the reason why not.
pub(super) fn execute(path: &Path, args: &[String], env: &[String]) -> String {
    let c_string =
        |bytes: &[u8]| CString::new(bytes).map_err(|_| "exec: an argument or a variable holds a zero byte".to_owned());
    let file = match c_string(path.as_os_str().as_encoded_bytes()) {
        Ok(file) => file,
        Err(message) => return message,
    };
    let c_strings = |all: &[String]| all.iter().map(|one| c_string(one.as_bytes())).collect::<Result<Vec<_>, _>>();
    match c_strings(args).and_then(|args| Ok((args, c_strings(env)?))) {
        Ok((args, env)) => match nix::unistd::execve(&file, &args, &env) {
            Err(nix::errno::Errno::ENOEXEC) => format!("exec {}: exec format error", path.display()),
            Err(error) => format!("exec {}: {}", path.display(), error.desc().to_lowercase()),
        },
        Err(message) => message,
    }
}
