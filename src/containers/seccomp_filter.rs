//! Seccomp profiles as programs: compiled once in the agent, kept in a file, loaded right before `exec`.
//!
//! libseccomp takes 15 ms and more for the default profile, which would be most of a container's start; loading the
//! finished program takes microseconds. Invariant: a file holds a complete program or is not there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use serde_json::Value;

use super::error::{Error, Result};
use crate::base::file::write_atomically;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
/// The newest system call that the libseccomp we link (2.5.4) has a name for; the same number on all machines.
const NEWEST_KNOWN: u32 = 449;
/// Numbers from here on are the x32 variants.
const X32: u32 = 0x4000_0000;
const RETURN_ENOSYS: u32 = 0x0005_0000 | 38;
const RETURN_EPERM: u32 = 0x0005_0000 | 1;
const RETURN_ALLOW: u32 = 0x7fff_0000;
const INSTRUCTION_BYTES: usize = 8;

/// The file with the program for a profile; compiled if it is new.
pub(crate) fn file_for(directory: &Path, profile: &Value) -> Result<PathBuf> {
    let text = profile.to_string();
    let key = super::image::digest_of(format!("1 {text}").as_bytes());
    let path = directory.join(key.trim_start_matches("sha256:")).with_extension("bpf");
    if path.is_file() {
        return Ok(path);
    }
    let failed = |source| Error::Io { what: "writing seccomp program", path: path.clone(), source };
    let spec = |reason: String| Error::Spec(format!("seccomp profile: {reason}"));
    let profile: LinuxSeccomp = serde_json::from_value(profile.clone()).map_err(|error| spec(error.to_string()))?;
    let program = compile(&profile).map_err(spec)?;
    fs::create_dir_all(directory).map_err(failed)?;
    write_atomically(&path, &program, 0o600).map_err(failed)?;
    Ok(path)
}

fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, String> {
    let words = |error: SeccompError| error.to_string();
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(words)?;
    for architecture in profile.architectures().iter().flatten() {
        // One that this libseccomp was built without cannot run here either.
        let _ = context.add_arch(scmp_arch(*architecture)?);
    }
    for rule in profile.syscalls().iter().flatten() {
        add_rule(&mut context, rule, default)?;
    }
    let mut file = memory_file().map_err(|error| error.to_string())?;
    context.export_bpf(&file).map_err(words)?;
    let mut program = if matches!(default, ScmpAction::Errno(_)) { unknown_is_enosys() } else { Vec::new() };
    io::Seek::rewind(&mut file)
        .and_then(|()| io::Read::read_to_end(&mut file, &mut program))
        .map_err(|e| e.to_string())?;
    Ok(program)
}

fn memory_file() -> io::Result<fs::File> {
    let fd = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(fd.into())
}

// Operations of a classic BPF program.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const RETURN: u16 = 0x06;

/// Operation, jump if true, jump if false, operand.
type Instruction = (u16, u8, u8, u32);

fn bytes_of(instructions: &[Instruction]) -> Vec<u8> {
    let bytes = instructions.iter().flat_map(|(code, yes, no, operand)| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([*yes, *no]);
        bytes.extend(operand.to_ne_bytes());
        bytes
    });
    bytes.collect()
}

/// Calls newer than the profile can name say that they do not exist, so that libraries fall back; a refusal (EPERM)
/// would be believed.
fn unknown_is_enosys() -> Vec<u8> {
    bytes_of(&[
        (LOAD, 0, 0, 4),
        (JUMP_EQUAL, 0, 4, AUDIT_ARCH),
        (LOAD, 0, 0, 0),
        (JUMP_GREATER, 2, 0, X32 - 1),
        (JUMP_GREATER, 0, 1, NEWEST_KNOWN),
        (RETURN, 0, 0, RETURN_ENOSYS),
    ])
}

/// A program that allows these few calls and refuses all others.
pub(crate) fn only(calls: &[libc::c_long]) -> Vec<u8> {
    let count = u8::try_from(calls.len()).expect("a jump reaches over 255 instructions");
    let mut program = vec![(LOAD, 0, 0, 4), (JUMP_EQUAL, 0, count + 1, AUDIT_ARCH), (LOAD, 0, 0, 0)];
    for (call, after) in calls.iter().zip((1..=count).rev()) {
        program.push((JUMP_EQUAL, after, 0, u32::try_from(*call).expect("numbers of calls are small")));
    }
    program.extend([(RETURN, 0, 0, RETURN_EPERM), (RETURN, 0, 0, RETURN_ALLOW)]);
    bytes_of(&program)
}

