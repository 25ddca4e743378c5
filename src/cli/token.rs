//! `amphipod token`: tokens with which machines join.
//!
//! Made tokens are Secrets of `bootstrap.kubernetes.io/token`, as kubeadm's and k3s'; the server's own token is a file of the
//! server, and is rotated there. A full token is printed alone on its line, so that scripts can take it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Cluster, Where};
use super::{Directories, Usage, output};
use crate::api::identity::join::{NAMESPACE, ONE_TIME, TOKEN_TYPE, USED_BY};
use crate::api::identity::join_token::{self, JoinToken, ca_hash};
use crate::base::clock::{Clock, parse_time, seconds_text};

/// Letters of ids and secrets, as kubeadm's tokens have them.
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const PATH: &str = "/api/v1/namespaces/kube-system/secrets";

#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(flatten)]
    directories: Directories,
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token with which a machine can join; it is printed alone on the last line
    Create(CreateArgs),
    /// Show the tokens
    List(ListArgs),
    /// Make tokens useless
    Delete(DeleteArgs),
    /// Replace the server's own token; the old one holds for a while
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// How long it holds, such as 30m, 24h or 7d; 0 for ever
    #[arg(long, default_value = "24h", value_parser = duration)]
    ttl: Duration,
    /// What it is for, for people
    #[arg(long, default_value = "")]
    description: String,
    /// What it can be used for
    #[arg(long, default_value = "signing,authentication", value_delimiter = ',', value_parser = ["signing", "authentication"])]
    usages: Vec<String>,
    /// Only the first machine can use it
    #[arg(long)]
    one_time: bool,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// How it is printed
    #[arg(long, short = 'o', default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

#[derive(Debug, Args)]
struct DeleteArgs {
    /// Ids, or whole tokens
    #[arg(required = true)]
    tokens: Vec<String>,
}

#[derive(Debug, Args)]
struct RotateArgs {
    /// The new secret [default: a random one]
    #[arg(long)]
    new_token: Option<String>,
    /// How long the old token still holds
    #[arg(long, default_value = "1h", value_parser = duration)]
    window: Duration,
}

