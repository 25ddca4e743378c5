//! A strategic merge patch on an object of its type.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("strategic_patch", data));
