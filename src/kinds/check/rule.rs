//! Rules on single values: names, keys, numbers, selectors.

use serde_json::{Map, Value};

use super::Path;
use crate::base::json::{list, text};
use crate::base::labels::{dns_1035_error, dns_label_error, dns_subdomain_error, label_key_error, label_value_error};
use crate::kinds::field::{self, Errors};

/// Kubernetes' words for a number below zero.
pub const NEGATIVE: &str = "must be greater than or equal to 0";
/// Kubernetes' words for a field that may not change.
pub const IMMUTABLE: &str = "field is immutable";
/// ConfigMap and Secret keys, and items of volumes, may be this long.
const KEY_BYTES: usize = 253;

/// A field that may not change; absent and null are one.
pub fn immutable(errors: &mut Errors, path: &Path<'_>, new: Option<&Value>, old: Option<&Value>) {
    let given = |value: Option<&Value>| value.filter(|v| !v.is_null()).cloned();
    if given(new) != given(old) {
        errors.push(field::invalid(path, given(new).unwrap_or_default(), IMMUTABLE));
    }
}

/// A number that may not be negative; absent is fine.
pub fn non_negative(errors: &mut Errors, path: &Path<'_>, value: Option<&Value>) {
    if let Some(n) = value.and_then(Value::as_i64).filter(|n| *n < 0) {
        errors.push(field::invalid(path, n, NEGATIVE));
    }
}

/// A number that must be above zero; absent is fine.
pub fn positive(errors: &mut Errors, path: &Path<'_>, value: Option<&Value>) {
    if let Some(n) = value.and_then(Value::as_i64).filter(|n| *n <= 0) {
        errors.push(field::invalid(path, n, "must be greater than 0"));
    }
}

/// A number of an inclusive range.
pub fn within(errors: &mut Errors, path: &Path<'_>, value: i64, low: i64, high: i64) {
    if !(low..=high).contains(&value) {
        errors.push(field::invalid(path, value, format!("must be between {low} and {high}, inclusive")));
    }
}

/// One of a few texts; absent or empty is fine.
pub fn one_of(errors: &mut Errors, path: &Path<'_>, value: &str, supported: &[&str]) {
    if !value.is_empty() && !supported.contains(&value) {
        errors.push(field::not_supported(path, value, supported));
    }
}

/// One of a few texts that must be given.
pub fn required_one_of(errors: &mut Errors, path: &Path<'_>, value: &str, supported: &[&str]) {
    if value.is_empty() {
        errors.push(field::required(path, ""));
    } else {
        one_of(errors, path, value, supported);
    }
}

/// A text that must be given; answers whether it is.
pub fn given(errors: &mut Errors, path: &Path<'_>, value: &str) -> bool {
    if value.is_empty() {
        errors.push(field::required(path, ""));
    }
    !value.is_empty()
}

fn complain(errors: &mut Errors, path: &Path<'_>, value: &str, why: Option<String>) {
    if let Some(why) = why {
        errors.push(field::invalid(path, value, why));
    }
}

/// A DNS label.
pub fn dns_label(errors: &mut Errors, path: &Path<'_>, value: &str) {
    complain(errors, path, value, dns_label_error(value));
}

/// A DNS label that begins with a letter.
pub fn dns_1035(errors: &mut Errors, path: &Path<'_>, value: &str) {
    complain(errors, path, value, dns_1035_error(value));
}

/// A DNS subdomain.
pub fn dns_subdomain(errors: &mut Errors, path: &Path<'_>, value: &str) {
    complain(errors, path, value, dns_subdomain_error(value));
}

/// A qualified name, as label keys are.
pub fn qualified(errors: &mut Errors, path: &Path<'_>, value: &str) {
    complain(errors, path, value, label_key_error(value));
}

/// The value of a label.
pub fn label_value(errors: &mut Errors, path: &Path<'_>, value: &str) {
    complain(errors, path, value, label_value_error(value));
}

