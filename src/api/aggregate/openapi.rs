//! Where the OpenAPI documents of other servers are. Nobody is asked before somebody asks here.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use super::connection::Question;
use super::discovered::Told;
use super::remote::Remote;
use crate::api::Api;
use crate::base::budget::Budget;
use crate::base::json::text;
use crate::schema;

/// How long a server may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long its answer, or that there is none, is good.
const FRESH: Duration = Duration::from_secs(60);
const BYTES_MAX: usize = 512 << 10;
const ADDRESS_BYTES_MAX: usize = 512;

// === impl Api ===

impl Api {
    /// What the index of version 3 has of other servers: `apis/group/version`, and where its document is.
    pub async fn openapi_of_remotes(&self) -> Vec<(String, String)> {
        let remotes = self.remotes();
        let asked = remotes.iter().filter(|remote| remote.is_available && !remote.group.is_empty());
        let all = join_all(asked.map(|remote| address(self, remote))).await;
        all.into_iter().flatten().collect()
    }
}

async fn address(api: &Api, remote: &Remote) -> Option<(String, String)> {
    let name = format!("apis/{}/{}", remote.group, remote.version);
    let known = remote.discovered().openapi.clone().filter(|told| told.at.elapsed() < FRESH);
    let address = match known {
        Some(told) => told.address,
        None => {
            let address = tokio::time::timeout(TIMEOUT, ask(api, remote, &name)).await.ok().flatten();
            remote.discovered().openapi = Some(Told { at: Instant::now(), address: address.clone() });
            address
        }
    };
    Some((name, address?))
}

async fn ask(api: &Api, remote: &Remote, name: &str) -> Option<String> {
    let reply = remote.ask(api, &Question::get("/openapi/v3", BYTES_MAX)).await.ok()?;
    let (index, _) = schema::parse_json(&reply.body, &mut Budget::new()).ok()?;
    let of_version = index.get("paths")?.get(name)?;
    // Its word counts for its own version and for no other address.
    let own = format!("/openapi/v3/{name}");
    let address = text(of_version, "serverRelativeURL");
    let rest = address.strip_prefix(&own).filter(|rest| rest.is_empty() || rest.starts_with('?'));
    rest.filter(|_| reply.status == 200 && address.len() <= ADDRESS_BYTES_MAX).map(|_| address.to_owned())
}
