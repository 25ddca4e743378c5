//! The main job, end to end: the real executable as server and node in a network namespace of its own, worked with by the
//! real kubectl. Needs root, `kubectl`, `curl`, `nft` and `dig` on the PATH (`scripts/test` installs them).

#![allow(clippy::unwrap_used, clippy::too_many_lines)] // A test that cannot go on says where.

/// No registry at all.
#[path = "e2e/airgap.rs"]
mod airgap;
/// Images without a registry.
#[path = "e2e/archive.rs"]
mod archive;
/// What nodes and pods use, and workloads that follow it.
#[path = "e2e/autoscale.rs"]
mod autoscale;
/// An agent that begins while the server is away.
#[path = "e2e/away.rs"]
mod away;
#[path = "e2e/busybox.rs"]
mod busybox;
/// Cables that are slow and lose frames.
#[path = "e2e/cable.rs"]
mod cable;
/// Our own commands, where there is no kubectl.
#[path = "e2e/cli.rs"]
mod cli;
/// HTTPS clients without kubectl.
#[path = "e2e/client.rs"]
mod client;
/// A server and agents.
#[path = "e2e/cluster.rs"]
mod cluster;
/// kill -9 of the server, again and again.
#[path = "e2e/crash.rs"]
mod crash;
/// A look into pods and nodes.
#[path = "e2e/debug.rs"]
mod debug;
/// What an administrator does with nodes.
#[path = "e2e/drain.rs"]
mod drain;
/// Ports of pods on the user's machine.
#[path = "e2e/forward.rs"]
mod forward;
/// Frames that no honest sender writes.
#[path = "netns/frames.rs"]
#[allow(dead_code, reason = "tests/netns uses all of it")]
mod frames;
/// What remains.
#[path = "e2e/gone.rs"]
mod gone;
/// The built-in image, served, scaled, rolled.
#[path = "e2e/hello.rs"]
mod hello;
/// helm and a chart.
#[path = "e2e/helm.rs"]
mod helm;
/// What pods and strangers try.
#[path = "e2e/hostile.rs"]
mod hostile;
/// Images with strange configurations.
#[path = "e2e/images.rs"]
mod images;
/// Work that ends, and what makes it again and again.
#[path = "e2e/jobs.rs"]
mod jobs;
/// What kubectl checks before it sends.
#[path = "e2e/kubectl.rs"]
mod kubectl;
/// What nodes tell at a port of their own.
#[path = "e2e/kubelet.rs"]
mod kubelet;
#[path = "e2e/lab.rs"]
mod lab;
/// What pods leave behind.
#[path = "e2e/leak.rs"]
mod leak;
/// 127.0.0.1 and the ports of nodes.
#[path = "e2e/loopback.rs"]
mod loopback;
#[path = "e2e/machines.rs"]
mod machines;
/// An image pulled from a registry, and everything kubectl does with a Deployment of it.
#[path = "e2e/nginx.rs"]
mod nginx;
/// What becomes of pods on either node: lost sandboxes, ends, volumes, resources.
#[path = "e2e/pods.rs"]
mod pods;
/// Who may speak to whom.
#[path = "e2e/policies.rs"]
mod policies;
/// Room for pods of higher priority.
#[path = "e2e/preemption.rs"]
mod preemption;
/// Images that only some may have.
#[path = "e2e/private.rs"]
mod private;
/// Nodes, pods and Services through the API.
#[path = "e2e/proxy.rs"]
mod proxy;
#[path = "e2e/recording.rs"]
mod recording;
#[path = "e2e/registry.rs"]
mod registry;
/// Websockets as others than kubectl open them.
#[path = "e2e/sockets.rs"]
mod sockets;
/// Into containers and out of them, on every node.
#[path = "e2e/streams.rs"]
mod streams;
/// Claims, and the directories of nodes that they get.
#[path = "e2e/volumes.rs"]
mod volumes;
/// A pod on every node, and pods with numbers.
#[path = "e2e/workloads.rs"]
mod workloads;
