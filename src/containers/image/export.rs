//! Images into one tar: an OCI layout with its digests, and beside it what `docker load` of any age wants to see.
//!
//! The bytes depend on the images and their names alone. The file appears under its name when it is whole.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::content::{Content, media_type};
use super::digest::blob_name;
use super::error::io;
use super::store::{ImageStore, Inner};
use super::{ImageError, Reference, Result, builtin};
use crate::base::progress::{self, Counted};

/// An image that goes out, and the names that go with it.
struct Outgoing {
    names: Vec<Reference>,
    content: Content,
}

impl ImageStore {
    /// Writes images as an archive that is an OCI layout and a docker archive at once; `.gz`, `.tgz`, `.zst` and `.tzst` at
    /// the end of its name compress it. Given by id, an image goes with all its names.
    pub async fn export(&self, references: &[String], file: &Path) -> Result<()> {
        let (references, file) = (references.to_vec(), file.to_owned());
        self.blocking(move |inner| {
            let outgoing = references.iter().map(|reference| inner.outgoing(reference)).collect::<Result<Vec<_>>>()?;
            inner.write_archive(&outgoing, &file)
        })
        .await
    }
}

impl Inner {
    fn outgoing(&self, reference: &str) -> Result<Outgoing> {
        if builtin::is_hello(reference) {
            return Err(ImageError::invalid("image", "the built-in image is part of the executable"));
        }
        let image = self.image(reference).ok_or_else(|| ImageError::NoImage(reference.to_owned()))?;
        let content = self.content(reference).ok_or_else(|| {
            ImageError::invalid(
                format!("image {reference}"),
                "what it came as was not kept by the version that took it in: remove it, and pull or import it again",
            )
        })?;
        let parse = |names: &[String]| names.iter().map(|name| Reference::parse(name)).collect::<Result<Vec<_>>>();
        let names = match Reference::parse(reference) {
            Ok(name) if image.tags.contains(&name.to_string()) => vec![name],
            Ok(name) if image.digests.contains(&name.to_string()) => vec![name],
            _ if image.tags.is_empty() => parse(&image.digests)?,
            _ => parse(&image.tags)?,
        };
        // A digest of long ago does not belong to what is kept now.
        let names = names.into_iter().filter(|name| name.digest.as_ref().is_none_or(|d| *d == content.target));
        Ok(Outgoing { names: names.collect(), content })
    }

    fn write_archive(&self, outgoing: &[Outgoing], file: &Path) -> Result<()> {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Hidden, so that a directory whose archives are taken in does not see half of one.
        let scratch = file.with_file_name(format!(".{name}.{}", std::process::id()));
        let written = fs::File::create(&scratch).and_then(|target| {
            let target = BufWriter::with_capacity(1 << 20, target);
            let target = match name.rsplit('.').next() {
                Some("gz" | "tgz") => {
                    let target = flate2::write::GzEncoder::new(target, flate2::Compression::default());
                    self.write_tar(outgoing, target)?.finish()?
                }
                Some("zst" | "tzst" | "zstd") => {
                    self.write_tar(outgoing, zstd::stream::write::Encoder::new(target, 0)?)?.finish()?
                }
                _ => self.write_tar(outgoing, target)?,
            };
            target.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&scratch, file)
        });
        if written.is_err() {
            let _ = fs::remove_file(&scratch);
        }
        written.map_err(io("writing", file))
    }

    fn write_tar<W: Write>(&self, outgoing: &[Outgoing], target: W) -> std::io::Result<W> {
        let mut tar = tar::Builder::new(target);
        add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add(&mut tar, "index.json", self.index_of(outgoing)?.to_string().as_bytes())?;
        add(&mut tar, "manifest.json", docker_list(outgoing)?.to_string().as_bytes())?;
        let mut blobs = Vec::new();
        for digest in outgoing.iter().flat_map(|image| image.content.blobs()).collect::<BTreeSet<_>>() {
            let path = self.content_path(digest).map_err(std::io::Error::other)?;
            let size_bytes = fs::metadata(&path)?.len();
            progress::expect(size_bytes);
            blobs.push((digest, path, size_bytes));
        }
        for (digest, path, size_bytes) in blobs {
            let blob = Counted::new(fs::File::open(path)?, 0);
            tar.append_data(&mut header(size_bytes), blob_path(digest)?, blob)?;
        }
        tar.into_inner()
    }

    fn index_of(&self, outgoing: &[Outgoing]) -> std::io::Result<Value> {
        let mut manifests = Vec::new();
        for image in outgoing {
            let path = self.content_path(&image.content.target).map_err(std::io::Error::other)?;
            let bytes = fs::read(path)?;
            let plain = json!({
                "mediaType": media_type(&bytes), "digest": image.content.target, "size": bytes.len(),
            });
            for name in &image.names {
                let mut named = plain.clone();
                named["annotations"] = json!({"io.containerd.image.name": name.to_string()});
                if let Some(tag) = &name.tag {
                    named["annotations"]["org.opencontainers.image.ref.name"] = tag.as_str().into();
                }
                manifests.push(named);
            }
            if image.names.is_empty() {
                manifests.push(plain);
            }
        }
        let media_type = "application/vnd.oci.image.index.v1+json";
        Ok(json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}))
    }
}

fn docker_list(outgoing: &[Outgoing]) -> std::io::Result<Value> {
    let entry = |image: &Outgoing| {
        let tags = image.names.iter().filter(|name| name.digest.is_none()).map(Reference::to_string);
        let layers =
            image.content.layers.iter().map(|digest| blob_path(digest)).collect::<std::io::Result<Vec<_>>>()?;
        let config = blob_path(&image.content.config)?;
        Ok(json!({"Config": config, "RepoTags": tags.collect::<Vec<_>>(), "Layers": layers}))
    };
    outgoing.iter().map(entry).collect::<std::io::Result<Vec<Value>>>().map(Value::from)
}

fn blob_path(digest: &str) -> std::io::Result<String> {
    blob_name(digest).map(|name| format!("blobs/sha256/{name}")).map_err(std::io::Error::other)
}

fn header(size_bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size_bytes);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

fn add<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    tar.append_data(&mut header(bytes.len() as u64), name, bytes)
}
