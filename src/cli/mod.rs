//! The command line: a file a command.

mod agent;
mod check;
mod client;
mod completion;
mod config_file;
mod directories;
mod disable;
mod image;
mod killall;
mod kubeconfig;
mod node;
mod print;
mod progress;
mod server;
mod snapshot;
mod token;
mod value;

pub use directories::Directories;
pub use print::{Exit, Usage, complain, output};

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::base::arguments;

/// A container cluster in one executable.
#[derive(Debug, Parser)]
#[command(name = "amphipod", version = crate::apimachinery::version::GIT_VERSION, max_term_width = 100)]
struct Cli {
    /// Before the command or after it, as users of other tools have it.
    #[command(flatten)]
    _directories: Directories,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server: API, controllers, scheduler and (unless --disable-agent) a node
    Server(Box<server::ServerArgs>),
    /// Run a node that joins a server's cluster
    Agent(Box<agent::AgentArgs>),
    /// Print the administrator's kubeconfig
    Kubeconfig(Directories),
    /// Print the version
    Version,
    /// Say whether this machine can run a node, and what to do where it cannot; --security: how safe the cluster is
    Check(check::CheckArgs),
    /// End every pod of this node and remove everything outside of the data directory
    Killall(killall::KillallArgs),
    /// Take, show, restore and remove snapshots of the server
    Snapshot(snapshot::SnapshotArgs),
    /// Work with the tokens with which machines join
    Token(token::TokenArgs),
    /// Work with the node's images
    Image(image::ImageArgs),
    /// Create or change what manifests describe
    Apply(client::ApplyArgs),
    /// Delete objects
    Delete(client::DeleteArgs),
    /// Show objects
    Get(client::GetArgs),
    /// Print the log of a pod
    Logs(client::LogsArgs),
    /// Run a command in a pod
    Exec(client::ExecArgs),
    /// Print a script with which a shell completes these commands
    Completion(completion::CompletionArgs),
    /// A tiny web server that says which pod answers (used by the built-in image)
    #[command(hide = true)]
    Hello,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let command = Cli::command();
    let (arguments, origins) = match config_file::merged(arguments::given().to_vec(), &command) {
        Ok(merged) => merged,
        Err(why) => return fail(2, &why),
    };
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            if let Some(origin) = origins.of(&error.to_string()) {
                complain(&origin);
            }
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    arguments::hide_tokens();
    if matches!(cli.command, Command::Server(_) | Command::Agent(_)) {
        for name in config_file::unknown_variables(&command, std::env::vars_os().map(|(name, _)| name)) {
            complain(&format!("warning: {name}: no flag has this variable; it has no effect"));
        }
    }
    let result = match cli.command {
        Command::Server(args) => server::run(*args),
        Command::Agent(args) => agent::run(*args),
        Command::Kubeconfig(directories) => kubeconfig::run(&directories),
        Command::Version => {
            output(&format!("amphipod {}", crate::apimachinery::version::GIT_VERSION));
            Ok(())
        }
        Command::Check(args) => check::run(&args),
        Command::Killall(args) => killall::run(&args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Token(args) => token::run(args),
        Command::Image(args) => image::run(args),
        Command::Apply(args) => client::apply(&args),
        Command::Delete(args) => client::delete(&args),
        Command::Get(args) => client::get(&args),
        Command::Logs(args) => client::logs(&args),
        Command::Exec(args) => client::exec(&args),
        Command::Completion(args) => {
            completion::run(&args, &Cli::command());
            Ok(())
        }
        Command::Hello => return crate::containers::hello_main(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let why = format!("{error:#}{}", remedy(&error));
            let origin = origins.of(&why).map(|origin| format!(" ({origin})")).unwrap_or_default();
            fail(code_of(&error), &format!("{why}{origin}"))
        }
    }
}

/// What to do about failures that can come from anywhere.
fn remedy(error: &anyhow::Error) -> &'static str {
    let is_full = |e: &std::io::Error| e.kind() == std::io::ErrorKind::StorageFull;
    match error.chain().filter_map(|e| e.downcast_ref()).any(is_full) {
        true => ": the disk is full, free some space",
        false => "",
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    match (error.downcast_ref::<Usage>(), error.downcast_ref::<Exit>()) {
        (Some(_), _) => 2,
        (_, Some(Exit(code))) => *code,
        _ => 1,
    }
}

fn fail(code: u8, why: &str) -> ExitCode {
    complain(&format!("error: {why}"));
    ExitCode::from(code)
}
