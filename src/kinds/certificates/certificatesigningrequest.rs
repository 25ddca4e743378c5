//! CertificateSigningRequest: a certificate that somebody asks a signer for, once others have approved it.

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::base::clock::human_duration;
use crate::base::json::{int, list, list_mut, map_mut, remove, set, text};
use crate::base::labels::{dns_label_error, dns_subdomain_error};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Field, Kind, KindRef, NameRule, Strategy, Subresource, UpdateStrategy, keep};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "certificates.k8s.io",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
    singular: "certificatesigningrequest",
    short_names: &["csr"],
    namespaced: false,
    subresources: &[Subresource::Approval, Subresource::Status],
    schema: "io.k8s.api.certificates.v1.CertificateSigningRequest",
    has_status: true,
    name_rule: NameRule::PathSegment,
    columns: COLUMNS,
    row,
    fields: &[Field { name: "spec.signerName", get: |csr| text(csr, "spec.signerName").to_owned() }],
    strategy: Strategy {
        requested_by: Some(|csr, user| {
            let spec = map_mut(csr, "spec");
            for key in ["username", "uid", "groups", "extra"] {
                match user.get(key) {
                    Some(value) => drop(spec.insert(key.into(), value.clone())),
                    None => drop(spec.remove(key)),
                }
            }
        }),
        prepare_create: |csr| set(csr, "status", json!({})),
        prepare_update: |new, old| ["spec", "status"].iter().for_each(|key| keep(new, old, key)),
        prepare_status: |new, old| {
            for decision in DECISIONS {
                keep_conditions(new, old, decision);
            }
        },
        validate_create: |csr| validate(csr, None),
        validate_update: |new, old| validate_update(new, old, &[]),
        validate_status: |new, old| validate_update(new, old, &["certificate"]),
        subresources: &[(
            Subresource::Approval,
            UpdateStrategy {
                prepare: |new, old| {
                    let conditions = new.pointer_mut("/status/conditions").map(Value::take);
                    ["spec", "status"].iter().for_each(|key| keep(new, old, key));
                    match conditions {
                        Some(conditions) => set(new, "status.conditions", conditions),
                        None => drop(remove(new, "status.conditions")),
                    }
                },
                validate: |new, old| validate_update(new, old, &["conditions"]),
                tracked: true,
            },
        )],
        ..Strategy::BASE
    },
    sample: SAMPLE,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    table::AGE,
    string("SignerName", "Who is to sign it."),
    string("Requestor", "Who has asked for it."),
    string("RequestedDuration", "How long it is to be good for."),
    string("Condition", "What has become of it."),
];

/// Signs certificates for clients of the API.
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs certificates with which nodes come to the API.
pub const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs certificates that nodes show.
pub const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signs what is asked for.
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

pub const APPROVED: &str = "Approved";
pub const DENIED: &str = "Denied";
pub const FAILED: &str = "Failed";
/// What only the approval says.
const DECISIONS: [&str; 2] = [APPROVED, DENIED];
/// What is only ever true.
const TRUE_ONLY: [&str; 3] = [APPROVED, DENIED, FAILED];
/// The shortest life that may be asked for.
const LIFE_SECONDS_MIN: i64 = 600;
const DOMAIN_BYTES_MAX: usize = 253;
const SIGNER_BYTES_MAX: usize = 571;
/// `KeyUsage` of `certificates.k8s.io/v1`.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// A request of `CN=sample`.
const SAMPLE: &str = concat!(
    r#"{"metadata":{"name":"sample"},"spec":{"signerName":"example.com/sample","usages":["client auth"],"request":""#,
    "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlITE1ITUNBUUF3RVRFUE1BMEdBMVVFQXd3R2MyRnRjR3hsTUZrd0V3WUhLb1",
    "pJemowQ0FRWUlLb1pJemowRApBUWNEUWdBRS9NSUQvZDdkR0ZkbUNXR3BoRzlaZVcxdFNybmE3amY2QkpLaE9SNG1CSlFrbFI4ZzRKNzVnMnUw",
    "Clp1dTFUeWpyNERJejNMTEJKQWVBd1FobUsvcmx3cUFBTUFvR0NDcUdTTTQ5QkFNQ0EwZ0FNRVVDSVFEUkhNcUsKaXlsQ2xicW5WUXhJS2NyMW",
    "dtUVFOWSt1bnQwSW1wdG9SRGd5MXdJZ0F6UHhrdm5OaTcwR0Z2bDFnWjYweDJnVwpTZldjaHhqcEJwb25IK3lMczJvPQotLS0tLUVORCBDRVJU",
    "SUZJQ0FURSBSRVFVRVNULS0tLS0K",
    r#""}}"#
);