/// A number with a unit.
pub fn duration(said: &str) -> Result<Duration, String> {
    let wrong = || format!("{said:?}: expected a number and a unit, such as 90s, 30m, 24h or 7d");
    if said == "0" {
        return Ok(Duration::ZERO);
    }
    let split = said.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = said[..split].parse().map_err(|_| wrong())?;
    let unit = match &said[split..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(wrong)
}

/// Runs the command.
pub fn run(args: TokenArgs) -> Result<()> {
    let at = &args.directories;
    match &args.command {
        TokenCommand::Rotate(args) => rotate(at, args),
        TokenCommand::Create(args) => super::client::run(create(at, args)),
        TokenCommand::List(args) => super::client::run(list(at, args)),
        TokenCommand::Delete(args) => super::client::run(delete(at, args)),
    }
}

fn letters(count: usize) -> String {
    let mut bytes = vec![0u8; count];
    Clock::system().random(&mut bytes);
    bytes.iter().map(|b| LETTERS[usize::from(*b) % LETTERS.len()] as char).collect()
}

fn open(directories: &Directories) -> Result<Cluster> {
    Where::of(directories).open()
}

/// The hash that pins the cluster's CA.
fn hash(directories: &Directories) -> Result<String> {
    let path = directories.data_dir.join("server/tls/ca.crt");
    let pem = std::fs::read(&path);
    let pem = pem.with_context(|| format!("{} cannot be read: run this on the server, as root", path.display()))?;
    Ok(ca_hash(&pem))
}

async fn create(at: &Directories, args: &CreateArgs) -> Result<()> {
    let hash = hash(at)?;
    let (id, secret) = (letters(6), letters(16));
    let mut data = json!({"token-id": id, "token-secret": secret, "description": args.description});
    for usage in &args.usages {
        data[format!("usage-bootstrap-{usage}")] = "true".into();
    }
    if args.one_time {
        data[ONE_TIME] = "true".into();
    }
    if !args.ttl.is_zero() {
        data["expiration"] = seconds_text(Clock::system().now() + args.ttl).into();
    }
    let object = json!({"apiVersion": "v1", "kind": "Secret", "type": TOKEN_TYPE, "stringData": data,
                        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": NAMESPACE}});
    open(at)?.object(http::Method::POST, PATH, Some(&object)).await?;
    output(&format!("K10{hash}::{id}.{secret}"));
    Ok(())
}

struct Row {
    id: String,
    secret: String,
    expiration: String,
    usages: Vec<String>,
    one_time: bool,
    /// By the machine that it was for, which may ask again for a while.
    used: bool,
    description: String,
}

async fn rows(cluster: &mut Cluster) -> Result<Vec<Row>> {
    let path = format!("{PATH}?fieldSelector=type%3D{}", TOKEN_TYPE.replace('/', "%2F"));
    let list = cluster.object(http::Method::GET, &path, None).await?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items.iter().map(row).collect())
}

fn row(item: &Value) -> Row {
    let get = |key: &str| {
        let encoded = item["data"].get(key).and_then(Value::as_str).unwrap_or("");
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    let usages = ["signing", "authentication"].into_iter().filter(|u| get(&format!("usage-bootstrap-{u}")) == "true");
    Row {
        id: get("token-id"),
        secret: get("token-secret"),
        expiration: get("expiration"),
        usages: usages.map(str::to_owned).collect(),
        one_time: get(ONE_TIME) == "true",
        used: !get(USED_BY).is_empty(),
        description: get("description"),
    }
}

async fn list(at: &Directories, args: &ListArgs) -> Result<()> {
    let rows = rows(&mut open(at)?).await?;
    if args.output == "json" {
        let all: Vec<Value> = rows
            .iter()
            .map(|r| {
                json!({"token": format!("{}.{}", r.id, r.secret), "expires": r.expiration, "usages": r.usages,
                       "oneTime": r.one_time, "used": r.used, "description": r.description})
            })
            .collect();
        output(&serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    output(&format!("{:<24} {:<10} {:<21} {:<24} DESCRIPTION", "TOKEN", "TTL", "EXPIRES", "USAGES"));
    for r in rows {
        let left = parse_time(&r.expiration).map(|end| end.as_second() - Clock::system().now().as_second());
        let ttl = match left {
            _ if r.used => "<used>".to_owned(),
            None => "<forever>".to_owned(),
            Some(seconds) if seconds <= 0 => "<expired>".to_owned(),
            Some(seconds) => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        };
        let expires = if r.expiration.is_empty() { "<never>" } else { &r.expiration };
        let mut usages = r.usages;
        usages.extend(r.one_time.then(|| "one-time".to_owned()));
        let token = format!("{}.{}", r.id, r.secret);
        output(&format!("{token:<24} {ttl:<10} {expires:<21} {:<24} {}", usages.join(","), r.description));
    }
    Ok(())
}

async fn delete(at: &Directories, args: &DeleteArgs) -> Result<()> {
    let mut cluster = open(at)?;
    let known = rows(&mut cluster).await?;
    for given in &args.tokens {
        let secret = JoinToken::parse(given).map_err(Usage)?.secret;
        let id = secret.split('.').next().unwrap_or_default();
        if !known.iter().any(|r| r.id == id) {
            bail!("there is no token {id:?}; `amphipod token list` shows those there are");
        }
        cluster.object(http::Method::DELETE, &format!("{PATH}/bootstrap-token-{id}"), None).await?;
        output(&format!("token {id:?} deleted"));
    }
    Ok(())
}

fn rotate(at: &Directories, args: &RotateArgs) -> Result<()> {
    let directory = at.data_dir.join("server");
    let new = match &args.new_token {
        Some(given) => JoinToken::parse(given).map_err(|e| Usage(format!("--new-token: {e}")))?.secret,
        None => letters(32),
    };
    let until = Clock::system().now() + args.window;
    let token = join_token::rotate(&directory, &new, until).with_context(|| {
        format!("{} cannot be replaced: run this on the server, as root", directory.join("token").display())
    })?;
    super::complain(&format!("the old token holds until {}", seconds_text(until)));
    output(&token);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "1", "h", "1w", "-1h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_row_says_what_a_secret_holds() {
        let encode = |t: &str| base64::engine::general_purpose::STANDARD.encode(t);
        let data = json!({"token-id": encode("abcdef"), "usage-bootstrap-signing": encode("true")});
        let row = row(&json!({"metadata": {"name": "bootstrap-token-abcdef"}, "data": data}));
        assert_eq!((row.id.as_str(), row.usages, row.one_time), ("abcdef", vec!["signing".to_owned()], false));
    }
}
