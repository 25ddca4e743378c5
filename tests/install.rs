//! `scripts/install.sh` in a small root of its own: what it writes with which modes, what it refuses, that a second run
//! changes nothing, and that `amphipod-uninstall` leaves nothing. The shell is busybox's, the service manager a script
//! that writes down what it is asked; on a real one the same is shown by `tests/vm/run`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::stat::{Mode, SFlag, mknod};
use sha2::{Digest, Sha256};

/// Says what it is and writes down what it is asked; as the executable of most tests.
const EXECUTABLE: &str =
    "#!/bin/sh\n[ \"$1\" != version ] || { echo amphipod v1; exit; }\necho \"amphipod $*\" >>/log\n";
/// Knows one service, which runs after a start and is stopped by a stop.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"systemctl $*\" >>/log\ncase $1 in\nis-active) [ -e /active ] ;;\n\
    restart) touch /active ;;\nstop) rm -f /active ;;\nesac\n";
const OPENRC: &str = "#!/bin/sh\necho \"$(basename \"$0\") $*\" >>/log\ncase $2 in\nstatus) [ -e /active ] ;;\n\
    restart) touch /active ;;\nstop) rm -f /active ;;\nesac\n";

/// A directory that is `/` for what runs in it.
struct Root(tempfile::TempDir);

impl Root {
    /// Without a service manager.
    fn bare() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        for directory in
            ["bin", "sbin", "dev", "etc", "proc", "sys", "tmp", "run", "var/lib", "var/log", "usr/local/bin"]
        {
            fs::create_dir_all(root.path(directory)).unwrap();
        }
        fs::copy("/bin/busybox", root.path("bin/busybox")).expect("scripts/test-tools installs busybox-static");
        let applets = "sh awk basename cat chmod cp cut date dirname env find grep head id kill ls mkdir mktemp mv \
            printf readlink rm sed sha256sum sleep sort tail test touch tr true uname wget";
        for applet in applets.split_whitespace() {
            symlink("busybox", root.path("bin").join(applet)).unwrap();
        }
        let null = nix::sys::stat::makedev(1, 3);
        mknod(&root.path("dev/null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), null).expect("run as root");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install.sh");
        fs::copy(script, root.path("install.sh")).unwrap();
        root.script("amphipod", EXECUTABLE);
        root
    }

    fn systemd() -> Self {
        let root = Self::bare();
        fs::create_dir_all(root.path("run/systemd/system")).unwrap();
        fs::create_dir_all(root.path("etc/systemd/system")).unwrap();
        root.script("bin/systemctl", SYSTEMCTL);
        root
    }

    fn openrc() -> Self {
        let root = Self::bare();
        for directory in ["run/openrc", "etc/init.d", "etc/logrotate.d"] {
            fs::create_dir_all(root.path(directory)).unwrap();
        }
        for name in ["sbin/openrc-run", "bin/rc-service", "bin/rc-update"] {
            root.script(name, OPENRC);
        }
        root
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.0.path().join(relative)
    }

    fn read(&self, relative: &str) -> String {
        fs::read_to_string(self.path(relative)).unwrap_or_else(|e| panic!("{relative}: {e}"))
    }

    fn mode(&self, relative: &str) -> u32 {
        fs::metadata(self.path(relative)).unwrap().permissions().mode() & 0o7777
    }

