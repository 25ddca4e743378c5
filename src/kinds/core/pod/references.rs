//! Which Secrets and ConfigMaps a pod's node must read: what its agent follows, and all that its agent may read.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, Pod};

use crate::kinds::KindRef;
use crate::kinds::core::{configmap, secret};

/// The Secrets and ConfigMaps that a pod names, each once.
pub fn references(pod: &Pod) -> Vec<(&'static KindRef, String)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut found = Found::default();
    for pull in spec.image_pull_secrets.iter().flatten() {
        found.secret(&pull.name);
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        found.environment(container.env_from.iter().flatten(), container.env.iter().flatten());
    }
    for container in spec.ephemeral_containers.iter().flatten() {
        found.environment(container.env_from.iter().flatten(), container.env.iter().flatten());
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()) {
            found.secret(name);
        }
        if let Some(map) = &volume.config_map {
            found.map(&map.name);
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            source.secret.iter().for_each(|s| found.secret(&s.name));
            source.config_map.iter().for_each(|m| found.map(&m.name));
        }
    }
    found.all
}

#[derive(Default)]
struct Found {
    all: Vec<(&'static KindRef, String)>,
    /// By kind and name.
    seen: HashSet<(&'static str, String)>,
}

impl Found {
    fn secret(&mut self, name: &str) {
        self.note(&secret::KIND, name);
    }

    fn map(&mut self, name: &str) {
        self.note(&configmap::KIND, name);
    }

    fn note(&mut self, kind: &'static KindRef, name: &str) {
        if !name.is_empty() && self.seen.insert((kind.kind(), name.to_owned())) {
            self.all.push((kind, name.to_owned()));
        }
    }

    fn environment<'a>(
        &mut self,
        from: impl Iterator<Item = &'a EnvFromSource>,
        single: impl Iterator<Item = &'a EnvVar>,
    ) {
        for source in from {
            source.secret_ref.iter().for_each(|s| self.secret(&s.name));
            source.config_map_ref.iter().for_each(|m| self.map(&m.name));
        }
        for source in single.filter_map(|v| v.value_from.as_ref()) {
            source.secret_key_ref.iter().for_each(|s| self.secret(&s.name));
            source.config_map_key_ref.iter().for_each(|m| self.map(&m.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_place_that_names_a_secret_or_a_map_counts_once() {
        let pod = json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "init"}}, {"configMapRef": {"name": "all"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "init", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "one", "key": "k"}}},
                {"name": "C", "value": "c"}]}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "volume"}}, {"name": "b", "configMap": {"name": "all"}},
                {"name": "c", "projected": {"sources": [{"secret": {"name": "p"}}, {"configMap": {"name": "q"}}]}}],
        }});
        let found = references(&serde_json::from_value(pod).unwrap());
        let names = |kind: &KindRef| -> Vec<&str> {
            found.iter().filter(|(k, _)| *k == kind).map(|(_, n)| n.as_str()).collect()
        };
        assert_eq!(names(&secret::KIND), ["pull", "init", "volume", "p"]);
        assert_eq!(names(&configmap::KIND), ["all", "one", "q"]);
    }
}
