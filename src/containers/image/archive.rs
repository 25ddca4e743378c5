//! Taking in images from a tar: `docker save` (docker-archive) and OCI layouts, plain or compressed.
//!
//! The archive is spread into a scratch directory first, through the same safe unpacking as a layer.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Deserialize;

use super::error::io;
use super::pull::{ConfigFile, Descriptor, choose, own_platform, parse_manifest};
use super::store::{ImageStore, blob_name, chain_ids};
use super::{Image, ImageError, Reference, Result, unpack};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// One image of an archive: its files, and what it is called.
struct Found {
    config: Vec<u8>,
    layers: Vec<PathBuf>,
    tags: Vec<String>,
    digests: Vec<String>,
}

pub(super) async fn import(store: &ImageStore, archive: &Path) -> Result<Vec<Image>> {
    let _pulling = super::lock::pulling(&store.inner.directory)?;
    let scratch = store.inner.directory.join("blobs").join(format!("import-{}", &super::super::new_id()[..8]));
    fs::create_dir_all(&scratch).map_err(io("creating", &scratch))?;
    let (from, to) = (archive.to_owned(), scratch.clone());
    let spread = tokio::task::spawn_blocking(move || {
        let file = fs::File::open(&from).map_err(io("opening", &from))?;
        unpack::unpack(std::io::BufReader::new(file), &to, false, "archive").map(drop)
    });
    let result = match spread.await {
        Ok(Ok(())) => add_all(store, &scratch).await,
        Ok(Err(error)) => Err(error),
        Err(error) => Err(ImageError::invalid("archive", error)),
    };
    let _ = fs::remove_dir_all(&scratch);
    result
}

async fn add_all(store: &ImageStore, scratch: &Path) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for found in find(scratch)? {
        images.push(add(store, found).await?);
    }
    match images.is_empty() {
        true => Err(ImageError::invalid("archive", "it holds no image")),
        false => Ok(images),
    }
}

async fn add(store: &ImageStore, found: Found) -> Result<Image> {
    let file = ConfigFile::parse(&found.config)?;
    file.check_platform(found.tags.first().map_or("archive", String::as_str))?;
    let diff_ids = &file.rootfs.diff_ids;
    if diff_ids.len() != found.layers.len() {
        return Err(ImageError::invalid("archive", "configuration and manifest differ in their layers"));
    }
    let chain = chain_ids(diff_ids);
    for (index, blob) in found.layers.iter().enumerate() {
        if !store.has_layer(&chain[index]) {
            store.add_layer(&chain[..index], &chain[index], &diff_ids[index], blob.clone()).await?;
        }
    }
    let image = Image {
        id: super::digest_of(&found.config),
        tags: found.tags,
        digests: found.digests,
        size_bytes: 0,
        pinned: false,
        last_used: Timestamp::now(),
        config: file.image_config(),
    };
    store.add_image(image, chain)
}

fn find(scratch: &Path) -> Result<Vec<Found>> {
    if scratch.join("manifest.json").is_file() {
        find_docker(scratch)
    } else if scratch.join("index.json").is_file() {
        find_oci(scratch)
    } else {
        Err(ImageError::invalid("archive", "neither a docker archive nor an OCI layout"))
    }
}

fn find_docker(scratch: &Path) -> Result<Vec<Found>> {
    let entries: Vec<DockerEntry> = serde_json::from_slice(&read(scratch, "manifest.json")?)
        .map_err(|error| ImageError::invalid("manifest.json", error))?;
    let found = |entry: DockerEntry| {
        let tags = entry.repo_tags.unwrap_or_default();
        let tags: Result<Vec<String>> = tags.iter().map(|tag| Ok(Reference::parse(tag)?.to_string())).collect();
        let layers: Result<Vec<PathBuf>> = entry.layers.iter().map(|layer| inside(scratch, layer)).collect();
        Ok(Found { config: read(scratch, &entry.config)?, layers: layers?, tags: tags?, digests: Vec::new() })
    };
    entries.into_iter().map(found).collect()
}

fn find_oci(scratch: &Path) -> Result<Vec<Found>> {
    let index = parse_manifest(&read(scratch, "index.json")?)?;
    index.manifests.iter().map(|descriptor| find_oci_image(scratch, descriptor)).collect()
}

fn find_oci_image(scratch: &Path, descriptor: &Descriptor) -> Result<Found> {
    // containerd's annotation is a whole name; the standard one is often only a tag.
    let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .iter()
        .filter_map(|key| descriptor.annotations.get(*key))
        .find(|name| name.contains(['/', ':']));
    let reference = name.map(|name| Reference::parse(name)).transpose()?;
    let mut manifest = parse_manifest(&blob(scratch, &descriptor.digest)?)?;
    if manifest.config.is_none() && !manifest.manifests.is_empty() {
        let chosen = choose(&manifest.manifests, &own_platform(), "archive")?.digest.clone();
        manifest = parse_manifest(&blob(scratch, &chosen)?)?;
    }
    let config = manifest.config.ok_or_else(|| ImageError::invalid("manifest", "it has no configuration"))?;
    let layers: Result<Vec<PathBuf>> =
        manifest.layers.iter().map(|layer| inside(scratch, &blob_path(&layer.digest)?)).collect();
    let digest = |reference: &Reference| format!("{}@{}", reference.name(), descriptor.digest);
    Ok(Found {
        config: blob(scratch, &config.digest)?,
        layers: layers?,
        digests: reference.iter().map(digest).collect(),
        tags: reference.iter().map(ToString::to_string).collect(),
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
    fs::read(&path).map_err(io("reading", &path))
}
