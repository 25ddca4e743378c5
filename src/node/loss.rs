//! What becomes of the containers of a pod whose sandbox is gone: after a reboot, or when somebody ended its processes.
//!
//! One pure function, [`fates`], with the kubelet's rules (`computePodActions`): a pod that may not restart is not made
//! anew once something of it has run; a pod that is made anew begins from its first init container; what has succeeded under
//! `OnFailure` is not run again.

use super::machine::{Restart, Role};

/// A container, as far as it got in the sandbox that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub role: Role,
    /// The exit code of its newest run, which is not 0 where the run went with the sandbox; `None` if it has not begun.
    pub code: Option<i32>,
    /// It had runs before.
    pub ran_before: bool,
}

/// What becomes of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It runs in the next sandbox, when its turn comes.
    Begins,
    /// It is as it ended.
    Over,
}

/// What becomes of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fates {
    /// Whether there is to be another sandbox.
    pub sandbox: bool,
    /// One for each container.
    pub containers: Vec<Fate>,
}

/// The fates of the containers of a pod.
pub fn fates(restart: Restart, runs: &[Run]) -> Fates {
    let begun = runs.iter().any(|r| r.code.is_some() || r.ran_before);
    let succeeded = |r: &Run| restart == Restart::OnFailure && r.role == Role::Main && r.code == Some(0);
    let sandbox = match restart {
        // Nothing of it has ever run: this is its first try still.
        _ if !begun => true,
        Restart::Always => true,
        Restart::OnFailure => !runs.iter().filter(|r| r.role == Role::Main).all(succeeded),
        Restart::Never => false,
    };
    let fate = |r: &Run| match r.role {
        Role::Init | Role::Sidecar if sandbox => Fate::Begins,
        Role::Main if sandbox && !succeeded(r) => Fate::Begins,
        Role::Init | Role::Sidecar | Role::Main | Role::Ephemeral => Fate::Over,
    };
    Fates { sandbox, containers: runs.iter().map(fate).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `i:0` is an init container that ended with 0, `m:-` a main one that has not begun, `m:*` one that had runs before.
    fn run(text: &str) -> Run {
        let (role, code) = text.split_once(':').unwrap();
        let role = match role {
            "i" => Role::Init,
            "s" => Role::Sidecar,
            "e" => Role::Ephemeral,
            _ => Role::Main,
        };
        Run { role, code: code.parse().ok(), ran_before: code == "*" }
    }

    #[test]
    fn what_becomes_of_each_container_when_the_sandbox_is_gone() {
        use Restart::{Always, Never, OnFailure};
        // Containers, and what becomes of each: `b`egins or is `o`ver; `-` before them if there is no other sandbox.
        let cases = [
            // A pod that never runs twice does not, however far it got.
            (Never, "m:255", "-o"),
            (Never, "m:0 m:255", "-oo"),
            (Never, "i:255 m:-", "-oo"),
            (Never, "i:0 m:-", "-oo"),
            (Never, "i:0 s:255 m:255", "-ooo"),
            (Never, "m:*", "-o"),
            // It does where nothing of it had begun.
            (Never, "m:-", "b"),
            (Never, "i:- m:-", "bb"),
            // What runs always begins from the first init container.
            (Always, "m:255", "b"),
            (Always, "m:0", "b"),
            (Always, "i:0 m:255", "bb"),
            (Always, "i:0 s:255 m:255 m:1", "bbbb"),
            (Always, "i:0 m:-", "bb"),
            (Always, "m:-", "b"),
            // What has succeeded is not run again; whoever failed, or was lost, is, with all that comes before it.
            (OnFailure, "m:0 m:255", "ob"),
            (OnFailure, "m:1", "b"),
            (OnFailure, "i:0 m:255", "bb"),
            (OnFailure, "i:0 s:255 m:0 m:255", "bbob"),
            (OnFailure, "i:255 m:-", "bb"),
            (OnFailure, "i:0 m:0", "-oo"),
            (OnFailure, "s:255 m:0 m:0", "-ooo"),
            // Whoever looked into the pod does not look into the next one.
            (Always, "m:255 e:255", "bo"),
        ];
        for (restart, runs, want) in cases {
            let all: Vec<Run> = runs.split(' ').map(run).collect();
            let fates = fates(restart, &all);
            let letter = |f: &Fate| if *f == Fate::Begins { 'b' } else { 'o' };
            let got: String =
                (!fates.sandbox).then_some('-').into_iter().chain(fates.containers.iter().map(letter)).collect();
            assert_eq!(got, want, "{restart:?} {runs}");
        }
    }
}
