//! Pods that mean harm, on the whole executable: what they do to volumes, paths, files and the machine's memory stays theirs.
//! The server has 256 MB of memory and must answer one who only reads all the time (`watch`). One file per subject. Needs root, `kubectl` on the PATH and Debian's busybox-static.

#![allow(clippy::unwrap_used, clippy::too_many_lines, clippy::print_stdout)] // A test that cannot go on says where.

/// Requests, shared with tests/requests.
#[path = "requests/bodies.rs"]
#[allow(dead_code, reason = "shared with tests/requests")]
mod bodies;
/// The same machine as for the end-to-end tests.
#[path = "e2e/busybox.rs"]
mod busybox;
/// Files that a container writes and the host reads.
#[path = "hostile/files.rs"]
mod files;
#[path = "e2e/lab.rs"]
#[allow(dead_code, reason = "shared with tests/e2e")]
mod lab;
/// Requests, connections and images.
#[path = "hostile/load.rs"]
mod load;
/// What others on the machine can read.
#[path = "hostile/privacy.rs"]
mod privacy;
/// Clients that take nothing.
#[path = "hostile/readers.rs"]
mod readers;
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
/// A server with little memory, and somebody who only reads.
#[path = "hostile/watch.rs"]
mod watch;
