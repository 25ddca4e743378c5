//! A small image for pods that look around: busybox, and a script that writes down what it finds.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::{Lab, run};

/// Its name, which no registry is asked for.
pub const IMAGE: &str = "survey.test/box:1";
const SCRIPT: &str = include_str!("survey.sh");

/// A server that has the image.
pub fn server(name: &str) -> Lab {
    let mut lab = prepared(name);
    lab.start_server();
    lab
}

/// A machine whose server will have it.
pub fn prepared(name: &str) -> Lab {
    let lab = Lab::prepare(name);
    let directory = lab.path("data/agent/images");
    fs::create_dir_all(&directory).unwrap();
    let archive = archive(&lab.path("scratch"));
    fs::rename(archive, directory.join("box.tar")).unwrap();
    lab
}

fn archive(scratch: &Path) -> PathBuf {
    let (rootfs, layout) = (scratch.join("rootfs"), scratch.join("layout").display().to_string());
    for directory in ["bin", "etc", "tmp", "www"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
        fs::set_permissions(rootfs.join(directory), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
    let applets = "sh cat ls grep awk sed cut sort readlink stat mv sleep touch id env echo httpd hostname wc head test mkdir true";
    for applet in applets.split(' ') {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let files = [
        ("bin/survey", SCRIPT, 0o755),
        ("etc/passwd", "root:x:0:0:root:/:/bin/sh\nweb:x:1000:1000:web:/:/bin/sh\n", 0o644),
        ("etc/group", "root:x:0:\nweb:x:1000:\nextra:x:3000:web\n", 0o644),
        ("www/index.html", "well\n", 0o644),
    ];
    for (name, text, mode) in files {
        fs::write(rootfs.join(name), text).unwrap();
        fs::set_permissions(rootfs.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let umoci = |args: &[&str]| drop(run(Command::new("umoci").args(args)));
    let image = format!("{layout}:box");
    umoci(&["init", "--layout", &layout]);
    umoci(&["new", "--image", &image]);
    umoci(&["insert", "--image", &image, &rootfs.display().to_string(), "/"]);
    umoci(&["config", "--image", &image, "--config.cmd", "/bin/true"]);
    let file = scratch.join("box.tar");
    let to = format!("docker-archive:{}:{IMAGE}", file.display());
    run(Command::new("skopeo").args(["copy", "-q", &format!("oci:{image}"), &to]));
    file
}