    fn script(&self, relative: &str, text: &str) {
        fs::write(self.path(relative), text).unwrap();
        fs::set_permissions(self.path(relative), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What the executable and the service manager were asked since the last look.
    fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = fs::remove_file(self.path("log"));
        text.lines().map(str::to_owned).collect()
    }

    /// Every path with mode and content, but what the scripts here write themselves.
    fn all(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        fn walk(directory: &Path, out: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
            for entry in fs::read_dir(directory).unwrap().flatten() {
                let path = entry.path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let content =
                    if metadata.is_file() { Sha256::digest(fs::read(&path).unwrap()).to_vec() } else { vec![] };
                out.insert(path.clone(), (metadata.permissions().mode(), content));
                if metadata.is_dir() {
                    walk(&path, out);
                }
            }
        }
        let mut all = BTreeMap::new();
        walk(self.0.path(), &mut all);
        all.remove(&self.path("log"));
        all
    }

    #[track_caller]
    fn is_as(&self, before: &BTreeMap<PathBuf, (u32, Vec<u8>)>, why: &str) {
        let after = self.all();
        let other = |a: &BTreeMap<_, _>, b: &BTreeMap<PathBuf, _>| -> Vec<PathBuf> {
            b.iter().filter(|(path, what)| a.get(*path) != Some(*what)).map(|(path, _)| path.clone()).collect()
        };
        let (gone, new): (Vec<_>, Vec<_>) = (other(&after, before), other(before, &after));
        assert!(gone.is_empty() && new.is_empty(), "{why}; gone or changed: {gone:?}; new or changed: {new:?}");
    }

    fn run(&self, command: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut chroot = Command::new("chroot");
        chroot.arg(self.0.path()).args(command).env_clear().env("PATH", "/usr/local/bin:/bin:/sbin:/usr/sbin");
        chroot.envs(environment.iter().copied()).output().expect("run as root")
    }

    /// From the file at `/amphipod`.
    fn install(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut all = vec![("INSTALL_AMPHIPOD_FILE", "/amphipod")];
        all.extend_from_slice(environment);
        self.run(&[&["/bin/sh", "/install.sh"], arguments].concat(), &all)
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[track_caller]
fn refused(output: Output, why: &str) {
    assert!(!output.status.success() && text(&output).contains(why), "expected {why:?}:\n{}", text(&output));
}

fn sum_line(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}  amphipod\n")
}

#[test]
fn a_server_under_systemd_is_installed_once_and_removed_whole() {
    let root = Root::systemd();
    let before = root.all();
    let odd = r#"a "b" $HOME `id` \ 'c' %n"#;
    let environment =
        [("AMPHIPOD_TOKEN", "secret"), ("K3S_NODE_NAME", odd), ("HTTPS_PROXY", "http://proxy:1"), ("UNRELATED", "x")];
    let arguments = ["--node-label", "note=50% of $X \"quoted\"", "--disable=dns"];
    let said = succeeded(root.install(&environment, &arguments));
    assert!(said.contains("not verified"), "{said}");

    let unit = root.read("etc/systemd/system/amphipod.service");
    for line in [
        "Type=notify",
        "KillMode=process",
        "Delegate=yes",
        "LimitNOFILE=1048576",
        "TasksMax=infinity",
        "TimeoutStartSec=0",
        "Restart=always",
        "RestartSec=5s",
        "WantedBy=multi-user.target",
        "EnvironmentFile=-/etc/systemd/system/amphipod.service.env",
        r#"ExecStart=/usr/local/bin/amphipod server "--node-label" "note=50%% of $$X \"quoted\"" "--disable=dns""#,
    ] {
        assert!(unit.lines().any(|l| l == line), "{line} in {unit}");
    }
    assert_eq!(root.mode("etc/systemd/system/amphipod.service"), 0o644);
    assert_eq!(root.mode("etc/systemd/system/amphipod.service.env"), 0o600);
    assert_eq!(root.mode("usr/local/bin/amphipod"), 0o755);
    let kept = root.read("etc/systemd/system/amphipod.service.env");
    assert!(!kept.contains("UNRELATED") && kept.contains("AMPHIPOD_TOKEN=\"secret\"\n"), "{kept}");
    // Read back by a shell, which takes double quotes as systemd does.
    let command =
        [". /etc/systemd/system/amphipod.service.env; printf %s \"$K3S_NODE_NAME\"; printf %s \"$HTTPS_PROXY\""];
    let read_back = succeeded(root.run(&[&["/bin/sh", "-c"], &command[..]].concat(), &[]));
    assert_eq!(read_back, format!("{odd}http://proxy:1"));

    let asked = root.asked();
    let order: Vec<_> = ["daemon-reload", "enable", "restart"]
        .iter()
        .map(|verb| asked.iter().position(|a| a.starts_with(&format!("systemctl {verb}"))))
        .collect();
    assert!(order.is_sorted() && order.iter().all(Option::is_some), "{asked:?}");

    let installed = root.all();
    let said = succeeded(root.install(&environment, &arguments));
    assert!(said.contains("No change detected"), "{said}");
    assert!(root.asked().iter().all(|a| !a.contains("restart")));
    root.is_as(&installed, "a second run changes nothing");
    for changed in [&["--disable=scheduler"][..], &["--disable=scheduler", "-v"]] {
        succeeded(root.install(&environment, changed));
        assert!(root.asked().iter().any(|a| a == "systemctl restart amphipod.service"), "what changed is put to use");
    }
    root.script("amphipod", &EXECUTABLE.replace("v1", "v2"));
    succeeded(root.install(&environment, &["--disable=scheduler", "-v"]));
    assert!(root.asked().iter().any(|a| a == "systemctl restart amphipod.service"), "an upgrade is put to use");
    assert!(root.read("usr/local/bin/amphipod").contains("v2"));
    root.script("amphipod", EXECUTABLE);

    // What a server and a user leave.
    for file in ["var/lib/amphipod/server/state.db", "etc/amphipod/config.yaml", "run/amphipod/x"] {
        fs::create_dir_all(root.path(file).parent().unwrap()).unwrap();
        fs::write(root.path(file), "x").unwrap();
    }
    succeeded(root.run(&["/usr/local/bin/amphipod-killall"], &[]));
    let asked = root.asked();
    let killall = "amphipod killall --data-dir /var/lib/amphipod --run-dir /run/amphipod --config-dir /etc/amphipod";
    assert_eq!(asked, ["systemctl stop amphipod.service", killall]);
    assert!(root.path("var/lib/amphipod/server/state.db").exists(), "killall leaves the data");
    succeeded(root.run(&["/usr/local/bin/amphipod-uninstall"], &[]));
    assert!(root.asked().iter().any(|a| a == "systemctl disable --quiet amphipod.service"));
    root.is_as(&before, "nothing is left, nothing else is gone");
}

#[test]
fn what_is_wrong_is_refused_before_anything_is_written() {
    let root = Root::systemd();
    let before = root.all();
    fs::write(root.path("amphipod.sha256"), sum_line(b"something else")).unwrap();
    refused(root.install(&[], &[]), "checksum of /amphipod is not the one in /amphipod.sha256");
    fs::write(root.path("amphipod.sha256"), "no sum\n").unwrap();
    refused(root.install(&[], &[]), "no SHA-256 checksum");
    fs::remove_file(root.path("amphipod.sha256")).unwrap();

    refused(root.install(&[("AMPHIPOD_URL", "https://s:6443")], &[]), "needs a token");
    refused(root.install(&[("K3S_URL", "https://s:6443")], &[]), "needs a token");
    refused(root.install(&[("AMPHIPOD_TOKEN", "t")], &["agent"]), "needs a server");
    refused(root.install(&[], &["kubectl"]), "expected server or agent");
    refused(root.install(&[("AMPHIPOD_DATA_DIR", "here")], &[]), "must be absolute paths");
    refused(root.install(&[("INSTALL_AMPHIPOD_NAME", "a b")], &[]), "only letters");
    refused(root.install(&[("INSTALL_AMPHIPOD_SKIP_DOWNLOAD", "true")], &[]), "is not there");
    refused(root.install(&[("INSTALL_AMPHIPOD_FILE", "/etc")], &[]), "not a file");
    refused(root.run(&["/bin/sh", "/install.sh"], &[]), "no place to download from");
    let url = [("INSTALL_AMPHIPOD_DOWNLOAD_URL", "http://192.0.2.1/releases")];
    refused(root.run(&["/bin/sh", "/install.sh"], &url), "only https");
    root.script("amphipod", "#!/bin/sh\nexit 1\n");
    refused(root.install(&[], &[]), "no Amphipod that runs on");
    root.script("amphipod", EXECUTABLE);
    root.is_as(&before, "nothing is written, nothing is gone");

    fs::write(root.path("amphipod.sha256"), sum_line(EXECUTABLE.as_bytes())).unwrap();
    let said = succeeded(root.install(&[], &[]));
    assert!(said.contains("Verified /amphipod by /amphipod.sha256"), "{said}");
    let agent = [("AMPHIPOD_URL", "https://s:6443"), ("AMPHIPOD_TOKEN", "t")];
    refused(
        root.install(&agent, &[]),
        "installed here as service amphipod; run /usr/local/bin/amphipod-uninstall first",
    );
}

#[test]
fn an_agent_is_named_by_its_server_and_every_variable_has_its_k3s_name() {
    for (url, token, prefix) in
        [("AMPHIPOD_URL", "AMPHIPOD_TOKEN", "INSTALL_AMPHIPOD"), ("K3S_URL", "K3S_TOKEN_FILE", "INSTALL_K3S")]
    {
        let root = Root::systemd();
        fs::create_dir_all(root.path("opt/b")).unwrap();
        fs::create_dir_all(root.path("opt/units")).unwrap();
        let before = root.all();
        let named = |name: &str| format!("{prefix}_{name}");
        let (bin, units, exec, start) = (named("BIN_DIR"), named("SYSTEMD_DIR"), named("EXEC"), named("SKIP_START"));
        let environment = [
            (url, "https://s:6443"),
            (token, "t"),
            (&*bin, "/opt/b"),
            (&*units, "/opt/units"),
            (&*exec, "--node-label 'a=b c' --data-dir /data/amphipod"),
            (&*start, "true"),
        ];
        let said = succeeded(root.install(&environment, &["--node-ip=10.0.0.1"]));
        assert!(said.contains("enabled and not started"), "{said}");
        let asked = root.asked();
        assert!(asked.contains(&"systemctl enable --quiet /opt/units/amphipod-agent.service".to_owned()), "{asked:?}");
        assert!(asked.iter().all(|a| !a.contains("restart")), "{asked:?}");
        let unit = root.read("opt/units/amphipod-agent.service");
        let line = "ExecStart=/opt/b/amphipod agent \"--node-label\" \"a=b c\" \"--data-dir\" \"/data/amphipod\" \"--node-ip=10.0.0.1\"";
        assert!(unit.lines().any(|l| l == line), "{unit}");
        assert_eq!(root.mode("opt/units/amphipod-agent.service.env"), 0o600);

        let (download, enable) = (named("SKIP_DOWNLOAD"), named("SKIP_ENABLE"));
        let again = [&environment[..5], &[(&*download, "true"), (&*enable, "true")]].concat();
        fs::remove_file(root.path("amphipod")).unwrap();
        succeeded(root.install(&again, &["--node-ip=10.0.0.1"]));
        assert!(root.asked().iter().all(|a| !a.contains("enable") && !a.contains("restart")));
        root.script("amphipod", EXECUTABLE);

        fs::create_dir_all(root.path("data/amphipod")).unwrap();
        succeeded(root.run(&["/opt/b/amphipod-uninstall"], &[]));
        let asked = root.asked();
        assert!(asked.iter().any(|a| a.starts_with("amphipod killall --data-dir /data/amphipod ")), "{asked:?}");
        fs::remove_dir(root.path("data")).unwrap();
        root.is_as(&before, "nothing is written, nothing is gone");
    }
}

#[test]
fn directories_of_the_config_file_are_removed_too() {
    let root = Root::systemd();
    fs::create_dir_all(root.path("etc/amphipod")).unwrap();
    fs::write(root.path("etc/amphipod/config.yaml"), "node-name: n\ndata-dir: \"/srv/pods\"  # the large disk\n")
        .unwrap();
    succeeded(root.install(&[("INSTALL_AMPHIPOD_NAME", "west")], &[]));
    assert!(root.path("etc/systemd/system/amphipod-west.service").exists());
    fs::create_dir_all(root.path("srv/pods/server")).unwrap();
    root.asked();
    succeeded(root.run(&["/usr/local/bin/amphipod-uninstall"], &[]));
    assert!(root.asked().iter().any(|a| a.contains("--data-dir /srv/pods ")));
    assert!(!root.path("srv/pods").exists() && root.path("srv").exists() && !root.path("etc/amphipod").exists());
}

#[test]
fn openrc_gets_a_supervised_service() {
    let root = Root::openrc();
    let before = root.all();
    let odd = "it's \"x\" $HOME";
    succeeded(root.install(&[("AMPHIPOD_TOKEN", "secret")], &["--node-label", odd]));
    let service = root.read("etc/init.d/amphipod");
    assert_eq!((root.mode("etc/init.d/amphipod"), root.mode("etc/amphipod/amphipod.env")), (0o755, 0o600));
    assert!(service.contains("supervisor=supervise-daemon"), "{service}");
    // As OpenRC does: the script is read, then its arguments are evaluated.
    let script =
        ". /etc/init.d/amphipod; eval \"set -- $command $command_args\"; printf '%s|' \"$AMPHIPOD_TOKEN\" \"$@\"";
    let words = succeeded(root.run(&["/bin/sh", "-c", script], &[("HOME", "/wrong")]));
    assert_eq!(words, format!("secret|/usr/local/bin/amphipod|server|--node-label|{odd}|"));
    assert!(root.path("etc/logrotate.d/amphipod").exists());
    let asked = root.asked();
    assert!(asked.contains(&"rc-update -q add amphipod default".to_owned()), "{asked:?}");
    assert!(asked.contains(&"rc-service amphipod restart".to_owned()), "{asked:?}");
    let said = succeeded(root.install(&[("AMPHIPOD_TOKEN", "secret")], &["--node-label", odd]));
    assert!(said.contains("No change detected"), "{said}");
    succeeded(root.run(&["/usr/local/bin/amphipod-uninstall"], &[]));
    assert!(root.asked().contains(&"rc-service amphipod stop".to_owned()));
    root.is_as(&before, "nothing is written, nothing is gone");
}

/// Answers as a web server of releases would until the process ends.
fn releases(files: BTreeMap<String, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut request, mut piece) = (Vec::new(), [0; 1024]);
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read(&mut piece) {
                    Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
                    _ => break,
                }
            }
            let path = String::from_utf8_lossy(&request).split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, body) = files.get(&path).map_or(("404 Not Found", &b""[..]), |body| ("200 OK", body));
            let head = format!("HTTP/1.0 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    url
}

