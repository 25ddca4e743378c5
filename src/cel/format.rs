//! The formats of `format.named()` (`k8s.io/apiserver/pkg/cel/library/format.go`).

use super::time::Time;
use super::url::Url;
use crate::base::labels;

/// What a text may be checked to be.
#[derive(Debug)]
pub struct Format {
    /// How expressions name it.
    pub(super) key: &'static str,
    /// As long as the pattern that checks it, for costs.
    pub(super) pattern_length: u64,
    check: fn(&str) -> Option<String>,
}

pub(super) static FORMATS: [Format; 13] = [
    format("dns1123Label", 30, labels::dns_label_error),
    format("dns1123Subdomain", 60, labels::dns_subdomain_error),
    format("dns1035Label", 30, labels::dns_1035_error),
    format("qualifiedName", 60, labels::label_key_error),
    format("dns1123LabelPrefix", 30, |text| labels::dns_label_error(&prefix(text))),
    format("dns1123SubdomainPrefix", 60, |text| labels::dns_subdomain_error(&prefix(text))),
    format("dns1035LabelPrefix", 30, |text| labels::dns_1035_error(&prefix(text))),
    format("labelValue", 40, labels::label_value_error),
    format("uri", 1103, |text| Url::parse_request(text).err()),
    format("uuid", 72, |text| unless(is_uuid(text), "does not match the UUID format")),
    format("byte", 84, |text| unless(is_base64(text), "invalid base64")),
    format("date", 84, |text| unless(Time::parse(&format!("{text}T00:00:00Z")).is_some(), "invalid date")),
    format("datetime", 84, |text| unless(Time::parse(text).is_some(), "invalid datetime")),
];

const fn format(key: &'static str, pattern_length: u64, check: fn(&str) -> Option<String>) -> Format {
    Format { key, pattern_length, check }
}

fn unless(fits: bool, why: &str) -> Option<String> {
    (!fits).then(|| why.to_owned())
}

/// A text to which something is added: it may end in a dash.
fn prefix(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            let mut letters = rest.chars();
            letters.next_back();
            format!("{}a", letters.as_str())
        }
        _ => text.to_owned(),
    }
}

fn is_uuid(text: &str) -> bool {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let dashes = text.char_indices().filter(|(_, c)| *c == '-').map(|(i, _)| i);
    let before = |at: usize| text[..at].bytes().filter(|b| *b != b'-').count();
    digits.len() == 32
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
        && !text.contains("--")
        && dashes.into_iter().all(|at| [8, 12, 16, 20].contains(&before(at)))
}

fn is_base64(text: &str) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

// === impl Format ===

impl Format {
    /// Why a text is not in the format, if it is not.
    pub(super) fn error(&self, text: &str) -> Option<String> {
        (self.check)(text)
    }

    /// By its name in expressions.
    pub(super) fn named(key: &str) -> Option<&'static Self> {
        FORMATS.iter().find(|f| f.key == key)
    }
}
