//! The file behind `/proc/self/exe` of whatever enters a container is never the installed one, to change or to write.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use amphipod::containers::*;

use crate::exec;
use crate::lab::Lab;

/// What must not change of the installed file.
fn state(path: &Path) -> (u32, u32, u64, i64) {
    let found = fs::metadata(path).unwrap();
    (found.mode(), found.uid(), found.len(), found.mtime())
}

#[tokio::test]
async fn the_installed_executable_cannot_be_changed_by_a_container() {
    let directory = tempfile::tempdir().unwrap();
    let installed = directory.path().join("amphipod");
    fs::copy(env!("CARGO_BIN_EXE_amphipod"), &installed).unwrap();
    let before = state(&installed);
    let lab = Lab::with_executable(installed.clone()).await;
    let own_network = || SandboxSpec { netns: Some(lab.netns()), ..lab.sandbox_spec() };
    let sandbox = lab.runtime.create_sandbox(own_network()).await.unwrap();
    let other = lab.runtime.create_sandbox(own_network()).await.unwrap();

    // The program of a container is what it was started from; then the program of an exec. Both may mount.
    let itself: Vec<String> = vec!["/proc/self/exe".into(), "hello".into()];
    let mighty = |args: Vec<String>| {
        let mut spec = ContainerSpec { args, ..lab.script("") };
        spec.capabilities.add = vec!["SYS_ADMIN".into(), "SYS_PTRACE".into()];
        spec
    };
    let hello = lab.start(&sandbox.spec.id, mighty(itself.clone())).await;
    let waits = lab.start(&other.spec.id, mighty(vec!["sleep".into(), "1000".into()])).await;
    let _session = lab.runtime.exec(&waits, ExecSpec { args: itself, ..ExecSpec::default() }).await.unwrap();
    let find = "for p in /proc/[0-9]*; do
            case \"$(busybox tr '\\0' ' ' < $p/cmdline)\" in '/proc/self/exe hello '*) exe=$p/exe;; esac; done";
    for container in [&hello, &waits] {
        for attempt in [
            "busybox chmod 4777 $exe",
            "busybox chmod 0 $exe",
            "busybox chown 1 $exe",
            "busybox touch $exe",
            "(: >> $exe)",
            "busybox mount -o remount,bind,rw none $exe",
            "busybox ln -L $exe /tmp/linked",
        ] {
            let script = format!("{find}; [ -n \"$exe\" ] || exit 0; {attempt}");
            let (code, out) = exec(&lab, container, &script).await;
            assert!(code != 0 && !out.contains("not found"), "{attempt}: {code} {out}");
        }
    }
    assert_eq!(state(&installed), before);

    // The same file of the sandbox's own process, for root of this machine, with every right there is.
    let shim = format!("/proc/{}/exe", sandbox.pid);
    let read_only = |result: io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    read_only(fs::set_permissions(&shim, fs::Permissions::from_mode(0o4777)));
    read_only(std::os::unix::fs::chown(&shim, Some(1), None));
    let found = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&shim).unwrap();
    // struct mount_attr that clears MOUNT_ATTR_RDONLY
    let writable = [0u64, 1, 0, 0];
    // SAFETY: the path is a constant, the kernel reads the structure of the size that is given.
    let result = unsafe {
        let empty = c"".as_ptr();
        libc::syscall(libc::SYS_mount_setattr, found.as_raw_fd(), empty, libc::AT_EMPTY_PATH, writable.as_ptr(), 32)
    };
    assert_eq!(result, -1, "the mount can be made writable");
    assert_eq!(state(&installed), before);

    // An upgrade replaces the file; new sandboxes still begin.
    fs::remove_file(&installed).unwrap();
    let another = lab.sandbox().await;
    assert_eq!(lab.run(&another, lab.script("echo well")).await, (0, "well\n".into()));
}

#[tokio::test]
async fn the_built_in_image_is_not_the_installed_executable() {
    let lab = Lab::new().await;
    let store = image::ImageStore::open(&lab.config, image::Registries::default()).unwrap();
    let id = new_id();
    let rootfs = store.prepare_rootfs(image::HELLO, &id, None).await.unwrap();
    let installed = fs::metadata(&lab.config.executable).unwrap();
    let shown = fs::metadata(rootfs.join("amphipod")).unwrap();
    let layer = fs::metadata(lab.config.images_dir().join("hello/amphipod")).unwrap();
    for found in [&shown, &layer] {
        assert_ne!((found.dev(), found.ino()), (installed.dev(), installed.ino()));
        assert_eq!(found.len(), installed.len());
    }
    assert_eq!((layer.mode() & 0o7777, layer.nlink()), (0o555, 1));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = format!("{}/amphipod ", rootfs.display());
    assert!(!mounts.contains(&below), "a mount in the root file system:\n{mounts}");
    store.release_rootfs(&id).await.unwrap();
}
