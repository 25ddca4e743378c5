//! What stops a server from starting or from writing, as users meet it: a disk that is full, a damaged database, a data
//! directory that cannot be written, a port that is taken. Each is told in one line that says what to do, nothing is left
//! half-made, and when the cause is gone everything that was acknowledged is there. Real executable, real (tiny) disks.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use amphipod::wire::client::{Client, Target};
use amphipod::wire::tls;
use base64::Engine;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// A data directory on a disk of its own, and everything else of a server beside it.
struct Place {
    directory: tempfile::TempDir,
    mounted: bool,
}

struct Server {
    process: Child,
    port: u16,
}

// === impl Place ===

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), mounted: false }
    }

    fn with_disk(kilobytes: usize) -> Self {
        let mut place = Self::new();
        fs::create_dir(place.data()).unwrap();
        place.disk(kilobytes, MsFlags::empty());
        place.mounted = true;
        place
    }

    /// Makes the disk, or gives it another size.
    fn disk(&self, kilobytes: usize, flags: MsFlags) {
        let flags = if self.mounted { flags | MsFlags::MS_REMOUNT } else { flags };
        let options = format!("size={kilobytes}k");
        mount(Some("tmpfs"), &self.data(), Some("tmpfs"), flags, Some(options.as_str())).expect("run as root");
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut ballast = fs::File::options().create(true).append(true).open(self.data().join("ballast")).unwrap();
        for bytes in [64 << 10, 1] {
            while ballast.write_all(&vec![0; bytes]).is_ok() {}
        }
    }

    /// Gives it back.
    fn free(&self) {
        fs::remove_file(self.data().join("ballast")).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self, port: u16) -> Command {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_amphipod"));
        command
            .args(["server", "--disable-agent", "--bind-address", "127.0.0.1", "--node-name", "n"])
            .args(["--https-listen-port", &port.to_string(), "--data-dir", &path("data"), "--run-dir", &path("run")])
            .args(["--config-dir", &path("etc")])
            .stdin(Stdio::null());
        command
    }

    /// Starts a server that must not come up; answers the one line that it says.
    fn refusal(&self, port: u16) -> String {
        let child = self.command(port).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let output = within(child);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let told: Vec<&str> = text.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(told.len(), 1, "one line: {text}");
        assert!(!text.contains("panicked"), "{text}");
        told[0].to_owned()
    }

    async fn start(&self) -> (Server, Client) {
        let port = free_port();
        let log = fs::File::options().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let process = self.command(port).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let server = Server { process, port };
        let began = Instant::now();
        loop {
            if let Some(mut client) = self.client(port)
                && let Ok(response) = client.send(Request::get("/readyz").body(Full::default()).unwrap()).await
                && response.status().is_success()
            {
                return (server, client);
            }
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap();
            assert!(began.elapsed() < PATIENCE, "not ready: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The administrator.
    fn client(&self, port: u16) -> Option<Client> {
        let text = fs::read_to_string(self.directory.path().join("etc/kubeconfig.yaml")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.trim().strip_prefix(name)?.strip_prefix(": "))?;
            base64::engine::general_purpose::STANDARD.decode(line).ok()
        };
        let (chain, key) = (field("client-certificate-data")?, field("client-key-data")?);
        let tls = tls::client(&field("certificate-authority-data")?, Some((&chain, &key))).ok()?;
        let server = format!("https://127.0.0.1:{port}").parse().unwrap();
        Some(Client::new(Target { server, tls, token: None, user_agent: "test".into() }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted {
            let _ = umount2(&self.data(), MntFlags::MNT_DETACH);
        }
    }
}

// === impl Server ===

impl Server {
    fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.process.wait().unwrap().success(), "the server on {} ends in order", self.port);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn within(mut child: Child) -> std::process::Output {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

async fn call(client: &mut Client, method: Method, path: &str, body: String) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = client.send(request.body(Full::from(body)).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn create(client: &mut Client, name: &str, bytes: usize) -> (u16, Value) {
    let value = "x".repeat(bytes);
    let body = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"key":"{value}"}}}}"#);
    call(client, Method::POST, MAPS, body).await
}

async fn names(client: &mut Client) -> Vec<String> {
    let (status, list) = call(client, Method::GET, MAPS, String::new()).await;
    assert_eq!(status, 200, "{list}");
    let items = list["items"].as_array().unwrap().iter();
    items.map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).filter(|n| n.starts_with('c')).collect()
}

