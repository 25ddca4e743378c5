//! `amphipod killall`: the machine before and after. The server gets a mount namespace in which everything that is written
//! outside of its directories lands in empty directories of the test's, so not one file can hide.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::lab::{BINARY, HELLO, Lab};

/// Where programs write that have no business there.
const SYSTEM: [&str; 9] = ["/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/var"];

/// A namespace whose system directories are overlays; only the machine's own directory is itself.
fn with_disk(name: &str) -> Lab {
    let mut lab = Lab::prepare(name);
    let own = lab.path("").display().to_string();
    let binary = Path::new(BINARY).parent().unwrap().display();
    let around = lab.path("").parent().unwrap().display().to_string();
    // What other tests have mounted would come and go in the comparison; they have logs of pods in /var/log, too.
    let script = format!(
        "for m in $(cut -d ' ' -f 5 /proc/self/mountinfo | grep -E '^({around}|/run/netns)/' | tac); do
             umount -l $m 2>/dev/null || true
         done
         mount -t tmpfs tmpfs /mnt; mkdir /mnt/own /mnt/bin /mnt/log
         mount --bind {own} /mnt/own; mount --bind {binary} /mnt/bin
         for d in {}; do
             [ -d $d ] || continue
             mkdir -p /mnt/$d/upper /mnt/$d/work
             mount -t overlay overlay -o lowerdir=$d,upperdir=/mnt/$d/upper,workdir=/mnt/$d/work $d
         done
         mkdir -p {own} {binary}
         mount --bind /mnt/own {own}; mount --bind /mnt/bin {binary}; mount --bind /mnt/log /var/log
         echo ready; exec sleep infinity",
        SYSTEM.join(" ")
    );
    let mut holder = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 6];
    holder.stdout.take().unwrap().read_exact(&mut said).expect("the mounts are made");
    lab.disk = Some(holder);
    lab
}

impl Lab {
    fn holder(&self) -> u32 {
        self.disk.as_ref().expect("the machine has a disk").id()
    }

    /// Everything on the machine that a node can leave behind; `uids` are of pods that were there.
    fn everything(&self, uids: &[String]) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.holder())).unwrap();
        all.extend(mounts.lines().map(|l| format!("mount {}", l.split_once(' ').unwrap().1)));
        all.extend(self.files());
        all.extend(cgroups(&self.marks(uids)));
        all.extend(self.processes());
        for line in ["ip -o link", "ip -o -4 addr", "ip rule", "ip -4 route show table all", "nft list ruleset"] {
            let words: Vec<&str> = line.split(' ').collect();
            all.extend(self.inside(&words).lines().map(|l| format!("{line}: {}", l.trim())));
        }
        all
    }

    /// Texts that are in the names of this node's control groups.
    fn marks(&self, uids: &[String]) -> Vec<String> {
        let run = fs::canonicalize(self.path("run")).unwrap_or_else(|_| self.path("run"));
        let digest = <sha2::Sha256 as sha2::Digest>::digest(run.as_os_str().as_encoded_bytes());
        let mut marks = uids.to_vec();
        marks.push(format!("amphipod-{}", &hex::encode(digest)[..8]));
        marks
    }

    /// What was written outside of the data directory, with times, and what was removed.
    fn files(&self) -> Vec<String> {
        let inside = PathBuf::from(format!("/proc/{}/root/mnt", self.holder()));
        let mut all = Vec::new();
        for system in SYSTEM {
            let upper = inside.join(&system[1..]).join("upper");
            walk(&upper, &mut |path, meta| {
                let below = Path::new(system).join(path.strip_prefix(&upper).unwrap());
                // A directory that is there anyway was only passed through.
                if !(meta.is_dir() && below.is_dir()) {
                    all.push(format!("file {} {}", below.display(), written(meta)));
                }
            });
        }
        walk(&inside.join("log"), &mut |path, meta| all.push(format!("file {} {}", path.display(), written(meta))));
        // The test's own files are plain ones at the top.
        let top = self.path("");
        walk(&top, &mut |path, meta| {
            if !path.starts_with(top.join("data")) && (path.parent() != Some(top.as_path()) || meta.is_dir()) {
                all.push(format!("file {}", path.display()));
            }
        });
        all
    }

    /// Processes in one of the machine's namespaces, or in its control groups, or named after its directory.
    fn processes(&self) -> Vec<String> {
        let namespace = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
        let mounts = namespace(&self.holder().to_string(), "mnt");
        let net = fs::metadata(format!("/run/netns/{}", self.name)).unwrap().ino();
        let net = Some(PathBuf::from(format!("net:[{net}]")));
        let (marks, own) = (self.marks(&[]), self.path("").display().to_string());
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == self.holder().to_string() {
                continue;
            }
            let read = |part: &str| fs::read(entry.path().join(part)).unwrap_or_default();
            let text = |part: &str| String::from_utf8_lossy(&read(part)).replace('\0', " ");
            let (cgroups, command) = (text("cgroup"), text("cmdline"));
            if namespace(&pid, "mnt") == mounts
                || namespace(&pid, "net") == net
                || marks.iter().any(|m| cgroups.contains(m))
                || command.contains(&own)
            {
                all.push(format!("process {pid} {command}"));
            }
        }
        all
    }
}

