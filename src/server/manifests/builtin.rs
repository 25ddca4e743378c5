//! The components that every cluster has unless its user says otherwise: the YAML files in the project's `manifests/`.
//!
//! As in k3s, each is written into the manifests directory at the start, where users look for it, and is then a file like any
//! other; `--disable NAME` removes it with its objects, `<file>.skip` leaves it alone. Invariant: a file of that name whose
//! first line is not ours is the user's, who wins.

use std::net::IpAddr;

/// One that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// What `--disable` calls it.
    pub name: &'static str,
    text: &'static str,
}

/// All of them, in the order in which they are applied.
pub const ALL: &[Component] = &[
    Component { name: "dns", text: include_str!("../../../manifests/dns.yaml") },
    Component { name: "local-storage", text: include_str!("../../../manifests/local-storage.yaml") },
];

/// What says that a file is ours.
const FIRST_LINE: &str =
    "# Part of amphipod, which writes this file at every start. Remove this line, and the file is yours and stays.\n";

/// What the files leave open.
#[derive(Clone, Debug)]
pub struct Values {
    pub cluster_dns: IpAddr,
    pub cluster_domain: String,
}

// === impl Component ===

impl Component {
    /// Its name in the manifests directory.
    pub fn file(&self) -> String {
        format!("{}.yaml", self.name)
    }

    /// What is in that file.
    pub fn render(&self, values: &Values) -> String {
        let text = self.text.replace("${CLUSTER_DNS}", &format!("{:?}", values.cluster_dns.to_string()));
        format!("{FIRST_LINE}{}", text.replace("${CLUSTER_DOMAIN}", &values.cluster_domain))
    }
}

/// Whether a file's content was written here. A file without content was not finished when the machine lost its power.
pub fn is_ours(content: &str) -> bool {
    content.starts_with(FIRST_LINE) || content.trim_matches(['\0', '\n', ' ']).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_project_is_a_component_and_nothing_is_left_open() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");
        let files = std::fs::read_dir(directory).unwrap().flatten().map(|e| e.path()).filter(|p| p.is_file());
        let mut names: Vec<String> = files.map(|p| p.file_stem().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        assert_eq!(names, ALL.iter().map(|c| c.name).collect::<Vec<_>>());
        let values = Values { cluster_dns: "10.43.0.10".parse().unwrap(), cluster_domain: "cluster.local".into() };
        for component in ALL {
            let text = component.render(&values);
            assert!(is_ours(&text) && !text.contains("${"), "{text}");
            assert!(!crate::schema::manifest::parse(&text).unwrap().is_empty());
        }
        assert!(!is_ours("apiVersion: v1\n") && is_ours("\n\0\0"));
    }
}
