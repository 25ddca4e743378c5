//! The pod network as the kernel has it.

use std::net::UdpSocket;

use amphipod::net::pod::{KernelPodNetwork, suite};
use amphipod::net::{self, PodNetwork};

use crate::lab::{FAR, FsStats, HOST, OUTSIDE, ask, ask_udp, machine, run, serve};

#[test]
fn the_kernel_passes_the_suite() {
    machine(|lab| lab.runtime.block_on(suite::run(&lab.network)));
}

#[test]
fn pods_reach_each_other_the_host_and_the_world() {
    machine(|lab| {
        lab.dataplane.apply_now(&net::ServiceTable::default()).unwrap();
        let (a, a_ip) = lab.serving_pod("a");
        let (_b, b_ip) = lab.serving_pod("b");
        serve(&lab.outside, "world", 80);

        let to_b = format!("{b_ip}:8080");
        assert_eq!(a.inside(move || ask(&to_b)).unwrap(), ("b".into(), a_ip.to_string()), "source address is kept");
        assert_eq!(ask(&format!("{a_ip}:8080")).unwrap(), ("a".into(), "10.42.0.1".into()), "from the host");
        for to in [OUTSIDE, FAR] {
            let far = format!("{to}:80");
            assert_eq!(a.inside(move || ask(&far)).unwrap(), ("world".into(), HOST.into()), "masqueraded");
        }
        let far = format!("{OUTSIDE}:80");
        let udp = a.inside(move || ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), &far)).unwrap();
        assert_eq!(udp, ("world".into(), HOST.into()));
        // Nobody has this address: refused at once, not sent to the world.
        let error = a.inside(|| ask("10.42.0.250:80")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{error}");
        let host = FsStats::open(std::path::Path::new("/proc/thread-self/ns/net"));
        serve(&host, "host", 7070);
        assert_eq!(a.inside(|| ask("10.42.0.1:7070")).unwrap(), ("host".into(), a_ip.to_string()));
    });
}

#[test]
fn a_restart_finds_everything_and_repairs_what_is_missing() {
    machine(|lab| {
        let (first, second) = (lab.attach("a"), lab.attach("b"));
        let inode = |path| std::fs::metadata::<&std::path::Path>(path).map(|m| std::os::unix::fs::MetadataExt::ino(&m));
        let before = inode(&first.netns).unwrap();
        let again = KernelPodNetwork::open(lab.config.clone()).unwrap();
        let attach = |id: &str| {
            let pod = net::PodAttachment { id: id.into(), namespace: "test".into(), name: id.into(), netns: None };
            lab.runtime.block_on(again.attach(pod)).unwrap()
        };
        assert_eq!(attach("a"), first);
        assert_eq!(inode(&first.netns).unwrap(), before, "the same namespace, not a new one");
        assert_ne!(attach("c").addresses, second.addresses);

        // The link goes: the next attach makes it anew under the same address.
        let links = run("ip -o link show type veth");
        for line in links.lines().filter(|l| l.contains(": amp")) {
            let name = line.split(": ").nth(1).unwrap().split('@').next().unwrap();
            run(&format!("ip link del {name}"));
        }
        assert_eq!(attach("a"), first);
        let space = FsStats::open(&first.netns);
        serve(&space, "a", 8080);
        assert_eq!(ask(&format!("{}:8080", first.addresses[0])).unwrap().0, "a");
        let gone = lab.runtime.block_on(again.adopt(&["a".into()])).unwrap();
        assert_eq!(gone, ["b", "c"]);
    });
}