#[test]
fn releases_are_downloaded_by_channel_or_version_and_verified() {
    let name = format!("amphipod-linux-{}", std::env::consts::ARCH);
    let newer = EXECUTABLE.replace("v1", "v2");
    let files = [
        (format!("/r/stable/{name}"), EXECUTABLE.to_owned()),
        (format!("/r/stable/{name}.sha256"), sum_line(EXECUTABLE.as_bytes())),
        (format!("/r/v2/{name}"), newer.clone()),
        (format!("/r/v2/{name}.sha256"), sum_line(newer.as_bytes())),
        (format!("/r/cut/{name}"), EXECUTABLE[..40].to_owned()),
        (format!("/r/cut/{name}.sha256"), sum_line(EXECUTABLE.as_bytes())),
    ];
    let url = releases(files.into_iter().map(|(path, text)| (path, text.into_bytes())).collect());
    let (root, base) = (Root::systemd(), format!("{url}/r"));
    let before = root.all();
    let get = |more: &[(&str, &str)]| {
        let place = [&[("INSTALL_AMPHIPOD_DOWNLOAD_URL", &*base)], more].concat();
        root.run(&["/bin/sh", "/install.sh"], &place)
    };
    refused(get(&[("INSTALL_AMPHIPOD_CHANNEL", "cut")]), "is damaged or not what was released");
    refused(get(&[("INSTALL_K3S_VERSION", "v9")]), "cannot be downloaded");
    root.is_as(&before, "nothing is written, nothing is gone");
    succeeded(get(&[]));
    assert_eq!(root.read("usr/local/bin/amphipod"), EXECUTABLE);
    succeeded(get(&[("INSTALL_AMPHIPOD_VERSION", "v2")]));
    assert_eq!(root.read("usr/local/bin/amphipod"), newer);
    // As `curl ... | sh -s - ARGUMENTS` runs it.
    let piped = format!("cat /install.sh | INSTALL_AMPHIPOD_DOWNLOAD_URL={base} sh -s - server --disable=dns");
    succeeded(root.run(&["/bin/sh", "-c", &piped], &[]));
    assert!(root.read("etc/systemd/system/amphipod.service").contains("server \"--disable=dns\""));
    // What a cut download of the script itself does: nothing.
    let before = root.all();
    let script = fs::read_to_string(root.path("install.sh")).unwrap();
    for length in (0..script.len() - "main \"$@\"\n".len()).step_by(997) {
        let cut = format!("head -c {length} /install.sh | INSTALL_AMPHIPOD_DOWNLOAD_URL={base} sh -s - agent");
        root.run(&["/bin/sh", "-c", &cut], &[]);
    }
    root.is_as(&before, "nothing is written, nothing is gone");
}