fn written(meta: &fs::Metadata) -> String {
    format!("{:o} {} {}.{}", meta.mode(), meta.len(), meta.mtime(), meta.mtime_nsec())
}

fn walk(directory: &Path, each: &mut dyn FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        each(&entry.path(), &meta);
        if meta.is_dir() {
            walk(&entry.path(), each);
        }
    }
}

fn cgroups(marks: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &mut |path, meta| {
        let text = path.to_string_lossy();
        if meta.is_dir() && marks.iter().any(|m| text.contains(m.as_str())) {
            all.push(format!("cgroup {text}"));
        }
    });
    all
}

fn uids(lab: &Lab) -> Vec<String> {
    let pods = lab.json(&["get", "pods", "-A"])["items"].as_array().cloned().unwrap();
    pods.iter().map(|p| p["metadata"]["uid"].as_str().unwrap().to_owned()).collect()
}

fn deploy(lab: &Lab) -> Vec<String> {
    lab.kubectl(&["apply", "-f", HELLO]);
    lab.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    uids(lab)
}

#[test]
fn killall_leaves_nothing_outside_of_the_data_directory() {
    let mut lab = with_disk("gone");
    let clean = lab.everything(&[]);
    // Nothing can hide: a file anywhere is seen.
    for directory in ["/etc", "/tmp", "/var/log", "/run"] {
        let file = format!("/proc/{}/root{directory}/amphipod-was-here", lab.holder());
        fs::write(&file, "").unwrap();
        assert_eq!(lab.everything(&[]).difference(&clean).count(), 1, "{directory}");
        fs::remove_file(&file).unwrap();
    }
    let mut known = Vec::new();
    // Once after everything was deleted, once with everything running.
    for delete in [true, false] {
        lab.start_server();
        let idle = lab.everything(&known);
        known.extend(deploy(&lab));
        let running = lab.everything(&known);
        for what in ["mount ", "cgroup ", "file /proc", "process ", "ip -o link", "nft list ruleset"] {
            let of = |all: &BTreeSet<String>| all.iter().filter(|t| t.starts_with(what)).count();
            assert!(of(&running) > of(&clean), "{what} while pods run: {running:#?}");
        }
        if delete {
            lab.kubectl(&["delete", "-f", HELLO]);
            lab.until("all pods are gone", || uids(&lab).is_empty());
            lab.until("what the pods had is gone before killall", || {
                let now = lab.everything(&known);
                let rest: Vec<_> = now.difference(&idle).filter(|t| !t.starts_with("nft ")).collect();
                rest.iter().all(|t| known.iter().all(|uid| !t.contains(uid)) && !t.contains("hello"))
            });
        }
        lab.stop_server();
        if !delete {
            assert!(lab.everything(&known).iter().any(|t| t.starts_with("process ")), "containers go on");
        }
        lab.killall();
        let left = lab.everything(&known);
        let (more, less) = (left.difference(&clean), clean.difference(&left));
        assert!(left == clean, "left: {:#?}\nlost: {:#?}", more.collect::<Vec<_>>(), less.collect::<Vec<_>>());
        assert!(lab.path("data").exists() && !lab.path("run").exists() && !lab.path("etc").exists());
    }
}
