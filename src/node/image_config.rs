//! What a container becomes by its image and its pod together: command, variables, user and groups, directory, volumes, signal.
//!
//! One rule after the other is what the kubelet and containerd make of the same, also where it surprises: the group of an
//! image's `USER` counts for nothing, because the kubelet passes on the user alone, and a `VOLUME` is a mount of its own.
//! The table in the tests is the specification. Pure but for the user files of the image's root file system.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use nix::sys::signal::Signal;

use super::error::Failed;
use crate::containers::{self, ImageConfig, User};

/// The first and last real-time signal, as everybody outside of libc counts them.
const REAL_TIME: (i32, i32) = (34, 64);
/// Volumes of one image. Each is a mount.
const VOLUMES_MAX: usize = 128;

/// What runs: command and arguments over what the image says.
pub fn arguments(container: &Container, image: &ImageConfig) -> Vec<String> {
    let command = container.command.clone().unwrap_or_default();
    let args = container.args.clone().unwrap_or_default();
    // How some builders write that there is none.
    let entrypoint = if image.entrypoint == [""] { Vec::new() } else { image.entrypoint.clone() };
    match (command.is_empty(), args.is_empty()) {
        (true, true) => [entrypoint, image.cmd.clone()].concat(),
        (true, false) => [entrypoint, args].concat(),
        (false, _) => [command, args].concat(),
    }
}

/// Where it begins.
pub fn directory(container: &Container, image: &ImageConfig) -> String {
    let own = container.working_dir.clone().filter(|own| !own.is_empty());
    own.unwrap_or_else(|| image.working_dir.clone())
}

/// The user that its processes run as.
pub fn user(pod: &Pod, container: &Container, image: &ImageConfig, rootfs: &Path) -> Result<User, Failed> {
    let (of_pod, own) =
        (pod.spec.as_ref().and_then(|s| s.security_context.as_ref()), container.security_context.as_ref());
    let uid = own.and_then(|s| s.run_as_user).or_else(|| of_pod.and_then(|s| s.run_as_user));
    let gid = own.and_then(|s| s.run_as_group).or_else(|| of_pod.and_then(|s| s.run_as_group));
    let of_image = image.user.split(':').next().filter(|user| !user.is_empty()).unwrap_or("0");
    if own.and_then(|s| s.run_as_non_root).or_else(|| of_pod.and_then(|s| s.run_as_non_root)) == Some(true)
        && let Some(why) = may_be_root(uid, of_image)
    {
        let meta = &pod.metadata;
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let named = format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid));
        let message = format!("{why} (pod: {named:?}, container: {})", container.name);
        return Err(Failed { reason: "CreateContainerConfigError", message });
    }
    let mut wanted = uid.map_or_else(|| of_image.to_owned(), |uid| uid.to_string());
    if let Some(gid) = gid {
        wanted = format!("{wanted}:{gid}");
    }
    let mut user = containers::image::resolve_user(rootfs, &wanted)
        .map_err(|e| Failed { reason: "CreateContainerError", message: e.to_string() })?;
    if of_pod.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict") {
        // What the image's /etc/group says of the user does not count.
        user.additional_gids = vec![user.gid];
    }
    let of_pod = of_pod.iter().flat_map(|s| s.supplemental_groups.iter().flatten().chain(s.fs_group.iter()));
    user.additional_gids.extend(of_pod.map(|group| *group as u32));
    user.additional_gids.sort_unstable();
    user.additional_gids.dedup();
    Ok(user)
}

/// Why it cannot be said that the user is not root.
fn may_be_root(uid: Option<i64>, of_image: &str) -> Option<String> {
    match (uid, of_image.parse::<i64>()) {
        (Some(0), _) => Some("container's runAsUser breaks non-root policy".into()),
        (Some(_), _) => None,
        (None, Ok(0)) => Some("container has runAsNonRoot and image will run as root".into()),
        (None, Ok(_)) => None,
        (None, Err(_)) => Some(format!(
            "container has runAsNonRoot and image has non-numeric user ({of_image}), cannot verify user is non-root"
        )),
    }
}

