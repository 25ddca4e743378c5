//! A server in a control group with 256 MB of memory, and somebody from outside who may only read and asks all the time.
//!
//! Whatever a test does: the server's own memory stays below 200 MB, the kernel never ends it for want of memory, and the
//! reader is answered. With `AMPHIPOD_TEST_EXECUTABLE` (a release build) the reader waits for a second at most; the
//! development profile on a busy machine has more time.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use amphipod::wire::client::{Client, Target};
use amphipod::wire::tls;
use base64::Engine;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use crate::lab::{HOST, Lab, slowness};

/// What the control group has, and what the server may take of it.
const LIMIT_BYTES: u64 = 256 << 20;
const OWN_BYTES: u64 = 200 << 20;
const PODS: &str = "/api/v1/namespaces/default/pods?limit=5";

/// A machine whose server is watched.
pub struct Watched {
    // Dropped in this order: the server goes before its control group.
    lab: Lab,
    watch: Watch,
}

struct Watch {
    cgroup: Cgroup,
    reader: Option<(Arc<AtomicBool>, JoinHandle<Seen>)>,
}

/// A group of the controller for memory.
struct Cgroup {
    path: PathBuf,
    is_v2: bool,
}

/// What the reader has seen.
struct Seen {
    slowest: Duration,
    answers: usize,
    peak_bytes: u64,
}

// === impl Watched ===

