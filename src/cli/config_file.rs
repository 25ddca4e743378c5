//! `config.yaml`: every flag of a server or an agent as a key. What is said on the command line or in the environment wins.
//!
//! The other commands work with what a server or an agent has made, so they take from the file where that is, and no more.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind::{NotFound, PermissionDenied};
use std::path::PathBuf;

use clap::{Arg, Command};
use serde_yaml::Value;

use super::node::LOG_VARIABLE;
use crate::base::arguments::command_at;

/// Where the file is, unless `--config`, `--config-dir` or their variables say otherwise.
const DIRECTORY: &str = "/etc/amphipod";
const NAME: &str = "config.yaml";
/// How our variables begin, and those of k3s.
const OURS: &str = "AMPHIPOD_";
const THEIRS: &str = "K3S_";

/// The flags that every command takes from the file: where a server or an agent keeps its things.
const DIRECTORIES: [&str; 3] = ["data-dir", "run-dir", "config-dir"];

/// Which flags a configuration file has set, and on which lines.
#[derive(Debug, Default)]
pub struct Origins {
    path: PathBuf,
    /// By the flag, with its dashes.
    flags: Vec<(String, Option<usize>)>,
}

// === impl Origins ===

impl Origins {
    /// Where a flag comes from of which a message speaks, if it is the file that has set it.
    pub fn of(&self, message: &str) -> Option<String> {
        let is_flag = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let mut spoken = message.split(|c| !is_flag(c)).filter(|word| word.starts_with("--"));
        let (flag, line) = spoken.find_map(|word| self.flags.iter().find(|(flag, _)| flag == word))?;
        Some(format!("{flag} is set in {}", place(&self.path, *line)))
    }
}

fn place(path: &std::path::Path, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{}, line {line}", path.display()),
        None => path.display().to_string(),
    }
}

/// The arguments with those of the config file put in, and which these are; `cli` knows the flags.
pub fn merged(arguments: Vec<OsString>, cli: &Command) -> Result<(Vec<OsString>, Origins), String> {
    let at = command_at(&arguments);
    let Some(command) = arguments.get(at).and_then(|name| cli.find_subcommand(name)) else {
        return Ok((arguments, Origins::default()));
    };
    let is_node = matches!(command.get_name(), "server" | "agent");
    let takes = |flag: &str| {
        let has = command.get_arguments().any(|arg| arg.get_long() == Some(flag));
        has && (is_node || DIRECTORIES.contains(&flag))
    };
    if !is_node && !DIRECTORIES.into_iter().any(takes) {
        return Ok((arguments, Origins::default()));
    }
    let arguments = with_k3s_names(arguments, at, takes);
    let (path, given) = path_of(&arguments, is_node);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // Whoever may not read it is no administrator, who works with a server by its address and a kubeconfig.
        Err(e) if !given && (e.kind() == NotFound || !is_node && e.kind() == PermissionDenied) => {
            return Ok((arguments, Origins::default()));
        }
        Err(e) => return Err(format!("--config: {} cannot be read: {e}", path.display())),
    };
    let mut parsed: Value =
        serde_yaml::from_str(&text).map_err(|e| format!("--config: {} is not YAML: {e}", path.display()))?;
    if let (false, Value::Mapping(map)) = (is_node, &mut parsed) {
        map.retain(|key, _| key.as_str().is_some_and(takes));
    }
    let known: Vec<&Arg> = cli.get_arguments().chain(command.get_arguments()).collect();
    let mut origins = Origins { path, flags: Vec::new() };
    let flags = flags(&parsed, &text, &arguments, (command.get_name(), &known), &mut origins)?;
    let mut out = arguments[..=at].to_vec();
    out.extend(flags);
    out.extend_from_slice(&arguments[at + 1..]);
    Ok((out, origins))
}