fn row(csr: &Value, now: Timestamp) -> Vec<Value> {
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    let life = int(csr, "spec.expirationSeconds").and_then(|seconds| u64::try_from(seconds).ok());
    let life = life.map(|seconds| human_duration(Duration::from_secs(seconds))).unwrap_or_default();
    vec![
        table::name(csr),
        table::age(csr, now),
        or_none(text(csr, "spec.signerName").to_owned()).into(),
        text(csr, "spec.username").into(),
        or_none(life).into(),
        condition(csr).into(),
    ]
}

fn condition(csr: &Value) -> String {
    let mut said = match () {
        () if has(csr, DENIED) => "Denied",
        () if has(csr, APPROVED) => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has(csr, FAILED) {
        said.push_str(",Failed");
    }
    if !text(csr, "status.certificate").is_empty() {
        said.push_str(",Issued");
    }
    said
}

/// Whether a request has a condition.
pub fn has(csr: &Value, condition: &str) -> bool {
    list(csr, "status.conditions").iter().any(|c| text(c, "type") == condition)
}

/// The request itself (PKCS #10), as DER; the error says what is wrong with it.
pub fn request_der(csr: &Value) -> Result<Vec<u8>, String> {
    let pem = STANDARD.decode(text(csr, "spec.request")).map_err(|error| error.to_string())?;
    let (block, _) = Pem::read(std::io::Cursor::new(&pem)).map_err(|_| NO_REQUEST)?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(NO_REQUEST.into());
    }
    let (_, parsed) = X509CertificationRequest::from_der(&block.contents).map_err(|error| error.to_string())?;
    parsed.verify_signature().map_err(|error| error.to_string())?;
    Ok(block.contents)
}

const NO_REQUEST: &str = "PEM block type must be CERTIFICATE REQUEST";

/// What both new and changed requests must be; what was wrong already may stay so.
fn validate(csr: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    // It cannot change.
    if old.is_none() {
        if let Err(why) = request_der(csr) {
            errors.push(field::invalid(&spec.field("request"), text(csr, "spec.request"), why));
        }
        usages(&mut errors, &spec.field("usages"), list(csr, "spec.usages"));
        signer_name(&mut errors, &spec.field("signerName"), text(csr, "spec.signerName"));
        if int(csr, "spec.expirationSeconds").is_some_and(|seconds| seconds < LIFE_SECONDS_MIN) {
            let given = int(csr, "spec.expirationSeconds").unwrap_or_default();
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(field::invalid(&spec.field("expirationSeconds"), given, why));
        }
    }
    conditions(&mut errors, csr, old);
    let given = text(csr, "status.certificate");
    if old.is_none_or(|old| text(old, "status.certificate") != given)
        && let Err(why) = check_certificate(given)
    {
        errors.push(field::invalid("status.certificate", "<certificate data>", why));
    }
    errors
}

fn usages(errors: &mut Errors, path: &Path<'_>, given: &[Value]) {
    if given.is_empty() {
        errors.push(field::required(path, ""));
    }
    for (i, usage) in given.iter().enumerate() {
        let name = usage.as_str().unwrap_or_default();
        if !USAGES.contains(&name) {
            errors.push(field::not_supported(path.index(i), name, USAGES));
        }
        if given[..i].contains(usage) {
            errors.push(field::duplicate(path.index(i), name));
        }
    }
}

/// `domain.example.com/path`.
fn signer_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    if !check::given(errors, path, name) {
        return;
    }
    if name == LEGACY {
        errors.push(field::invalid(path, name, "the legacy signerName is not allowed via this API version"));
        return;
    }
    let Some((domain, rest)) = name.split_once('/').filter(|(_, rest)| !rest.contains('/')) else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(field::invalid(path, name, why));
        return;
    };
    if domain.len() > DOMAIN_BYTES_MAX {
        errors.push(field::too_long(path, DOMAIN_BYTES_MAX));
    }
    let wrong = |label: &str, why: String| format!("validating label {label:?}: {why}");
    if let Some(why) = domain.split('.').find_map(|label| Some(wrong(label, dns_label_error(label)?))) {
        errors.push(field::invalid(path, domain, why));
    }
    if !domain.contains('.') {
        errors.push(field::invalid(path, domain, "should be a domain with at least two segments separated by dots"));
    }
    if let Some(why) = rest.split('.').find_map(|label| Some(wrong(label, dns_subdomain_error(label)?))) {
        errors.push(field::invalid(path, rest, why));
    }
    if name.len() > SIGNER_BYTES_MAX {
        errors.push(field::too_long(path, SIGNER_BYTES_MAX));
    }
}

