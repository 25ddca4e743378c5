//! What kubectl checks before it sends anything: it reads OpenAPI, lists the custom kinds, and shows what the server says.

use std::fs;

use crate::lab::Lab;

const LIST: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: listed}, data: {a: "1"}}
- {apiVersion: v1, kind: Service, metadata: {name: listed}, spec: {ports: [{port: 80}]}}
"#;
const REVIEW: &str = r#"
apiVersion: authorization.k8s.io/v1
kind: SubjectAccessReview
spec: {user: nobody, resourceAttributes: {verb: get, resource: pods}}
"#;

#[test]
fn lists_and_reviews_are_checked_with_the_document_of_version_2() {
    let lab = Lab::start("kube");
    let kubectl = |words: &[&str], file: &str| {
        let path = lab.path("file.yaml");
        fs::write(&path, file).unwrap();
        let mut command = lab.command("kubectl");
        // Not what it has read of another server.
        command.env("KUBECACHEDIR", lab.path("cache")).args(words);
        if !file.is_empty() {
            command.args(["-f", path.to_str().unwrap()]);
        }
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (done, said) = kubectl(&["apply"], LIST);
    assert!(done && said == "configmap/listed created\nservice/listed created\n", "{said}");
    let (done, said) = kubectl(&["apply"], LIST);
    assert!(done && said == "configmap/listed unchanged\nservice/listed unchanged\n", "{said}");
    let (done, said) = kubectl(&["apply"], &LIST.replace("data", "dota"));
    assert!(!done && said.contains("unknown field \"dota\" in io.k8s.api.core.v1.ConfigMap"), "{said}");

    let (done, said) = kubectl(&["create", "-o", "jsonpath={.status}"], REVIEW);
    assert!(done && said == r#"{"allowed":false}"#, "{said}");
    let (done, said) = kubectl(&["create"], &REVIEW.replace("user", "usr"));
    assert!(!done && said.contains("unknown field \"usr\""), "{said}");
    let (done, said) = kubectl(&["apply"], "apiVersion: example.com/v1\nkind: Unknown\nmetadata: {name: a}\n");
    assert!(!done && said.contains("no matches for kind \"Unknown\" in version \"example.com/v1\""), "{said}");

    let (done, said) = kubectl(&["explain", "pods.spec.nodeName", "--output=plaintext-openapiv2"], "");
    assert!(done && said.contains("FIELD:    nodeName <string>"), "{said}");
    let (done, said) = kubectl(&["create"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndota: {}\n");
    let refusal =
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dota\"";
    assert!(!done && said.contains(refusal), "{said}");
}
