//! The kernel's answers about tracked flows.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("netlink_conntrack", data));
