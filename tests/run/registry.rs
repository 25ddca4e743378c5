//! A registry in a thread that can be told to misbehave, and images made by hand.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

#[derive(Default)]
pub struct Behaviour {
    /// `user:password`; asks for a token with it.
    pub token_for: Option<String>,
    /// `user:password`, by basic authentication.
    pub basic_for: Option<String>,
    /// Answers to blob requests carry at most so many bytes, then the connection ends.
    pub cut_blobs_after: Option<usize>,
    /// Blobs are served with this byte flipped at the end.
    pub corrupt: bool,
    /// Range requests are obeyed.
    pub ranges: bool,
    /// Every request is sent on to this host.
    pub redirect_to: Option<String>,
    /// Whoever brings no token is sent to this token service.
    pub realm: Option<String>,
}

#[derive(Clone)]
pub struct Registry {
    pub address: String,
    content: Arc<Mutex<HashMap<String, (String, Vec<u8>)>>>,
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub blob_requests: Arc<AtomicUsize>,
    /// Of whatever kind.
    pub requests: Arc<AtomicUsize>,
    /// All that has come in `Authorization` headers.
    pub authorizations: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    pub fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let registry = Self {
            address: listener.local_addr().unwrap().to_string(),
            content: Arc::default(),
            behaviour: Arc::default(),
            blob_requests: Arc::default(),
            requests: Arc::default(),
            authorizations: Arc::default(),
        };
        let shared = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let registry = shared.clone();
                std::thread::spawn(move || registry.serve(stream));
            }
        });
        registry
    }

    fn put(&self, path: String, kind: &str, bytes: Vec<u8>) {
        self.content.lock().unwrap().insert(path, (kind.to_owned(), bytes));
    }

    /// Publishes an image made of uncompressed tars; returns its manifest digest.
    pub fn publish(&self, name: &str, tag: &str, layers: &[Vec<u8>], config: serde_json::Value) -> String {
        let (kind, manifest) = self.manifest(name, layers, config, "amd64");
        let digest = digest(&manifest);
        for version in [tag, &digest] {
            self.put(format!("/v2/{name}/manifests/{version}"), &kind, manifest.clone());
        }
        digest
    }

    /// Publishes an index with an image for this machine and one for another.
    pub fn publish_index(&self, name: &str, tag: &str, layers: &[Vec<u8>], platforms: &[&str]) {
        let mut list = Vec::new();
        for platform in platforms {
            let (kind, manifest) = self.manifest(name, layers, json!({}), platform);
            let digest = digest(&manifest);
            list.push(json!({ "mediaType": kind, "digest": digest, "size": manifest.len(),
                "platform": { "os": "linux", "architecture": platform } }));
            self.put(format!("/v2/{name}/manifests/{digest}"), &kind, manifest);
        }
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "mediaType": kind, "manifests": list })).unwrap();
        self.put(format!("/v2/{name}/manifests/{tag}"), kind, index);
    }

    /// Has the manifest of an image say that its layers are empty.
    pub fn shrink_sizes(&self, name: &str, tag: &str) {
        let mut content = self.content.lock().unwrap();
        let (_, bytes) = content.get_mut(&format!("/v2/{name}/manifests/{tag}")).unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["size"] = 0.into();
        }
        *bytes = serde_json::to_vec(&manifest).unwrap();
    }

    fn manifest(&self, name: &str, layers: &[Vec<u8>], config: serde_json::Value, arch: &str) -> (String, Vec<u8>) {
        let diff_ids: Vec<String> = layers.iter().map(|tar| digest(tar)).collect();
        let config = json!({ "os": "linux", "architecture": arch, "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = serde_json::to_vec(&config).unwrap();
        let config_digest = digest(&config);
        let config_size = config.len();
        self.put(format!("/v2/{name}/blobs/{config_digest}"), "application/octet-stream", config);
        let mut list = Vec::new();
        for (index, tar) in layers.iter().enumerate() {
            let blob = if index % 2 == 0 { gzip(tar) } else { zstd::stream::encode_all(tar.as_slice(), 1).unwrap() };
            let digest = digest(&blob);
            list.push(
                json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": blob.len() }),
            );
            self.put(format!("/v2/{name}/blobs/{digest}"), "application/octet-stream", blob);
        }
        let kind = "application/vnd.oci.image.manifest.v1+json".to_owned();
        let manifest = json!({ "schemaVersion": 2, "mediaType": kind,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size },
            "layers": list });
        (kind, serde_json::to_vec(&manifest).unwrap())
    }
}

