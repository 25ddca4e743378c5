//! A YAML body: bounded, the same when it is written as JSON and read as either, and a manifest that is refused or not.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("yaml_decode", data));
