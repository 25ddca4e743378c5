//! Asks the linker to keep one of functions that came out the same, where it can (LLD does, GNU ld does not).

use std::env::var;
use std::path::Path;
use std::process::Command;

const FOLD: &str = "link-arg=-Wl,--icf=all";

/// Links an empty program as the executable will be linked.
fn linker_folds() -> Option<bool> {
    let out = Path::new(&var("OUT_DIR").ok()?).join("probe");
    let source = out.with_extension("rs");
    std::fs::write(&source, "fn main() {}\n").ok()?;
    let flags = var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let mut rustc = Command::new(var("RUSTC").ok()?);
    rustc.args(flags.split('\x1f').filter(|flag| !flag.is_empty())).args(["--target", &var("TARGET").ok()?]);
    if let Ok(linker) = var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let output = rustc.args(["-C", FOLD, "-o"]).arg(&out).arg(&source).output().ok()?;
    Some(output.status.success())
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if var("PROFILE").as_deref() == Ok("release") && linker_folds() == Some(true) {
        println!("cargo:rustc-{FOLD}");
    }
}
