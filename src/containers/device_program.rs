//! Device rules on cgroup version 2: a small BPF program made from the OCI list and attached to the cgroup.
//!
//! Version 2 has no control file for devices. The program looks at type, access and numbers of a device and returns
//! allow or deny; the last matching rule of the list wins, so the program tests them in reverse.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const DEVICE_BLOCK: i32 = 1;
const DEVICE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

/// One BPF instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | (source << 4), offset, immediate }
}

/// `r[destination] = *(u32 *)(r1 + offset)`
const fn load(destination: u8, offset: i16) -> Instruction {
    instruction(0x61, destination, 1, offset, 0)
}
/// `w[destination] = w[source]`
const fn move32(destination: u8, source: u8) -> Instruction {
    instruction(0xbc, destination, source, 0, 0)
}
const fn and32(destination: u8, immediate: i32) -> Instruction {
    instruction(0x54, destination, 0, 0, immediate)
}
/// `if w[destination] != immediate goto +offset`
const fn jump_unless(destination: u8, immediate: i32, offset: i16) -> Instruction {
    instruction(0x55, destination, 0, offset, immediate)
}
/// `r0 = value; exit`
const fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(0xb7, 0, 0, 0, allow as i32), instruction(0x95, 0, 0, 0, 0)]
}

/// The context is `{ u32 access_type (access << 16 | type); u32 major; u32 minor; }`.
fn compile(rules: &[LinuxDeviceCgroup]) -> Vec<Instruction> {
    let mut program = vec![
        load(2, 0),
        and32(2, 0xffff), // r2 = type
        load(3, 0),
        instruction(0x74, 3, 0, 0, 16), // r3 = access
        load(4, 4),                     // r4 = major
        load(5, 8),                     // r5 = minor
    ];
    for rule in rules.iter().rev() {
        let block = block(rule);
        // A rule for everything ends the program: the kernel refuses instructions that nothing reaches.
        let final_word = block.len() == answer(false).len();
        program.extend(block);
        if final_word {
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// The instructions of one rule; each failing test jumps behind the block.
fn block(rule: &LinuxDeviceCgroup) -> Vec<Instruction> {
    let mut tests: Vec<Instruction> = Vec::new();
    let mut jumps: Vec<usize> = Vec::new();
    let mut require = |tests: &mut Vec<Instruction>, register: u8, value: i32| {
        jumps.push(tests.len());
        tests.push(jump_unless(register, value, 0));
    };
    match rule.typ() {
        Some(LinuxDeviceType::B) => require(&mut tests, 2, DEVICE_BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => require(&mut tests, 2, DEVICE_CHAR),
        _ => {}
    }
    let access = access_bits(rule.access().as_deref().unwrap_or("rwm"));
    if access != ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE {
        // Everything asked for must be among what the rule speaks of.
        tests.push(move32(0, 3));
        tests.push(and32(0, !access & 7));
        require(&mut tests, 0, 0);
    }
    let number = |value: Option<i64>| value.and_then(|value| i32::try_from(value).ok()).filter(|value| *value >= 0);
    if let Some(major) = number(rule.major()) {
        require(&mut tests, 4, major);
    }
    if let Some(minor) = number(rule.minor()) {
        require(&mut tests, 5, minor);
    }
    tests.extend(answer(rule.allow()));
    let end = tests.len();
    for jump in jumps {
        tests[jump].offset = i16::try_from(end - jump - 1).expect("a block has less than 20 instructions");
    }
    tests
}

fn access_bits(access: &str) -> i32 {
    access.chars().fold(0, |bits, letter| {
        bits | match letter {
            'r' => ACCESS_READ,
            'w' => ACCESS_WRITE,
            'm' => ACCESS_MKNOD,
            _ => 0,
        }
    })
}

/// Loads the program for `rules` and attaches it to the cgroup directory.
pub(crate) fn attach(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 12],
    }
    #[repr(C)]
    #[derive(Default)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
        rest: [u64; 4],
    }
    let program = compile(rules);
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).expect("device lists are short"),
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let directory = fs::File::open(cgroup)?;
    // SAFETY: both structures are as the kernel's `union bpf_attr` begins, zero beyond, and what they point to outlives
    // the calls; the returned descriptor is closed below (the attached program lives on in the cgroup).
    unsafe {
        let loaded = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>());
        if loaded < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(loaded).expect("descriptors are small");
        let attach = Attach {
            target: directory.as_raw_fd().cast_unsigned(),
            program: fd.cast_unsigned(),
            kind: BPF_CGROUP_DEVICE,
            flags: BPF_F_ALLOW_MULTI,
            rest: [0; 4],
        };
        let attached = libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>());
        let error = io::Error::last_os_error();
        libc::close(fd);
        if attached < 0 { Err(error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::LinuxDeviceCgroupBuilder;

    fn rule(allow: bool, numbers: Option<(i64, i64)>, access: &str) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).access(access).build().unwrap();
        if let Some((major, minor)) = numbers {
            rule.set_typ(Some(LinuxDeviceType::C)).set_major(Some(major)).set_minor(Some(minor));
        }
        rule
    }

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], context: [u32; 3]) -> i32 {
        let mut registers = [0u32; 16];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (destination, source) = ((pair & 15) as usize, (pair >> 4) as usize);
            match code {
                0x61 => registers[destination] = context[offset as usize / 4],
                0xbc => registers[destination] = registers[source],
                0x54 => registers[destination] &= immediate as u32,
                0x74 => registers[destination] >>= immediate,
                0xb7 => registers[destination] = immediate as u32,
                0x55 if registers[destination] != immediate as u32 => at += offset as usize,
                0x55 => {}
                0x95 => return registers[0] as i32,
                other => panic!("unknown instruction {other:#x}"),
            }
            at += 1;
        }
    }

    fn asks(access: i32, kind: i32, major: u32, minor: u32) -> [u32; 3] {
        [((access << 16) | kind) as u32, major, minor]
    }

    #[test]
    fn the_last_matching_rule_wins() {
        let program = compile(&[rule(false, None, "rwm"), rule(true, Some((1, 3)), "rw")]);
        assert_eq!(run(&program, asks(ACCESS_READ | ACCESS_WRITE, DEVICE_CHAR, 1, 3)), 1);
        assert_eq!(run(&program, asks(ACCESS_MKNOD, DEVICE_CHAR, 1, 3)), 0);
        assert_eq!(run(&program, asks(ACCESS_READ, DEVICE_CHAR, 1, 5)), 0);
        assert_eq!(run(&program, asks(ACCESS_READ, DEVICE_BLOCK, 1, 3)), 0);
        assert_eq!(run(&compile(&[rule(true, None, "rwm")]), asks(7, DEVICE_BLOCK, 8, 0)), 1);
        assert_eq!(run(&compile(&[]), asks(ACCESS_READ, DEVICE_CHAR, 1, 3)), 0);
    }

    #[test]
    fn the_kernel_takes_and_obeys_the_program() {
        let Some(mount) = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|mount| fs::metadata(format!("{mount}/cgroup.controllers")).is_ok())
        else {
            eprintln!("skipped: no cgroup version 2 mount on this machine");
            return;
        };
        let cgroup = Path::new(mount).join(format!("amphipod-device-test-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        attach(&cgroup, &[rule(false, None, "rwm"), rule(true, Some((1, 3)), "rwm")]).unwrap();
        // A shell that joins the cgroup may read /dev/null and not /dev/zero.
        let script = format!(
            "echo 0 > {}/cgroup.procs; ( : < /dev/null ) || exit 10; ( : < /dev/zero ) 2>/dev/null && exit 11; exit 0",
            cgroup.display()
        );
        #[allow(clippy::disallowed_methods)]
        let status = std::process::Command::new("/bin/sh").args(["-c", &script]).status().unwrap();
        fs::remove_dir(&cgroup).unwrap();
        assert_eq!(status.code(), Some(0));
    }
}
