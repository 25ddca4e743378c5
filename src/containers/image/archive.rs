//! Taking in images from a tar: `docker save` (docker-archive) and OCI layouts, plain or compressed.
//!
//! The archive is spread into a scratch directory first, through the same safe unpacking as a layer. What was taken in is
//! pinned: nobody could download it again.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;

use super::client::DOCUMENT_MAX;
use super::content::{Content, Documents, digest_of_file};
use super::digest::{blob_name, chain_ids};
use super::document::List;
use super::error::io;
use super::manifest::{ConfigFile, Descriptor, LAYERS_MAX, MANIFESTS_MAX, choose, own_platform, parse_manifest};
use super::store::{ImageStore, Inner};
use super::{Image, ImageError, Reference, Result, unpack};
use crate::base::progress::Counted;
use crate::base::task;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: List<String, MANIFESTS_MAX>,
    layers: List<String, LAYERS_MAX>,
}

/// One image of an archive: its files, and what it is called.
struct Found {
    config: Vec<u8>,
    layers: Vec<LayerFile>,
    names: Vec<Reference>,
    /// What a layout calls it where that is no whole name: a tag, or a name without one.
    short_name: Option<String>,
    /// What the archive says in the words of registries; a docker archive says nothing.
    described: Option<Described>,
}

struct LayerFile {
    path: PathBuf,
    /// As the manifest has it, not verified.
    digest: Option<String>,
}

#[derive(Clone)]
struct Described {
    target: Bytes,
    manifest: Bytes,
}

/// Takes in what is in an archive; images without a name there get `name`, with the tag that the archive has for them.
pub(super) async fn import(store: &ImageStore, archive: &Path, name: Option<&Reference>) -> Result<Vec<Image>> {
    let _pulling = store.pulling().await?;
    let scratch = store.inner.directory.join("blobs").join(format!("import-{}", &super::super::new_id()[..8]));
    fs::create_dir_all(&scratch).map_err(io("creating", &scratch))?;
    let (from, to) = (archive.to_owned(), scratch.clone());
    let spread = task::blocking(move || {
        let file = open(&from).map_err(io("opening", &from))?;
        let size_bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let file = Counted::new(file, size_bytes);
        unpack::unpack(std::io::BufReader::new(file), &to, false, "archive").map(drop)
    });
    let result = match spread.await {
        Ok(Ok(())) => add_all(store, &scratch, name).await,
        Ok(Err(error)) => Err(error),
        Err(error) => Err(ImageError::invalid("archive", error)),
    };
    if let Err(error) = crate::base::tree::remove(&scratch) {
        tracing::warn!(%error, path = %scratch.display(), "what was unpacked of an archive is left until the next start");
    }
    result
}

async fn add_all(store: &ImageStore, scratch: &Path, name: Option<&Reference>) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    let mut all = find(scratch)?;
    give_names(&mut all, name)?;
    for found in all {
        images.push(add(store, found).await?);
    }
    match images.is_empty() {
        true => Err(ImageError::invalid("archive", "it holds no image")),
        false => Ok(images),
    }
}

async fn add(store: &ImageStore, found: Found) -> Result<Image> {
    let file = ConfigFile::parse(&found.config)?;
    file.check_platform(&found.names.first().map_or("archive".into(), Reference::to_string))?;
    let diff_ids = &file.rootfs.diff_ids;
    if diff_ids.len() != found.layers.len() {
        return Err(ImageError::invalid("archive", "configuration and manifest differ in their layers"));
    }
    let chain = chain_ids(diff_ids);
    for (index, layer) in found.layers.iter().enumerate() {
        if !store.has_layer(&chain[index]) {
            store.add_layer(&chain[..index], &chain[index], &diff_ids[index], layer.path.clone()).await?;
        }
    }
    let (id, config, layers) = (super::digest_of(&found.config), Bytes::from(found.config), found.layers);
    let described = found.described;
    let (content, target) = store.blocking(move |inner| keep(inner, config, &layers, described)).await?;
    // As a registry would name it, so that all nodes that get it from here say the same.
    let digest = |name: &Reference| format!("{}@{target}", name.name());
    let image = Image {
        id,
        tags: found.names.iter().filter(|name| name.digest.is_none()).map(Reference::to_string).collect(),
        digests: found.names.iter().map(digest).collect(),
        size_bytes: 0,
        pinned: true,
        last_used: Timestamp::now(),
        config: file.image_config(),
    };
    store.add_image(image, chain, content, None)
}

