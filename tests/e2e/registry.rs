//! Debian's `docker-registry` in a network namespace beside the machine, with an image made of Debian's nginx under two
//! tags: `latest` and `two` differ in what they answer. Built without network: the binary, its libraries, and a shell.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::lab::{Lab, OUTSIDE, run};

const PORT: u16 = 5000;

/// The running registry.
pub struct Registry {
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Starts it beside the machine and fills it.
    pub fn start(lab: &Lab) -> Self {
        Self::serve(lab, "")
    }

    /// The same over HTTPS, with a certificate of an authority that nobody knows, and the file of that authority.
    pub fn start_private(lab: &Lab) -> (Self, PathBuf) {
        let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap().pem();
        let issuer = Issuer::new(params, authority_key);
        let leaf = CertificateParams::new([OUTSIDE.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let [ca_file, chain_file, key_file] = ["registry-ca.crt", "registry.crt", "registry.key"].map(|f| lab.path(f));
        fs::write(&ca_file, authority).unwrap();
        fs::write(&chain_file, leaf.pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        let (chain, key) = (chain_file.display(), key_file.display());
        (Self::serve(lab, &format!("  tls: {{certificate: {chain}, key: {key}}}\n")), ca_file)
    }

    fn serve(lab: &Lab, tls: &str) -> Self {
        let config = lab.path("registry.yml");
        let storage = lab.path("registry");
        let storage = storage.display();
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\n\
             http:\n  addr: '{OUTSIDE}:{PORT}'\n{tls}"
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(lab.path("registry.log")).unwrap();
        let mut command = lab.outside("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let registry = Self { child: command.spawn().expect("docker-registry is installed") };
        lab.until("the registry listens", || {
            lab.outside("ss").args(["-Hltn"]).output().unwrap().stdout.windows(5).any(|w| w == b":5000")
        });
        registry.fill(lab);
        registry
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("{OUTSIDE}:{PORT}")
    }

    fn fill(&self, lab: &Lab) {
        image(lab);
        let layout = layout(lab);
        for tag in ["latest", "two"] {
            let to = format!("docker://{}/library/nginx:{tag}", self.address());
            let mut copy = lab.outside("skopeo");
            run(copy.args(["copy", "-q", "--dest-tls-verify=false", &format!("oci:{layout}:{tag}"), &to]));
        }
    }
}

/// An OCI layout with both tags.
pub fn layout(lab: &Lab) -> String {
    lab.path("layout").display().to_string()
}

fn image(lab: &Lab) {
    let rootfs = lab.path("rootfs");
    root(&rootfs);
    let layout = layout(lab);
    let umoci = |args: &[&str]| drop(run(Command::new("umoci").args(args)));
    let one = format!("{layout}:latest");
    umoci(&["init", "--layout", &layout]);
    umoci(&["new", "--image", &one]);
    umoci(&["insert", "--image", &one, &rootfs.display().to_string(), "/"]);
    let command = ["nginx", "-g", "daemon off;"].map(|word| ["--config.cmd", word]).concat();
    let rest = ["--config.exposedports", "80/tcp", "--config.stopsignal", "SIGQUIT"];
    let path = ["--config.env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
    umoci(&[&["config", "--image", &one], &*command, &rest, &path].concat());
    let page = lab.path("page.conf");
    fs::write(&page, page_of("two")).unwrap();
    umoci(&["insert", "--image", &one, "--tag", "two", page.to_str().unwrap(), "/etc/nginx/page.conf"]);
}

fn page_of(release: &str) -> String {
    format!("location / {{ return 200 \"$hostname release {release}\\n\"; }}\n")
}

/// nginx, what it links, busybox, and the few files they want.
fn root(rootfs: &Path) {
    let make = |path: &str| fs::create_dir_all(rootfs.join(path)).unwrap();
    for path in ["bin", "dev", "etc/nginx", "proc", "run", "sys", "tmp", "usr/sbin", "var/lib/nginx", "var/log/nginx"] {
        make(path);
    }
    let copy = |path: &str| {
        let to = rootfs.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, &to).unwrap_or_else(|e| panic!("{path}: {e}"));
    };
    copy("/usr/sbin/nginx");
    let linked = String::from_utf8(run(Command::new("ldd").arg("/usr/sbin/nginx")).stdout).unwrap();
    linked.split_whitespace().filter(|word| word.starts_with('/')).for_each(copy);
    copy("/bin/busybox");
    for applet in ["sh", "cat", "sleep", "stty", "tar", "tty", "wget", "nslookup", "hostname", "httpd", "ls", "id"] {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n").unwrap();
    fs::write(rootfs.join("etc/group"), "root:x:0:\nwww-data:x:33:\n").unwrap();
    let config = "user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr notice;\nevents {}\n\
                  http { access_log /dev/stdout; default_type text/plain; server { listen 80; include page.conf; } }\n";
    fs::write(rootfs.join("etc/nginx/nginx.conf"), config).unwrap();
    fs::write(rootfs.join("etc/nginx/page.conf"), page_of("one")).unwrap();
}
