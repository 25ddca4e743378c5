//! A switch made of this process: frames arrive late, and some not at all.
//!
//! Each machine's `eth0` is a tap whose other end is here. The kernels here have no delaying queue discipline, and what a tap
//! hands over is complete (checksums and all), so it can be carried as it is.

use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

/// The longest frame: one on a link of the usual size with its header.
const FRAME_BYTES: usize = 2048;
/// How often a reader looks whether it should stop.
const LOOK: u16 = 100;

nix::ioctl_write_int!(tun_set_iff, b'T', 202);

/// The running switch; it stops when it is dropped.
pub struct Switch {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

struct Shared {
    ports: Vec<File>,
    plugged: Vec<AtomicBool>,
    /// Which hardware address was last seen at which port.
    learned: Mutex<HashMap<[u8; 6], usize>>,
    waiting: Mutex<BinaryHeap<Frame>>,
    more: Condvar,
    stop: AtomicBool,
    delay: Duration,
    /// Of each frame, in parts of 10,000.
    loss: u64,
    random: AtomicU64,
    carried: AtomicU64,
}

struct Frame {
    due: Instant,
    order: u64,
    port: usize,
    bytes: Vec<u8>,
}

impl PartialEq for Frame {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Frame {}

impl PartialOrd for Frame {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Frame {
    /// The heap's greatest is the one that is due first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

/// `struct ifreq` as far as it is used.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

impl Switch {
    /// Gives each network namespace a link `eth0`, and carries frames between them.
    pub fn start(namespaces: &[String], delay: Duration, loss_percent: f64) -> Self {
        let ports: Vec<File> = namespaces.iter().map(|n| tap(n)).collect();
        let shared = Arc::new(Shared {
            plugged: ports.iter().map(|_| AtomicBool::new(true)).collect(),
            ports,
            learned: Mutex::default(),
            waiting: Mutex::default(),
            more: Condvar::new(),
            stop: AtomicBool::new(false),
            delay,
            loss: (loss_percent * 100.0) as u64,
            random: AtomicU64::new(0x2545_f491_4f6c_dd1d),
            carried: AtomicU64::new(0),
        });
        let mut threads = Vec::new();
        for port in 0..namespaces.len() {
            let shared = shared.clone();
            threads.push(std::thread::spawn(move || shared.read(port)));
        }
        let sender = shared.clone();
        threads.push(std::thread::spawn(move || sender.send()));
        Self { shared, threads }
    }

    /// Pulls a cable out, or plugs it in.
    pub fn plug(&self, port: usize, plugged: bool) {
        self.shared.plugged[port].store(plugged, Ordering::Relaxed);
    }

    /// How many frames were carried.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn read(&self, port: usize) {
        let mut buffer = [0; FRAME_BYTES];
        while !self.stop.load(Ordering::Relaxed) {
            let mut wait = [PollFd::new(self.ports[port].as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, PollTimeout::from(LOOK)).is_ok_and(|n| n > 0)
                && let Ok(n) = (&self.ports[port]).read(&mut buffer)
            {
                self.take(port, &buffer[..n]);
            }
        }
    }

    fn take(&self, from: usize, frame: &[u8]) {
        if frame.len() < 14 || !self.plugged[from].load(Ordering::Relaxed) || self.is_lost() {
            return;
        }
        let (to, source): ([u8; 6], [u8; 6]) = (frame[..6].try_into().unwrap(), frame[6..12].try_into().unwrap());
        let known = {
            let mut learned = self.learned.lock().unwrap();
            learned.insert(source, from);
            learned.get(&to).copied()
        };
        let targets: Vec<usize> = match known {
            Some(port) => vec![port],
            None => (0..self.ports.len()).collect(),
        };
        let due = Instant::now() + self.delay;
        let mut waiting = self.waiting.lock().unwrap();
        for port in targets.into_iter().filter(|p| *p != from) {
            let order = self.carried.fetch_add(1, Ordering::Relaxed);
            waiting.push(Frame { due, order, port, bytes: frame.to_vec() });
        }
        self.more.notify_one();
    }

    fn is_lost(&self) -> bool {
        // xorshift: the same frames are lost in every run with the same order.
        let mut x = self.random.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.store(x, Ordering::Relaxed);
        x % 10_000 < self.loss
    }

    fn send(&self) {
        let mut waiting = self.waiting.lock().unwrap();
        while !self.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            match waiting.peek().map(|f| f.due) {
                Some(due) if due <= now => {
                    let frame = waiting.pop().expect("it was just seen");
                    if self.plugged[frame.port].load(Ordering::Relaxed) {
                        let _ = (&self.ports[frame.port]).write(&frame.bytes);
                    }
                }
                Some(due) => waiting = self.more.wait_timeout(waiting, due - now).unwrap().0,
                None => waiting = self.more.wait_timeout(waiting, Duration::from_millis(100)).unwrap().0,
            }
        }
    }
}

/// This end of a new `eth0` in a network namespace.
fn tap(namespace: &str) -> File {
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    let made = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = InterfaceRequest { name: [0; 16], flags: 0x0002 | 0x1000, rest: [0; 22] }; // a tap, frames alone
        request.name[..4].copy_from_slice(b"eth0");
        // SAFETY: the kernel reads one `struct ifreq` at this address, which lives until the call returns.
        unsafe { tun_set_iff(file.as_raw_fd(), std::ptr::from_ref(&request) as u64) }.unwrap();
        file
    });
    made.join().unwrap()
}
