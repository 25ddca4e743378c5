//! The API server as what listens at a port.

use std::sync::Arc;

use axum::Router;

use super::router;
use crate::api::Api;
use crate::api::identity::join::{Joiner, user_of};
use crate::apimachinery::http::connections::Connections;
use crate::apimachinery::http::listen::Site;
use crate::apimachinery::user::User;

/// An API and, where machines may join, who lets them; cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    pub api: Api,
    pub joiner: Option<Arc<Joiner>>,
}

impl Site for ApiServer {
    fn connections(&self) -> &Connections {
        &self.api.connections
    }

    fn user_of(&self, certificate: &[u8]) -> Option<(User, String)> {
        user_of(&self.api, certificate)
    }

    fn router(&self) -> Router {
        router::router(&self.api, self.joiner.clone())
    }
}
