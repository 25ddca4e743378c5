//! What the containers of a pod are to be: which there are, and when each runs again.

/// What the machine must know of a pod's spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub restart: Restart,
    pub containers: Vec<ContainerPlan>,
}

/// One container of the plan, in the order of the spec: init containers first, ephemeral ones last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPlan {
    pub name: String,
    pub role: Role,
    pub startup_probe: bool,
    pub readiness_probe: bool,
    /// It has a postStart hook, for which the containers after it wait.
    pub post_start: bool,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: the next one starts once it has started.
    Sidecar,
    #[default]
    Main,
    /// Added to a running pod to look into it (`kubectl debug`): begins at once, never again, and says nothing of the pod.
    Ephemeral,
}

/// `spec.restartPolicy`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    #[default]
    Always,
    OnFailure,
    Never,
}
