//! One machine per test: a network namespace as host, pods in it, and another namespace as the outside world.
//!
//! Everything runs on threads that were moved into the right namespace; the test process itself stays where it is.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use amphipod::net::nft::NftDataplane;
use amphipod::net::pod::KernelPodNetwork;
use amphipod::net::{Attached, Config, PodAttachment, PodNetwork};
use nix::sched::{CloneFlags, setns, unshare};

pub const HOST: &str = "192.0.2.1";
pub const OUTSIDE: &str = "192.0.2.100";
/// An address of the outside world that is not on the host's own network.
pub const FAR: &str = "203.0.113.5";
const PATIENCE: Duration = Duration::from_secs(3);

pub struct Lab {
    pub config: Config,
    pub network: KernelPodNetwork,
    pub dataplane: NftDataplane,
    pub outside: FsStats,
    pub runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

/// A network namespace held open.
pub struct FsStats(File);

impl FsStats {
    pub fn here() -> Self {
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    pub fn new() -> Self {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests need root");
            run("ip link set lo up");
            Self::here()
        })
        .join()
        .unwrap()
    }

    pub fn open(path: &Path) -> Self {
        Self(File::open(path).unwrap())
    }

    /// Runs `work` on a thread inside.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = self.0.try_clone().unwrap();
        std::thread::spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
        .join()
        .unwrap()
    }
}

/// Moves a link of this thread's namespace into another one.
pub fn give(link: &str, to: &FsStats) {
    run(&format!("ip link set {link} netns /proc/{}/fd/{}", std::process::id(), to.0.as_raw_fd()));
}

/// Runs a command in the namespace of this thread and answers its output.
pub fn run(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|e| panic!("{line}: {e}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `test` on a thread that is a machine of its own.
pub fn machine(test: impl FnOnce(&Lab) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests need root");
        run("ip link set lo up");
        let outside = cable();
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            addresses: vec![HOST.parse().unwrap()],
            tunnel: true,
            dns_port: Some(1053),
            mtu: 1450,
            ..Config::new(directory.path(), vec!["10.42.0.0/24".parse().unwrap()])
        };
        let lab = Lab {
            network: KernelPodNetwork::open(config.clone()).unwrap(),
            dataplane: NftDataplane::open(config.clone()).unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            config,
            outside,
            _directory: directory,
        };
        let clean = Clean(lab.config.clone());
        test(&lab);
        drop(clean);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Also after a failed test no mount may stay.
struct Clean(Config);

impl Drop for Clean {
    fn drop(&mut self) {
        let result = amphipod::net::destroy(&self.0);
        assert!(std::thread::panicking() || result.is_ok(), "{result:?}");
    }
}

fn cable() -> FsStats {
    let outside = FsStats::new();
    run("ip link add up0 type veth peer name out0");
    give("out0", &outside);
    run(&format!("ip addr add {HOST}/24 dev up0"));
    run("ip link set up0 up");
    run(&format!("ip route add default via {OUTSIDE}"));
    outside.inside(|| {
        run(&format!("ip addr add {OUTSIDE}/24 dev out0"));
        run(&format!("ip addr add {FAR}/32 dev lo"));
        run("ip link set out0 up");
    });
    outside
}

impl Lab {
    pub fn attach(&self, id: &str) -> Attached {
        let pod = PodAttachment { id: id.into(), namespace: "test".into(), name: id.into(), netns: None };
        self.runtime.block_on(self.network.attach(pod)).unwrap()
    }

    /// A pod that answers on TCP and UDP port 8080 with its name and the address it saw.
    pub fn serving_pod(&self, id: &str) -> (FsStats, IpAddr) {
        let attached = self.attach(id);
        let space = FsStats::open(&attached.netns);
        serve(&space, id, 8080);
        (space, attached.addresses[0])
    }
}

/// Answers every TCP connection and UDP packet at `port` inside `space` with `name address-of-the-asker`.
pub fn serve(space: &FsStats, name: &str, port: u16) {
    let (tcp, udp) = space.inside(move || {
        let any = SocketAddr::from(([0, 0, 0, 0], port));
        (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
    });
    let own = name.to_owned();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let mut stream = stream;
            let peer = stream.peer_addr().unwrap().ip();
            let _ = write!(stream, "{own} {peer}");
        }
    });
    let own = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{own} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// Asks over TCP from the namespace of this thread: who answered, and which address it saw.
pub fn ask(to: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (who, saw) = text.split_once(' ').unwrap();
    Ok((who.to_owned(), saw.to_owned()))
}

/// The same over UDP, from one socket so that it is one flow.
pub fn ask_udp(socket: &UdpSocket, to: &str) -> std::io::Result<(String, String)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let (who, saw) = text.split_once(' ').unwrap();
    Ok((who.to_owned(), saw.to_owned()))
}
