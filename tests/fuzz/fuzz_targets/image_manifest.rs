//! Manifests, configurations and names of images.
#![no_main]

#[path = "../memory.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::run("image_manifest", data));
