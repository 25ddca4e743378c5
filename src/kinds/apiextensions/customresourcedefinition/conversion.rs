//! What a definition may say of conversion between its versions (`ValidateCustomResourceConversion`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::pem::Pem;

use super::condition::is_true;
use crate::base::json::{at, list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// The versions of reviews that a server can ask in.
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const PATH: &str = "spec.conversion";

/// Errors of what it says in itself.
pub(super) fn validate(errors: &mut Errors, definition: &Value) {
    let Some(conversion) = at(definition, PATH).filter(|c| c.is_object()) else { return };
    let path = Path::root(PATH);
    let strategy = text(conversion, "strategy");
    check::required_one_of(errors, &path.field("strategy"), strategy, &["None", "Webhook"]);
    let config = at(conversion, "webhook.clientConfig").filter(|config| !config.is_null());
    let config_path = path.field("webhookClientConfig");
    let reviews = list(conversion, "webhook.conversionReviewVersions");
    let reviews_path = path.field("conversionReviewVersions");
    if strategy != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if config.is_some() {
            errors.push(field::forbidden(&config_path, why));
        }
        if !reviews.is_empty() {
            errors.push(field::forbidden(&reviews_path, why));
        }
        return;
    }
    match config {
        None => errors.push(field::required(&config_path, "required when strategy is set to Webhook")),
        Some(config) => check::client_config(errors, &config_path, config),
    }
    if reviews.is_empty() {
        errors.push(field::required(&reviews_path, ""));
    }
    for (i, version) in reviews.iter().enumerate() {
        let name = version.as_str().unwrap_or_default();
        match reviews[..i].contains(version) {
            true => errors.push(field::invalid(reviews_path.index(i), name, "duplicate version")),
            false => check::dns_1035(errors, &reviews_path.index(i), name),
        }
    }
}

/// Errors of what it says, before and after which there may have been something else: what could not be used before may stay so,
/// and authorities may be filled in until the definition is served.
pub(super) fn validate_change(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    let of = |definition: &Value, path: &str| at(definition, &format!("{PATH}.webhook.{path}")).cloned();
    let reviews = |definition: &Value| of(definition, "conversionReviewVersions").unwrap_or_default();
    if text(new, &format!("{PATH}.strategy")) != "Webhook" {
        return;
    }
    let given = reviews(new);
    if old.is_none_or(|old| is_known_or_none(&reviews(old))) && !is_known_or_none(&given) {
        let why = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(field::invalid(format!("{PATH}.conversionReviewVersions"), given, why));
    }
    let bundle = |definition: &Value| of(definition, "clientConfig.caBundle").unwrap_or_default();
    let fault = |definition: &Value| bundle_fault(bundle(definition).as_str().unwrap_or_default());
    if let (Some(old), Some(why)) = (old, fault(new))
        && is_true(old, "Established")
        && fault(old).is_none()
    {
        let why = format!("unable to load root certificates: {why}");
        errors.push(field::invalid(format!("{PATH}.webhookClientConfig.caBundle"), bundle(new), why));
    }
}

fn is_known_or_none(versions: &Value) -> bool {
    let all = versions.as_array().map_or(&[][..], Vec::as_slice);
    all.is_empty() || all.iter().filter_map(Value::as_str).any(|version| REVIEW_VERSIONS.contains(&version))
}

/// Why a bundle, if there is any, has no authorities.
fn bundle_fault(bundle: &str) -> Option<String> {
    if bundle.is_empty() {
        return None;
    }
    let Ok(pem) = STANDARD.decode(bundle) else { return Some("it is no base64".to_owned()) };
    let mut count = 0;
    for block in Pem::iter_from_buffer(&pem).map_while(Result::ok).filter(|block| block.label == "CERTIFICATE") {
        if let Err(error) = block.parse_x509() {
            return Some(error.to_string());
        }
        count += 1;
    }
    (count == 0).then(|| "data does not contain any valid RSA or ECDSA certificates".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(webhook: Value) -> Value {
        json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": webhook}},
            "status": {"conditions": [{"type": "Established", "status": "True"}]}})
    }

    fn told(new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = Errors::new();
        validate(&mut errors, new);
        validate_change(&mut errors, new, old);
        errors.iter().map(|error| error.to_string().replace("spec.conversion.", "")).collect()
    }

    #[test]
    fn a_webhook_is_reached_by_one_address_and_asked_in_a_known_version() {
        let service = json!({"service": {"name": "s", "namespace": "n", "port": 443}});
        let good = definition(json!({"clientConfig": service, "conversionReviewVersions": ["v9", "v1"]}));
        assert_eq!(told(&good, None), [""; 0]);
        let none = definition(json!({}));
        assert_eq!(
            told(&none, None),
            [
                "webhookClientConfig: Required value: required when strategy is set to Webhook",
                "conversionReviewVersions: Required value"
            ]
        );
        let odd =
            definition(json!({"clientConfig": {"url": "http://a/b"}, "conversionReviewVersions": ["V2", "v3", "v3"]}));
        let said = told(&odd, None);
        assert!(
            said[0].starts_with("webhookClientConfig.url: Invalid value: \"http\": 'https' is the only"),
            "{said:?}"
        );
        assert!(
            said[1].starts_with("conversionReviewVersions[0]: Invalid value: \"V2\": a DNS-1035 label"),
            "{said:?}"
        );
        assert_eq!(said[2], "conversionReviewVersions[2]: Invalid value: \"v3\": duplicate version");
        assert!(said[3].ends_with("must include at least one of v1, v1beta1"), "{said:?}");
        assert_eq!(told(&odd, Some(&odd)).len(), 3, "what nobody could use before may stay");
    }

    #[test]
    fn authorities_of_what_is_served_do_not_become_unusable() {
        let of = |bundle: &str| {
            let config = json!({"url": "https://a/b", "caBundle": STANDARD.encode(bundle)});
            definition(json!({"clientConfig": config, "conversionReviewVersions": ["v1"]}))
        };
        let (none, bad) = (of(""), of("\n"));
        assert_eq!(told(&bad, None), [""; 0], "it is filled in later");
        assert!(
            told(&bad, Some(&none))[0]
                .starts_with("webhookClientConfig.caBundle: Invalid value: \"Cg==\": unable to load root")
        );
        assert_eq!(told(&bad, Some(&bad)), [""; 0]);
        let mut new = none.clone();
        new["status"]["conditions"] = json!([]);
        assert_eq!(told(&bad, Some(&new)), [""; 0]);
    }
}