/// A map of labels; every error stands at the map itself.
pub fn labels(errors: &mut Errors, path: &Path<'_>, labels: Option<&Value>) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        complain(errors, path, key, label_key_error(key));
        let value = value.as_str().unwrap_or("");
        complain(errors, path, value, label_value_error(value));
    }
}

/// A map of annotations: keys of any case, and not too much in all.
pub fn annotations(errors: &mut Errors, path: &Path<'_>, annotations: Option<&Value>) {
    const BYTES: usize = 256 << 10;
    let mut total = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        total += key.len() + value.as_str().map_or(0, str::len);
        complain(errors, path, key, label_key_error(&key.to_lowercase()));
    }
    if total > BYTES {
        errors.push(field::too_long(path, BYTES));
    }
}

/// A `metav1.LabelSelector`.
pub fn label_selector(errors: &mut Errors, path: &Path<'_>, selector: Option<&Value>) {
    let Some(selector) = selector.filter(|s| s.is_object()) else { return };
    labels(errors, &path.field("matchLabels"), selector.get("matchLabels"));
    let expressions = path.field("matchExpressions");
    for (i, e) in list(selector, "matchExpressions").iter().enumerate() {
        let path = expressions.index(i);
        let (values, given) = (path.field("values"), list(e, "values"));
        match text(e, "operator") {
            "In" | "NotIn" if given.is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(field::required(&values, why));
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !given.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(field::forbidden(&values, why));
            }
            "Exists" | "DoesNotExist" => {}
            other => errors.push(field::invalid(&path.field("operator"), other, "not a valid selector operator")),
        }
        qualified(errors, &path.field("key"), text(e, "key"));
        for (k, v) in given.iter().enumerate() {
            label_value(errors, &values.index(k), v.as_str().unwrap_or(""));
        }
    }
}

/// Whether a selector selects anything at all by name (an absent one and an empty one differ, this is the empty one).
pub fn selects_nothing(selector: &Value) -> bool {
    let empty = |m: Option<&Map<String, Value>>| m.is_none_or(Map::is_empty);
    empty(selector.get("matchLabels").and_then(Value::as_object)) && list(selector, "matchExpressions").is_empty()
}

/// The key of a ConfigMap or Secret.
pub fn config_key_error(key: &str) -> Option<String> {
    if key.len() > KEY_BYTES {
        return Some(format!("must be no more than {KEY_BYTES} bytes"));
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
                   'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
        return Some(why.into());
    }
    match key {
        "." | ".." => Some(format!("must not be '{key}'")),
        _ if key.starts_with("..") => Some("must not start with '..'".into()),
        _ => None,
    }
}

/// The name of an environment variable: printable ASCII without `=` (`RelaxedEnvironmentVariableValidation`).
pub fn env_name_error(name: &str) -> Option<String> {
    let fine = !name.is_empty() && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
    let why = "a valid environment variable name must consist only of printable ASCII characters other than '='";
    (!fine).then(|| why.into())
}

/// The prefix of environment variables: as a name.
pub fn env_prefix(errors: &mut Errors, path: &Path<'_>, prefix: &str) {
    if !prefix.is_empty() {
        complain(errors, path, prefix, env_name_error(prefix));
    }
}

/// The name of a container port: at most 15 of `[a-z0-9-]` with a letter in it.
pub fn port_name_error(name: &str) -> Option<String> {
    if name.len() > 15 {
        return Some("must be no more than 15 characters".into());
    }
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        return Some("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        return Some("must not contain consecutive hyphens".into());
    }
    (name.starts_with('-') || name.ends_with('-')).then(|| "must not begin or end with a hyphen".into())
}

/// A port number.
pub fn port(errors: &mut Errors, path: &Path<'_>, number: i64) {
    within(errors, path, number, 1, 65535);
}

