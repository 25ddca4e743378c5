//! An expression about a value: refused, or evaluated within its limits.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("cel_expression", data));
