//! OpenAPI documents: made on demand, once for all who ask at the same time, kept compressed, unpacked while they are sent.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Response, Uri};
use hyper::body::{Frame, SizeHint};
use serde_json::json;

use super::Body;
use super::answer;
use super::flow_control::HeldBytes;
use super::negotiate;
use crate::api::Api;
use crate::api::sending::STREAM_BYTES;
use crate::apimachinery::query::Query;
use crate::apimachinery::status::{Result, Status};
use crate::base::task;
use crate::kinds::{KindRef, Subresource};
use crate::schema::openapi::{self, ApiKind, ApiSubresource, CustomApi};

/// How many compressed documents are kept; the oldest is made anew when asked for again.
const KEPT: usize = 6;

static DOCUMENTS: Mutex<Vec<(String, Document)>> = Mutex::new(Vec::new());
/// Held by whoever makes one.
static MAKING: Mutex<()> = Mutex::new(());

/// What a decoder has.
const DECODER_BYTES: usize = 48 << 10;
/// What is unpacked at once.
const PIECE_BYTES: usize = 32 << 10;

#[derive(Clone)]
struct Document {
    compressed: Bytes,
    /// How long it is.
    bytes: usize,
}

/// A document that is unpacked while it is sent.
struct Unpacked {
    decoder: GzDecoder<Reader<Bytes>>,
    left: usize,
}

const JSON: &str = "application/json";
/// Version 2 as a message, by the name that clients ask for and by the one that is answered: `@` may not be in a media type.
const PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// How long an answer may be used without asking again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Its address names its content.
    Forever,
    /// It changes with the version of the server.
    Ask,
}

/// Answers `/openapi/...`.
pub async fn respond(api: &Api, uri: &Uri, path: &str, headers: &HeaderMap) -> Result<Response<Body>> {
    let path = path.trim_end_matches('/');
    let offered: &[&str] = if path == "/openapi/v2" { &[JSON, PROTOBUF_ASKED, PROTOBUF] } else { &[JSON] };
    let Some(media) = negotiate::media(headers, offered) else { return Ok(answer::empty(406)) };
    let kinds: Vec<ApiKind> = api.kinds.snapshot().iter().map(of).collect();
    let document = match path {
        "/openapi/v2" => {
            let tag = format!("{:016X}", openapi::v2_fingerprint(&kinds));
            return match media {
                JSON => gzipped(path, headers, &tag, JSON, Keep::Ask, || Some(openapi::v2(&kinds))),
                _ => gzipped(path, headers, &tag, PROTOBUF, Keep::Ask, || Some(openapi::v2_protobuf(&kinds))),
            };
        }
        "/openapi/v3" => {
            let mut index = openapi::v3_index(&kinds);
            for (name, address) in api.openapi_of_remotes().await {
                index["paths"][name] = json!({"serverRelativeURL": address});
            }
            index
        }
        _ => {
            let rest = path.strip_prefix("/openapi/v3/").ok_or_else(Status::no_such_path)?;
            let (group, version) = match rest.split('/').collect::<Vec<_>>()[..] {
                ["api", version] => ("", version),
                ["apis", group, version] => (group, version),
                _ => return Err(Status::no_such_path()),
            };
            let tag = format!("{:016X}", openapi::fingerprint(&kinds, group, version));
            let named = Query::parse(uri.query().unwrap_or("")).get("hash") == tag;
            let keep = if named { Keep::Forever } else { Keep::Ask };
            return gzipped(path, headers, &tag, JSON, keep, || openapi::v3(&kinds, group, version));
        }
    };
    Ok(answer::json_bytes(200, serde_json::to_vec(&document).unwrap_or_default()))
}

