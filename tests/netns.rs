//! Tests of pod network and data plane with real kernel objects, as root, in network namespaces of their own.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::too_many_lines)]

#[path = "netns/lab.rs"]
mod lab;

/// Cluster DNS as pods reach it.
#[path = "netns/dns.rs"]
mod dns;
/// Figures that are printed, not asserted.
#[path = "netns/figures.rs"]
mod figures;
/// Frames that no honest sender writes.
#[path = "netns/frames.rs"]
mod frames;
/// What pods and strangers try, and what stops it.
#[path = "netns/hostile.rs"]
mod hostile;
/// Pods of several nodes, on one segment and behind a router.
#[path = "netns/overlay.rs"]
mod overlay;
/// Namespaces, addresses, restart, tear-down.
#[path = "netns/pods.rs"]
mod pods;
/// What network policies let through.
#[path = "netns/policies.rs"]
mod policies;
/// Services, node ports, host ports and masquerading, proven with sockets.
#[path = "netns/services.rs"]
mod services;
