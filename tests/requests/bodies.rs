//! Bodies that fit into 3 MiB and once became gigabytes, stopped the process or held it for minutes.

use serde_json::{Value, json};

pub const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A request that means harm.
pub struct Body {
    pub what: &'static str,
    pub method: &'static str,
    pub path: String,
    pub media: &'static str,
    pub text: String,
    /// What may be answered.
    pub codes: &'static [u16],
}

/// Bodies that fit into 3 MiB and once became gigabytes, stopped the process or held it for minutes.
pub fn bodies() -> Vec<Body> {
    const JSON: &str = "application/json";
    const YAML: &str = "application/yaml";
    const PATCH: &str = "application/json-patch+json";
    const STRATEGIC: &str = "application/strategic-merge-patch+json";
    let many = |item: &str, n: usize| vec![item; n].join(",");
    let numbered = |n: usize, item: &dyn Fn(usize) -> String| (0..n).map(item).collect::<Vec<_>>().join(",");
    let post =
        |what, path: &str, media, text, codes| Body { what, method: "POST", path: path.into(), media, text, codes };
    let patch = |what, path: String, media, text, codes| Body { what, method: "PATCH", path, media, text, codes };
    let mut deep = String::from("a0: &a0 [[[[[[[[[[]]]]]]]]]]\n");
    for i in 1..100 {
        deep.push_str(&format!("a{i}: &a{i} [[[[[[[[[[*a{}]]]]]]]]]]\n", i - 1));
    }
    let mut chain = vec![json!({"op": "add", "path": "/d", "value": {"a": {}}})];
    for i in 0..20 {
        chain.push(json!({"op": "copy", "from": "/d", "path": format!("/d{}", "/a".repeat(1 << i))}));
    }
    let double = |i| json!({"op": "copy", "from": "/data", "path": format!("/data/c{i}")}).to_string();
    let unknown = |n| format!("{{{}}}", numbered(n, &|i| format!("\"x{i}\":1")));
    let pod =
        |containers: String| format!("{{\"metadata\":{{\"name\":\"p\"}},\"spec\":{{\"containers\":[{containers}]}}}}");
    let labels = numbered(120_000, &|i| format!("\"-{i}\":\"-\""));
    let ports = numbered(8_000, &|i| format!("{{\"name\":\"p{i}\",\"containerPort\":{}}}", i + 1));
    let rules = json!({"verbs": vec!["v"; 50_000], "apiGroups": vec!["g"; 50_000], "resources": vec!["r"; 50_000]});
    let role = json!({"metadata": {"name": "r"}, "rules": [rules]}).to_string();
    let owners =
        numbered(20_000, &|i| format!("{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"name\":\"n\",\"uid\":\"u{i}\"}}"));
    let map = |metadata: String| format!("{{\"metadata\":{{\"name\":\"m\",{metadata}}}}}");
    let strict = format!("{REVIEWS}?fieldValidation=Strict");
    let long_key = format!("{{\"{}\":{{{}}}}}", "k".repeat(1_000_000), many("\"a\":1", 300_000));
    let scalars = format!("a: &x \"{}\"\nb: [{}]\n", "s".repeat(1_000_000), many("*x", 90_000));
    vec![
        post("a long key over duplicates", REVIEWS, JSON, long_key, &[422]),
        post("aliases of a long scalar", REVIEWS, YAML, scalars, &[413]),
        post("aliases that nest", REVIEWS, YAML, deep, &[400]),
        post("small objects", REVIEWS, JSON, format!("[{}]", many("{\"a\":0}", 390_000)), &[413]),
        post("nesting", REVIEWS, JSON, "[".repeat(3_000_000), &[400]),
        post("unknown fields", REVIEWS, JSON, unknown(250_000), &[413]),
        post("fewer unknown fields", REVIEWS, JSON, unknown(100_000), &[422]),
        post("fewer unknown fields, strictly", &strict, JSON, unknown(100_000), &[400]),
        patch("copies that double", format!("{MAPS}/big"), PATCH, format!("[{}]", numbered(24, &double)), &[413]),
        patch("copies that nest", format!("{MAPS}/big"), PATCH, Value::from(chain).to_string(), &[422]),
        post("empty containers", PODS, JSON, pod(many("{}", 1_000_000)), &[413]),
        post("bad labels", MAPS, JSON, map(format!("\"labels\":{{{labels}}}")), &[422]),
        post("ports", PODS, JSON, pod(format!("{{\"name\":\"c\",\"image\":\"i\",\"ports\":[{ports}]}}")), &[201]),
        patch(
            "containers in a patch",
            format!("{PODS}/p"),
            STRATEGIC,
            pod(numbered(20_000, &|i| format!("{{\"name\":\"c{i}\"}}"))),
            &[422, 413],
        ),
        post("owners", MAPS, JSON, map(format!("\"ownerReferences\":[{owners}]")), &[201]),
        post("permissions", "/apis/rbac.authorization.k8s.io/v1/clusterroles", JSON, role, &[201]),
    ]
}
