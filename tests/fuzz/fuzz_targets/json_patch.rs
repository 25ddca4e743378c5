//! A JSON patch, in the first line, on the object after it.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("json_patch", data));
