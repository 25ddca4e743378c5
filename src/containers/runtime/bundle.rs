//! What a container needs before its shim can start it: its bundle and its cgroup.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::super::Config;
use super::super::cgroup::Tree;
use super::super::error::{Error, Result};
use super::super::shim::BUNDLES_DIR;
use super::super::spec::*;
use super::super::wire::StartRequest;
use super::super::{image, oci, seccomp_filter};
use super::host::{self, container_cgroup};
use super::sandbox_files::{KILL_PATIENCE, io};
use crate::base::error::chain;

/// Far more than any specification takes.
const SPEC_BYTES_MAX: u64 = 16 << 20;

/// The bundles of this machine's containers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bundles<'a> {
    pub config: &'a Config,
    pub tree: &'a Tree,
}

// === impl Bundles ===

impl Bundles<'_> {
    /// Where a container's is.
    fn directory(&self, sandbox: &str, container: &str) -> PathBuf {
        self.config.sandbox_dir(sandbox).join(BUNDLES_DIR).join(container)
    }

    /// The specification of a container that was prepared.
    pub(super) fn spec(&self, sandbox: &str, container: &str) -> Result<ContainerSpec> {
        let path = self.directory(sandbox, container).join("spec.json");
        let bytes = crate::base::file::read(&path, SPEC_BYTES_MAX).map_err(io("reading", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Spec(format!("{path:?}: {error}")))
    }

    /// Cgroup and configuration of a container; returns what the shim has to be told.
    pub(super) fn prepare(&self, sandbox: &SandboxSpec, spec: &ContainerSpec) -> Result<StartRequest> {
        let tree = self.tree;
        let cgroup = container_cgroup(sandbox, &spec.id);
        let bundle = self.directory(&sandbox.id, &spec.id);
        std::fs::create_dir_all(&bundle).map_err(io("creating", &bundle))?;
        let owner = sandbox.users.as_ref().map(|users| users.first_id);
        image::make_directory_in(&spec.rootfs, Path::new(&spec.cwd), owner)?;
        let host = host::describe(self.config, tree, sandbox, spec);
        let mut mounted = spec.clone();
        mounted.mounts.extend(volumes(spec, owner)?);
        let plan = oci::plan(sandbox, &mounted, &host)?;
        let seccomp = plan.seccomp.as_ref().map(|profile| self.seccomp_file(profile)).transpose()?;
        tree.create(&cgroup, &spec.resources)?;
        for (name, bytes) in
            [("config.json", serde_json::to_vec(&plan.config)), ("spec.json", serde_json::to_vec(spec))]
        {
            let path = bundle.join(name);
            let bytes = bytes.map_err(|error| Error::Spec(error.to_string()))?;
            std::fs::write(&path, bytes).map_err(io("writing", &path))?;
        }
        Ok(StartRequest {
            id: spec.id.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            labels: spec.labels.clone(),
            bundle,
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            log_path: spec.log_path.as_ref().map(|path| sandbox.log_dir.join(path)),
            oom_score_adj: spec.oom_score_adj.unwrap_or(0),
            seccomp,
            capabilities: plan.capabilities.map(|sets| sets.to_string()),
            home_of_user: plan.home_of_user,
            uid: sandbox.users.as_ref().and_then(|users| users.on_the_machine(spec.user.uid)).unwrap_or(spec.user.uid),
            staged: plan.staged,
            oom_file: tree.oom_file(&cgroup),
            device_cgroup: tree.device_program_directory(&cgroup),
            procs_file: tree.procs_file(&cgroup),
        })
    }

    /// The file of a compiled filter.
    pub(super) fn seccomp_file(&self, profile: &serde_json::Value) -> Result<PathBuf> {
        seccomp_filter::file_for(&self.config.run_dir.join("seccomp"), profile)
    }

    /// Removes what `prepare` made.
    pub(super) fn remove(&self, sandbox: &SandboxSpec, container: &str) {
        let cgroup = container_cgroup(sandbox, container);
        self.tree.kill(&cgroup, KILL_PATIENCE);
        if let Err(error) = self.tree.remove(&cgroup) {
            tracing::warn!(container, error = chain(&error), "leftover cgroup");
        }
        if let Err(error) = crate::base::tree::remove(&self.directory(&sandbox.id, container)) {
            tracing::warn!(container, %error, "leftover bundle");
        }
    }
}

/// The mounts of a container's volumes, which are directories of its own root file system.
fn volumes(spec: &ContainerSpec, owner: Option<u32>) -> Result<Vec<Mount>> {
    if spec.volumes.is_empty() {
        return Ok(Vec::new());
    }
    let rootfs = std::fs::canonicalize(&spec.rootfs).map_err(io("opening root file system", &spec.rootfs))?;
    let mut mounts = Vec::new();
    for path in &spec.volumes {
        let made = image::make_directory_in(&rootfs, path, owner)?;
        // Where its links lead to inside; nothing runs there yet that could change them.
        let place = format!("/proc/self/fd/{}", made.as_raw_fd());
        let found = std::fs::read_link(&place).map_err(io("looking up", path))?;
        let Some(below) = found.strip_prefix(&rootfs).ok().filter(|below| below.parent().is_some()) else {
            // All of it, which is no volume.
            continue;
        };
        let source = MountSource::Bind { host_path: spec.rootfs.join(below), propagation: Propagation::Private };
        mounts.push(Mount { container_path: path.clone(), read_only: false, source });
    }
    Ok(mounts)
}
