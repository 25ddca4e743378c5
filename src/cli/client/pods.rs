//! `amphipod logs` and `exec`.

use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::{SinkExt, StreamExt};
use http::Method;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::choose::{Purpose, choose};
use super::terminal::Terminal;
use super::{Cluster, Where, escape, pass_on, refused, run};
use crate::base::task;
use crate::cli::Exit;
use crate::wire::websocket::channel::{CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT};
use crate::wire::websocket::{Size, Socket};

/// Pieces of input that may wait for the server.
const QUEUE: usize = 16;
/// Version 5 can close standard input alone.
const PROTOCOL: &str = "v5.channel.k8s.io";

/// Flags of `logs`.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// The pod, also as pod/NAME; or what has pods, such as deployment/NAME, of which one is chosen
    pod: String,
    /// The container [default: the first]
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// Go on as more is written
    #[arg(long, short = 'f')]
    follow: bool,
    /// Of the container before its last restart
    #[arg(long, short = 'p')]
    previous: bool,
    /// Only the last lines
    #[arg(long)]
    tail: Option<u64>,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
    #[command(flatten)]
    at: Where,
}

/// Flags of `exec`.
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// The pod, also as pod/NAME; or what has pods, such as deployment/NAME, of which one is chosen
    pod: String,
    /// The container [default: the first]
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// On a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// The command with its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
    #[command(flatten)]
    at: Where,
}

fn path(cluster: &Cluster, name: &str, what: &str, query: &[(&str, String)]) -> String {
    let query: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
    let (namespace, name) = (escape(&cluster.namespace), escape(name));
    format!("/api/v1/namespaces/{namespace}/pods/{name}/{what}?{}", query.join("&"))
}

/// Prints the log of a container.
pub fn logs(args: &LogsArgs) -> Result<()> {
    run(async {
        let mut cluster = args.at.open()?;
        let chosen = choose(&mut cluster, &args.pod, args.container.as_deref(), Purpose::Logs).await?;
        let mut query: Vec<(&str, String)> = vec![("container", chosen.container)];
        query.extend(args.tail.map(|n| ("tailLines", n.to_string())));
        for (wanted, key) in [(args.follow, "follow"), (args.previous, "previous"), (args.timestamps, "timestamps")] {
            query.extend(wanted.then(|| (key, "true".to_owned())));
        }
        let path = path(&cluster, &chosen.pod, "log", &query);
        let response = cluster.send(Method::GET, &path, "*/*", None).await?;
        pass_on(response).await
    })
}

/// Runs a command in a container; its exit code becomes ours.
pub fn exec(args: &ExecArgs) -> Result<()> {
    run(async {
        let mut cluster = args.at.open()?;
        let flag = |on: bool| on.to_string();
        let chosen = choose(&mut cluster, &args.pod, args.container.as_deref(), Purpose::Exec).await?;
        let mut query: Vec<(&str, String)> = args.command.iter().map(|word| ("command", word.clone())).collect();
        query.push(("container", chosen.container));
        query.extend([("stdin", flag(args.stdin)), ("stdout", flag(true)), ("stderr", flag(!args.tty))]);
        query.push(("tty", flag(args.tty)));
        let path = path(&cluster, &chosen.pod, "exec", &query);
        let socket = match cluster.client.websocket(&path, PROTOCOL).await? {
            Ok(socket) => socket,
            Err(response) => return Err(refused(response).await.into()),
        };
        let terminal = (args.tty && args.stdin).then(Terminal::raw).flatten();
        let status = talk(socket, args.stdin, args.tty).await;
        drop(terminal);
        match exit_code(&status?)? {
            0 => Ok(()),
            code => Err(Exit(code).into()),
        }
    })
}

/// Moves bytes both ways until the command has ended; answers how, as the server puts it.
async fn talk(socket: Socket, stdin: bool, tty: bool) -> Result<Value> {
    let (mut out, mut receive) = socket.split();
    // What is said has a task of its own: a command that answers while it is fed must be listened to meanwhile.
    let (send, mut queue) = mpsc::channel::<Message>(QUEUE);
    task::spawn("exec input", async move {
        while let Some(message) = queue.recv().await {
            if out.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut resized = signal(SignalKind::window_change())?;
    if tty && let Some(size) = Terminal::size() {
        send.send(resize(size)).await?;
    }
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; 16 << 10];
    buffer[0] = STDIN;
    let mut open = stdin;
    loop {
        let read = async {
            let room = send.reserve().await?;
            anyhow::Ok((room, input.read(&mut buffer[1..]).await?))
        };
        tokio::select! {
            biased;
            message = receive.next() => match message {
                Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                    Some((&STDOUT, bytes)) => print(&mut std::io::stdout(), bytes)?,
                    Some((&STDERR, bytes)) => print(&mut std::io::stderr(), bytes)?,
                    Some((&ERROR, bytes)) => return serde_json::from_slice(bytes).context("the server's last word"),
                    _ => {}
                },
                Some(Ok(Message::Close(_))) | None => bail!("the connection ended before the command did"),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("the connection broke"),
            },
            read = read, if open => match read? {
                (room, 0) => {
                    open = false;
                    room.send(Message::Binary(vec![CLOSE, STDIN].into()));
                }
                (room, n) => room.send(Message::Binary(buffer[..=n].to_vec().into())),
            },
            _ = resized.recv(), if tty => {
                if let Some(size) = Terminal::size() {
                    let _ = send.try_send(resize(size));
                }
            }
        }
    }
}

fn print(to: &mut dyn Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn resize(size: Size) -> Message {
    let mut frame = vec![RESIZE];
    frame.extend(serde_json::to_vec(&size).unwrap_or_default());
    Message::Binary(frame.into())
}

/// The exit code out of the Status on the error channel.
fn exit_code(status: &Value) -> Result<u8> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code = causes.filter(|c| c["reason"] == "ExitCode").find_map(|c| c["message"].as_str()?.parse::<i32>().ok());
    match code {
        Some(code) => Ok(u8::try_from(code).unwrap_or(255)),
        None => bail!("{}", status["message"].as_str().unwrap_or("the command could not be run")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_code_is_in_the_status() {
        assert_eq!(exit_code(&json!({"status": "Success"})).unwrap(), 0);
        let failed = json!({"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}});
        assert_eq!(exit_code(&failed).unwrap(), 7);
        let broken = json!({"status": "Failure", "message": "no such container"});
        assert_eq!(exit_code(&broken).unwrap_err().to_string(), "no such container");
    }
}
