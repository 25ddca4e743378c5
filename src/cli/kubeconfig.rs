//! `amphipod kubeconfig`, and kubeconfig files as the client commands read them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use serde::Deserialize;

use super::Directories;
use crate::node_paths::NodePaths;
use crate::wire::client::Target;
use crate::wire::tls;

/// Where the administrator's kubeconfig is: where the server of these directories has written it, or where it would.
pub fn path(directories: &Directories) -> PathBuf {
    let config_dir = std::path::absolute(&directories.config_dir).unwrap_or_else(|_| directories.config_dir.clone());
    let recorded = NodePaths::new(&directories.data_dir, &directories.run_dir).recorded_server();
    let own = recorded.filter(|server| server.config_dir == config_dir);
    own.map_or_else(|| directories.config_dir.join("kubeconfig.yaml"), |server| server.kubeconfig)
}

/// Prints the administrator's kubeconfig.
pub fn run(directories: &Directories) -> Result<()> {
    let path = path(directories);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("{} cannot be read: start the server first, or name its --config-dir", path.display())
    })?;
    super::output(text.trim_end());
    Ok(())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    current_context: String,
    clusters: Vec<Named>,
    contexts: Vec<Named>,
    users: Vec<Named>,
}

/// An entry of any of the lists.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    cluster: Cluster,
    context: Scope,
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Scope {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
}

/// The server that a kubeconfig names, and the namespace of its context.
pub fn load(path: &Path) -> Result<(Target, String)> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("{} cannot be read: start the server first, or name a kubeconfig with --kubeconfig", path.display())
    })?;
    let file: File = serde_yaml::from_str(&text).with_context(|| format!("{} is no kubeconfig", path.display()))?;
    target(file, path.parent().unwrap_or(Path::new("."))).with_context(|| path.display().to_string())
}

fn target(file: File, directory: &Path) -> Result<(Target, String)> {
    let find = |list: Vec<Named>, what: &str, name: &str| {
        list.into_iter().find(|e| e.name == name).with_context(|| format!("there is no {what} {name:?}"))
    };
    let context = find(file.contexts, "context", &file.current_context)?.context;
    let cluster = find(file.clusters, "cluster", &context.cluster)?.cluster;
    let user = find(file.users, "user", &context.user)?.user;
    if cluster.insecure_skip_tls_verify {
        bail!("insecure-skip-tls-verify is not supported: give certificate-authority-data");
    }
    let authority = content(cluster.certificate_authority_data, cluster.certificate_authority, directory)
        .context("certificate-authority")?
        .with_context(|| format!("cluster {:?} has no certificate-authority", context.cluster))?;
    let chain = content(user.client_certificate_data, user.client_certificate, directory)?;
    let key = content(user.client_key_data, user.client_key, directory)?;
    let identity = chain.as_deref().zip(key.as_deref());
    let token = match (user.token, user.token_file) {
        (Some(token), _) => Some(token),
        (None, Some(path)) => {
            let path = directory.join(path);
            let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            Some(text.trim().to_owned())
        }
        (None, None) => None,
    };
    let server = cluster.server.parse().with_context(|| format!("server {:?} is no address", cluster.server))?;
    let tls = tls::client(&authority, identity).context("the certificates cannot be used")?;
    let user_agent = format!("amphipod/{}", env!("CARGO_PKG_VERSION"));
    let namespace = context.namespace.filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
    Ok((Target { server, tls, token, user_agent }, namespace))
}

/// What is in the file itself, else what it points to.
fn content(inline: Option<String>, path: Option<PathBuf>, directory: &Path) -> Result<Option<Vec<u8>>> {
    if let Some(text) = inline {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim()).context("it is not base64")?;
        return Ok(Some(bytes));
    }
    let Some(path) = path else { return Ok(None) };
    let path = directory.join(path);
    std::fs::read(&path).map(Some).with_context(|| format!("{} cannot be read", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_paths::ServerRecord;

    #[test]
    fn the_kubeconfig_of_a_server_is_found_wherever_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| dir.path().join(name);
        let directories = Directories { data_dir: of("data"), run_dir: of("run"), config_dir: of("etc") };
        assert_eq!(path(&directories), of("etc/kubeconfig.yaml"), "no server has run");
        let place = NodePaths::new(&directories.data_dir, &directories.run_dir);
        let _running = place.claim().unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let record = |config_dir| ServerRecord { address, config_dir, kubeconfig: of("elsewhere") };
        place.record_server(&record(of("etc"))).unwrap();
        assert_eq!(path(&directories), of("elsewhere"));
        place.record_server(&record(of("other"))).unwrap();
        assert_eq!(path(&directories), of("etc/kubeconfig.yaml"), "of another server");
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let said = |text: &str| {
            std::fs::write(&path, text).unwrap();
            format!("{:#}", load(&path).unwrap_err())
        };
        assert!(said("current-context: x").contains("there is no context \"x\""));
        let head = "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nusers: [{name: u}]\n";
        assert!(said(head).contains("there is no cluster \"k\""));
        let text = format!("{head}clusters: [{{name: k, cluster: {{server: 'https://a:1'}}}}]");
        assert!(said(&text).contains("has no certificate-authority"));
        assert!(said("- 1").contains("is no kubeconfig"));
    }
}
