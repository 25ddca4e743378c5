//! Frames of SPDY, as clients of exec and port-forward send them.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("spdy_frames", data));