impl Watched {
    /// A machine whose server, once it is started, has little memory.
    pub fn prepare(name: &str) -> Self {
        let mut lab = Lab::prepare(name);
        let cgroup = Cgroup::make(&lab.name);
        let executable = std::env::var_os("AMPHIPOD_TEST_EXECUTABLE").map_or_else(|| lab.binary.clone(), PathBuf::from);
        let script = lab.path("confined");
        let text = format!(
            "#!/bin/sh\necho $$ > {}/cgroup.procs || exit 9\nexec {} \"$@\"\n",
            cgroup.path.display(),
            executable.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        lab.binary = script;
        Self { lab, watch: Watch { cgroup, reader: None } }
    }

    /// Starts the server; from the first time on it is watched.
    pub fn start_server(&mut self) {
        self.lab.start_server();
        if self.watch.reader.is_none() {
            self.lab.kubectl(&["create", "serviceaccount", "reader"]);
            self.lab.kubectl(&[
                "create",
                "clusterrolebinding",
                "reader",
                "--clusterrole=view",
                "--serviceaccount=default:reader",
            ]);
            let target = self.user("reader");
            let (stop, cgroup) = (Arc::new(AtomicBool::new(false)), self.watch.cgroup.path.clone());
            let (stopped, is_v2) = (stop.clone(), self.watch.cgroup.is_v2);
            let thread = self.from_outside(move || Seen::all(&target, &stopped, &Cgroup { path: cgroup, is_v2 }));
            self.watch.reader = Some((stop, thread));
        }
    }

    /// A service account's way to the server, from outside.
    pub fn user(&self, account: &str) -> Target {
        let token = self.lab.kubectl(&["create", "token", account]).trim().to_owned();
        Target { token: Some(token), tls: tls::client(&self.authority(), None).unwrap(), ..self.address() }
    }

    /// What tells the server's certificate.
    pub fn authority(&self) -> Vec<u8> {
        let config: Value =
            serde_yaml::from_str(&fs::read_to_string(self.lab.path("etc/kubeconfig.yaml")).unwrap()).unwrap();
        let data = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap().to_owned();
        base64::engine::general_purpose::STANDARD.decode(data).unwrap()
    }

    fn address(&self) -> Target {
        Target {
            server: format!("https://{HOST}:6443").parse().unwrap(),
            tls: tls::client(&self.authority(), None).unwrap(),
            token: None,
            user_agent: "hostile".into(),
        }
    }

    /// Work on a thread beside the machine.
    pub fn from_outside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = fs::File::open(format!("/run/netns/{}-o", self.lab.name)).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

impl Deref for Watched {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl DerefMut for Watched {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some((stop, reader)) = self.watch.reader.take() else { return };
        stop.store(true, Ordering::SeqCst);
        let Ok(seen) = reader.join() else { return };
        if std::thread::panicking() {
            let log = fs::read_to_string(self.lab.path("log")).unwrap_or_default();
            let end: Vec<&str> = log.lines().rev().take(20).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            println!(
                "ended by the kernel {} times; {} MiB at most; the log ends with\n{}",
                self.watch.cgroup.kills(),
                seen.peak_bytes >> 20,
                end.join("\n")
            );
            return;
        }
        let Seen { slowest, answers, peak_bytes } = seen;
        println!(
            "{}: {answers} answers, the slowest in {} ms; {} MiB at most",
            self.lab.name,
            slowest.as_millis(),
            peak_bytes >> 20
        );
        let patience = if std::env::var_os("AMPHIPOD_TEST_EXECUTABLE").is_some() { 1 } else { 10 };
        assert!(answers > 0, "the reader was never answered");
        assert!(
            slowest < Duration::from_secs(patience) * slowness(),
            "the reader waited for {} ms",
            slowest.as_millis()
        );
        assert!(peak_bytes < OWN_BYTES, "the server took {} MiB", peak_bytes >> 20);
        assert_eq!(self.watch.cgroup.kills(), 0, "the kernel ended the server");
    }
}

// === impl Cgroup ===

impl Cgroup {
    fn make(name: &str) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let is_v2 = controllers.split_whitespace().any(|c| c == "memory");
        let path = if is_v2 { root.join(name) } else { root.join("memory").join(name) };
        if is_v2 {
            fs::write(root.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        fs::create_dir(&path)
            .unwrap_or_else(|e| panic!("{}: {e}: this test needs a controller for memory", path.display()));
        let limit = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(path.join(limit), LIMIT_BYTES.to_string()).unwrap();
        Self { path, is_v2 }
    }

    /// The number behind a word of a file.
    fn number(&self, file: &str, word: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let of = |line: &str| line.split_once(' ').filter(|(name, _)| *name == word)?.1.trim().parse().ok();
        text.lines().find_map(of).unwrap_or(0)
    }

    /// What its processes have made: pages of files are not theirs.
    fn own_bytes(&self) -> u64 {
        self.number("memory.stat", if self.is_v2 { "anon" } else { "rss" })
    }

    fn kills(&self) -> u64 {
        self.number(if self.is_v2 { "memory.events" } else { "memory.oom_control" }, "oom_kill")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let began = Instant::now();
        while fs::remove_dir(&self.cgroup.path).is_err() && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

// === impl Seen ===

impl Seen {
    /// Asks until it is told to stop, on a new connection each time.
    fn all(target: &Target, stop: &AtomicBool, cgroup: &Cgroup) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut seen = Self { slowest: Duration::ZERO, answers: 0, peak_bytes: 0 };
        while !stop.load(Ordering::SeqCst) {
            let began = Instant::now();
            let answered = runtime.block_on(async {
                let ask = ask(target);
                tokio::pin!(ask);
                loop {
                    tokio::select! {
                        answered = &mut ask => return answered,
                        () = tokio::time::sleep(Duration::from_millis(20)) => seen.peak_bytes = seen.peak_bytes.max(cgroup.own_bytes()),
                        () = tokio::time::sleep(Duration::from_secs(60).saturating_sub(began.elapsed())) => return false,
                    }
                }
            });
            // While the server is started again there is nobody to answer.
            if answered || began.elapsed() > Duration::from_secs(1) {
                seen.slowest = seen.slowest.max(began.elapsed());
            }
            seen.answers += usize::from(answered);
            for _ in 0..5 {
                seen.peak_bytes = seen.peak_bytes.max(cgroup.own_bytes());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        seen
    }
}

async fn ask(target: &Target) -> bool {
    let request = Request::get(PODS).body(Full::<Bytes>::default()).unwrap();
    let Ok(response) = Client::new(target.clone()).send(request).await else { return false };
    response.status() == 200 && response.into_body().collect().await.is_ok()
}