#[test]
fn two_families() {
    machine(|lab| {
        let mut config = lab.config.clone();
        config.run_dir = config.run_dir.join("two");
        config.bridge = "two0".into();
        config.pod_cidrs = vec!["10.77.0.0/24".parse().unwrap(), "fd77::/64".parse().unwrap()];
        let network = KernelPodNetwork::open(config.clone()).unwrap();
        let attach = |id: &str| {
            let pod = net::PodAttachment { id: id.into(), namespace: "test".into(), name: id.into(), netns: None };
            lab.runtime.block_on(network.attach(pod)).unwrap()
        };
        let (a, b) = (attach("a"), attach("b"));
        assert_eq!(b.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.77.0.3", "fd77::3"]);
        let listener = FsStats::open(&b.netns).inside(|| std::net::TcpListener::bind("[::]:8080").unwrap());
        let peer = std::thread::spawn(move || listener.accept().unwrap().1.ip());
        FsStats::open(&a.netns).inside(|| std::net::TcpStream::connect("[fd77::3]:8080").unwrap());
        assert_eq!(peer.join().unwrap(), a.addresses[1]);
        net::destroy(&config).unwrap();
    });
}

#[test]
fn a_pod_cannot_use_the_address_of_another() {
    machine(|lab| {
        let (a, _) = lab.serving_pod("a");
        let (_b, b_ip) = lab.serving_pod("b");
        let victim = UdpSocket::bind("10.42.0.1:5353").unwrap();
        victim.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        a.inside(move || {
            run(&format!("ip addr add {b_ip}/32 dev eth0"));
            let socket = UdpSocket::bind((b_ip, 0)).unwrap();
            socket.send_to(b"I am b", "10.42.0.1:5353").unwrap();
        });
        assert!(victim.recv(&mut [0; 16]).is_err());
        a.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"I am a", "10.42.0.1:5353").unwrap());
        assert!(victim.recv(&mut [0; 16]).is_ok());
    });
}

#[test]
fn after_a_reboot_left_over_files_do_not_matter() {
    machine(|lab| {
        std::fs::create_dir_all(lab.config.run_dir.join("netns")).unwrap();
        std::fs::write(lab.config.netns_path("a"), "").unwrap();
        std::fs::write(lab.config.run_dir.join("addresses/10.42.0.77"), "a").unwrap();
        let again = KernelPodNetwork::open(lab.config.clone()).unwrap();
        let pod = net::PodAttachment { id: "a".into(), namespace: "test".into(), name: "a".into(), netns: None };
        let attached = lab.runtime.block_on(again.attach(pod)).unwrap();
        assert_eq!(attached.addresses[0].to_string(), "10.42.0.77");
        let space = FsStats::open(&attached.netns);
        assert!(space.inside(|| run("ip -o addr show eth0")).contains("10.42.0.77/32"));
    });
}

#[test]
fn fifty_at_once_get_fifty_addresses() {
    machine(|lab| {
        let pods = (0..50).map(|i| {
            let pod = net::PodAttachment {
                id: format!("p{i}"),
                namespace: "test".into(),
                name: format!("p{i}"),
                netns: None,
            };
            lab.network.attach(pod)
        });
        let attached = lab.runtime.block_on(futures::future::join_all(pods));
        let addresses: std::collections::BTreeSet<_> = attached.into_iter().map(|a| a.unwrap().addresses[0]).collect();
        assert_eq!(addresses.len(), 50);
    });
}

/// Everything of this machine that this room could have touched.
fn picture(lab: &crate::lab::Lab) -> String {
    let run_dir = lab.config.run_dir.to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let mounts: Vec<&str> = mounts.lines().filter(|line| line.contains(&run_dir)).collect();
    let files = run(&format!("find {run_dir}"));
    [
        run("ip -o link"),
        run("ip -o addr"),
        run("ip route show table all"),
        run("nft list ruleset"),
        mounts.join("\n"),
        files,
    ]
    .join("\n---\n")
}

#[test]
fn destroy_leaves_nothing() {
    machine(|lab| {
        net::destroy(&lab.config).unwrap();
        run("nft add table ip somebody");
        let before = picture(lab);
        let network = KernelPodNetwork::open(lab.config.clone()).unwrap();
        for id in ["a", "b", "c"] {
            let pod = net::PodAttachment { id: id.into(), namespace: "test".into(), name: id.into(), netns: None };
            lab.runtime.block_on(network.attach(pod)).unwrap();
        }
        for table in net::nft::suite::tables() {
            lab.dataplane.apply_now(&table).unwrap();
        }
        net::check::nftables(&lab.config).unwrap();
        net::check::conntrack().unwrap();
        net::check::links().unwrap();
        net::check::vxlan().unwrap();
        assert_ne!(picture(lab), before);
        net::destroy(&lab.config).unwrap();
        assert_eq!(picture(lab), before);
        net::destroy(&lab.config).unwrap();
    });
}