/// A port number or the name of a port.
pub fn port_or_name(errors: &mut Errors, path: &Path<'_>, value: Option<&Value>) {
    match value {
        Some(Value::String(name)) => complain(errors, path, name, port_name_error(name)),
        other => port(errors, path, other.and_then(Value::as_i64).unwrap_or(0)),
    }
}

/// A number that is not negative, or a percentage.
pub fn count_or_percent(errors: &mut Errors, path: &Path<'_>, value: Option<&Value>) {
    match value {
        Some(Value::String(s)) if percent(s).is_none() => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                       '93%', regex used for validation is '[0-9]+%')";
            errors.push(field::invalid(path, s.as_str(), why));
        }
        Some(Value::String(_)) => {}
        other => non_negative(errors, path, other),
    }
}

/// A percentage that is not more than all.
pub fn at_most_all(errors: &mut Errors, path: &Path<'_>, value: Option<&Value>) {
    if let Some(text) = value.and_then(Value::as_str).filter(|t| percent(t).is_some_and(|p| p > 100)) {
        errors.push(field::invalid(path, text, "must not be greater than 100%"));
    }
}

/// The number of a count or of a percentage; 0 of what is neither.
pub fn amount(value: Option<&Value>) -> i64 {
    match value {
        Some(Value::String(text)) => percent(text).unwrap_or(0),
        other => other.and_then(Value::as_i64).unwrap_or(0),
    }
}

/// The number before the percent sign.
pub fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(i64::MAX))
}

/// A path inside of a volume: relative and without `..` as a step.
pub fn relative_path(errors: &mut Errors, path: &Path<'_>, value: &str) {
    if value.starts_with('/') {
        errors.push(field::invalid(path, value, "must be a relative path"));
    }
    no_backsteps(errors, path, value);
}

/// A path without `..` as a step.
pub fn no_backsteps(errors: &mut Errors, path: &Path<'_>, value: &str) {
    if value.split('/').any(|s| s == "..") {
        errors.push(field::invalid(path, value, "must not contain '..'"));
    }
}

/// A relative path that does not begin with `..` in any form.
pub fn relative_path_strict(errors: &mut Errors, path: &Path<'_>, value: &str) {
    relative_path(errors, path, value);
    if value.starts_with("..") && !value.starts_with("../") {
        errors.push(field::invalid(path, value, "must not start with '..'"));
    }
}

/// A file mode of 0 to 0777; absent is fine.
pub fn file_mode(errors: &mut Errors, path: &Path<'_>, value: Option<&Value>) {
    if let Some(mode) = value.and_then(Value::as_i64).filter(|m| !(0..=0o777).contains(m)) {
        errors.push(field::invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive"));
    }
}

/// The name of an HTTP header.
pub fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_names_follow_their_rules() {
        for (key, fine) in
            [("a.b_C-1", true), ("", false), ("..", false), ("..a", false), ("...", false), ("a/b", false)]
        {
            assert_eq!(config_key_error(key).is_none(), fine, "{key}");
        }
        for (name, fine) in
            [("http", true), ("1-a", true), ("123", false), ("a--b", false), ("-a", false), ("A", false)]
        {
            assert_eq!(port_name_error(name).is_none(), fine, "{name}");
        }
        for (name, fine) in [("a b", true), ("a=b", false), ("", false), ("ä", false)] {
            assert_eq!(env_name_error(name).is_none(), fine, "{name}");
        }
        assert_eq!((percent("25%"), percent("x%"), percent("10")), (Some(25), None, None));
    }

    #[test]
    fn selectors_name_the_wrong_part() {
        let selector = serde_json::json!({"matchLabels": {"a b": "c"},
            "matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Foo"}]});
        let mut errors = Errors::new();
        label_selector(&mut errors, &Path::root("s"), Some(&selector));
        let fields: Vec<_> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["s.matchLabels", "s.matchExpressions[0].values", "s.matchExpressions[1].operator"]);
    }
}
