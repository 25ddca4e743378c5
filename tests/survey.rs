//! What a process in a container finds around it: nothing through which it could reach the host. Needs root.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::too_many_lines)]
#![allow(dead_code, reason = "the laboratory is shared with other tests")]

/// The executable that every process comes in with.
#[path = "survey/executable.rs"]
mod executable;
/// What became of the fields of a pod.
#[path = "survey/fields.rs"]
mod fields;
/// Process 1 of a shared process namespace.
#[path = "survey/first.rs"]
mod first;
/// Pods under Pod Security.
#[path = "survey/golden.rs"]
mod golden;
/// Control groups and keyrings.
#[path = "survey/groups.rs"]
mod groups;
#[path = "survey/image.rs"]
mod image;
#[path = "run/lab.rs"]
mod lab;
#[path = "e2e/lab.rs"]
mod machine;

use amphipod::containers::{ExecSpec, Runtime};
use tokio::io::AsyncReadExt;

/// Runs a script in a running container by exec: exit code and all output.
async fn exec(lab: &lab::Lab, container: &str, script: &str) -> (i32, String) {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let mut session = lab.runtime.exec(container, ExecSpec { args, ..ExecSpec::default() }).await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    session.stdout.read_to_string(&mut out).await.unwrap();
    session.stderr.as_mut().unwrap().read_to_string(&mut err).await.unwrap();
    (session.control.wait().await.unwrap(), out + &err)
}
