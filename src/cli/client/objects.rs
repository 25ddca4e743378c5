//! `amphipod apply`, `delete` and `get`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use super::discovery::{Resource, Resources};
use super::fields::unreadable;
use super::manifest::{Manifest, read_all};
use super::{Cluster, Refused, Where, body, escape, pass_on, run, tables};
use crate::cli::{Usage, complain, output};

const JSON: &str = "application/json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// Who owns the fields that `apply` sets.
const MANAGER: &str = "amphipod";

/// Flags of `apply`.
#[derive(Clone, Debug, Args)]
pub struct ApplyArgs {
    /// A manifest, `-` for standard input, or a directory of manifests
    #[arg(long = "filename", short = 'f', required = true)]
    files: Vec<PathBuf>,
    /// Take over fields that others manage
    #[arg(long)]
    force_conflicts: bool,
    #[command(flatten)]
    at: Where,
}

/// Flags of `delete`.
#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {
    /// Kind and name, or KIND/NAME
    target: Vec<String>,
    /// Delete what a manifest describes
    #[arg(long = "filename", short = 'f', conflicts_with = "target")]
    files: Vec<PathBuf>,
    /// Succeed if it is not there
    #[arg(long)]
    ignore_not_found: bool,
    /// Seconds that pods have to end
    #[arg(long)]
    grace_period: Option<u32>,
    #[command(flatten)]
    at: Where,
}

/// Flags of `get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Kind and, to see one object, its name; or KIND/NAME
    #[arg(required_unless_present = "raw")]
    target: Vec<String>,
    /// What the server answers for a path, such as /readyz, as it comes
    #[arg(long, value_name = "PATH", conflicts_with_all = ["target", "all_namespaces", "output", "selector"])]
    raw: Option<String>,
    /// Of all namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// How it is shown
    #[arg(long, short = 'o')]
    output: Option<OutputFormat>,
    /// Only objects with these labels
    #[arg(long, short = 'l')]
    selector: Option<String>,
    #[command(flatten)]
    at: Where,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    Yaml,
    Json,
    Wide,
    Name,
}

/// Creates or changes what manifests describe, by server-side apply.
pub fn apply(args: &ApplyArgs) -> Result<()> {
    let manifests = read_all(&args.files)?;
    run(async {
        let mut cluster = args.at.open()?;
        let resources = Resources::load(&mut cluster).await?;
        let mut failed = Failures::default();
        for manifest in &manifests {
            let result = apply_one(&mut cluster, &resources, manifest, args.force_conflicts).await;
            failed.note(manifest, result)?;
        }
        failed.end()
    })
}

async fn apply_one(cluster: &mut Cluster, resources: &Resources, manifest: &Manifest, force: bool) -> Result<String> {
    let resource = resources.of_manifest(&manifest.api_version, &manifest.kind)?;
    let path = path_of(cluster, resource, manifest);
    let path = format!("{path}?fieldManager={MANAGER}&force={force}&fieldValidation=Strict");
    let content = ("application/apply-patch+yaml", serde_json::to_vec(&manifest.value)?);
    let response = cluster.send(Method::PATCH, &path, JSON, Some(content)).await;
    let response = response.map_err(|error| explain(error, manifest))?;
    let done = if response.status() == http::StatusCode::CREATED { "created" } else { "applied" };
    body(response).await?;
    Ok(format!("{}/{} {done}", resource.shown(), manifest.name))
}

fn explain(error: anyhow::Error, manifest: &Manifest) -> anyhow::Error {
    match error.downcast_ref::<Refused>() {
        Some(refused) if refused.code == 409 => error.context("--force-conflicts takes the fields over"),
        Some(refused) if refused.code == 400 => match unreadable(manifest) {
            Some(field) => error.context(field),
            None => error,
        },
        _ => error,
    }
}

fn path_of(cluster: &Cluster, resource: &Resource, manifest: &Manifest) -> String {
    let namespace = manifest.namespace.as_deref().unwrap_or(&cluster.namespace);
    format!("{}/{}", resource.path(namespace), escape(&manifest.name))
}

