//! A JSON body: bounded, and the same when it is written and read again.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("json_decode", data));