/// Variables that look like ours, or like k3s', and mean nothing; each with what it is about.
pub fn unknown_variables(cli: &Command, set: impl Iterator<Item = OsString>) -> Vec<String> {
    let set: Vec<String> = set.filter_map(|name| name.into_string().ok()).collect();
    if !set.iter().any(|name| name.starts_with(OURS) || name.starts_with(THEIRS)) {
        return Vec::new();
    }
    let mut known = vec![LOG_VARIABLE.to_owned()];
    let mut left = vec![cli];
    while let Some(command) = left.pop() {
        known.extend(command.get_arguments().filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned)));
        left.extend(command.get_subcommands());
    }
    let known_theirs = |name: &str| K3S_NAMES.iter().any(|(theirs, ..)| *theirs == name);
    let mut unknown: Vec<String> = set
        .into_iter()
        .filter(|name| match name.starts_with(OURS) {
            true => !known.contains(name),
            false => name.starts_with(THEIRS) && !known_theirs(name),
        })
        .collect();
    unknown.sort();
    unknown
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
/// The arguments with k3s' variables put in as flags, where neither a flag nor our own variable says the same.
fn with_k3s_names(arguments: Vec<OsString>, at: usize, takes: impl Fn(&str) -> bool) -> Vec<OsString> {
    let mut out = arguments[..=at].to_vec();
    for (theirs, ours, flag) in K3S_NAMES {
        if !takes(flag) || said(&arguments, &format!("--{flag}")) || std::env::var_os(ours).is_some() {
            continue;
        }
        if let Some(value) = std::env::var_os(theirs).filter(|v| !v.is_empty()) {
            let mut argument = OsString::from(format!("--{flag}="));
            argument.push(value);
            out.push(argument);
        }
    }
    out.extend_from_slice(&arguments[at + 1..]);
    out
}

fn said(arguments: &[OsString], flag: &str) -> bool {
    ours(arguments).iter().any(|a| {
        let a = a.to_string_lossy();
        a == flag || a.starts_with(&format!("{flag}="))
    })
}

/// The arguments that are flags of ours: what comes after `--` is a command for somebody else.
fn ours(arguments: &[OsString]) -> &[OsString] {
    let end = arguments.iter().position(|a| a == "--");
    &arguments[..end.unwrap_or(arguments.len())]
}

/// The file, and whether it was named: one that was not may be absent.
fn path_of(arguments: &[OsString], is_node: bool) -> (PathBuf, bool) {
    // With other commands, `-c` names a container.
    let said = is_node.then(|| value_of(arguments, &["--config", "-c"])).flatten();
    let named = said.or_else(|| ["AMPHIPOD_CONFIG", "K3S_CONFIG_FILE"].into_iter().find_map(std::env::var_os));
    if let Some(path) = named {
        return (path.into(), true);
    }
    let directory = value_of(arguments, &["--config-dir"]).or_else(|| std::env::var_os("AMPHIPOD_CONFIG_DIR"));
    (PathBuf::from(directory.unwrap_or_else(|| DIRECTORY.into())).join(NAME), false)
}

