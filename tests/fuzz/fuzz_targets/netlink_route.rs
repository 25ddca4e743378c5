//! The kernel's answers about links, addresses, neighbours and routes.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("netlink_route", data));
