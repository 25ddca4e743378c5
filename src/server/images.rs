//! The images of the agents, for the node beside the server.

use async_trait::async_trait;

use crate::api::Api;
use crate::api::identity::node::is_image_source;
use crate::wire::images::{BlobRequest, BlobResponse, Peers};

/// All nodes but one's own.
pub(super) struct Agents {
    pub api: Api,
    pub own: String,
}

#[async_trait]
impl Peers for Agents {
    async fn ask(&self, ask: &BlobRequest) -> Result<Option<BlobResponse>, String> {
        Ok(self.api.nodes.image(ask, &self.own, |other| is_image_source(&self.api.cache, other)).await)
    }
}
