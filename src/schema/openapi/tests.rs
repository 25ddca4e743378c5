//! The documents hold what kubectl looks for.

use serde_json::Value;

use super::*;

fn kinds() -> Vec<ApiKind> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let all = "create delete deletecollection get list patch update watch";
    let kind = |group: &str, version: &str, kind: &str, plural: &str, namespaced, package: &str| ApiKind {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        namespaced,
        verbs: words(all),
        subresources: vec![ApiSubresource {
            name: "status".into(),
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            verbs: words("get patch update"),
            definition: format!("io.k8s.api.{package}.{kind}"),
        }],
        definition: format!("io.k8s.api.{package}.{kind}"),
    };
    let mut deployment = kind("apps", "v1", "Deployment", "deployments", true, "apps.v1");
    deployment.subresources.push(ApiSubresource {
        name: "scale".into(),
        group: "autoscaling".into(),
        version: "v1".into(),
        kind: "Scale".into(),
        verbs: words("get patch update"),
        definition: "io.k8s.api.autoscaling.v1.Scale".into(),
    });
    vec![
        deployment,
        kind("", "v1", "Pod", "pods", true, "core.v1"),
        kind("", "v1", "Node", "nodes", false, "core.v1"),
        kind("rbac.authorization.k8s.io", "v1", "Role", "roles", true, "rbac.v1"),
    ]
}

/// Every reference in a document must have its target.
fn check_references(value: &Value, definitions: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(target) = map.get("$ref").and_then(Value::as_str) {
                let name = target.rsplit('/').next().unwrap();
                assert!(!definitions[name].is_null(), "{target}");
            }
            map.values().for_each(|v| check_references(v, definitions));
        }
        Value::Array(items) => items.iter().for_each(|v| check_references(v, definitions)),
        _ => {}
    }
}

#[test]
fn version_3_has_what_kubectl_needs() {
    let doc: Value = serde_json::from_slice(&v3(&kinds(), "apps", "v1").unwrap()).unwrap();
    let schemas = &doc["components"]["schemas"];
    check_references(&doc, schemas);
    let spec = &schemas["io.k8s.api.apps.v1.DeploymentSpec"];
    assert_eq!(spec["properties"]["strategy"]["x-kubernetes-patch-strategy"], "retainKeys");
    assert_eq!(spec["required"], json!(["selector", "template"]));
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert!(containers["description"].as_str().unwrap().starts_with("List of containers belonging to the pod"));
    let kinds_of = &schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"];
    assert_eq!(*kinds_of, json!([{"group": "apps", "kind": "Deployment", "version": "v1"}]));
    let patch = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
    assert!(!patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_null());
    let scale = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"];
    assert_eq!(scale["operationId"], "readAppsV1NamespacedDeploymentScale");
    assert_eq!(scale["x-kubernetes-group-version-kind"]["group"], "autoscaling");
    assert!(v3(&kinds(), "nope", "v1").is_none());
}

#[test]
fn version_2_is_whole_and_names_operations_as_kubernetes_does() {
    let doc: Value = serde_json::from_slice(&v2(&kinds())).unwrap();
    check_references(&doc, &doc["definitions"]);
    let paths = &doc["paths"];
    assert_eq!(paths["/api/v1/pods"]["get"]["operationId"], "listCoreV1PodForAllNamespaces");
    assert_eq!(paths["/api/v1/nodes"]["delete"]["operationId"], "deleteCoreV1CollectionNode");
    let roles = &paths["/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles"];
    assert_eq!(roles["post"]["operationId"], "createRbacAuthorizationV1NamespacedRole");
    assert_eq!(
        doc["definitions"][definitions_quantity()],
        json!({"description": "Quantity is a fixed-point representation of a number.", "type": "string"})
    );
}

fn definitions_quantity() -> &'static str {
    "io.k8s.apimachinery.pkg.api.resource.Quantity"
}

#[test]
fn the_index_names_every_group_version() {
    let index = v3_index(&kinds());
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="), "{url}");
    assert!(!index["paths"]["api/v1"].is_null());
    assert_ne!(fingerprint(&kinds(), "apps", "v1"), fingerprint(&kinds()[1..], "apps", "v1"));
}
