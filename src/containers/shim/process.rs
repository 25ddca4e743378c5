//! What every process of a shim does at its beginning and at its end.

use std::io::{self};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};

/// Ends this process without unwinding or running exit hooks of the parent's making.
pub(super) fn leave(code: i32) -> ! {
    // SAFETY: `_exit` only ends the process.
    unsafe { libc::_exit(code) }
}

pub(super) fn because(what: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}

/// Leaves the keys of whoever started this process behind. What it starts has the new, nameless keyring: every container
/// and every exec one of its own, which nobody can join.
pub(super) fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let nameless = std::ptr::null::<libc::c_char>();
    // SAFETY: the call takes a number and no name.
    if unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nameless) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // The kernel has no keys, or a filter around all of us refuses the call: then nobody in here reaches any.
        error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP)) => Ok(()),
        error => Err(error),
    }
}

/// In a forked child: undoes what the shim (and the Rust runtime) did to signals, so that the container's processes
/// start with defaults.
pub(super) fn reset_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGPIPE, Signal::SIGCHLD] {
        // SAFETY: sets the default action, no handler of ours is involved.
        let _ = unsafe { sigaction(signal, &default) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}
