//! `amphipod check --security`: what the CIS benchmark for Kubernetes asks, of a cluster like this one.
//!
//! The numbers are those of the benchmark (version 1.10), whose text is not repeated. A line is passed because of what was
//! seen just now, fails with what helps, or says why there is nothing of the kind here. Files are looked at on this machine,
//! objects over the API with the administrator's kubeconfig; what is tried there are reviews and dry runs, which change
//! nothing. Invariant: no line is passed that was not looked at.

mod files;
mod line;
mod policies;
mod ports;
mod requests;

use line::{Line, Verdict, line, some};

use anyhow::{Context, Result, bail};

use super::super::client::{Where, run as block_on};
use super::super::{Directories, output};
use policies::Objects;

use Verdict::{Failed, NotApplicable, Passed};

/// Lines about parts that Kubernetes has and this has not.
const ABSENT: [(&str, &str, &str); 31] = [
    ("1.1.1-8", "files of static control plane pods", "the control plane is one process, without manifests of its own"),
    ("1.1.9-10", "files of the container network interface", "the pod network is built in: there are no such files"),
    ("1.1.15-18", "kubeconfigs of scheduler and controllers", "both are parts of the API's process and need none"),
    ("1.2.2", "no static token file", "there is no such flag"),
    ("1.2.4-5", "TLS to kubelets", "nodes are reached through connections that they open with their certificates"),
    ("1.2.9", "EventRateLimit", "requests of each user are bounded by priority and fairness, events among them"),
    ("1.2.10", "no AlwaysAdmit", "there is no such plugin"),
    ("1.2.20", "request timeout", "a request has 60 seconds, which cannot be changed"),
    ("1.2.23", "TLS to etcd", "the store is a file of the API's own process"),
    ("1.2.26", "certificate authority of etcd", "the store is a file of the API's own process"),
    ("1.2.29", "strong ciphers", "only TLS 1.2 with forward secrecy and TLS 1.3 are built in"),
    ("1.3.1", "garbage of ended pods", "ended pods are bounded, and the bound is not to be switched off"),
    ("1.3.3", "credentials for each controller", "controllers are parts of the API's process and use no credentials"),
    ("1.3.4-5", "keys of service accounts and root authority", "they come from the data directory, always"),
    ("1.3.6", "rotation of kubelets' server certificates", "they are renewed with the nodes' own, always"),
    ("1.3.7", "controllers listen on loopback", "controllers listen nowhere"),
    ("1.4", "scheduler", "the scheduler is a part of the API's process and listens nowhere"),
    ("2", "etcd", "the store is a file of the API's own process, in a directory that the lines 1.1.11-12 look at"),
    ("3.1.2-3", "no tokens of service accounts or bootstrap for users", "an agreement among people"),
    ("4.1.3-4", "kubeconfig of the service proxy", "it is a part of the node's process and needs none"),
    ("4.2.2", "kubelet's authorization", "the API is asked at each request, as for its own; there is no other mode"),
    ("4.2.3", "kubelet's client authority", "the cluster's own, always"),
    ("4.2.5", "timeout of streams", "an idle stream ends with its connection"),
    ("4.2.6", "kubelet makes iptables chains", "the data plane is built in and always there"),
    ("4.2.7", "no hostname override", "a node's name is checked against its certificate at each request"),
    ("4.2.8", "events of kubelets", "a node's events are sent without a rate that could lose them"),
    ("4.2.9-10", "kubelet's TLS files", "the server signs them for each node when it joins"),
    ("4.2.12", "kubelet's ciphers", "as the API's (1.2.29)"),
    ("5.2.11", "no Windows HostProcess", "there are no Windows nodes"),
    ("5.4.2", "external storage of secrets", "an agreement among people"),
    ("5.7.1", "namespaces as boundaries", "an agreement among people"),
];

/// Prints every line; an error when one failed.
pub fn run(directories: &Directories) -> Result<()> {
    let mut lines: Vec<Line> = ABSENT.iter().map(|(id, what, why)| line(id, what, NotApplicable(why))).collect();
    lines.extend(files::look(directories));
    let asked = block_on(async {
        let mut cluster = Where::of(directories).open()?;
        let mut lines = requests::ask(&mut cluster).await?;
        lines.extend(policies::judge(&Objects::read(&mut cluster).await?));
        lines.extend(ports::ask(&mut cluster).await?);
        anyhow::Ok(lines)
    });
    lines.extend(asked.context("the cluster cannot be asked: run this on the machine of a server that runs")?);
    lines.sort_by_key(|line| order(line.id));
    let mut counts = [0; 3];
    for Line { id, what, verdict } in &lines {
        let (mark, index, text) = match verdict {
            Passed(text) => ("pass", 0, text.as_str()),
            Failed(text) => ("fail", 1, text.as_str()),
            NotApplicable(text) => ("n/a", 2, *text),
        };
        counts[index] += 1;
        output(&format!("{mark:<5} {id:<9} {what:<46} {text}"));
    }
    let [passed, failed, absent] = counts;
    output(&format!("{passed} passed, {failed} failed, {absent} not applicable"));
    match failed {
        0 => Ok(()),
        _ => bail!("{failed} lines failed: each says what helps"),
    }
}

/// Numbers in the order of the benchmark.
fn order(id: &str) -> Vec<u32> {
    id.split(['.', '-']).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_the_order_of_the_benchmark() {
        let mut ids = ["5.2.11", "1.2.10", "1.2.9", "1.1.15-18", "2", "1.1.9-10"];
        ids.sort_by_key(|id| order(id));
        assert_eq!(ids, ["1.1.9-10", "1.1.15-18", "1.2.9", "1.2.10", "2", "5.2.11"]);
        assert_eq!(some(&["a".into()]), "a");
        let many: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(some(&many), "0, 1, 2, 3 and 3 more");
    }
}
