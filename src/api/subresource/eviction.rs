//! pods/eviction: a deletion that disruption budgets may refuse (there are none yet: the kind comes with a later step).

use serde_json::{Value, json};

use crate::api::{Api, Request};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::text;

impl Api {
    /// Evicts the named pod.
    pub async fn evict(&self, request: &Request, eviction: &Value) -> Result<Value> {
        let name = text(eviction, "metadata.name");
        if !name.is_empty() && name != request.name {
            return Err(Status::bad_request(format!(
                "name in URL does not match name in Eviction object: {} != {name}",
                request.name
            )));
        }
        let options = DeleteOptions::from_value(&eviction["deleteOptions"])?;
        let request = Request { kind: crate::kinds::core::pod::KIND.clone(), subresource: None, ..request.clone() };
        self.delete(&request, &options).await?;
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
    }
}
