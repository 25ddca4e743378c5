//! Frames of the tunnel between agents and server.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("tunnel_frames", data));
