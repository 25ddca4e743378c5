//! Up to four configurations, apart by lines of `---`: applied, forced, updated and applied by different managers. What is
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("server_side_apply", data));
