//! Which Kubernetes this is.

use serde_json::json;

/// The Kubernetes version that is served.
pub const GIT_VERSION: &str = concat!("v1.37.0+amphipod", env!("CARGO_PKG_VERSION"));

/// The body of `/version`.
pub fn build() -> serde_json::Value {
    let platform = format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    json!({
        "major": "1", "minor": "37", "emulationMajor": "1", "emulationMinor": "37",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
        "gitVersion": GIT_VERSION, "gitCommit": option_env!("AMPHIPOD_COMMIT").unwrap_or(""), "gitTreeState": "clean",
        "buildDate": option_env!("AMPHIPOD_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": concat!("rust", env!("CARGO_PKG_RUST_VERSION")), "compiler": "rustc", "platform": platform,
    })
}
