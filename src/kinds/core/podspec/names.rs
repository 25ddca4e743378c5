//! What the containers of a pod refer to by name, looked up once for all of them: a pod may have thousands of each.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::volume_sources;
use crate::base::json::{list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::Errors;

/// The volumes and claims of a pod by their names.
pub(super) struct Names<'a> {
    volumes: HashMap<&'a str, &'a Value>,
    sound: HashMap<&'a str, &'a Value>,
    claims: HashSet<&'a str>,
}

// === impl Names ===

impl<'a> Names<'a> {
    pub(super) fn of(spec: &'a Value) -> Self {
        let (mut volumes, mut sound) = (HashMap::new(), HashMap::new());
        for volume in list(spec, "volumes") {
            let name = text(volume, "name");
            volumes.entry(name).or_insert(volume);
            if !sound.contains_key(name) && is_sound(volume) {
                sound.insert(name, volume);
            }
        }
        let claims = list(spec, "resourceClaims").iter().map(|c| text(c, "name")).collect();
        Self { volumes, sound, claims }
    }

    /// The first volume of a name.
    pub(super) fn volume(&self, name: &str) -> Option<&'a Value> {
        self.volumes.get(name).copied()
    }

    /// The volume of a name; one that is wrong in itself is as good as none.
    pub(super) fn sound_volume(&self, name: &str) -> Option<&'a Value> {
        self.sound.get(name).copied()
    }

    /// Whether there is such a resource claim.
    pub(super) fn has_claim(&self, name: &str) -> bool {
        self.claims.contains(name)
    }
}

fn is_sound(volume: &Value) -> bool {
    let mut errors = Errors::new();
    volume_sources::validate(&mut errors, &Path::root(""), volume);
    check::dns_label(&mut errors, &Path::root("name"), text(volume, "name"));
    errors.is_empty()
}
