//! Process 1 of a shared process namespace: it keeps the namespace alive, and the kernel reaps its orphans.
//!
//! Every container of the sandbox sees it, and one with CAP_SYS_PTRACE may look into it, so there is nothing to see: a
//! program of a few instructions in a memory file of its own, no memory of ours, an empty read-only root, no descriptor
//! at all, a user of its own, no capabilities, and a filter that leaves it the three system calls it needs.
//! Invariant: until it is executed the process has no root but the empty one, so no instant shows anything of the host.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, Pid, chdir, fork, pipe2, pivot_root};

use super::super::seccomp_filter;
use super::super::spec::Users;
use super::{because, leave, users};

/// Nobody's: what the pause image of other runtimes uses.
const USER: libc::uid_t = 65_535;

// The program: wait for signals, of which none has an effect, for ever. SIGCHLD is ignored, which execution keeps.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .rodata.sandbox_first_process,\"a\"",
    ".global sandbox_first_process_code",
    "sandbox_first_process_code:",
    "2:",
    "mov eax, 34", // pause
    "syscall",
    "jmp 2b",
    ".global sandbox_first_process_end",
    "sandbox_first_process_end:",
    ".popsection",
);
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".pushsection .rodata.sandbox_first_process,\"a\"",
    ".global sandbox_first_process_code",
    "sandbox_first_process_code:",
    "2:",
    "mov x0, #0", // ppoll(NULL, 0, NULL, NULL, 0)
    "mov x1, #0",
    "mov x2, #0",
    "mov x3, #0",
    "mov x4, #0",
    "mov x8, #73",
    "svc #0",
    "b 2b",
    ".global sandbox_first_process_end",
    "sandbox_first_process_end:",
    ".popsection",
);

unsafe extern "C" {
    static sandbox_first_process_code: u8;
    static sandbox_first_process_end: u8;
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;
/// Waiting: `pause`, or where that does not exist `ppoll`.
#[cfg(target_arch = "x86_64")]
const WAITING: libc::c_long = libc::SYS_pause;
#[cfg(target_arch = "aarch64")]
const WAITING: libc::c_long = libc::SYS_ppoll;

/// Where the program is mapped; anything that is not near zero will do.
const ADDRESS: u64 = 0x10_0000;
const HEADERS_BYTES: u64 = 64 + 56;

/// An ELF file with one segment that holds the program.
fn image() -> Vec<u8> {
    // SAFETY: both symbols are labels of one section of constants, the second behind the first.
    let code = unsafe {
        let (begin, end) = (&raw const sandbox_first_process_code, &raw const sandbox_first_process_end);
        std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin))
    };
    let length = HEADERS_BYTES + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2u16.to_le_bytes()); // an executable at fixed addresses
    file.extend(MACHINE.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend((ADDRESS + HEADERS_BYTES).to_le_bytes()); // entry
    file.extend(64u64.to_le_bytes()); // program headers
    file.extend(0u64.to_le_bytes()); // no section headers
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes()); // to be loaded
    file.extend(5u32.to_le_bytes()); // readable, executable
    for word in [0, ADDRESS, ADDRESS, length, length, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

fn memory_file() -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags};
    let file = rustix::fs::memfd_create("pause", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = fs::File::from(file);
    file.write_all(&image())?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o555))?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Starts it and returns its id as seen from here; it ends with this process. Its namespace belongs to the users' own, if they
/// have one, and it is in there.
pub(super) fn start(users: Option<&Users>) -> io::Result<Pid> {
    let program = memory_file()?;
    let (ready, report) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let pid = match users {
        None => clone(0, &program, &report)?,
        Some(users) => clone_inside(users, &program, &report)?,
    };
    drop(report);
    let mut message = String::new();
    // Closed by the execution, which is when the process is what it is to be.
    fs::File::from(ready).read_to_string(&mut message)?;
    if message.is_empty() {
        return Ok(pid);
    }
    let _ = nix::sys::wait::waitpid(pid, None);
    Err(because("making the shared process namespace", message))
}

fn clone(flags: libc::c_int, program: &OwnedFd, report: &OwnedFd) -> io::Result<Pid> {
    let flags = flags | libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: as fork, in a process with one thread; the child keeps its parent's stack as a copy.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let Err(error) = confine_and_execute(program, report);
            // What is not the report was closed, perhaps.
            let _ = nix::unistd::write(report, error.to_string().as_bytes());
            leave(1)
        }
        pid => Ok(Pid::from_raw(i32::try_from(pid).unwrap_or_default())),
    }
}

