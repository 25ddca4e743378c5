//! `amphipod completion`: a script with which a shell completes our commands, made from the flags as they are declared.
//!
//! It offers sub-commands, flags, and the values of flags that have a fixed set of them; anything else is a file. clap's own
//! generator would add 150 kB to the executable for the same three shells.

use std::fmt::Write;

use clap::{Args, Command, ValueEnum};

use super::output;

/// Flags of `completion`.
#[derive(Clone, Debug, Args)]
pub struct CompletionArgs {
    /// For which shell; load it with `source <(amphipod completion bash)`, or `amphipod completion fish | source`
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// What is offered: after which commands, and after which flag where it is about values.
struct Offer {
    /// `token create`; empty for the executable alone.
    at: String,
    flag: Option<String>,
    words: Vec<String>,
}

/// Prints the script.
pub fn run(args: &CompletionArgs, command: &Command) {
    output(script(args.shell, command).trim_end());
}

fn script(shell: Shell, cli: &Command) -> String {
    let mut offers = Vec::new();
    gather(cli, "", &[], &mut offers);
    let commands: Vec<&str> = offers.iter().filter(|o| o.flag.is_none()).map(|o| o.at.as_str()).collect();
    // As the path before the command and its word are compared.
    let steps = commands.iter().filter(|at| !at.is_empty()).map(|at| match at.rsplit_once(' ') {
        Some((before, word)) => format!("{before} {word}"),
        None => format!(" {at}"),
    });
    let steps: Vec<String> = steps.map(|step| format!("'{step}'")).collect();
    let mut by_flag = String::new();
    let mut by_command = String::new();
    for offer in &offers {
        let (to, key) = match &offer.flag {
            Some(flag) => (&mut by_flag, format!("'{} {flag}'", offer.at)),
            None => (&mut by_command, format!("'{}'", offer.at)),
        };
        let words = offer.words.join(" ");
        let _ = match shell {
            Shell::Bash => writeln!(to, "        {key}) offered='{words}' ;;"),
            Shell::Zsh => writeln!(to, "        {key}) offered=({words}) ;;"),
            Shell::Fish => writeln!(to, "        case {key}\n            printf '%s\\n' {words}\n            return"),
        };
    }
    match shell {
        Shell::Bash => bash(&steps.join("|"), &by_flag, &by_command),
        Shell::Zsh => zsh(&steps.join("|"), &by_flag, &by_command),
        Shell::Fish => fish(&steps.join(" "), &by_flag, &by_command),
    }
}

fn bash(steps: &str, by_flag: &str, by_command: &str) -> String {
    format!(
        "_amphipod() {{
    local current=\"${{COMP_WORDS[COMP_CWORD]}}\" previous=\"${{COMP_WORDS[COMP_CWORD-1]}}\" at='' offered='' word
    for word in \"${{COMP_WORDS[@]:1:COMP_CWORD-1}}\"; do
        case \"$at $word\" in
        {steps}) at=\"${{at:+$at }}$word\" ;;
        esac
    done
    case \"$at $previous\" in
{by_flag}    esac
    if [ -z \"$offered\" ]; then
        case \"$at\" in
{by_command}        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W \"$offered\" -- \"$current\")
}}
complete -o default -F _amphipod amphipod
"
    )
}

