//! The API server as what listens at a port.

use axum::Router;

use super::router;
use crate::api::Api;
use crate::api::identity::join::user_of;
use crate::apimachinery::http::connections::Connections;
use crate::apimachinery::http::listen::Site;
use crate::apimachinery::user::User;

impl Site for Api {
    fn connections(&self) -> &Connections {
        &self.connections
    }

    fn user_of(&self, certificate: &[u8]) -> Option<(User, String)> {
        user_of(self, certificate)
    }

    fn router(&self) -> Router {
        router::router(self)
    }
}
