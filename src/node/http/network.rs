//! What the kernel counts per network interface, of the machine and of a pod's namespace.

/// Counters of one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub name: String,
    pub rx: Direction,
    pub tx: Direction,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Direction {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// The interfaces of a network namespace, and which of them leads to everywhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Network {
    pub interfaces: Vec<Interface>,
    pub default: Option<String>,
}

// === impl Network ===

impl Network {
    /// The namespace of a process; `None` when it is gone.
    pub(super) fn of_process(pid: &str) -> Option<Self> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{file}")).ok();
        let interfaces = parse(&read("dev")?);
        let default = default_route(&read("route").unwrap_or_default());
        // A pod with addresses of the other family alone has no such route.
        let only = || (interfaces.len() == 1).then(|| interfaces[0].name.clone());
        Some(Self { default: default.or_else(only), interfaces })
    }

    /// The interface that leads to everywhere else.
    pub(super) fn main(&self) -> Option<&Interface> {
        let name = self.default.as_ref()?;
        self.interfaces.iter().find(|i| i.name == *name)
    }
}

/// `/proc/net/dev` without the loopback, which the kubelet does not count either.
fn parse(text: &str) -> Vec<Interface> {
    let one = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
        let direction = |n: &[u64]| Direction { bytes: n[0], packets: n[1], errors: n[2], dropped: n[3] };
        let name = name.trim();
        let known = numbers.len() >= 12 && name != "lo";
        known.then(|| Interface { name: name.to_owned(), rx: direction(&numbers), tx: direction(&numbers[8..]) })
    };
    text.lines().filter_map(one).collect()
}

/// The interface of the route to 0.0.0.0 in `/proc/net/route`.
fn default_route(text: &str) -> Option<String> {
    let mut lines = text.lines().skip(1).map(|l| l.split_whitespace());
    lines.find_map(|mut fields| {
        let (name, destination) = (fields.next()?, fields.next()?);
        (destination == "00000000").then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_counted_but_the_loopback() {
        let dev = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo: 1858772830 1974001    0    0    0     0          0         0 1858772830 1974001    0    0    0     0       0          0\n  \
            eth0: 1175551865   29607    1    2    0     0          0         0  1433630   17746    3    4    0     0       0          0\n";
        let all = parse(dev);
        let rx = Direction { bytes: 1_175_551_865, packets: 29_607, errors: 1, dropped: 2 };
        let tx = Direction { bytes: 1_433_630, packets: 17_746, errors: 3, dropped: 4 };
        assert_eq!(all, [Interface { name: "eth0".into(), rx, tx }]);
        let route = "Iface\tDestination\tGateway\neth1\t000200C0\t00000000\neth0\t00000000\t010200C0\n";
        assert_eq!(default_route(route).as_deref(), Some("eth0"));
        assert_eq!(default_route("Iface\tDestination\n"), None);
    }
}
