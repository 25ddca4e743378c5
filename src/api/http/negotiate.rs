//! Which form the client wants: JSON or YAML, the object itself, a table, or only its metadata.

use http::HeaderMap;

use crate::api::form::Encoding;
use crate::apimachinery::status::{Result, Status};

/// A negotiated form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MediaType {
    pub yaml: bool,
    pub shape: Shape,
    /// Tables and metadata are asked for in `meta.k8s.io/v1beta1`.
    pub beta: bool,
}

/// What is made of objects before they are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Object,
    Table,
    PartialMetadata,
    PartialMetadataList,
}

/// What a path offers beyond plain JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Only the object.
    Plain,
    /// The object, its metadata, and tables.
    Transformed,
}

/// The first of the offered media types that the client takes, in the client's order.
pub fn media(headers: &HeaderMap, offered: &[&'static str]) -> Option<&'static str> {
    let ranges = ranges(headers);
    if ranges.iter().all(|range| range.is_empty()) {
        return offered.first().copied();
    }
    let takes = |range: &str, media: &str| {
        let range = range.split(';').next().unwrap_or("").trim();
        let whole = range.strip_suffix("/*").is_some_and(|kind| media.split('/').next() == Some(kind));
        range == media || range == "*/*" || whole
    };
    ranges.iter().find_map(|range| offered.iter().find(|media| takes(range, media)).copied())
}

/// What the client accepts, best first.
fn ranges(headers: &HeaderMap) -> Vec<&str> {
    let all = headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let mut ranges: Vec<(f32, &str)> = all.map(|a| (quality(a), a.trim())).collect();
    // Stable: equal qualities keep the client's order.
    ranges.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranges.into_iter().map(|(_, range)| range).collect()
}

/// The first acceptable form, in the client's order.
pub fn accept(headers: &HeaderMap, offer: Offer) -> Result<MediaType> {
    let ranges = ranges(headers);
    if ranges.iter().all(|range| range.is_empty()) {
        return Ok(MediaType::default());
    }
    ranges.into_iter().find_map(|range| form(range, offer)).ok_or_else(|| {
        Status::not_acceptable("only the following media types are accepted: application/json, application/yaml")
    })
}

fn quality(range: &str) -> f32 {
    let q = range.split(';').skip(1).find_map(|p| p.trim().strip_prefix("q="));
    q.and_then(|q| q.parse().ok()).unwrap_or(1.0)
}

fn form(range: &str, offer: Offer) -> Option<MediaType> {
    let mut parts = range.split(';').map(str::trim);
    let yaml = match parts.next()? {
        "application/json" | "*/*" | "application/*" => false,
        "application/yaml" => true,
        _ => return None,
    };
    let (mut shape, mut version, mut group) = ("", "", "");
    for (key, value) in parts.filter_map(|p| p.split_once('=')) {
        match key {
            "as" => shape = value,
            "v" => version = value,
            "g" => group = value,
            _ => {}
        }
    }
    let shape = match shape {
        "" => Shape::Object,
        _ if offer == Offer::Plain || group != "meta.k8s.io" || !matches!(version, "v1" | "v1beta1") => return None,
        "Table" => Shape::Table,
        "PartialObjectMetadata" => Shape::PartialMetadata,
        "PartialObjectMetadataList" => Shape::PartialMetadataList,
        _ => return None,
    };
    Some(MediaType { yaml, shape, beta: shape != Shape::Object && version == "v1beta1" })
}

/// How the request body is written; types that are not known are refused.
pub fn body_encoding(headers: &HeaderMap) -> Result<Encoding> {
    let Some(given) = headers.get(http::header::CONTENT_TYPE) else { return Ok(Encoding::Json) };
    let media = given.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    match media {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        other => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf (got {other:?})"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(accept_header: &str) -> Option<MediaType> {
        let mut h = HeaderMap::new();
        h.insert(http::header::ACCEPT, accept_header.parse().unwrap());
        accept(&h, Offer::Transformed).ok()
    }

    #[test]
    fn the_first_form_we_have_wins() {
        let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
        assert_eq!(table.unwrap().shape, Shape::Table);
        assert_eq!(ask("application/vnd.kubernetes.protobuf,application/json").unwrap(), MediaType::default());
        assert!(ask("application/yaml").unwrap().yaml);
        assert_eq!(ask("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(ask("text/plain;q=0.5, */*;q=0.1").unwrap(), MediaType::default());
        assert_eq!(ask("application/json;as=Table;v=v9;g=meta.k8s.io"), None);
    }
}