/// An archive that the administrator named, by a link perhaps; what is no file would never open.
fn open(path: &Path) -> std::io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    crate::base::file::regular(file.into())
}

/// Keeps what the image was in the archive, and tells what its names mean.
fn keep(
    inner: &Inner,
    config: Bytes,
    layers: &[LayerFile],
    described: Option<Described>,
) -> Result<(Option<Content>, String)> {
    let mut digests = Vec::new();
    for layer in layers {
        digests.push(match &layer.digest {
            Some(known) if inner.has_content(known) => known.clone(),
            expected => {
                let actual = digest_of_file(&layer.path)?;
                if let Some(expected) = expected.clone().filter(|expected| *expected != actual) {
                    return Err(ImageError::WrongDigest { expected, actual });
                }
                inner.keep_file(&layer.path, &actual)?;
                actual
            }
        });
    }
    let described = match described {
        Some(described) => described,
        None => {
            let manifest = describe(&config, layers, &digests)?;
            Described { target: manifest.clone(), manifest }
        }
    };
    let target = super::digest_of(&described.target);
    let documents = Documents { target: described.target, manifest: described.manifest, config };
    Ok((inner.keep(&documents, digests, false)?, target))
}

/// The manifest that a registry would have; the same on every machine.
fn describe(config: &[u8], layers: &[LayerFile], digests: &[String]) -> Result<Bytes> {
    let described = |(layer, digest): (&LayerFile, &String)| -> Result<serde_json::Value> {
        let mut magic = Vec::new();
        let file = fs::File::open(&layer.path).map_err(io("opening", &layer.path))?;
        let size_bytes = file.metadata().map_err(io("reading", &layer.path))?.len();
        file.take(4).read_to_end(&mut magic).map_err(io("reading", &layer.path))?;
        let compression = match &*magic {
            [0x1f, 0x8b, ..] => "+gzip",
            [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
            _ => "",
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{compression}");
        Ok(serde_json::json!({"mediaType": media_type, "digest": digest, "size": size_bytes}))
    };
    let layers = layers.iter().zip(digests).map(described).collect::<Result<Vec<_>>>()?;
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": super::digest_of(config),
            "size": config.len(),
        },
        "layers": layers,
    });
    Ok(manifest.to_string().into())
}

fn find(scratch: &Path) -> Result<Vec<Found>> {
    let has = |name: &str| scratch.join(name).is_file();
    match (has("oci-layout") && has("index.json"), has("manifest.json")) {
        // Both in one, as newer `docker save` and our own export make them: the layout has the digests.
        (true, true) => {
            let mut found = find_oci(scratch)?;
            name_nameless(&mut found, &docker_entries(scratch)?, scratch)?;
            Ok(found)
        }
        (_, true) => find_docker(scratch),
        (true, _) => find_oci(scratch),
        _ if has("index.json") => find_oci(scratch),
        _ => Err(ImageError::invalid("archive", "neither a docker archive nor an OCI layout")),
    }
}

/// Names what has no whole name in the archive. A short one is normalised as one that a user writes; what is no name at all
/// leaves the image without one.
fn give_names(all: &mut [Found], name: Option<&Reference>) -> Result<()> {
    let is_tag = |short: &&String| Reference::parse(&format!("a:{short}")).is_ok();
    if name.is_some() && all.iter().all(|image| !image.names.is_empty()) {
        return Err(ImageError::invalid("archive", "all of its images have names, so none is to be given"));
    }
    let mut without = 0;
    for image in all.iter_mut().filter(|image| image.names.is_empty()) {
        let tag = image.short_name.as_ref().filter(is_tag);
        let given = match (name, tag) {
            (Some(name), Some(tag)) => Some(Reference { tag: Some(tag.clone()), ..name.clone() }),
            (Some(name), None) => {
                without += 1;
                Some(name.clone())
            }
            (None, _) => image.short_name.as_ref().and_then(|short| Reference::parse(short).ok()),
        };
        image.names.extend(given);
    }
    match without {
        2.. => {
            Err(ImageError::invalid("archive", format!("{without} of its images have no name: one name is not enough")))
        }
        _ => Ok(()),
    }
}

/// Gives images of a layout that have no name there those of the docker archive's list.
fn name_nameless(found: &mut [Found], entries: &[DockerEntry], scratch: &Path) -> Result<()> {
    for image in found.iter_mut().filter(|image| image.names.is_empty()) {
        for entry in entries {
            if read(scratch, &entry.config)? == image.config {
                image.names.extend(entry.names()?);
            }
        }
    }
    Ok(())
}

