//! What the nodes' own ports answer to somebody who does not say who they are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde_json::Value;

use super::super::super::client::Cluster;
use super::{Failed, Line, Passed, Verdict, line, some};
use crate::base::json::{at, list, text};
use crate::wire;
use crate::wire::client::{Client, Target};

/// Where kubelets answer everybody, if they are told to.
const READ_ONLY: u16 = 10255;
/// How long a node may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The lines about ports of nodes.
pub(super) async fn ask(cluster: &mut Cluster) -> Result<Vec<Line>> {
    let nodes = cluster.object(Method::GET, "/api/v1/nodes", None).await?;
    Ok(vec![
        line("4.2.1", "no anonymous access to kubelets", anonymous(list(&nodes, "items")).await?),
        line("4.2.4", "no read-only port of kubelets", read_only()),
    ])
}

async fn anonymous(nodes: &[Value]) -> Result<Verdict> {
    let (mut refused, mut wrong) = (0, Vec::new());
    for node in nodes {
        let port = at(node, "status.daemonEndpoints.kubeletEndpoint.Port").and_then(Value::as_u64).unwrap_or(0);
        let addresses = list(node, "status.addresses").iter().filter(|a| text(a, "type") == "InternalIP");
        let address = addresses.filter_map(|a| text(a, "address").parse::<IpAddr>().ok()).next();
        let (Some(address), Some(port)) = (address, u16::try_from(port).ok().filter(|port| *port != 0)) else {
            continue;
        };
        let name = text(node, "metadata.name");
        match status_of(SocketAddr::new(address, port)).await? {
            Some(401) => refused += 1,
            Some(status) => wrong.push(format!("{name} answers {status} on port {port}")),
            None => wrong.push(format!("{name} does not answer on port {port}, so it was not looked at")),
        }
    }
    Ok(match wrong.is_empty() {
        true => Passed(format!("refused by all {refused} nodes that listen")),
        false => Failed(format!("{}: find out what listens there, or --kubelet-port 0", some(&wrong))),
    })
}

/// What somebody is told who asks for the node's pods; `None` where nobody answers.
async fn status_of(address: SocketAddr) -> Result<Option<u16>> {
    let target = Target {
        server: format!("https://{address}").parse()?,
        tls: wire::tls::trusting_anyone()?,
        token: None,
        user_agent: "amphipod-check".into(),
    };
    let request = Request::get("/pods").body(Full::new(Bytes::new()))?;
    let answer = tokio::time::timeout(PATIENCE, Client::new(target).send(request)).await;
    Ok(answer.ok().and_then(Result::ok).map(|response| response.status().as_u16()))
}

fn read_only() -> Verdict {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, READ_ONLY));
    match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
        Err(_) => Passed(format!("nothing listens on port {READ_ONLY}")),
        Ok(_) => {
            Failed(format!("something that is not of this cluster listens on port {READ_ONLY}: find out what it is"))
        }
    }
}