impl Registry {
    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let mut head = String::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                if line == "\r\n" {
                    break;
                }
                head.push_str(&line);
            }
            self.requests.fetch_add(1, Ordering::SeqCst);
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let header = |name: &str| {
                head.lines().find_map(|line| {
                    let (key, value) = line.split_once(": ")?;
                    key.eq_ignore_ascii_case(name).then(|| value.to_owned())
                })
            };
            let authorization = header("authorization").unwrap_or_default();
            if !authorization.is_empty() {
                self.authorizations.lock().unwrap().push(authorization.clone());
            }
            let behaviour = self.behaviour.lock().unwrap();
            let secret = |pair: &str| {
                format!("Basic {}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pair))
            };
            let mut answer = |status: &str, extra: &str, body: &[u8], cut: usize| {
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}\r\n", body.len());
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(&body[..cut.min(body.len())]);
            };
            let all = usize::MAX;
            if let Some(host) = &behaviour.redirect_to {
                answer("307 Temporary Redirect", &format!("Location: http://{host}{path}\r\n"), b"", all);
                continue;
            }
            if let Some(realm) = behaviour.realm.as_ref().filter(|_| authorization.is_empty()) {
                answer("401 Unauthorized", &format!("WWW-Authenticate: Bearer realm=\"{realm}\"\r\n"), b"{}", all);
                continue;
            }
            if path.starts_with("/token") {
                let good = behaviour.token_for.as_deref().is_some_and(|pair| authorization == secret(pair));
                match good {
                    true => answer("200 OK", "", br#"{"token":"let-me-in"}"#, all),
                    false => answer("401 Unauthorized", "", b"{}", all),
                }
                continue;
            }
            if behaviour.token_for.is_some() && authorization != "Bearer let-me-in" {
                let extra =
                    format!("WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"test\"\r\n", self.address);
                answer("401 Unauthorized", &extra, br#"{"errors":[{"message":"authentication required"}]}"#, all);
                continue;
            }
            if let Some(pair) = &behaviour.basic_for
                && authorization != secret(pair)
            {
                answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"test\"\r\n", b"{}", all);
                continue;
            }
            let found = self.content.lock().unwrap().get(path.split('?').next().unwrap()).cloned();
            let Some((kind, mut body)) = found else {
                answer("404 Not Found", "", b"{}", all);
                continue;
            };
            let extra = format!("Content-Type: {kind}\r\n");
            if !path.contains("/blobs/") || body.starts_with(b"{") {
                answer("200 OK", &extra, &body, all);
                continue;
            }
            self.blob_requests.fetch_add(1, Ordering::SeqCst);
            if behaviour.corrupt {
                *body.last_mut().unwrap() ^= 1;
            }
            let start: Option<usize> =
                header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            let (status, body) = match start.filter(|_| behaviour.ranges) {
                Some(start) => ("206 Partial Content", &body[start..]),
                None => ("200 OK", &body[..]),
            };
            match behaviour.cut_blobs_after {
                Some(cut) if cut < body.len() => {
                    answer(status, &extra, body, cut);
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                    return;
                }
                _ => answer(status, &extra, body, all),
            }
        }
    }
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
    let mut out = Vec::new();
    encoder.read_to_end(&mut out).unwrap();
    out
}

/// A tar of files (`path`, content) or directories (`path/`), or links (`path -> target`).
pub fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(0);
        if let Some((path, target)) = path.split_once(" -> ") {
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, path, target).unwrap();
        } else if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, path, &b""[..]).unwrap();
        } else {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, *content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}