/// What a flag is given, as one argument or two.
fn value_of(arguments: &[OsString], flags: &[&str]) -> Option<OsString> {
    let mut rest = ours(arguments).iter().skip(1);
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

/// What the file says as flags, unless the command line or a variable says it.
fn flags(
    parsed: &Value,
    text: &str,
    arguments: &[OsString],
    (command, known): (&str, &[&Arg]),
    origins: &mut Origins,
) -> Result<Vec<OsString>, String> {
    let map = match parsed {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(map) => map,
        _ => return Err(format!("--config: {}: expected keys and values", origins.path.display())),
    };
    let mut out = Vec::new();
    for (key, value) in map {
        let name = key.as_str().unwrap_or_default();
        let line = line_of(text, name);
        let wrong = |why: &str| format!("--config: {}: {why}", place(&origins.path, line));
        if name.is_empty() {
            let shown = serde_yaml::to_string(key).unwrap_or_default();
            return Err(wrong(&format!("expected a flag's name as key, got {}", shown.trim())));
        }
        let named = |arg: &&&Arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(name) || aliases.contains(&name)
        };
        let Some(arg) = known.iter().find(named).filter(|arg| arg.get_id() != "config") else {
            let why =
                format!("{name:?} is no flag of `amphipod {command}` (its --help shows them, without the dashes here)");
            return Err(wrong(&why));
        };
        let flag = format!("--{}", arg.get_long().unwrap_or_default());
        if is_said(arguments, arg) {
            continue;
        }
        origins.flags.push((flag.clone(), line));
        let takes_value = arg.get_action().takes_values();
        let mut push = |value: &Value| match value {
            Value::Mapping(_) | Value::Sequence(_) | Value::Tagged(_) | Value::Null => {
                Err(wrong(&format!("{name}: expected text, a number, true or false, or a list of them")))
            }
            Value::Bool(on) if !takes_value => {
                out.extend(on.then(|| flag.clone().into()));
                Ok(())
            }
            _ if !takes_value => Err(wrong(&format!("{name}: expected true or false"))),
            Value::String(text) => {
                out.push(format!("{flag}={text}").into());
                Ok(())
            }
            Value::Number(number) => {
                out.push(format!("{flag}={number}").into());
                Ok(())
            }
            Value::Bool(on) => {
                out.push(format!("{flag}={on}").into());
                Ok(())
            }
        };
        match value {
            Value::Null => {}
            Value::Sequence(items) => items.iter().try_for_each(push)?,
            one => push(one)?,
        }
    }
    Ok(out)
}

/// Whether a flag has its value from the command line or a variable.
fn is_said(arguments: &[OsString], arg: &Arg) -> bool {
    let longs = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
    let short = arg.get_short().map(|letter| format!("-{letter}"));
    let has_short = |a: &OsStr| short.as_ref().is_some_and(|short| a.to_string_lossy().starts_with(short.as_str()));
    longs.into_iter().any(|long| said(arguments, &format!("--{long}")))
        || ours(arguments).iter().skip(1).any(|a| has_short(a))
        || arg.get_env().is_some_and(|variable| std::env::var_os(variable).is_some())
}

