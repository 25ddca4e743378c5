//! What other servers are told of whom to believe: the ConfigMap `extension-apiserver-authentication`.

use serde_json::{Value, json};

use super::trust::FrontProxy;
use crate::api::identity::pki::FRONT_PROXY;
use crate::api::write::Change;
use crate::api::{Api, Request};
use crate::apimachinery::status::Result;
use crate::base::json::text;
use crate::kinds::core::configmap;

const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "extension-apiserver-authentication";
const MANAGER: &str = "kube-apiserver";

/// Brings the ConfigMap to what is to be in it.
///
/// What others have added to it stays, as in Kubernetes, where several API servers may have authorities of their own.
pub(super) async fn publish(api: &Api, identity: &FrontProxy) -> Result<()> {
    let request = Request::internal(MANAGER, &configmap::KIND, NAMESPACE, CONFIG_MAP);
    let there = api.cache.kind(&configmap::KIND).get(&request.key()).map(|object| object.value());
    let old = there.as_ref().and_then(|map| map.get("data")).cloned().unwrap_or(Value::Null);
    let new = with_ours(&old, identity);
    if there.is_some() && new == old {
        return Ok(());
    }
    if there.is_none() {
        let map = json!({"metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE}, "data": new});
        return api.create(&request, map).await.map(drop);
    }
    let mut change = |live: &Value| {
        let mut map = live.clone();
        map["data"] = with_ours(live.get("data").unwrap_or(&Value::Null), identity);
        Ok(map)
    };
    api.update(&request, Change::Patch(&mut change)).await.map(drop)
}

/// The revision of the ConfigMap; 0 where there is none.
pub(super) fn published(api: &Api) -> u64 {
    let key = configmap::KIND.key(NAMESPACE, CONFIG_MAP);
    api.cache.kind(&configmap::KIND).get(&key).map_or(0, |object| object.revision)
}

/// The data of the ConfigMap with what is ours in it.
fn with_ours(old: &Value, identity: &FrontProxy) -> Value {
    let mut data = old.as_object().cloned().unwrap_or_default();
    for (key, ours) in [("client-ca-file", &identity.client_ca), ("requestheader-client-ca-file", &identity.ca)] {
        let (there, ours) = (text(old, key).to_owned(), String::from_utf8_lossy(ours));
        if !there.contains(ours.trim()) {
            let broken = if there.is_empty() || there.ends_with('\n') { "" } else { "\n" };
            data.insert(key.into(), format!("{there}{broken}{ours}").into());
        }
    }
    for (key, ours) in [
        ("requestheader-username-headers", "X-Remote-User"),
        ("requestheader-uid-headers", "X-Remote-Uid"),
        ("requestheader-group-headers", "X-Remote-Group"),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        ("requestheader-allowed-names", FRONT_PROXY),
    ] {
        let there: Vec<String> = serde_json::from_str(text(old, key)).unwrap_or_default();
        if !there.iter().any(|name| name == ours) {
            let all: Vec<String> = there.into_iter().chain([ours.to_owned()]).collect();
            data.insert(key.into(), json!(all).to_string().into());
        }
    }
    Value::Object(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_added_stays_and_nothing_is_written_twice() {
        let pem = |name: &str| format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n");
        let identity = FrontProxy {
            client_ca: pem("clients").into(),
            ca: pem("proxies").into(),
            chain: Vec::new(),
            key: Vec::new(),
        };
        let first = with_ours(&Value::Null, &identity);
        assert_eq!(first["client-ca-file"], pem("clients"));
        assert_eq!(first["requestheader-allowed-names"], "[\"front-proxy-client\"]");
        assert_eq!(first["requestheader-extra-headers-prefix"], "[\"X-Remote-Extra-\"]");
        assert_eq!(with_ours(&first, &identity), first);
        let mut added = first.clone();
        added["client-ca-file"] = pem("another").into();
        added["requestheader-allowed-names"] = "[\"other\"]".into();
        let merged = with_ours(&added, &identity);
        assert_eq!(merged["client-ca-file"], format!("{}{}", pem("another"), pem("clients")));
        assert_eq!(merged["requestheader-allowed-names"], "[\"other\",\"front-proxy-client\"]");
    }
}
