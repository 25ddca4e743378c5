//! What each signer signs.

use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::apimachinery::user::{NODE_PREFIX, NODES};
use crate::base::json::{list, text};
use crate::kinds::certificates::certificatesigningrequest::{
    self as csr, API_CLIENT, LEGACY, NODE_CLIENT, NODE_SERVING,
};

/// What is to be signed.
#[derive(Debug)]
pub(super) struct Asked {
    /// The request, DER.
    pub der: Vec<u8>,
    /// `KeyUsage` of `certificates.k8s.io`.
    pub usages: Vec<String>,
}

/// A request that its signer signs, or why not; `None` where the signer is somebody else.
pub(super) fn check(request: &Value) -> Option<Result<Asked, String>> {
    let check = match text(request, "spec.signerName") {
        API_CLIENT => api_client,
        NODE_CLIENT => node_client,
        NODE_SERVING => node_serving,
        LEGACY => anything,
        _ => return None,
    };
    Some(asked(request, check))
}

fn asked(request: &Value, check: fn(&Subject<'_>, &[String]) -> Result<(), String>) -> Result<Asked, String> {
    let der = csr::request_der(request)?;
    let usages: Vec<String> =
        list(request, "spec.usages").iter().filter_map(|u| u.as_str().map(str::to_owned)).collect();
    {
        let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|error| error.to_string())?;
        check(&Subject::of(&parsed), &usages)?;
    }
    Ok(Asked { der, usages })
}

/// Who a request is for.
#[derive(Debug, Default)]
struct Subject<'a> {
    common_name: &'a str,
    organizations: Vec<&'a str>,
    has_dns: bool,
    has_ip: bool,
    has_email: bool,
    has_uri: bool,
}

// === impl Subject ===

impl<'a> Subject<'a> {
    fn of(request: &'a X509CertificationRequest<'a>) -> Self {
        let name = &request.certification_request_info.subject;
        let mut subject = Self {
            common_name: name.iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or_default(),
            // One that cannot be read is none that is allowed.
            organizations: name.iter_organization().map(|o| o.as_str().unwrap_or_default()).collect(),
            ..Self::default()
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(_) => subject.has_dns = true,
                    GeneralName::IPAddress(_) => subject.has_ip = true,
                    GeneralName::RFC822Name(_) => subject.has_email = true,
                    GeneralName::URI(_) => subject.has_uri = true,
                    _ => {}
                }
            }
        }
        subject
    }
}

fn api_client(_subject: &Subject<'_>, usages: &[String]) -> Result<(), String> {
    const ALLOWED: [&str; 3] = ["client auth", "digital signature", "key encipherment"];
    if let Some(other) = usages.iter().find(|usage| !ALLOWED.contains(&usage.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    match usages.iter().any(|usage| usage == "client auth") {
        true => Ok(()),
        false => Err("missing required usage for client certificate: client auth".into()),
    }
}

fn node_client(subject: &Subject<'_>, usages: &[String]) -> Result<(), String> {
    of_nodes(subject)?;
    for (given, why) in [
        (subject.has_dns, "DNS subjectAltNames are not allowed"),
        (subject.has_email, "Email subjectAltNames are not allowed"),
        (subject.has_ip, "IP subjectAltNames are not allowed"),
        (subject.has_uri, "URI subjectAltNames are not allowed"),
    ] {
        if given {
            return Err(why.into());
        }
    }
    a_node(subject)?;
    used_for(usages, "client auth")
}

fn node_serving(subject: &Subject<'_>, usages: &[String]) -> Result<(), String> {
    of_nodes(subject)?;
    for (refused, why) in [
        (!subject.has_dns && !subject.has_ip, "DNS or IP subjectAltName is required"),
        (subject.has_email, "Email subjectAltNames are not allowed"),
        (subject.has_uri, "URI subjectAltNames are not allowed"),
    ] {
        if refused {
            return Err(why.into());
        }
    }
    used_for(usages, "server auth")?;
    a_node(subject)
}

fn anything(_subject: &Subject<'_>, _usages: &[String]) -> Result<(), String> {
    Ok(())
}

fn of_nodes(subject: &Subject<'_>) -> Result<(), String> {
    if subject.organizations == [NODES] { Ok(()) } else { Err(format!("subject organization is not {NODES}")) }
}

fn a_node(subject: &Subject<'_>) -> Result<(), String> {
    match subject.common_name.starts_with(NODE_PREFIX) {
        true => Ok(()),
        false => Err(format!("subject common name does not begin with {NODE_PREFIX}")),
    }
}

/// For signatures and the end of a connection that is meant; keys that cannot be used to encrypt others may say so.
fn used_for(usages: &[String], end: &str) -> Result<(), String> {
    let allowed = ["digital signature", "key encipherment", end];
    let required = ["digital signature", end];
    let given = |usage: &&&str| usages.iter().any(|u| u == **usage);
    let fits = required.iter().filter(given).count() == required.len()
        && usages.iter().all(|usage| allowed.contains(&usage.as_str()));
    if fits { Ok(()) } else { Err(format!("usages did not match [{end} digital signature key encipherment]")) }
}