/// The line that begins with a key.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let is_key = |line: &str| {
        let line = line.strip_prefix(['"', '\'']).unwrap_or(line);
        let rest = line.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'', ' ']));
        rest.is_some_and(|rest| rest.starts_with(':'))
    };
    text.lines().position(is_key).map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    use clap::CommandFactory;

    fn merged(arguments: &[&str]) -> Result<(Vec<String>, Origins), String> {
        let given = arguments.iter().map(OsString::from).collect();
        let (all, origins) = super::merged(given, &super::super::Cli::command())?;
        Ok((all.iter().map(|a| a.to_string_lossy().into_owned()).collect(), origins))
    }

    #[test]
    fn keys_become_flags_unless_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let text = "node-name: n\nhttps-listen-port: 7\ntls-san: [a, b]\ndisable-agent: true\noffline: false\n";
        std::fs::write(&path, format!("{text}token: file\nflannel-backend: vxlan\n")).unwrap();
        let given = ["amphipod", "server", "--config", path.to_str().unwrap(), "--node-name=x", "-tsaid"];
        let (all, origins) = merged(&given).unwrap();
        let file = ["--https-listen-port=7", "--tls-san=a", "--tls-san=b", "--disable-agent", "--overlay=vxlan"];
        assert_eq!(all[2..7], file);
        assert_eq!(all[7..], given[2..]);
        let at = path.display();
        let told = |message: &str| origins.of(message);
        assert_eq!(told("error: --tls-san: no").unwrap(), format!("--tls-san is set in {at}, line 3"));
        assert_eq!(
            told("invalid value '7' for '--https-listen-port <P>'").unwrap(),
            format!("--https-listen-port is set in {at}, line 2")
        );
        assert_eq!(told("error: --node-name: no"), None, "it was said");
        let said = merged(&[&given[..], &["--overlay", "none"]].concat()).unwrap().0;
        assert!(!said.contains(&"--overlay=vxlan".to_owned()), "by another of its names");
        // The directory of the configuration has it, too, wherever the flag is.
        let directory = format!("--config-dir={}", dir.path().display());
        std::fs::write(dir.path().join(NAME), "node-name: of-the-directory\n").unwrap();
        assert_eq!(merged(&["amphipod", "server", &directory]).unwrap().0[2], "--node-name=of-the-directory");
        let before = ["amphipod", "--config-dir", dir.path().to_str().unwrap(), "-d", "/x", "server"];
        assert_eq!(merged(&before).unwrap().0[6..], ["--node-name=of-the-directory"]);
    }

    #[test]
    fn every_command_finds_the_directories_that_the_file_names() {
        let dir = tempfile::tempdir().unwrap();
        let text = "data-dir: /srv/amphipod\nrun-dir: /run/other\nhttps-listen-port: 7\ntls-sun: [a]\n";
        std::fs::write(dir.path().join(NAME), text).unwrap();
        let etc = format!("--config-dir={}", dir.path().display());
        let whole = ["--data-dir=/srv/amphipod", "--run-dir=/run/other"];
        let cli = super::super::Cli::command();
        let with = |command: &&clap::Command| command.get_arguments().any(|arg| arg.get_long() == Some("data-dir"));
        let others = cli.get_subcommands().filter(with).map(|c| c.get_name().to_owned());
        let others: Vec<String> = others.filter(|name| !matches!(name.as_str(), "server" | "agent")).collect();
        for expected in ["token", "image", "snapshot", "killall", "check", "get", "exec", "logs"] {
            assert!(others.iter().any(|name| name == expected), "{expected} of {others:?}");
        }
        for name in &others {
            let all = merged(&["amphipod", name, &etc]).unwrap().0;
            assert_eq!(all[2..4], whole, "{name}");
        }
        let said = ["amphipod", "token", "create", "-d", "/x", &etc];
        assert_eq!(merged(&said).unwrap().0[2..], ["--run-dir=/run/other", "create", "-d", "/x", &etc]);
        // What follows is neither a flag nor a file of ours.
        let inner = ["amphipod", "exec", "-c", "web", &etc, "p", "--", "ls", "--data-dir", "/y"];
        assert_eq!(merged(&inner).unwrap().0[2..4], whole);
        let absent = ["amphipod", "exec", "-c", "web", "--config-dir=/none", "p"];
        assert_eq!(merged(&absent).unwrap().0, absent);
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let said = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let why = merged(&["amphipod", "agent", "-c", path.to_str().unwrap()]).unwrap_err();
            why.strip_prefix(&format!("--config: {}", path.display())).unwrap().to_owned()
        };
        assert_eq!(said("- 1"), ": expected keys and values");
        assert!(said("a: [").starts_with(" is not YAML: ") && said("a: [").contains("line"), "{}", said("a: ["));
        let unknown = "\"no-such\" is no flag of `amphipod agent` (its --help shows them, without the dashes here)";
        assert_eq!(said("# x\nnode-name: a\nno-such: 1\n"), format!(", line 3: {unknown}"));
        assert_eq!(said("offline: maybe\n"), ", line 1: offline: expected true or false");
        assert!(said("\n'node-name': {a: b}\n").starts_with(", line 2: node-name: expected text"));
        assert_eq!(said("1: 2\n"), ": expected a flag's name as key, got 1");
        assert!(said("disable: dns\n").contains("is no flag of `amphipod agent`"), "a server's");
    }

    #[test]
    fn variables_without_a_meaning_are_found() {
        let set = ["AMPHIPOD_DATADIR", "AMPHIPOD_DATA_DIR", "AMPHIPOD_LOG", "K3S_TOKEN", "K3S_CLUSTER_INIT", "HOME"];
        let unknown = unknown_variables(&super::super::Cli::command(), set.iter().map(OsString::from));
        assert_eq!(unknown, ["AMPHIPOD_DATADIR", "K3S_CLUSTER_INIT"]);
    }
}
