//! Real containers with the real shim: one binary, a module per theme. Needs root.

#[path = "run/lab.rs"]
mod lab;
/// Start, exit codes, logs, exec, stop, kill, re-adoption, limits.
#[path = "run/lifecycle.rs"]
mod lifecycle;