/// The real executable, where there is no service manager, in namespaces of its own.
#[test]
fn without_a_service_manager_the_way_to_start_is_told_and_everything_is_removed() {
    let root = Root::bare();
    fs::remove_file(root.path("amphipod")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_amphipod"), root.path("amphipod")).unwrap();
    let before = root.all();
    let run_dir = format!("/run/amphipod-install-{}", std::process::id());
    let inside = |command: &str| {
        let script = format!(
            "mount -t proc proc {root}/proc && mount --rbind /sys {root}/sys && \
            PATH=/usr/local/bin:/bin:/sbin exec chroot {root} {command}",
            root = root.0.path().display()
        );
        Command::new("unshare")
            .args(["-m", "-n", "-p", "-f", "/bin/sh", "-c", &script])
            .env("INSTALL_AMPHIPOD_FILE", "/amphipod")
            .env("AMPHIPOD_RUN_DIR", &run_dir)
            .output()
            .unwrap()
    };
    let said = succeeded(inside("/bin/sh /install.sh --disable=dns"));
    let start = "setsid /usr/local/bin/amphipod server '--disable=dns'";
    assert!(said.contains(start) && said.contains(". /etc/amphipod/amphipod.env"), "{said}");
    assert_eq!(root.mode("etc/amphipod/amphipod.env"), 0o600);
    fs::create_dir_all(root.path("var/lib/amphipod/server")).unwrap();
    let said = succeeded(inside("/usr/local/bin/amphipod-uninstall"));
    assert!(said.contains("is removed from this machine"), "{said}");
    root.is_as(&before, "nothing is left");
}
