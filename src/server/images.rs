//! The images of the agents, for the node beside the server.

use async_trait::async_trait;

use crate::api::node_access::Nodes;
use crate::wire::images::{Ask, Found, Peers};

/// All nodes but one's own.
pub(super) struct Agents {
    pub nodes: Nodes,
    pub own: String,
}

#[async_trait]
impl Peers for Agents {
    async fn ask(&self, ask: &Ask) -> Result<Option<Found>, String> {
        Ok(self.nodes.image(ask, &self.own).await)
    }
}