/// Whatever the disk has room for, from nothing up: the line names the disk, and with room the same directory serves.
#[tokio::test]
async fn a_full_disk_stops_the_start_with_one_line_and_the_next_start_completes_it() {
    let mut refused = 0;
    for kilobytes in [4, 12, 40, 64, 96, 160, 260, 400] {
        let place = Place::with_disk(kilobytes);
        let child = place.command(free_port()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let began = Instant::now();
        let mut child = child;
        while child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(4) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        if ended {
            refused += 1;
            let text = String::from_utf8(output.stderr).unwrap();
            let told: Vec<&str> = text.lines().filter(|l| l.starts_with("error: ")).collect();
            assert_eq!(told.len(), 1, "{kilobytes} kB, one line: {text}");
            assert!(told[0].contains("full") && told[0].contains("free some space"), "{kilobytes} kB: {text}");
            assert!(told[0].contains(&place.data().display().to_string()), "{kilobytes} kB: {text}");
        }
        place.disk(32 << 10, MsFlags::empty());
        let (server, mut client) = place.start().await;
        assert_eq!(create(&mut client, "c", 10).await.0, 201, "{kilobytes} kB");
        server.stop();
    }
    assert!(refused >= 4, "only {refused} disks were too small");
}

#[tokio::test]
async fn a_disk_that_fills_up_refuses_writes_and_loses_nothing() {
    let place = Place::with_disk(6 << 10);
    let (mut server, mut client) = place.start().await;
    let (mut made, mut refusal) = (Vec::new(), Value::Null);
    for number in 0..200 {
        let name = format!("c{number}");
        let (status, answer) = create(&mut client, &name, 200_000).await;
        if status != 201 {
            assert_eq!(status, 507, "{answer}");
            refusal = answer;
            break;
        }
        made.push(name);
    }
    let message = refusal["message"].as_str().expect("the disk was never full");
    assert!(message.contains("is full") && message.contains("free some space"), "{message}");
    made.sort();
    assert_eq!(names(&mut client).await, made, "what is refused is not shown, what is acknowledged is");
    // Also after a crash on the full disk, and with room again without a restart.
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    place.disk(64 << 10, MsFlags::empty());
    let (server, mut client) = place.start().await;
    assert_eq!(names(&mut client).await, made);
    place.fill();
    // The log file is there already and takes some more.
    let mut statuses = Vec::new();
    for number in 0..100 {
        statuses.push(create(&mut client, &format!("d{number}"), 200_000).await.0);
    }
    assert_eq!(statuses.last(), Some(&507), "{statuses:?}");
    place.free();
    assert_eq!(create(&mut client, "e", 200_000).await.0, 201, "it goes on by itself when there is room");
    assert_eq!(names(&mut client).await, made);
    server.stop();
}

#[tokio::test]
async fn a_damaged_database_is_refused_and_left_as_it_is() {
    let place = Place::new();
    let (server, mut client) = place.start().await;
    for number in 0..50 {
        assert_eq!(create(&mut client, &format!("c{number}"), 2_000).await.0, 201);
    }
    server.stop();
    let path = place.data().join("server/state.db");
    let whole = fs::read(&path).unwrap();
    for (from, what) in [(0, "its head"), (4096, "the schema's neighbour"), (whole.len() / 2, "the middle")] {
        let mut damaged = whole.clone();
        let end = (from + 9000).min(damaged.len());
        damaged[from..end].fill(0xA5);
        fs::write(&path, &damaged).unwrap();
        let told = place.refusal(free_port());
        assert!(told.contains("corrupted") && told.contains("restore"), "{what}: {told}");
        assert!(told.contains(&path.display().to_string()), "{what}: {told}");
        assert!(fs::read(&path).unwrap() == damaged, "{what}: the file was touched");
    }
    fs::write(&path, &whole).unwrap();
    let (server, mut client) = place.start().await;
    assert_eq!(names(&mut client).await.len(), 50);
    server.stop();
}

#[test]
fn a_data_directory_that_cannot_be_written_is_told() {
    let place = Place::with_disk(1 << 10);
    place.disk(1 << 10, MsFlags::MS_RDONLY);
    let told = place.refusal(free_port());
    assert!(told.contains("--data-dir") && told.contains("make it writable or choose another"), "{told}");
    drop(place);
    let place = Place::new();
    fs::write(place.data(), "a file").unwrap();
    let told = place.refusal(free_port());
    assert!(told.contains("--data-dir") && told.contains("make it writable or choose another"), "{told}");
    assert_eq!(fs::read_to_string(place.data()).unwrap(), "a file");
}

#[tokio::test]
async fn a_database_that_became_read_only_is_told() {
    let place = Place::with_disk(16 << 10);
    let (server, _) = place.start().await;
    server.stop();
    place.disk(16 << 10, MsFlags::MS_RDONLY);
    let told = place.refusal(free_port());
    assert!(told.contains("cannot be written") && told.contains("make it writable"), "{told}");
}

#[test]
fn a_port_that_is_taken_is_told_before_anything_is_made() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let told = place.refusal(port);
    assert!(told.contains("--https-listen-port") && told.contains(&port.to_string()), "{told}");
    assert!(told.contains("choose another port"), "{told}");
    let made: Vec<PathBuf> = fs::read_dir(place.directory.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(made.is_empty(), "nothing is left behind: {made:?}");
}

/// What the first start has decided is in objects and pods.
#[tokio::test]
async fn a_flag_that_the_data_directory_has_decided_cannot_change() {
    let place = Place::new();
    let (server, _) = place.start().await;
    server.stop();
    let refused = |flags: &[&str]| {
        let mut command = place.command(free_port());
        let output = within(command.args(flags).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {told}");
        told.lines().filter(|l| l.starts_with("error: ")).map(str::to_owned).collect::<Vec<_>>()
    };
    for (flag, old, new) in [
        ("--service-cidr", "10.43.0.0/16", "10.44.0.0/16"),
        ("--cluster-cidr", "10.42.0.0/16", "10.50.0.0/16"),
        ("--cluster-dns", "10.43.0.10", "10.43.0.53"),
        ("--cluster-domain", "cluster.local", "other.local"),
    ] {
        let want = format!(
            "error: {flag}: the cluster in this data directory was made with {old}, which cannot become {new}: start it with \
             {flag} {old}, or make a new cluster with another --data-dir"
        );
        assert_eq!(refused(&[flag, new]), [want]);
    }
    // A directory that an older version has made.
    fs::remove_file(place.data().join("server/cluster.json")).unwrap();
    let told = refused(&["--service-cidr", "10.44.0.0/16"]);
    assert!(told[0].starts_with("error: --service-cidr: the address 10.43.0.1 of the Service kubernetes"), "{told:?}");
    let (server, mut client) = place.start().await;
    assert_eq!(create(&mut client, "c", 10).await.0, 201);
    server.stop();
}

#[test]
fn a_value_that_a_flag_does_not_take_is_refused_with_what_it_would() {
    let place = Place::new();
    let said = |command: &str, flags: &[&str]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_amphipod"));
        child.arg(command).args(flags).env("AMPHIPOD_RUN_DIR", place.directory.path().join("run"));
        child.env("AMPHIPOD_DATA_DIR", place.data()).env("AMPHIPOD_CONFIG_DIR", place.directory.path().join("etc"));
        let child = child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let output = within(child);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {text}");
        text
    };
    let empty = place.directory.path().join("empty");
    fs::write(&empty, "\n").unwrap();
    for (flag, value, accepted) in [
        ("--node-ip", "192.0.2.1", "no interface of this machine has this address: expected one that it has, such as"),
        ("--node-ip", "0.0.0.0", "expected one such as 192.0.2.1"),
        ("--node-ip", "127.0.0.1,127.0.0.2", "expected one address, or one of IPv4 and one of IPv6"),
        ("--node-external-ip", "224.0.0.1", "expected one such as 192.0.2.1"),
        ("--tls-san", "???", "expected an IP address or a DNS name"),
        ("--advertise-address", "::", "expected one such as 192.0.2.1"),
        ("--bind-address", "eth0", "expected an IP address, such as 192.0.2.1"),
        ("--https-listen-port", "0", "1..=65535"),
        ("--cluster-cidr", "10.42.0.0", "expected ADDRESS/LENGTH, such as 10.42.0.0/16"),
        ("--cluster-dns", "10.43.0.1", "expected another one, such as 10.43.0.10"),
        ("--cluster-domain", "a b", "expected a DNS domain, such as cluster.local"),
        ("--allow-external-ips", "x", "expected ADDRESS/LENGTH"),
        ("--snapshot-retention", "0", "expected a number from 1 on"),
        ("--node-label", "node-role.kubernetes.io/worker=", "must begin with an allowed prefix"),
        ("--node-taint", "a b=c:NoSchedule", "must consist of alphanumeric characters"),
        ("--token", "a b", "expected one word without spaces"),
        ("--token-file", empty.to_str().unwrap(), "the token has no secret"),
    ] {
        let text = said("server", &[flag, value]);
        let named = value.split(',').next().unwrap();
        assert!(text.contains(flag) && text.contains(accepted), "{flag} {value}: {text}");
        assert!(text.contains(named) || flag == "--token", "{flag} {value}: {text}");
    }
    let text = said("agent", &["--server", "https://127.0.0.1:6443/?a", "--token", "x"]);
    assert!(text.contains("--server") && text.contains("expected https://HOST:PORT"), "{text}");
    assert!(!place.data().exists() && !place.directory.path().join("run").exists(), "nothing was made");
}

#[tokio::test]
async fn what_the_configuration_file_and_the_environment_get_wrong_is_told_with_its_place() {
    let place = Place::new();
    fs::create_dir(place.directory.path().join("etc")).unwrap();
    let file = place.directory.path().join("etc/config.yaml");
    for (text, line, why) in [
        ("# names\ntls-san: ['???']\n", 2, "--tls-san"),
        ("cluster-cidr: 10.43.0.0/16\n", 1, "--cluster-cidr"),
        ("offline: true\ntls-sun: a\n", 2, "\"tls-sun\" is no flag of `amphipod server`"),
    ] {
        fs::write(&file, text).unwrap();
        let child = place.command(free_port()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let output = within(child);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(why) && told.contains(&format!("{}, line {line}", file.display())), "{told}");
    }
    // Read also where the directories come before the command.
    let mut command = Command::new(env!("CARGO_BIN_EXE_amphipod"));
    command.arg("--config-dir").arg(place.directory.path().join("etc")).arg("server");
    command.env("AMPHIPOD_DATADIR", "/nowhere").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let told = String::from_utf8(within(command.spawn().unwrap()).stderr).unwrap();
    assert!(told.contains("tls-sun"), "{told}");
    fs::write(&file, "tls-san: a.example.com\nsnapshot-retention: 3\nservice-cidr: 10.42.1.0/24\n").unwrap();
    let told = String::from_utf8(within(command.spawn().unwrap()).stderr).unwrap();
    assert!(told.contains("warning: AMPHIPOD_DATADIR: no flag has this variable; it has no effect\n"), "{told}");
    assert!(told.contains(&format!("(--service-cidr is set in {}, line 3)", file.display())), "{told}");
}

#[tokio::test]
async fn a_second_server_on_a_data_directory_is_told_who_has_it_whatever_its_flags() {
    let place = Place::new();
    let (server, _) = place.start().await;
    let pid = server.process.id();
    for flags in [&["--disable-agent"][..], &[]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amphipod"));
        command.args(["server", "--bind-address", "127.0.0.1", "--https-listen-port", &free_port().to_string()]);
        for (flag, name) in [("--data-dir", "data"), ("--run-dir", "elsewhere"), ("--config-dir", "other")] {
            command.args([flag, place.directory.path().join(name).to_str().unwrap()]);
        }
        let child = command.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = within(child.spawn().unwrap());
        let told = String::from_utf8(output.stderr).unwrap();
        let data = place.data();
        let want =
            format!("error: a server (process {pid}) runs with the data directory {}: stop it first\n", data.display());
        assert_eq!((output.status.code(), told), (Some(1), want), "{flags:?}");
    }
    let own = fs::read_to_string(place.directory.path().join("run/server.pid")).unwrap();
    assert_eq!(own.trim(), pid.to_string(), "a server without a node has its run directory too");
    let restore = |to: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amphipod"));
        command.args(["snapshot", "restore", to, "--data-dir", place.data().to_str().unwrap()]);
        command.args(["--run-dir", place.directory.path().join("elsewhere").to_str().unwrap()]);
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    assert!(restore("nothing").contains(&format!("(process {pid})")));
    server.stop();
    assert!(restore("nothing").contains("is not there"));
}