fn zsh(steps: &str, by_flag: &str, by_command: &str) -> String {
    format!(
        "#compdef amphipod
_amphipod() {{
    local at='' word
    local -a offered
    for word in \"${{(@)words[2,CURRENT-1]}}\"; do
        case \"$at $word\" in
        ({steps}) at=\"${{at:+$at }}$word\" ;;
        esac
    done
    case \"$at ${{words[CURRENT-1]}}\" in
{by_flag}    esac
    if (( ! $#offered )); then
        case \"$at\" in
{by_command}        esac
    fi
    compadd -a offered || _files
}}
if [[ $funcstack[1] = _amphipod ]]; then
    _amphipod \"$@\"
else
    compdef _amphipod amphipod
fi
"
    )
}

fn fish(steps: &str, by_flag: &str, by_command: &str) -> String {
    format!(
        "function __amphipod_words
    set -l tokens (commandline -opc)
    set -l at ''
    for word in $tokens[2..]
        switch \"$at $word\"
            case {steps}
                set at (string trim \"$at $word\")
        end
    end
    switch \"$at $tokens[-1]\"
{by_flag}    end
    switch \"$at\"
{by_command}    end
end
complete -c amphipod -a '(__amphipod_words)'
"
    )
}

/// What a command offers, and those below it; `from_above` are flags that may come anywhere.
fn gather(command: &Command, at: &str, from_above: &[String], offers: &mut Vec<Offer>) {
    let below: Vec<&Command> = command.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    let mut words: Vec<String> = below.iter().map(|c| c.get_name().to_owned()).collect();
    let mut passed_on = from_above.to_vec();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let values: Vec<String> = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
        match arg.get_long().map(|long| format!("--{long}")) {
            Some(flag) => {
                if arg.get_action().takes_values() && !values.is_empty() {
                    offers.push(Offer { at: at.to_owned(), flag: Some(flag.clone()), words: values });
                }
                if arg.is_global_set() {
                    passed_on.push(flag.clone());
                }
                words.push(flag);
            }
            None => words.extend(values),
        }
    }
    words.extend(from_above.iter().cloned());
    words.push("--help".into());
    words.dedup();
    let mut seen = std::collections::HashSet::new();
    words.retain(|word| seen.insert(word.clone()));
    offers.push(Offer { at: at.to_owned(), flag: None, words });
    for sub in below {
        let at = if at.is_empty() { sub.get_name().to_owned() } else { format!("{at} {}", sub.get_name()) };
        gather(sub, &at, &passed_on, offers);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::Cli;
    use super::*;

    /// What bash offers where the last of the words is being written.
    fn offered(words: &[&str]) -> Vec<String> {
        let script = script(Shell::Bash, &Cli::command());
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let ask = format!(
            "{script}\nCOMP_WORDS=({}); COMP_CWORD={}; _amphipod; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            words.len() - 1
        );
        let bash = std::process::Command::new("bash").args(["--norc", "-euc", &ask]).output().unwrap();
        assert!(bash.status.success(), "{}", String::from_utf8_lossy(&bash.stderr));
        String::from_utf8(bash.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_shell_offers_commands_flags_and_fixed_values() {
        assert_eq!(offered(&["amphipod", "ser"]), ["server"]);
        let commands = offered(&["amphipod", ""]);
        assert!(commands.contains(&"completion".into()) && commands.contains(&"--data-dir".into()), "{commands:?}");
        assert!(!commands.contains(&"hello".into()), "what is hidden");
        assert_eq!(offered(&["amphipod", "server", "--node-e"]), ["--node-external-ip"]);
        assert_eq!(offered(&["amphipod", "server", "--overlay", "wire"]), ["wireguard"]);
        assert_eq!(offered(&["amphipod", "token", "cr"]), ["create"]);
        assert_eq!(offered(&["amphipod", "token", "create", "--o"]), ["--one-time"]);
        assert_eq!(offered(&["amphipod", "token", "create", "--run"]), ["--run-dir"]);
        assert_eq!(offered(&["amphipod", "completion", ""])[..3], ["bash", "zsh", "fish"]);
        assert!(offered(&["amphipod", "apply", "-f", "some-file"]).is_empty(), "then bash offers files");
    }

    #[test]
    fn every_command_is_in_the_script_of_every_shell() {
        let cli = Cli::command();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell, &cli);
            for command in cli.get_subcommands().filter(|c| !c.is_hide_set()) {
                assert!(script.contains(&format!("' {}'", command.get_name())), "{shell:?}: {}", command.get_name());
            }
        }
    }
}
