//! What every [`Runtime`] must do, run over the real one and over the fake, which is only believed because of it.

use std::path::PathBuf;
use std::time::Duration;

use amphipod::containers::fake::{FakeImages, FakeRuntime};
use amphipod::containers::*;
use tokio::io::AsyncReadExt;

use crate::lab::Lab;

/// A container that runs until it is stopped, and one that exits with 3.
struct Samples {
    sandbox: SandboxSpec,
    stays: ContainerSpec,
    ends: ContainerSpec,
}

async fn suite(runtime: &dyn Runtime, samples: Samples) {
    let id = samples.sandbox.id.clone();
    let mut events = runtime.events();
    let made = runtime.create_sandbox(samples.sandbox.clone()).await.unwrap();
    assert!(made.alive && made.containers.is_empty() && made.spec == samples.sandbox && made.pid > 0);
    assert!(matches!(runtime.create_sandbox(samples.sandbox.clone()).await, Err(Error::Exists(_))));
    assert!(matches!(runtime.start_container("none", samples.stays.clone()).await, Err(Error::NoSandbox(_))));
    let empty = ContainerSpec { args: Vec::new(), id: new_id(), ..samples.stays.clone() };
    assert!(matches!(runtime.start_container(&id, empty).await, Err(Error::Spec(_))));

    let (stays, ends) = (samples.stays.id.clone(), samples.ends.id.clone());
    let pid = runtime.start_container(&id, samples.stays.clone()).await.unwrap();
    assert!(matches!(runtime.start_container(&id, samples.stays.clone()).await, Err(Error::Exists(_))));
    let status = runtime.container(&stays).await.unwrap();
    assert!(status.is_running() && status.pid == pid && status.labels == samples.stays.labels);
    assert_eq!(runtime.stats(&stays).await.unwrap().pids, Some(1));

    runtime.start_container(&id, samples.ends.clone()).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap();
    assert_eq!(event, Event::ContainerExited { sandbox: id.clone(), container: ends.clone() });
    assert_eq!(runtime.container(&ends).await.unwrap().exit_code(), Some(3));
    assert!(matches!(runtime.kill(&ends, 15).await, Err(Error::NotRunning(_))));
    assert!(matches!(runtime.exec(&ends, ExecSpec::default()).await, Err(Error::NotRunning(_))));
    runtime.stop_container(&ends, Duration::ZERO).await.unwrap();

    let echo = ExecSpec { args: vec!["echo".into(), "hi".into()], ..ExecSpec::default() };
    let mut session = runtime.exec(&stays, echo).await.unwrap();
    let mut out = String::new();
    session.stdout.read_to_string(&mut out).await.unwrap();
    assert!(out.ends_with("hi\n") && session.control.wait().await.unwrap() == 0, "{out}");

    runtime.stop_container(&stays, Duration::from_secs(20)).await.unwrap();
    let ContainerState::Exited { code, signal, .. } = runtime.container(&stays).await.unwrap().state else { panic!() };
    assert_eq!((code, signal), (143, Some(15)));
    runtime.remove_container(&stays).await.unwrap();
    runtime.remove_container(&stays).await.unwrap();
    assert!(runtime.container(&stays).await.is_none());
    assert!(matches!(runtime.kill(&stays, 9).await, Err(Error::NoContainer(_))));
    runtime.remove_sandbox(&id).await.unwrap();
    runtime.remove_sandbox(&id).await.unwrap();
    assert!(runtime.list().await.is_empty());

    let one = runtime.make_users("one").await.unwrap();
    assert_eq!(runtime.make_users("one").await.unwrap(), one);
    let two = runtime.make_users("two").await.unwrap();
    assert!(two.first_id.abs_diff(one.first_id) >= one.count, "{one:?} {two:?}");
    assert_eq!((one.on_the_machine(1), one.on_the_machine(one.count)), (Some(one.first_id + 1), None));
    assert_eq!(runtime.users_list().await, ["one", "two"]);
    runtime.remove_users("one").await.unwrap();
    runtime.remove_users("one").await.unwrap();
    assert_eq!(runtime.users_list().await, ["two"]);
    runtime.remove_users("two").await.unwrap();
}

#[tokio::test]
async fn the_real_runtime_passes() {
    let lab = Lab::new().await;
    let mut stays = lab.script("");
    // Process 1 dies of SIGTERM only with a handler or as another's child: a shared namespace makes it a plain process.
    stays.args = vec!["sleep".into(), "100".into()];
    let sandbox = SandboxSpec { share_process_namespace: true, ..lab.sandbox_spec() };
    let ends = ContainerSpec { args: vec!["sh".into(), "-c".into(), "exit 3".into()], ..lab.script("") };
    suite(&lab.runtime, Samples { sandbox, stays, ends }).await;
}

#[tokio::test]
async fn the_fake_runtime_passes() {
    let container = |args: &[&str]| ContainerSpec {
        id: new_id(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        rootfs: PathBuf::from("/"),
        ..ContainerSpec::default()
    };
    let sandbox = SandboxSpec { id: new_id(), ..SandboxSpec::default() };
    suite(&FakeRuntime::default(), Samples { sandbox, stays: container(&["run"]), ends: container(&["exit", "3"]) })
        .await;
}

#[tokio::test]
async fn the_fake_images_behave() {
    let images = FakeImages::default();
    assert!(images.pull("Bad Name", &[]).await.is_err());
    assert!(images.status("nginx").await.is_none());
    let image = images.pull("nginx", &[]).await.unwrap();
    assert_eq!(images.status("docker.io/library/nginx:latest").await, Some(image));
    images.fail("nginx", Some(ImageError::NoImage("nginx".into())));
    assert!(images.pull("nginx", &[]).await.is_err());
    images.prepare_rootfs("nginx", "c", None).await.unwrap();
    assert_eq!(images.rootfs_list().await, ["c"]);
}
