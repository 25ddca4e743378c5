//! Probes and lifecycle hooks.

use serde_json::Value;

use super::Context;
use crate::base::json::{list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

pub(super) fn validate_all(errors: &mut Errors, path: &Path<'_>, container: &Value, grace: i64) {
    for (name, kind) in
        [("livenessProbe", Kind::Liveness), ("readinessProbe", Kind::Readiness), ("startupProbe", Kind::Startup)]
    {
        if let Some(probe) = container.get(name) {
            validate(errors, &path.field(name), probe, kind, grace);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Liveness,
    Readiness,
    Startup,
}

fn validate(errors: &mut Errors, path: &Path<'_>, probe: &Value, kind: Kind, grace: i64) {
    handler(errors, path, probe, &["exec", "httpGet", "tcpSocket", "grpc"], grace);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        check::non_negative(errors, &path.field(key), probe.get(key));
    }
    let seconds = probe.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    let at = path.field("terminationGracePeriodSeconds");
    if let Some(n) = seconds.filter(|n| *n <= 0) {
        errors.push(field::invalid(&at, n, "must be greater than 0"));
    }
    if kind == Kind::Readiness && seconds.is_some() {
        errors.push(field::invalid(&at, seconds, "must not be set for readinessProbes"));
    }
    let successes = probe.get("successThreshold").and_then(Value::as_i64).unwrap_or(1);
    if kind != Kind::Readiness && successes != 1 {
        errors.push(field::invalid(&path.field("successThreshold"), successes, "must be 1"));
    }
}

/// Exactly one of the ways to act.
fn handler(errors: &mut Errors, path: &Path<'_>, value: &Value, ways: &[&str], grace: i64) {
    let mut given = 0;
    for way in ways {
        let Some(action) = value.get(*way) else { continue };
        given += 1;
        let path = path.field(way);
        if given > 1 {
            errors.push(field::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        match *way {
            "exec" if list(action, "command").is_empty() => errors.push(field::required(&path.field("command"), "")),
            "httpGet" => http_get(errors, &path, action),
            "tcpSocket" => check::port_or_name(errors, &path.field("port"), action.get("port")),
            "grpc" => {
                let port = action.get("port").and_then(Value::as_i64).unwrap_or(0);
                check::port(errors, &path.field("port"), port);
                let mode = action.get("mode").and_then(Value::as_str);
                if let Some(mode) = mode.filter(|mode| !matches!(*mode, "Plaintext" | "TLS")) {
                    errors.push(field::not_supported(&path.field("mode"), mode, &["Plaintext", "TLS"]));
                }
            }
            "sleep" => {
                let seconds = action.get("seconds").and_then(Value::as_i64).unwrap_or(0);
                if !(0..=grace).contains(&seconds) {
                    let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.push(field::invalid(&path, seconds, why));
                }
            }
            _ => {}
        }
    }
    if given == 0 {
        errors.push(field::required(path, "must specify a handler type"));
    }
}

fn http_get(errors: &mut Errors, path: &Path<'_>, action: &Value) {
    check::given(errors, &path.field("path"), text(action, "path"));
    check::port_or_name(errors, &path.field("port"), action.get("port"));
    let scheme = text(action, "scheme");
    if !["HTTP", "HTTPS"].contains(&scheme) {
        errors.push(field::not_supported(&path.field("scheme"), scheme, &["HTTP", "HTTPS"]));
    }
    for header in list(action, "httpHeaders") {
        let name = text(header, "name");
        if !check::is_header_name(name) {
            let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex \
                       used for validation is '[-A-Za-z0-9]+')";
            errors.push(field::invalid(&path.field("httpHeaders"), name, why));
        }
    }
}

/// Signals that a container may be stopped with.
const SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

fn is_signal(name: &str) -> bool {
    let number = |text: &str| text.parse::<u8>().ok();
    match (name.strip_prefix("SIGRTMIN+"), name.strip_prefix("SIGRTMAX-")) {
        (Some(n), _) => number(n).is_some_and(|n| (1..=15).contains(&n)),
        (_, Some(n)) => number(n).is_some_and(|n| (1..=14).contains(&n)),
        _ => matches!(name, "SIGRTMIN" | "SIGRTMAX") || SIGNALS.contains(&name),
    }
}

pub(super) fn lifecycle(errors: &mut Errors, path: &Path<'_>, lifecycle: Option<&Value>, context: &Context<'_>) {
    let Some(lifecycle) = lifecycle else { return };
    for hook in ["postStart", "preStop"] {
        if let Some(action) = lifecycle.get(hook) {
            handler(errors, &path.field(hook), action, &["exec", "httpGet", "tcpSocket", "sleep"], context.grace);
        }
    }
    if let Some(signal) = lifecycle.get("stopSignal") {
        let path = path.field("stopSignal");
        let signal = signal.as_str().unwrap_or("");
        match text(context.spec, "os.name") {
            "windows" if !["SIGTERM", "SIGKILL"].contains(&signal) => {
                errors.push(field::not_supported(&path, signal, &["SIGKILL", "SIGTERM"]));
            }
            "windows" => {}
            _ if !is_signal(signal) => errors.push(field::not_supported(&path, signal, SIGNALS)),
            _ => {}
        }
    }
}
