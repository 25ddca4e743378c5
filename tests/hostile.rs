//! Pods that mean harm, on the whole executable: what they do to volumes, paths, files and the machine's memory stays theirs.
//! One file per subject. Needs root, `kubectl` on the PATH and Debian's busybox-static.

#![allow(clippy::unwrap_used, clippy::too_many_lines)] // A test that cannot go on says where.

/// Files that a container writes and the host reads.
#[path = "hostile/files.rs"]
mod files;
/// The same machine as for the end-to-end tests.
#[path = "e2e/lab.rs"]
#[allow(dead_code, reason = "shared with tests/e2e")]
mod lab;
/// What others on the machine can read.
#[path = "hostile/privacy.rs"]
mod privacy;
/// An image of busybox without a registry, and pods of it.
#[path = "hostile/stage.rs"]
mod stage;
/// What is found on a disk when a node starts.
#[path = "hostile/start.rs"]
mod start;
/// Directories without end.
#[path = "hostile/trees.rs"]
mod trees;
/// Pods with users of their own.
#[path = "hostile/users.rs"]
mod users;
/// Links and exchanged directories in volumes.
#[path = "hostile/volumes.rs"]
mod volumes;
