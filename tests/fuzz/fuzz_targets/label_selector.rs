//! A label selector, as text or as an object: what is printed reads the same, and it selects or not.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("label_selector", data));
