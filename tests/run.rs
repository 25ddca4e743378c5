//! Real containers with the real shim: one binary, a module per theme. Needs root.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::too_many_lines)]

/// Archives in and out, and nodes that give each other images.
#[path = "run/archives.rs"]
mod archives;
/// Memory and latency of a sandbox.
#[path = "run/cost.rs"]
mod cost;
/// Pull, unpack, share, import, garbage.
#[path = "run/images.rs"]
mod images;
/// What remains of a node.
#[path = "run/killall.rs"]
mod killall;
#[path = "run/lab.rs"]
mod lab;
/// Start, exit codes, logs, exec, stop, kill, re-adoption, limits.
#[path = "run/lifecycle.rs"]
mod lifecycle;
/// What confines a container, attach and ttys.
#[path = "run/limits.rs"]
mod limits;
#[path = "run/registry.rs"]
mod registry;
/// The same with Debian's registry and tools.
#[path = "run/registry_real.rs"]
mod registry_real;
/// The suite over the real runtime and the fake.
#[path = "run/suite.rs"]
mod suite;
