//! Subresources: sub-paths of an object with their own meaning.

/// A sub-path of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    Status,
    Scale,
    Finalize,
    Binding,
    Eviction,
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
    Token,
    EphemeralContainers,
    Resize,
    Approval,
}

// === impl Subresource ===

impl Subresource {
    /// Its path segment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Token => "token",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Approval => "approval",
        }
    }

    /// Discovery's group, version and kind of what goes through it, for a kind of this name; `None` is the object's own.
    pub fn gvk(self, of: &str) -> Option<(&'static str, &'static str, String)> {
        let (group, version, kind) = match self {
            Self::Scale => ("autoscaling", "v1", "Scale"),
            Self::Eviction => ("policy", "v1", "Eviction"),
            Self::Token => ("authentication.k8s.io", "v1", "TokenRequest"),
            Self::Binding => ("", "v1", "Binding"),
            Self::Exec => ("", "v1", "PodExecOptions"),
            Self::Attach => ("", "v1", "PodAttachOptions"),
            Self::PortForward => ("", "v1", "PodPortForwardOptions"),
            Self::Proxy => return Some(("", "v1", format!("{of}ProxyOptions"))),
            Self::Status | Self::Finalize | Self::Log | Self::EphemeralContainers | Self::Resize | Self::Approval => {
                return None;
            }
        };
        Some((group, version, kind.to_owned()))
    }

    /// Its verbs, as discovery lists them.
    pub fn verbs(self) -> &'static [&'static str] {
        match self {
            Self::Status | Self::Scale | Self::EphemeralContainers | Self::Resize | Self::Approval => {
                &["get", "patch", "update"]
            }
            Self::Finalize => &["update"],
            Self::Binding | Self::Eviction | Self::Token => &["create"],
            Self::Log => &["get"],
            Self::Exec | Self::Attach | Self::PortForward => &["create", "get"],
            Self::Proxy => &["create", "delete", "get", "patch", "update"],
        }
    }
}
