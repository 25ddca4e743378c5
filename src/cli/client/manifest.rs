//! Manifests that the command line names: files, directories, standard input.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub(super) use crate::schema::manifest::Manifest;
use crate::schema::manifest::parse;

/// The objects of all files; `-` is standard input, and a directory stands for its manifests in order of their names.
pub(super) fn read_all(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut all = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text = read(&file)?;
            all.extend(parse(&text).with_context(|| file.display().to_string())?);
        }
    }
    if all.is_empty() {
        bail!("there is no object in what -f names");
    }
    Ok(all)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("-f: {} cannot be read", path.display()))?;
    let is_manifest = |p: &PathBuf| p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(is_manifest).collect();
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    if path != Path::new("-") {
        return std::fs::read_to_string(path).with_context(|| format!("-f: {} cannot be read", path.display()));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("-f -: standard input cannot be read")?;
    Ok(text)
}