/// Through a child that joins the user namespace; what it clones is nevertheless a child of this process.
fn clone_inside(users: &Users, program: &OwnedFd, report: &OwnedFd) -> io::Result<Pid> {
    let (answer, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: no other thread exists in this process.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(answer);
            let made = users::join(users).and_then(|()| clone(libc::CLONE_PARENT, program, report));
            let said = made.map_or_else(|error| error.to_string(), |pid| pid.to_string());
            let _ = fs::File::from(tell).write_all(said.as_bytes());
            leave(0)
        }
        ForkResult::Parent { child } => {
            drop(tell);
            let said = io::read_to_string(fs::File::from(answer))?;
            let _ = nix::sys::wait::waitpid(child, None);
            said.parse().map(Pid::from_raw).map_err(|_| because("making the shared process namespace", said))
        }
    }
}

/// `report` is closed by the execution.
fn confine_and_execute(program: &OwnedFd, report: &OwnedFd) -> io::Result<std::convert::Infallible> {
    // SAFETY: flags and signals of this process.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
    let _ = nix::sys::signal::sigprocmask(
        nix::sys::signal::SigmaskHow::SIG_SETMASK,
        Some(&nix::sys::signal::SigSet::all()),
        None,
    );
    empty_root().map_err(|error| because("emptying its root", error))?;
    become_nobody()?;
    close_all_but(program, report);
    // Given up with the user before: what a change of credentials clears is set after it.
    // SAFETY: flags of this process.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    }
    // Its parent may have ended before the signal was asked for; then nobody reads.
    let mut poll = libc::pollfd { fd: report.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one structure that lives until the call returns.
    if unsafe { libc::poll(&raw mut poll, 1, 0) } != 0 {
        leave(1);
    }
    let needed = [WAITING, libc::SYS_execveat, libc::SYS_restart_syscall, libc::SYS_rt_sigreturn, libc::SYS_exit_group];
    // `write` is for the report of a failure; afterwards there is nothing to write to.
    seccomp_filter::load(&seccomp_filter::only(&[&needed[..], &[libc::SYS_write]].concat()))
        .map_err(|error| because("its system call filter", error))?;
    let (arguments, environment) = ([c"pause".as_ptr(), std::ptr::null()], [std::ptr::null::<libc::c_char>()]);
    // SAFETY: all pointers are to constants that live until the call returns, which it does only on failure.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}

/// What is left closes at execution.
fn close_all_but(one: &OwnedFd, other: &OwnedFd) {
    let number = |fd: &OwnedFd| u32::try_from(fd.as_raw_fd()).unwrap_or_default();
    let (low, high) = (number(one).min(number(other)), number(one).max(number(other)));
    let ranges = [0..low, low + 1..high, high + 1..libc::c_uint::MAX];
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        // SAFETY: none of these descriptors is used any more.
        unsafe { libc::syscall(libc::SYS_close_range, range.start, range.end - 1, 0) };
    }
}

/// A mount namespace in which there is one empty directory.
fn empty_root() -> io::Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Over any directory to which also root of a user namespace may go.
    let place = "/proc";
    mount(Some("none"), place, Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=555"))?;
    chdir(place)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}

/// The permitted and effective capabilities go with the user, the others before it.
fn become_nobody() -> io::Result<()> {
    nix::unistd::setgroups(&[]).map_err(|error| because("its groups", error))?;
    for set in [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Bounding] {
        caps::clear(None, set).map_err(|error| because("its capabilities", error))?;
    }
    nix::unistd::setresgid(USER.into(), USER.into(), USER.into()).map_err(|error| because("its group", error))?;
    nix::unistd::setresuid(USER.into(), USER.into(), USER.into()).map_err(|error| because("its user", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_small_and_waits() {
        let image = image();
        assert!(image.len() < 256 && image.len() > HEADERS_BYTES as usize, "{} bytes", image.len());
        let file = memory_file().unwrap();
        let mut child = {
            #[allow(clippy::disallowed_methods, reason = "a test")]
            std::process::Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())).spawn().unwrap()
        };
        // It would be killed by a signal or end, did the kernel or the processor not like it. Until its turn comes on a busy
        // machine it is `running` and has called nothing, or is still about to return from the call that started it.
        let (waits, starts) = (WAITING.to_string(), libc::SYS_execve.to_string());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            assert!(child.try_wait().unwrap().is_none());
            let call = fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap_or_default();
            // A kernel without this file tells nothing.
            let number = call.split_whitespace().next().unwrap_or_default();
            if number.is_empty() || number == waits {
                break;
            }
            assert!((number == "running" || number == starts) && std::time::Instant::now() < end, "{call}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