fn docker_entries(scratch: &Path) -> Result<List<DockerEntry, MANIFESTS_MAX>> {
    serde_json::from_slice(&read(scratch, "manifest.json")?)
        .map_err(|error| ImageError::invalid("manifest.json", error))
}

fn find_docker(scratch: &Path) -> Result<Vec<Found>> {
    let found = |entry: &DockerEntry| {
        let layer = |layer: &String| Ok(LayerFile { path: inside(scratch, layer)?, digest: None });
        let layers = entry.layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Found {
            config: read(scratch, &entry.config)?,
            layers,
            names: entry.names()?,
            short_name: None,
            described: None,
        })
    };
    docker_entries(scratch)?.iter().map(found).collect()
}

impl DockerEntry {
    pub(super) fn names(&self) -> Result<Vec<Reference>> {
        self.repo_tags.iter().map(|tag| Reference::parse(tag)).collect()
    }
}

fn find_oci(scratch: &Path) -> Result<Vec<Found>> {
    let index = parse_manifest(&read(scratch, "index.json")?)?;
    index.manifests.iter().map(|descriptor| find_oci_image(scratch, descriptor)).collect()
}

fn find_oci_image(scratch: &Path, descriptor: &Descriptor) -> Result<Found> {
    // containerd's annotation is a whole name; the standard one is often only a tag.
    let annotations = descriptor.annotations.clone().unwrap_or_default();
    let (whole, short): (Vec<String>, Vec<String>) = [annotations.containerd, annotations.standard]
        .into_iter()
        .flatten()
        .filter(|name| !name.is_empty())
        .partition(|name| name.contains(['/', ':']));
    let names = whole.first().map(|name| Reference::parse(name)).transpose()?.into_iter().collect();
    let target = Bytes::from(blob(scratch, &descriptor.digest)?);
    let mut bytes = target.clone();
    let mut manifest = parse_manifest(&bytes)?;
    if manifest.config.is_none() && !manifest.manifests.is_empty() {
        let chosen = choose(&manifest.manifests, &own_platform(), "archive")?.digest.clone();
        bytes = blob(scratch, &chosen)?.into();
        manifest = parse_manifest(&bytes)?;
    }
    let config = manifest.config.ok_or_else(|| ImageError::invalid("manifest", "it has no configuration"))?;
    let layer = |layer: &Descriptor| {
        Ok(LayerFile { path: inside(scratch, &blob_path(&layer.digest)?)?, digest: Some(layer.digest.clone()) })
    };
    Ok(Found {
        config: blob(scratch, &config.digest)?,
        layers: manifest.layers.iter().map(layer).collect::<Result<_>>()?,
        names,
        short_name: short.into_iter().next(),
        described: Some(Described { target, manifest: bytes }),
    })
}

fn blob_path(digest: &str) -> Result<String> {
    Ok(format!("blobs/sha256/{}", blob_name(digest)?))
}

fn blob(scratch: &Path, digest: &str) -> Result<Vec<u8>> {
    let bytes = read(scratch, &blob_path(digest)?)?;
    let actual = super::digest_of(&bytes);
    match actual == digest {
        true => Ok(bytes),
        false => Err(ImageError::WrongDigest { expected: digest.to_owned(), actual }),
    }
}

/// A file of the archive. Links inside may lead anywhere, so the real path has to be below the scratch directory.
fn inside(scratch: &Path, name: &str) -> Result<PathBuf> {
    let path = scratch.join(name.trim_start_matches('/'));
    let (root, real) = (fs::canonicalize(scratch), fs::canonicalize(&path));
    match (root, real) {
        (Ok(root), Ok(real)) if real.starts_with(&root) && real.is_file() => Ok(real),
        _ => Err(ImageError::invalid("archive", format!("{name:?} is missing"))),
    }
}

fn read(scratch: &Path, name: &str) -> Result<Vec<u8>> {
    let path = inside(scratch, name)?;
    let file = fs::File::open(&path).map_err(io("opening", &path))?;
    let mut bytes = Vec::new();
    file.take(DOCUMENT_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io("reading", &path))?;
    match bytes.len() > DOCUMENT_MAX {
        true => Err(ImageError::invalid("archive", format!("{name:?} is longer than {DOCUMENT_MAX} bytes"))),
        false => Ok(bytes),
    }
}