fn gzipped(
    path: &str,
    headers: &HeaderMap,
    tag: &str,
    media: &'static str,
    keep: Keep,
    make: impl FnOnce() -> Option<Vec<u8>>,
) -> Result<Response<Body>> {
    let etag = format!("\"{tag}\"");
    let known = headers.get(IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let mut response = if known {
        answer::typed(304, media, answer::full(Bytes::new()))
    } else {
        let document = kept(&format!("{path} {media} {tag}"), make)?;
        let gzip = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("gzip"));
        // Those who do not read it may be the last who have it.
        let held = STREAM_BYTES + document.compressed.len();
        let mut response = if gzip {
            let mut r = answer::typed(200, media, answer::full(document.compressed));
            r.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            r
        } else {
            let decoder = GzDecoder::new(document.compressed.reader());
            answer::typed(200, media, Body::new(Unpacked { decoder, left: document.bytes }))
        };
        response.extensions_mut().insert(HeldBytes(held + if gzip { 0 } else { DECODER_BYTES }));
        response
    };
    let out = response.headers_mut();
    out.insert(ETAG, HeaderValue::from_str(&etag).map_err(Status::internal)?);
    out.insert(VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    let control = match keep {
        Keep::Forever => "public, immutable, max-age=31536000",
        Keep::Ask => "no-cache, private",
    };
    out.insert(CACHE_CONTROL, HeaderValue::from_static(control));
    Ok(response)
}

fn kept(path: &str, make: impl FnOnce() -> Option<Vec<u8>>) -> Result<Document> {
    let found = || {
        let documents = DOCUMENTS.lock().expect("no panic while held");
        documents.iter().find(|(p, _)| p == path).map(|(_, document)| document.clone())
    };
    if let Some(document) = found() {
        return Ok(document);
    }
    task::in_place(true, || {
        let _making = MAKING.lock();
        if let Some(document) = found() {
            return Ok(document);
        }
        let text = make().ok_or_else(Status::no_such_path)?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(5));
        gzip.write_all(&text).map_err(Status::internal)?;
        let compressed = Bytes::from(gzip.finish().map_err(Status::internal)?);
        let document = Document { compressed, bytes: text.len() };
        let mut documents = DOCUMENTS.lock().expect("no panic while held");
        if documents.len() >= KEPT {
            documents.remove(0);
        }
        documents.push((path.to_owned(), document.clone()));
        Ok(document)
    })
}

impl hyper::body::Body for Unpacked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        let bytes = self.left.min(PIECE_BYTES);
        if bytes == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; bytes];
        if let Err(error) = self.decoder.read_exact(&mut piece) {
            return Poll::Ready(Some(Err(axum::Error::new(error))));
        }
        self.left -= bytes;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

fn of(kind: &KindRef) -> ApiKind {
    ApiKind {
        group: kind.group().into(),
        version: kind.version().into(),
        kind: kind.kind().into(),
        plural: kind.plural().into(),
        namespaced: kind.namespaced(),
        verbs: kind.verbs().iter().map(|v| (*v).to_owned()).collect(),
        subresources: kind.subresources().iter().map(|s| subresource(*s, kind)).collect(),
        definition: kind.definition().into(),
        custom: kind.as_custom().map(|custom| CustomApi {
            list_kind: custom.list_kind.clone(),
            selectable: custom.selectable.iter().map(|i| custom.fields[*i].to_string()).collect(),
            compressed: custom.openapi.clone(),
        }),
    }
}

fn subresource(sub: Subresource, kind: &KindRef) -> ApiSubresource {
    let own = (kind.group(), kind.version(), kind.kind().to_owned());
    let (group, version, name) = sub.gvk(kind.kind()).unwrap_or(own);
    let definition: Cow<'_, str> = match sub {
        Subresource::Scale => crate::api::subresource::scale::SCHEMA.into(),
        Subresource::Token => crate::api::subresource::token::SCHEMA.into(),
        Subresource::Eviction => "io.k8s.api.policy.v1.Eviction".into(),
        Subresource::Binding => "io.k8s.api.core.v1.Binding".into(),
        Subresource::Status
        | Subresource::Finalize
        | Subresource::EphemeralContainers
        | Subresource::Resize
        | Subresource::Approval => kind.definition(),
        Subresource::Log | Subresource::Exec | Subresource::Attach | Subresource::PortForward | Subresource::Proxy => {
            "".into()
        }
    };
    ApiSubresource {
        name: sub.name().into(),
        group: group.into(),
        version: version.into(),
        kind: name,
        verbs: sub.verbs().iter().map(|v| (*v).to_owned()).collect(),
        definition: definition.into(),
    }
}
