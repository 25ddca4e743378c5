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
        custom: None,
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

/// A field of a message, as anybody reads it who knows nothing of the message.
#[derive(Clone, Debug, PartialEq)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

fn number(bytes: &mut &[u8]) -> u64 {
    let (mut out, mut shift) = (0, 0);
    loop {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        out |= u64::from(first & 0x7f) << shift;
        shift += 7;
        if first & 0x80 == 0 {
            return out;
        }
    }
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes);
        let value = match tag & 7 {
            0 => Field::Number(number(&mut bytes)),
            2 => {
                let length = number(&mut bytes) as usize;
                let (inner, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(inner.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        out.push((tag >> 3, value));
    }
    out
}

/// The messages or texts with these numbers, one inside the other.
fn at(bytes: &[u8], path: &[u64]) -> Vec<Vec<u8>> {
    let [first, rest @ ..] = path else { return vec![bytes.to_vec()] };
    let here = fields(bytes).into_iter().filter(|(n, _)| n == first);
    here.flat_map(|(_, f)| match f {
        Field::Bytes(inner) => at(&inner, rest),
        Field::Number(n) => vec![n.to_string().into_bytes()],
    })
    .collect()
}

fn text_at(bytes: &[u8], path: &[u64]) -> String {
    at(bytes, path).into_iter().map(|b| String::from_utf8(b).unwrap()).collect::<Vec<_>>().join(",")
}

/// The value of an entry of a list of names and values.
fn entry(entries: Vec<Vec<u8>>, name: &str) -> Vec<u8> {
    let found = entries.into_iter().find(|e| text_at(e, &[1]) == name).unwrap_or_else(|| panic!("no {name}"));
    at(&found, &[2]).remove(0)
}

#[test]
fn version_2_in_protobuf_says_what_the_json_says() {
    let (message, doc) = (v2_protobuf(&kinds()), serde_json::from_slice::<Value>(&v2(&kinds())).unwrap());
    assert_eq!(text_at(&message, &[1]), "2.0");
    assert_eq!((text_at(&message, &[2, 1]), text_at(&message, &[2, 2])), ("Kubernetes".into(), "v1.37.0".into()));
    assert_eq!(text_at(&message, &[12, 1, 1]), "BearerToken");
    assert_eq!(text_at(&entry(at(&message, &[13, 1]), "BearerToken"), &[2, 3]), "header");
    let names = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let told = |path: &[u64]| at(&message, path).iter().map(|e| text_at(e, &[1])).collect::<Vec<_>>();
    assert_eq!(told(&[8, 2]), names(&doc["paths"]));
    assert_eq!(told(&[9, 1]), names(&doc["definitions"]));

    let name = "io.k8s.api.core.v1.PodSpec";
    let (spec, json) = (entry(at(&message, &[9, 1]), name), &doc["definitions"][name]);
    assert_eq!(text_at(&spec, &[4]), json["description"].as_str().unwrap());
    assert_eq!((text_at(&spec, &[22, 1]), text_at(&spec, &[19])), ("object".into(), "containers".into()));
    let containers = entry(at(&spec, &[25, 1]), "containers");
    assert_eq!(text_at(&containers, &[23, 1, 1]), "#/definitions/io.k8s.api.core.v1.Container");
    let keys = entry(at(&containers, &[31]), "x-kubernetes-list-map-keys");
    assert_eq!(text_at(&keys, &[2]), "[\"name\"]\n", "YAML");
    let selector = entry(at(&spec, &[25, 1]), "nodeSelector");
    assert_eq!(text_at(&selector, &[21, 1, 22, 1]), "string");
    let grace = entry(at(&spec, &[25, 1]), "terminationGracePeriodSeconds");
    assert_eq!((text_at(&grace, &[22, 1]), text_at(&grace, &[2])), ("integer".into(), "int64".into()));

    let path = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}";
    let item = entry(at(&message, &[8, 2]), path);
    assert_eq!(text_at(&item, &[9, 1, 2, 4, 4]), "name,namespace");
    assert_eq!(text_at(&item, &[9, 1, 2, 4, 1]), "1,1", "required");
    let patch = at(&item, &[8]).remove(0);
    assert_eq!(text_at(&patch, &[5]), "patchAppsV1NamespacedDeployment");
    assert!(text_at(&patch, &[7]).contains("application/apply-patch+yaml"));
    assert!(text_at(&patch, &[8, 1, 2, 3, 4]).contains("fieldValidation"));
    assert_eq!(text_at(&patch, &[8, 1, 1, 5, 1]), "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Patch");
    let gvk: Value =
        serde_json::from_str(&text_at(&entry(at(&patch, &[13]), "x-kubernetes-group-version-kind"), &[2])).unwrap();
    assert_eq!(gvk, json!({"group": "apps", "kind": "Deployment", "version": "v1"}));
    let ok = entry(at(&patch, &[9, 1]), "200");
    assert_eq!(text_at(&ok, &[1, 2, 1, 1]), "#/definitions/io.k8s.api.apps.v1.Deployment");
}