fn conditions(errors: &mut Errors, csr: &Value, old: Option<&Value>) {
    let path = Path::root("status.conditions");
    let both = |csr: &Value| DECISIONS.iter().all(|decision| has(csr, decision));
    let repeats = |csr: &Value| {
        let mut seen = HashSet::new();
        !list(csr, "status.conditions").iter().all(|c| seen.insert(text(c, "type")))
    };
    let (had_both, repeated) = (old.is_some_and(both), old.is_some_and(repeats));
    let all = list(csr, "status.conditions");
    for (i, condition) in all.iter().enumerate() {
        let (at, kind, status) = (path.index(i), text(condition, "type"), text(condition, "status"));
        check::given(errors, &at.field("type"), kind);
        let allowed: &[&str] = if TRUE_ONLY.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        check::required_one_of(errors, &at.field("status"), status, allowed);
        let before = |kind: &str| all[..i].iter().any(|c| text(c, "type") == kind);
        if !had_both && DECISIONS.contains(&kind) && DECISIONS.iter().any(|other| *other != kind && before(other)) {
            let why = "Approved and Denied conditions are mutually exclusive";
            errors.push(field::invalid(&at.field("type"), kind, why));
        }
        if !repeated && before(kind) {
            errors.push(field::duplicate(&at.field("type"), kind));
        }
    }
}

/// Errors in a change that may set only some of the status.
fn validate_update(new: &Value, old: &Value, may_set: &[&str]) -> Errors {
    let mut errors = validate(new, Some(old));
    let path = "status.conditions";
    for kind in TRUE_ONLY {
        let (is, was) = (of_type(new, kind), of_type(old, kind));
        let decided = DECISIONS.contains(&kind) && !may_set.contains(&"conditions");
        let why = match () {
            () if is.len() < was.len() => format!("updates may not remove a condition of type {kind:?}"),
            () if decided && is.len() > was.len() => format!("updates may not add a condition of type {kind:?}"),
            () if decided && is != was => format!("updates may not modify a condition of type {kind:?}"),
            () => continue,
        };
        errors.push(field::forbidden(path, why));
    }
    let (is, was) = (text(new, "status.certificate"), text(old, "status.certificate"));
    if is != was {
        let why = match may_set.contains(&"certificate") {
            false => "updates may not set certificate content",
            true if !was.is_empty() => "updates may not modify existing certificate content",
            true => return errors,
        };
        errors.push(field::forbidden("status.certificate", why));
    }
    errors
}

fn of_type<'a>(csr: &'a Value, kind: &str) -> Vec<&'a Value> {
    list(csr, "status.conditions").iter().filter(|c| text(c, "type") == kind).collect()
}

/// Puts the conditions of a type back to what they were, where there are as many.
fn keep_conditions(new: &mut Value, old: &Value, kind: &str) {
    let was: Vec<Value> = of_type(old, kind).into_iter().cloned().collect();
    let given = list_mut(new, "status.conditions").map_or(&mut [][..], |all| all.as_mut_slice());
    let is: Vec<&mut Value> = given.iter_mut().filter(|c| text(c, "type") == kind).collect();
    if is.len() == was.len() {
        is.into_iter().zip(was).for_each(|(is, was)| *is = was);
    }
}

/// One certificate or more, and nothing else.
fn check_certificate(given: &str) -> Result<(), String> {
    if given.is_empty() {
        return Ok(());
    }
    let pem = STANDARD.decode(given).map_err(|error| error.to_string())?;
    let mut count = 0;
    for block in Pem::iter_from_buffer(&pem) {
        let block = block.map_err(|error| error.to_string())?;
        if block.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        block.parse_x509().map_err(|error| error.to_string())?;
        count += 1;
    }
    if count == 0 { Err("must contain at least one CERTIFICATE PEM block".into()) } else { Ok(()) }
}
