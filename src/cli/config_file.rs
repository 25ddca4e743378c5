//! `config.yaml`: every flag of a command as a key. What is said on the command line or in the environment wins.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_yaml::Value;

/// Where the file is, unless `--config`, `--config-dir` or their variables say otherwise.
const DIRECTORY: &str = "/etc/amphipod";
const NAME: &str = "config.yaml";

/// The arguments with those of the config file put in.
pub fn merged(arguments: Vec<OsString>) -> Result<Vec<OsString>, String> {
    if arguments.get(1).is_none_or(|command| command != "server" && command != "agent") {
        return Ok(arguments);
    }
    let arguments = with_k3s_names(arguments);
    let (path, given) = path_of(&arguments);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !given => return Ok(arguments),
        Err(e) => return Err(format!("--config: {} cannot be read: {e}", path.display())),
    };
    let parsed: Value =
        serde_yaml::from_str(&text).map_err(|e| format!("--config: {} is not YAML: {e}", path.display()))?;
    let mut out = arguments[..2].to_vec();
    out.extend(flags(&parsed, &arguments).map_err(|e| format!("--config: {}: {e}", path.display()))?);
    out.extend_from_slice(&arguments[2..]);
    Ok(out)
}

/// Variables of k3s that mean the same here; what has our own name wins.
const K3S_NAMES: [(&str, &str, &str); 10] = [
    ("K3S_CONFIG_FILE", "AMPHIPOD_CONFIG", "config"),
    ("K3S_URL", "AMPHIPOD_URL", "server"),
    ("K3S_TOKEN", "AMPHIPOD_TOKEN", "token"),
    ("K3S_TOKEN_FILE", "AMPHIPOD_TOKEN_FILE", "token-file"),
    ("K3S_NODE_NAME", "AMPHIPOD_NODE_NAME", "node-name"),
    ("K3S_DATA_DIR", "AMPHIPOD_DATA_DIR", "data-dir"),
    ("K3S_DISABLE", "AMPHIPOD_DISABLE", "disable"),
    ("K3S_KUBECONFIG_OUTPUT", "AMPHIPOD_WRITE_KUBECONFIG", "write-kubeconfig"),
    ("K3S_KUBECONFIG_MODE", "AMPHIPOD_WRITE_KUBECONFIG_MODE", "write-kubeconfig-mode"),
    ("K3S_SYSTEM_DEFAULT_REGISTRY", "AMPHIPOD_SYSTEM_DEFAULT_REGISTRY", "system-default-registry"),
];
/// Which of those only one of the two commands has.
const ONLY: [(&str, &str); 4] =
    [("server", "agent"), ("disable", "server"), ("write-kubeconfig", "server"), ("write-kubeconfig-mode", "server")];

/// The arguments with k3s' variables put in as flags, where neither a flag nor our own variable says the same.
fn with_k3s_names(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut out = arguments[..2].to_vec();
    for (theirs, ours, flag) in K3S_NAMES {
        let elsewhere = ONLY.iter().any(|(f, command)| *f == flag && arguments[1] != *command);
        if elsewhere || said(&arguments, &format!("--{flag}")) || std::env::var_os(ours).is_some() {
            continue;
        }
        if let Some(value) = std::env::var_os(theirs).filter(|v| !v.is_empty()) {
            let mut argument = OsString::from(format!("--{flag}="));
            argument.push(value);
            out.push(argument);
        }
    }
    out.extend_from_slice(&arguments[2..]);
    out
}

fn said(arguments: &[OsString], flag: &str) -> bool {
    arguments.iter().any(|a| {
        let a = a.to_string_lossy();
        a == flag || a.starts_with(&format!("{flag}="))
    })
}

/// The file, and whether it was named: one that was not may be absent.
fn path_of(arguments: &[OsString]) -> (PathBuf, bool) {
    let named = value_of(arguments, &["--config", "-c"]).or_else(|| std::env::var_os("AMPHIPOD_CONFIG"));
    if let Some(path) = named {
        return (path.into(), true);
    }
    let directory = value_of(arguments, &["--config-dir"]).or_else(|| std::env::var_os("AMPHIPOD_CONFIG_DIR"));
    (PathBuf::from(directory.unwrap_or_else(|| DIRECTORY.into())).join(NAME), false)
}

/// What a flag is given, as one argument or two.
fn value_of(arguments: &[OsString], flags: &[&str]) -> Option<OsString> {
    let mut rest = arguments.iter().skip(2);
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if flags.contains(&&*text) {
            return Some(rest.next().cloned().unwrap_or_default());
        }
        let value = flags.iter().find_map(|flag| text.strip_prefix(flag)?.strip_prefix('='));
        if let Some(value) = value {
            return Some(value.into());
        }
    }
    None
}

fn flags(parsed: &Value, arguments: &[OsString]) -> Result<Vec<OsString>, String> {
    let map = match parsed {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(map) => map,
        other => return Err(format!("expected keys and values, got {other:?}")),
    };
    let mut out = Vec::new();
    for (key, value) in map {
        let key = key.as_str().ok_or_else(|| format!("expected a flag's name as key, got {key:?}"))?;
        let flag = format!("--{key}");
        let variable = format!("AMPHIPOD_{}", key.to_uppercase().replace('-', "_"));
        if said(arguments, &flag) || std::env::var_os(variable).is_some() {
            continue;
        }
        match value {
            Value::Bool(true) => out.push(flag.into()),
            Value::Bool(false) | Value::Null => {}
            Value::Sequence(items) => {
                for item in items {
                    out.push(format!("{flag}={}", scalar(key, item)?).into());
                }
            }
            one => out.push(format!("{flag}={}", scalar(key, one)?).into()),
        }
    }
    Ok(out)
}

fn scalar(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(s) => Ok(s.clone()),
        Value::Number(n) => Ok(n.to_string()),
        Value::Bool(b) => Ok(b.to_string()),
        other => Err(format!("{key}: expected text, a number or a list of them, got {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_flags_unless_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, "node-name: n\nhttps-listen-port: 7\ntls-san: [a, b]\ndisable-agent: true\n").unwrap();
        let given = ["amphipod", "server", "--config", path.to_str().unwrap(), "--node-name=x"].map(OsString::from);
        let all = merged(given.to_vec()).unwrap();
        let text: Vec<_> = all.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        assert_eq!(&text[2..6], ["--https-listen-port=7", "--tls-san=a", "--tls-san=b", "--disable-agent"]);
        assert_eq!(text.last().unwrap(), "--node-name=x");
        // The directory of the configuration has it, too.
        let directory = format!("--config-dir={}", dir.path().display());
        std::fs::write(dir.path().join(NAME), "node-name: of-the-directory\n").unwrap();
        let all = merged(["amphipod", "server", &directory].map(OsString::from).to_vec()).unwrap();
        assert_eq!(all[2], "--node-name=of-the-directory");
        std::fs::write(&path, "- 1").unwrap();
        assert!(merged(given.to_vec()).unwrap_err().contains("expected keys and values"));
    }
}