/// The signal that asks it to end; what nobody knows is as good as nothing.
pub fn stop_signal(container: &Container, image: &ImageConfig) -> Option<i32> {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_ref());
    own.or(image.stop_signal.as_ref()).and_then(|name| signal(name))
}

fn signal(name: &str) -> Option<i32> {
    let (first, last) = REAL_TIME;
    if let Ok(number) = name.parse::<i32>() {
        return Some(number).filter(|number| (1..=last).contains(number));
    }
    let name = name.to_ascii_uppercase();
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    let within = |number: i32| Some(number).filter(|number| (first..=last).contains(number));
    let offset = |text: &str| text.parse::<i32>().ok().filter(|n| (0..=last - first).contains(n));
    match short {
        "RTMIN" => Some(first),
        "RTMAX" => Some(last),
        "CLD" => Some(Signal::SIGCHLD as i32),
        "POLL" => Some(Signal::SIGIO as i32),
        _ => match (short.strip_prefix("RTMIN+"), short.strip_prefix("RTMAX-")) {
            (Some(more), _) => within(first + offset(more)?),
            (_, Some(less)) => within(last - offset(less)?),
            _ => format!("SIG{short}").parse::<Signal>().ok().map(|signal| signal as i32),
        },
    }
}

/// Paths of the image that are volumes of their own, less those where the pod mounts something itself: each is a mount of what the
/// image has there, which can be written also where the rest cannot. One inside of what the pod mounts lies over it, as with
/// containerd: what is written there is the container's and not the pod's.
pub fn volumes(image: &ImageConfig, mounted: &[&Path]) -> Vec<PathBuf> {
    let plain = |path: &String| {
        let mut plain = PathBuf::from("/");
        for part in Path::new(path).components() {
            match part {
                Component::Normal(part) => plain.push(part),
                Component::ParentDir => drop(plain.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        plain
    };
    let taken: Vec<PathBuf> = mounted.iter().map(|m| plain(&m.to_string_lossy().into_owned())).collect();
    let is_free =
        |path: &PathBuf| path.parent().is_some() && !path.to_string_lossy().contains('\0') && !taken.contains(path);
    let of_system = |path: &PathBuf| ["/proc", "/sys", "/dev"].iter().any(|system| path.starts_with(system));
    let mut all: Vec<PathBuf> = image.volumes.iter().map(plain).filter(|p| is_free(p) && !of_system(p)).collect();
    all.sort();
    all.dedup();
    all.truncate(VOLUMES_MAX);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:1234:a:/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\napp:x:1234:app\nextra:x:5555:app\nmore:x:6666:app,root\n";

    /// All that comes of an image, a pod's and a container's fields, in one line.
    fn shown(rootfs: &Path, image: &Value, pod: &Value, container: &Value) -> String {
        let image: ImageConfig = serde_json::from_value(image.clone()).unwrap();
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod, "containers": []}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let mut named = container.clone();
        named["name"] = "c".into();
        let container: Container = serde_json::from_value(named).unwrap();
        let user = match user(&pod, &container, &image, rootfs) {
            Ok(user) => format!("{}:{} {:?}", user.uid, user.gid, user.additional_gids),
            Err(failed) => format!("{}: {}", failed.reason, failed.message),
        };
        let mounted: Vec<PathBuf> =
            container.volume_mounts.iter().flatten().map(|m| PathBuf::from(&m.mount_path)).collect();
        let mounted: Vec<&Path> = mounted.iter().map(PathBuf::as_path).collect();
        let signal = stop_signal(&container, &image);
        let mut line = format!("{:?} in {:?} as {user}", arguments(&container, &image), directory(&container, &image));
        if let Some(signal) = signal {
            line += &format!(" ends by {signal}");
        }
        let volumes = volumes(&image, &mounted);
        if !volumes.is_empty() {
            line += &format!(" with {volumes:?}");
        }
        line
    }

    /// What containerd's CRI and the kubelet make of image configurations (versions 2.1 and 1.36).
    #[test]
    #[allow(clippy::too_many_lines, reason = "one table")]
    fn image_configurations_become_what_containerd_makes_of_them() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(root.path().join("etc/group"), GROUP).unwrap();
        let none = || json!({});
        let image = |user: &str| json!({"cmd": ["id"], "user": user});
        let own = |security: Value| json!({"securityContext": security});
        let table: &[(Value, Value, Value, &str)] = &[
            // Commands.
            (json!({"entrypoint": ["e"], "cmd": ["c"]}), none(), none(), r#"["e", "c"] in "" as 0:0 [0, 6666]"#),
            (
                json!({"entrypoint": ["e"], "cmd": ["c"]}),
                none(),
                json!({"args": ["a"]}),
                r#"["e", "a"] in "" as 0:0 [0, 6666]"#,
            ),
            (
                json!({"entrypoint": ["e"], "cmd": ["c"]}),
                none(),
                json!({"command": ["k"]}),
                r#"["k"] in "" as 0:0 [0, 6666]"#,
            ),
            (
                json!({"entrypoint": ["e"]}),
                none(),
                json!({"command": ["k"], "args": ["a"]}),
                r#"["k", "a"] in "" as 0:0 [0, 6666]"#,
            ),
            (json!({"entrypoint": [""], "cmd": ["c"]}), none(), none(), r#"["c"] in "" as 0:0 [0, 6666]"#),
            (
                json!({"cmd": ["/bin/sh", "-c", "a && b"]}),
                none(),
                none(),
                r#"["/bin/sh", "-c", "a && b"] in "" as 0:0 [0, 6666]"#,
            ),
            (none(), none(), none(), r#"[] in "" as 0:0 [0, 6666]"#),
            // Directories.
            (json!({"cmd": ["c"], "working_dir": "/app"}), none(), none(), r#"["c"] in "/app" as 0:0 [0, 6666]"#),
            (
                json!({"cmd": ["c"], "working_dir": "/app"}),
                none(),
                json!({"workingDir": "/mine"}),
                r#"["c"] in "/mine" as 0:0 [0, 6666]"#,
            ),
            // Users.
            (image("app"), none(), none(), r#"["id"] in "" as 1234:1234 [1234, 5555, 6666]"#),
            (image("1234"), none(), none(), r#"["id"] in "" as 1234:1234 [1234, 5555, 6666]"#),
            (image("app:extra"), none(), none(), r#"["id"] in "" as 1234:1234 [1234, 5555, 6666]"#),
            (image("1234:6666"), none(), none(), r#"["id"] in "" as 1234:1234 [1234, 5555, 6666]"#),
            (image("777:777"), none(), none(), r#"["id"] in "" as 777:0 [0]"#),
            (image("app:ghosts"), none(), none(), r#"["id"] in "" as 1234:1234 [1234, 5555, 6666]"#),
            (image(":6666"), none(), none(), r#"["id"] in "" as 0:0 [0, 6666]"#),
            (
                image("ghost"),
                none(),
                none(),
                r#"["id"] in "" as CreateContainerError: invalid user: "ghost" is not in the image"#,
            ),
            (image("app"), json!({"runAsUser": 4321}), none(), r#"["id"] in "" as 4321:0 [0]"#),
            (
                image("app"),
                json!({"runAsUser": 1}),
                own(json!({"runAsUser": 1234})),
                r#"["id"] in "" as 1234:1234 [1234, 5555, 6666]"#,
            ),
            (image("app"), json!({"runAsGroup": 99}), none(), r#"["id"] in "" as 1234:99 [99, 5555, 6666]"#),
            (
                image("ghost"),
                json!({"runAsUser": 1234, "runAsGroup": 99}),
                none(),
                r#"["id"] in "" as 1234:99 [99, 5555, 6666]"#,
            ),
            (
                image("app"),
                json!({"fsGroup": 7, "supplementalGroups": [8, 5555]}),
                none(),
                r#"["id"] in "" as 1234:1234 [7, 8, 1234, 5555, 6666]"#,
            ),
            (
                image("app"),
                json!({"fsGroup": 7, "supplementalGroups": [8], "supplementalGroupsPolicy": "Strict"}),
                none(),
                r#"["id"] in "" as 1234:1234 [7, 8, 1234]"#,
            ),
            // Not root.
            (image("1234"), json!({"runAsNonRoot": true}), none(), r#"["id"] in "" as 1234:1234 [1234, 5555, 6666]"#),
            (image("app"), json!({"runAsNonRoot": true, "runAsUser": 5}), none(), r#"["id"] in "" as 5:0 [0]"#),
            (
                image("app"),
                json!({"runAsNonRoot": true}),
                own(json!({"runAsNonRoot": false})),
                r#"["id"] in "" as 1234:1234 [1234, 5555, 6666]"#,
            ),
            (
                image("app:extra"),
                json!({"runAsNonRoot": true}),
                none(),
                r#"["id"] in "" as CreateContainerConfigError: container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root (pod: "p_n(u)", container: c)"#,
            ),
            (
                image(""),
                none(),
                own(json!({"runAsNonRoot": true})),
                r#"["id"] in "" as CreateContainerConfigError: container has runAsNonRoot and image will run as root (pod: "p_n(u)", container: c)"#,
            ),
            (
                image("app"),
                json!({"runAsNonRoot": true, "runAsUser": 0}),
                none(),
                r#"["id"] in "" as CreateContainerConfigError: container's runAsUser breaks non-root policy (pod: "p_n(u)", container: c)"#,
            ),
            // Signals.
            (json!({"stop_signal": "SIGQUIT"}), none(), none(), r#"[] in "" as 0:0 [0, 6666] ends by 3"#),
            (json!({"stop_signal": "quit"}), none(), none(), r#"[] in "" as 0:0 [0, 6666] ends by 3"#),
            (json!({"stop_signal": "3"}), none(), none(), r#"[] in "" as 0:0 [0, 6666] ends by 3"#),
            (json!({"stop_signal": "SIGRTMIN+3"}), none(), none(), r#"[] in "" as 0:0 [0, 6666] ends by 37"#),
            (json!({"stop_signal": "RTMAX-14"}), none(), none(), r#"[] in "" as 0:0 [0, 6666] ends by 50"#),
            (
                json!({"stop_signal": "SIGQUIT"}),
                none(),
                json!({"lifecycle": {"stopSignal": "SIGRTMIN"}}),
                r#"[] in "" as 0:0 [0, 6666] ends by 34"#,
            ),
            (json!({"stop_signal": "SIGRTMIN+31"}), none(), none(), r#"[] in "" as 0:0 [0, 6666]"#),
            (json!({"stop_signal": "SIGNONSENSE"}), none(), none(), r#"[] in "" as 0:0 [0, 6666]"#),
            (json!({"stop_signal": "0"}), none(), none(), r#"[] in "" as 0:0 [0, 6666]"#),
            // Volumes.
            (
                json!({"volumes": ["/data", "rel/./x", "/a/../b/", "/data"]}),
                none(),
                none(),
                r#"[] in "" as 0:0 [0, 6666] with ["/b", "/data", "/rel/x"]"#,
            ),
            (json!({"volumes": ["/", "/proc", "/dev/shm", "/sys/fs"]}), none(), none(), r#"[] in "" as 0:0 [0, 6666]"#),
            (
                json!({"volumes": ["/data", "/data2", "/data/in"]}),
                none(),
                json!({"volumeMounts": [{"name": "v", "mountPath": "/data/"}]}),
                r#"[] in "" as 0:0 [0, 6666] with ["/data/in", "/data2"]"#,
            ),
            // What the runtime has no use for.
            (
                json!({"exposed_ports": ["80/tcp"], "labels": {"a": "b"}}),
                none(),
                none(),
                r#"[] in "" as 0:0 [0, 6666]"#,
            ),
        ];
        for (image, pod, container, expected) in table {
            assert_eq!(shown(root.path(), image, pod, container), *expected, "{image} {pod} {container}");
        }
    }
}
