//! A field selector: its terms, written with escapes, read the same.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("field_selector", data));
