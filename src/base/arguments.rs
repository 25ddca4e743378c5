//! What the process was started with. Tokens in it are hidden from others: everybody on the machine can read another
//! process's command line.
//!
//! The kernel shows the arguments from this process's own memory, so they are overwritten there, once they were read.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Flags whose value is a secret, and the commands that have them.
const FLAGS: [&str; 3] = ["--token", "--new-token", "-t"];
const COMMANDS: [&[u8]; 3] = [b"server", b"agent", b"token"];
/// Flags that may come before the command and whose value is an argument of its own.
const BEFORE: [&str; 4] = ["--data-dir", "--run-dir", "--config-dir", "-d"];
/// Where the arguments begin and end, among the fields of `/proc/self/stat` that come after the name.
const ARGUMENTS: (usize, usize) = (45, 46);

/// The arguments as they were given, the program's name first.
pub fn given() -> &'static [OsString] {
    static GIVEN: OnceLock<Vec<OsString>> = OnceLock::new();
    GIVEN.get_or_init(|| std::env::args_os().collect())
}

/// Which of the arguments is the command; one that is not there if none is.
pub fn command_at(arguments: &[OsString]) -> usize {
    let mut at = 1;
    while let Some(argument) = arguments.get(at) {
        match argument.to_str() {
            Some(flag) if BEFORE.contains(&flag) => at += 2,
            Some(flag) if flag.starts_with('-') => at += 1,
            _ => break,
        }
    }
    at
}

/// Hides tokens; where that is not possible they stay. [`given`] still has them.
pub fn hide_tokens() {
    given();
    if let Err(error) = overwrite() {
        tracing::debug!(%error, "tokens on the command line stay visible");
    }
}

fn overwrite() -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).ok_or(io::ErrorKind::InvalidData);
    let (start, end) = (field(ARGUMENTS.0)?, field(ARGUMENTS.1)?);
    let mut arguments = vec![0; end.saturating_sub(start) as usize];
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
    memory.read_exact_at(&mut arguments, start)?;
    let masked = mask(&arguments);
    if masked != arguments {
        memory.write_all_at(&masked, start)?;
    }
    Ok(())
}

/// The arguments, each with its NUL, with stars for secrets.
fn mask(arguments: &[u8]) -> Vec<u8> {
    let mut words: Vec<Vec<u8>> = arguments.split(|b| *b == 0).map(<[u8]>::to_vec).collect();
    let at = command_at(&words.iter().map(|word| OsString::from_vec(word.clone())).collect::<Vec<_>>());
    if words.get(at).is_none_or(|command| !COMMANDS.contains(&command.as_slice())) {
        return arguments.to_vec();
    }
    let mut next = false;
    for word in words.iter_mut().skip(at + 1) {
        let text = String::from_utf8_lossy(word).into_owned();
        let attached = FLAGS.iter().find_map(|f| {
            let rest = text.strip_prefix(f)?;
            let is_short = !f.starts_with("--") && !rest.is_empty();
            (is_short || rest.starts_with('=')).then_some(f.len() + usize::from(rest.starts_with('=')))
        });
        let from = if next { Some(0) } else { attached };
        next = !next && FLAGS.contains(&text.as_str());
        if let Some(from) = from {
            word[from..].fill(b'*');
        }
    }
    words.join(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_secrets_become_stars_and_nothing_moves() {
        let masked =
            |text: &str| String::from_utf8(mask(text.replace(' ', "\0").as_bytes())).unwrap().replace('\0', " ");
        for (given, shown) in [
            ("a agent --token abc --server s ", "a agent --token *** --server s "),
            ("a agent --token=abc -v ", "a agent --token=*** -v "),
            ("a server -t abc ", "a server -t *** "),
            ("a agent -tabc ", "a agent -t*** "),
            ("a agent --token-file abc ", "a agent --token-file abc "),
            ("a token rotate --new-token x ", "a token rotate --new-token * "),
            ("a exec -t pod ", "a exec -t pod "),
            ("a -d x --run-dir=y server -t abc ", "a -d x --run-dir=y server -t *** "),
        ] {
            assert_eq!(masked(given), shown);
        }
        assert!(overwrite().is_ok());
    }
}