fn add_rule(context: &mut ScmpFilterContext, rule: &LinuxSyscall, default: ScmpAction) -> Result<(), String> {
    let action = action(rule.action(), rule.errno_ret())?;
    if action == default {
        return Ok(());
    }
    let comparisons: Vec<ScmpArgCompare> = rule.args().iter().flatten().map(comparison).collect();
    let mut indexes: Vec<usize> = rule.args().iter().flatten().map(LinuxSeccompArg::index).collect();
    indexes.sort_unstable();
    let repeated = indexes.windows(2).any(|pair| pair[0] == pair[1]);
    for name in rule.names() {
        // A call this libseccomp does not know has no number to filter.
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        let result = if comparisons.is_empty() {
            context.add_rule(action, call).map(drop)
        } else if repeated {
            // One argument can be compared once in a rule: each comparison becomes a rule, as in other runtimes.
            comparisons.iter().try_for_each(|one| context.add_rule_conditional(action, call, &[*one]).map(drop))
        } else {
            context.add_rule_conditional(action, call, &comparisons).map(drop)
        };
        result.map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, String> {
    let errno = i32::try_from(errno.unwrap_or(1)).unwrap_or(libc::EPERM);
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(errno).unwrap_or(1)),
        LinuxSeccompAction::ScmpActNotify => return Err("SCMP_ACT_NOTIFY is not supported".into()),
    })
}

fn scmp_arch(architecture: Arch) -> Result<ScmpArch, String> {
    Ok(match architecture {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        other => return Err(format!("architecture {other:?} is not this machine's")),
    })
}

fn comparison(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let operator = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            // The mask is `value`, what remains must equal `value_two`.
            return ScmpArgCompare::new(
                u32::try_from(arg.index()).unwrap_or(u32::MAX),
                ScmpCompareOp::MaskedEqual(arg.value()),
                arg.value_two().unwrap_or(0),
            );
        }
    };
    ScmpArgCompare::new(u32::try_from(arg.index()).unwrap_or(u32::MAX), operator, arg.value())
}

/// Puts this thread under a program; for good. Needs no_new_privs or CAP_SYS_ADMIN.
pub(crate) fn load(program: &[u8]) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_long = 1;
    let count = u16::try_from(program.len() / INSTRUCTION_BYTES).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The bytes are copied to where instructions are aligned.
    let mut instructions: Vec<u64> = Vec::with_capacity(usize::from(count));
    instructions.extend(
        program
            .chunks_exact(INSTRUCTION_BYTES)
            .map(|chunk| u64::from_ne_bytes(chunk.try_into().expect("chunks_exact gives whole instructions"))),
    );
    let filter = libc::sock_fprog { len: count, filter: instructions.as_mut_ptr().cast() };
    // SAFETY: the structure points to `count` instructions that live until the call returns; the kernel copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    /// Loads the default profile in a child and returns what `probe` says there.
    fn under_default_profile(probe: fn() -> i32) -> i32 {
        let directory = tempfile::tempdir().unwrap();
        let path = file_for(directory.path(), &super::super::seccomp::default_profile(&[])).unwrap();
        under(&fs::read(path).unwrap(), probe)
    }

    fn under(program: &[u8], probe: fn() -> i32) -> i32 {
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                // SAFETY: a flag of the child.
                unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                let code = if load(program).is_ok() { probe() } else { 99 };
                // SAFETY: ends the child.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, code) => code,
                other => panic!("{other:?}"),
            },
        }
    }

    fn errno_of(result: libc::c_long) -> i32 {
        if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(98) } else { 0 }
    }

    #[test]
    fn the_program_allows_refuses_and_denies_existence() {
        // SAFETY: system calls with harmless arguments, in a child.
        let calls: [(&str, fn() -> i32, i32); 6] = [
            ("getpid", || errno_of(unsafe { libc::syscall(libc::SYS_getpid) }), 0),
            ("unshare", || errno_of(unsafe { libc::syscall(libc::SYS_unshare, 0) }), libc::EPERM),
            ("clone3", || errno_of(unsafe { libc::syscall(libc::SYS_clone3, 0, 0) }), libc::ENOSYS),
            ("number 460", || errno_of(unsafe { libc::syscall(460, 0) }), libc::ENOSYS),
            (
                "clone NEWUSER",
                || errno_of(unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER, 0) }),
                libc::EPERM,
            ),
            ("vsock", || errno_of(unsafe { libc::syscall(libc::SYS_socket, 40, 1, 0) }), libc::EPERM),
        ];
        for (name, probe, expected) in calls {
            assert_eq!(under_default_profile(probe), expected, "{name}");
        }
    }

    #[test]
    fn the_short_program_allows_what_it_names_and_nothing_else() {
        let program = only(&[libc::SYS_getpid, libc::SYS_exit_group]);
        // SAFETY: system calls with harmless arguments, in a child.
        let calls: [(fn() -> i32, i32); 3] = [
            (|| errno_of(unsafe { libc::syscall(libc::SYS_getpid) }), 0),
            (|| errno_of(unsafe { libc::syscall(libc::SYS_getuid) }), libc::EPERM),
            (|| errno_of(unsafe { libc::syscall(460, 0) }), libc::EPERM),
        ];
        for (probe, expected) in calls {
            assert_eq!(under(&program, probe), expected);
        }
    }

    #[test]
    fn a_profile_is_compiled_once() {
        let directory = tempfile::tempdir().unwrap();
        let profile = super::super::seccomp::default_profile(&[]);
        let first = file_for(directory.path(), &profile).unwrap();
        let made = fs::metadata(&first).unwrap().modified().unwrap();
        assert_eq!(file_for(directory.path(), &profile).unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), made);
        assert!(file_for(directory.path(), &serde_json::json!({"defaultAction": "X"})).is_err());
    }
}