/// Goes on after a refusal, so that one bad object does not hide the others, and fails in the end.
#[derive(Default)]
struct Failures(usize);

// === impl Failures ===

impl Failures {
    fn note(&mut self, manifest: &Manifest, result: Result<String>) -> Result<()> {
        match result {
            Ok(line) => output(&line),
            // Whoever cannot be reached for one object is not asked for the others.
            Err(error) if error.downcast_ref::<crate::wire::client::Error>().is_some() => return Err(error),
            Err(error) => {
                self.0 += 1;
                complain(&format!("{} {}: {error:#}", manifest.kind, manifest.name));
            }
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        match self.0 {
            0 => Ok(()),
            n => bail!("{n} of the objects failed"),
        }
    }
}

/// Deletes objects; what depends on them goes in the background.
pub fn delete(args: &DeleteArgs) -> Result<()> {
    let manifests = if args.files.is_empty() { Vec::new() } else { read_all(&args.files)? };
    let options = match args.grace_period {
        Some(seconds) => json!({"propagationPolicy": "Background", "gracePeriodSeconds": seconds}),
        None => json!({"propagationPolicy": "Background"}),
    };
    run(async {
        let mut cluster = args.at.open()?;
        let resources = Resources::load(&mut cluster).await?;
        let mut failed = Failures::default();
        // In reverse: what came last may need what came first.
        for manifest in manifests.iter().rev() {
            let resource = resources.of_manifest(&manifest.api_version, &manifest.kind)?;
            let path = path_of(&cluster, resource, manifest);
            let result = delete_one(&mut cluster, resource, &path, &manifest.name, &options, args).await;
            failed.note(manifest, result)?;
        }
        if manifests.is_empty() {
            let (kind, names) = split(&args.target)?;
            if names.is_empty() {
                return Err(Usage("delete: expected -f FILE, or KIND and NAME".into()).into());
            }
            let resource = resources.named(&kind)?;
            for name in names {
                let path = format!("{}/{}", resource.path(&cluster.namespace), escape(&name));
                output(&delete_one(&mut cluster, resource, &path, &name, &options, args).await?);
            }
        }
        failed.end()
    })
}

async fn delete_one(
    cluster: &mut Cluster,
    resource: &Resource,
    path: &str,
    name: &str,
    options: &Value,
    args: &DeleteArgs,
) -> Result<String> {
    let content = (JSON, serde_json::to_vec(options)?);
    match cluster.send(Method::DELETE, path, JSON, Some(content)).await {
        Ok(response) => {
            body(response).await?;
            Ok(format!("{}/{name} deleted", resource.shown()))
        }
        Err(error) => match error.downcast_ref::<Refused>() {
            Some(refused) if refused.code == 404 && args.ignore_not_found => {
                Ok(format!("{}/{name} not found", resource.shown()))
            }
            _ => Err(error),
        },
    }
}

/// `KIND NAME...` or `KIND/NAME...`.
fn split(target: &[String]) -> Result<(String, Vec<String>)> {
    let wrong = || Usage("expected KIND and NAME, or KIND/NAME".into());
    let (first, rest) = target.split_first().ok_or_else(wrong)?;
    let Some((kind, name)) = first.split_once('/') else { return Ok((first.clone(), rest.to_vec())) };
    let mut names = vec![name.to_owned()];
    for other in rest {
        match other.split_once('/') {
            Some((k, name)) if k == kind => names.push(name.to_owned()),
            _ => return Err(wrong().into()),
        }
    }
    Ok((kind.to_owned(), names))
}

/// Shows objects.
pub fn get(args: &GetArgs) -> Result<()> {
    if let Some(path) = &args.raw {
        return run(raw(args, path));
    }
    let (kinds, names) = split(&args.target)?;
    if !names.is_empty() && args.all_namespaces {
        return Err(Usage("--all-namespaces: a name is looked for in one namespace".into()).into());
    }
    run(async {
        let mut cluster = args.at.open()?;
        let resources = Resources::load(&mut cluster).await?;
        let mut wanted = Vec::new();
        for name in kinds.split(',') {
            match resources.of_category(name) {
                members if members.is_empty() => wanted.push(resources.named(name)?),
                // Also where there is only one, its objects are named with it.
                members if names.is_empty() => wanted.extend(members),
                _ => return Err(Usage(format!("{name} stands for several kinds: objects of it are not named")).into()),
            }
        }
        let several = wanted.len() > 1;
        let mut shown = false;
        for resource in wanted {
            shown |= show(&mut cluster, resource, &names, args, View { several, after: shown }).await?;
        }
        if several && !shown && matches!(args.output, None | Some(OutputFormat::Wide)) {
            complain(&match args.all_namespaces {
                true => "no objects".to_owned(),
                false => format!("no objects in namespace {}", cluster.namespace),
            });
        }
        Ok(())
    })
}

async fn raw(args: &GetArgs, path: &str) -> Result<()> {
    if !path.starts_with('/') {
        return Err(Usage(format!("--raw: {path:?}: expected a path that begins with /, such as /readyz")).into());
    }
    pass_on(args.at.open()?.send(Method::GET, path, "*/*", None).await?).await
}

/// One kind among those that are shown.
#[derive(Clone, Copy)]
struct View {
    /// It is not the only one: its objects are named with it.
    several: bool,
    /// Something was shown before it.
    after: bool,
}

/// Tells whether there was something to show.
async fn show(
    cluster: &mut Cluster,
    resource: &Resource,
    names: &[String],
    args: &GetArgs,
    view: View,
) -> Result<bool> {
    let namespace = if args.all_namespaces { String::new() } else { cluster.namespace.clone() };
    let collection = resource.path(&namespace);
    let paths: Vec<String> = match names {
        [] => vec![match &args.selector {
            Some(selector) => format!("{collection}?labelSelector={}", escape(selector)),
            None => collection,
        }],
        names => names.iter().map(|name| format!("{collection}/{}", escape(name))).collect(),
    };
    let accept = if matches!(args.output, None | Some(OutputFormat::Wide)) { TABLE } else { JSON };
    let mut answers = Vec::new();
    for path in paths {
        answers.push(cluster.json(&path, accept).await?);
    }
    let value = match answers.len() {
        1 => answers.remove(0),
        _ if accept == TABLE => tables::joined(answers),
        _ => json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": answers}),
    };
    match args.output {
        Some(OutputFormat::Json) => output(&serde_json::to_string_pretty(&value)?),
        Some(OutputFormat::Yaml) => output(serde_yaml::to_string(&value)?.trim_end()),
        Some(OutputFormat::Name) => {
            let items = value["items"].as_array().cloned().unwrap_or_else(|| vec![value]);
            let names = items.iter().filter_map(|i| i["metadata"]["name"].as_str());
            names.for_each(|name| output(&format!("{}/{name}", resource.shown())));
        }
        None | Some(OutputFormat::Wide) => {
            let prefix = if view.several { format!("{}/", resource.shown()) } else { String::new() };
            let of_all = args.all_namespaces && resource.namespaced;
            let lines = tables::lines(&value, args.output.is_some(), of_all, &prefix);
            if lines.len() <= 1 {
                if view.several {
                    return Ok(false);
                }
                let place = if namespace.is_empty() || !resource.namespaced { "" } else { &namespace };
                let place = if place.is_empty() { String::new() } else { format!(" in namespace {place}") };
                complain(&format!("no {}{place}", resource.plural));
                return Ok(false);
            } else {
                if view.after {
                    output("");
                }
                lines.iter().for_each(|line| output(line));
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #[test]
    fn targets_are_kind_and_names() {
        let split = |words: &[&str]| super::split(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(split(&["pods"]).unwrap(), ("pods".into(), vec![]));
        assert_eq!(split(&["pod", "a", "b"]).unwrap(), ("pod".into(), vec!["a".into(), "b".into()]));
        assert_eq!(split(&["pod/a", "pod/b"]).unwrap(), ("pod".into(), vec!["a".into(), "b".into()]));
        assert!(split(&["pod/a", "b"]).is_err());
        assert!(split(&[]).is_err());
    }
}
