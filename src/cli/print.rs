//! What commands print, and the errors that decide about the exit code.

/// A mistake in what the user said, which ends with 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The command ran something that ended with this code.
#[derive(Debug, thiserror::Error)]
#[error("command terminated with exit code {0}")]
pub struct Exit(pub u8);

/// Prints a line for the user that is no output.
#[allow(clippy::print_stderr)]
pub fn complain(line: &str) {
    eprintln!("{line}");
}

/// Prints a line of output. Whoever read it may have seen enough; then there is nothing left to do.
#[allow(clippy::exit)]
pub fn output(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout();
    if writeln!(out, "{line}").is_err() {
        std::process::exit(1);
    }
}
