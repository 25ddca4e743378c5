//! The house rules that a reader should not have to check: who may import whom, fences around crates, files' heads,
//! sizes and names. Fails with the rule in the message; numbers worth a look are printed.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::too_many_lines)]

#[path = "tidy/graph.rs"]
mod graph;
#[path = "tidy/sizes.rs"]
mod sizes;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file of tests that is accepted, and of the product, without its tests.
const TEST_LINES_MAX: usize = 1_000;
const LINES_MAX: usize = 600;
/// Longest function, and what half of all and nine of ten stay below.
const FUNCTION_LINES_MAX: usize = 80;
const FUNCTION_LINES_MEDIAN: usize = 10;
const FUNCTION_LINES_P90: usize = 30;
const BANNED: &[&str] = &[
    "util",
    "utils",
    "helper",
    "helpers",
    "common",
    "misc",
    "manager",
    "handler",
    "processor",
    "info",
    "inbox",
    "feeder",
];

/// Type names that gave way to the field's words (docs/glossary.md).
const REPLACED: &[&str] = &[
    "Application",
    "Ask",
    "Call",
    "Companion",
    "Desk",
    "Facts",
    "Form",
    "Grouped",
    "Heard",
    "Known",
    "Neighbours",
    "Now",
    "Part",
    "Place",
    "Recall",
    "Seen",
    "Setting",
    "Shelf",
    "Space",
    "Tie",
    "Turn",
    "Welcome",
];

/// Rooms with their layer, as DESIGN has them; files beside the rooms count as the topmost layer.
const LAYERS: &[(&str, u8)] = &[
    ("base", 0),
    ("cel", 1),
    ("schema", 1),
    ("wire", 1),
    ("kinds", 1),
    ("apimachinery", 1),
    ("store", 2),
    ("containers", 2),
    ("net", 2),
    ("reconcile", 2),
    ("api", 3),
    ("net/peers", 5),
    ("net/proxy", 5),
    ("net/policy", 5),
    ("dns", 5),
    ("controllers", 5),
    ("scheduler", 5),
    ("node", 5),
    ("docker", 5),
    ("observe", 5),
    ("node_paths", 6),
    ("fuzzing", 6),
    ("server", 6),
    ("cli", 6),
    ("main", 6),
    ("lib", 6),
];

/// Imports that the layers alone would refuse or that name two rooms of one layer, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("kinds", "cel", "rules of custom kinds"),
    ("kinds", "schema", "a kind names its schema"),
    ("apimachinery", "kinds", "a Status names the kind"),
    ("apimachinery", "wire", "what goes through a tunnel"),
    ("store", "kinds", "never: see below"),
    ("node", "net", "traits PodNetwork and HostPort"),
    ("node", "containers", "traits Runtime and Images"),
    ("dns", "net", "DNS names the data plane's protocols"),
    ("net/proxy", "net", "part of the same room"),
    ("observe", "scheduler", "simulate"),
];

/// A crate that only some places may name, so that it can be replaced there.
const FENCES: &[(&str, &[&str])] = &[
    ("rusqlite", &["src/store/sqlite"]),
    ("libcontainer", &["src/containers"]),
    ("libcgroups", &["src/containers"]),
    ("oci_spec", &["src/containers"]),
    ("libseccomp", &["src/containers"]),
    ("netlink_packet_core", &["src/net"]),
    ("netlink_packet_generic", &["src/net"]),
    ("netlink_packet_netfilter", &["src/net"]),
    ("netlink_packet_route", &["src/net"]),
    ("netlink_packet_wireguard", &["src/net"]),
    ("netlink_proto", &["src/net"]),
    ("netlink_sys", &["src/net"]),
    ("rtnetlink", &["src/net"]),
    ("hickory_proto", &["src/dns"]),
    ("hickory_resolver", &["src/dns", "src/wire/resolve.rs"]),
    ("clap", &["src/cli"]),
    (
        "hyper",
        &[
            "src/wire",
            "src/apimachinery/http",
            "src/api/http",
            "src/reconcile/remote",
            "src/containers/image",
            "src/cli/client",
            "src/node",
        ],
    ),
    ("axum", &["src/apimachinery/http", "src/api/http", "src/node/http"]),
    ("tower", &["src/apimachinery/http", "src/api/http", "src/node/http"]),
    ("tokio_tungstenite", &["src/wire", "src/api/http", "src/cli/client"]),
];

struct File {
    /// Relative to the package, with slashes.
    path: String,
    text: String,
}

fn files(directory: &str) -> Vec<File> {
    fn walk(path: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(path).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    walk(&root.join(directory), &mut paths);
    paths.sort();
    let file = |path: PathBuf| File {
        path: path.strip_prefix(root).unwrap().to_string_lossy().into_owned(),
        text: fs::read_to_string(&path).unwrap(),
    };
    paths.into_iter().map(file).collect()
}

fn rule(broken: &[String], text: &str) {
    assert!(broken.is_empty(), "{text}:\n  {}", broken.join("\n  "));
}

/// The room of a source file: `src/net/proxy/mod.rs` is `net/proxy`.
fn room(path: &str) -> String {
    let inside = path.strip_prefix("src/").unwrap();
    let first = inside.split('/').next().unwrap().trim_end_matches(".rs");
    let nested = LAYERS.iter().map(|(name, _)| *name).find(|name| name.contains('/') && inside.starts_with(name));
    nested.unwrap_or(first).to_owned()
}

fn layer(room: &str) -> u8 {
    LAYERS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("`{room}` has no layer in tests/tidy.rs")).1
}

/// What stands before the unit tests of a file.
fn without_tests(text: &str) -> &str {
    &text[..text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(text.len())]
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> String {
    without_tests(text).lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Every room that a file names by `crate::`, also in groups (`use crate::{api, wire}`).
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 1;
                let mut word = String::new();
                let mut fresh = true;
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 1 => break,
                        '}' => depth -= 1,
                        ',' if depth == 1 => fresh = true,
                        c if depth == 1 && fresh && (c.is_alphanumeric() || c == '_') => {
                            word.push(c);
                            continue;
                        }
                        _ => {}
                    }
                    if !word.is_empty() {
                        found.push(std::mem::take(&mut word));
                        fresh = false;
                    }
                    if c == ',' {
                        fresh = true;
                    }
                }
                found.extend((!word.is_empty()).then_some(word));
            }
            None => {
                let nested = LAYERS
                    .iter()
                    .map(|(name, _)| *name)
                    .find(|name| name.split_once('/').is_some_and(|(a, b)| rest.starts_with(&format!("{a}::{b}::"))));
                let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                found.push(nested.map_or(word, str::to_owned));
            }
        }
    }
    // Macros and items at the root are no rooms.
    found.retain(|name| LAYERS.iter().any(|(room, _)| room == name));
    found
}

#[test]
fn imports_are_seen_in_every_form() {
    let seen = |code: &str| imports(code);
    assert_eq!(seen("use crate::api::Api;"), ["api"]);
    assert_eq!(seen("use crate::{api, wire::tls};"), ["api", "wire"]);
    assert_eq!(seen("use crate::{\n    kinds::{self, Kind},\n    store,\n};"), ["kinds", "store"]);
    assert_eq!(seen("fn f(x: crate::net::proxy::Options) { crate::base::task::spawn() }"), ["net/proxy", "base"]);
    assert!(seen("pub(crate) fn f() {} use my_crate::api;").is_empty());
    assert_eq!((room("src/net/proxy/mod.rs"), room("src/net/mod.rs")), ("net/proxy".into(), "net".into()));
}

#[test]
fn rooms_import_only_from_lower_layers() {
    let mut broken = Vec::new();
    for file in files("src").iter().filter(|f| !f.path.ends_with("/tests.rs") && !f.path.contains("in_memory")) {
        let from = room(&file.path);
        if layer(&from) == 6 {
            continue;
        }
        for to in imports(&code(&file.text)) {
            let excepted = EXCEPTIONS.iter().any(|(a, b, why)| *a == from && *b == to && !why.starts_with("never"));
            if to != from && layer(&to) >= layer(&from) && !excepted {
                broken.push(format!(
                    "{}: `{from}` (layer {}) imports `{to}` (layer {})",
                    file.path,
                    layer(&from),
                    layer(&to)
                ));
            }
        }
    }
    // Also what is named otherwise than by `crate::`.
    for (file, to) in graph::arrows(&files("src")) {
        let from = room(&file);
        for (to, names) in to.iter().map(|(to, names)| (room(to), names)).filter(|(to, _)| *to != from) {
            let excepted = EXCEPTIONS.iter().any(|(a, b, why)| *a == from && *b == to && !why.starts_with("never"));
            if layer(&from) < 6 && layer(&to) >= layer(&from) && !excepted {
                broken.push(format!("{file}: `{from}` imports `{to}`: {names:?}"));
            }
        }
    }
    broken.dedup();
    rule(&broken, "a room imports only from rooms of lower layers (docs/architecture.md)");
}

/// What an agent is made of, and every room that is not: those of the server.
const OF_A_NODE: &[&str] = &[
    "apimachinery",
    "base",
    "cel",
    "containers",
    "dns",
    "kinds",
    "net",
    "net/peers",
    "net/policy",
    "net/proxy",
    "node",
    "reconcile",
    "schema",
    "wire",
];

#[test]
fn what_a_node_is_made_of_reaches_no_part_of_a_server() {
    let is_of_a_node = |path: &str| OF_A_NODE.contains(&room(path).as_str());
    let arrows = graph::arrows(&files("src"));
    let mut broken = Vec::new();
    // One arrow out is enough to see: whatever is reached through others goes over one of these.
    for (from, to) in arrows.iter().filter(|(from, _)| is_of_a_node(from)) {
        let out = to.iter().filter(|(to, _)| !is_of_a_node(to));
        broken.extend(out.map(|(to, names)| format!("{from} names {names:?} of {to}")));
    }
    let drawn: usize = arrows.values().map(BTreeMap::len).sum();
    assert!(drawn > 1_000 && arrows.contains_key("src/node/worker.rs"), "the arrows are drawn");
    rule(
        &broken,
        "a node, its runtime, network and DNS and their client are built without API, store, controllers or server",
    );
}

/// The picture of the rooms in docs/architecture.md: each with the rooms whose files its own import.
fn drawn_rooms() -> String {
    let mut rooms: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for (from, to) in graph::arrows(&files("src")) {
        let from = room(&from);
        for to in to.keys().map(|to| room(to)).filter(|to| *to != from) {
            *rooms.entry(from.clone()).or_default().entry(to).or_default() += 1;
        }
    }
    let mut lines: Vec<(u8, String)> = LAYERS
        .iter()
        .filter(|(name, layer)| *layer < 6 && Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name).is_dir())
        .map(|(name, layer)| {
            let to: Vec<&str> = rooms.get(*name).into_iter().flat_map(|to| to.keys().map(String::as_str)).collect();
            (*layer, format!("| {layer} | `{name}` | {} |", to.join(", ")))
        })
        .collect();
    lines.sort_by_key(|(layer, _)| std::cmp::Reverse(*layer));
    let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    format!("| layer | room | imports from |\n|---|---|---|\n{}\n", lines.join("\n"))
}

#[test]
fn the_picture_of_rooms_is_drawn_from_the_code() {
    const BEGIN: &str = "<!-- Drawn by tests/tidy.rs: AMPHIPOD_WRITE_DOCS=1 cargo test --test tidy -->\n";
    const END: &str = "<!-- End of what is drawn. -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("docs/architecture.md has a place for the picture");
    let (shown, after) = rest.split_once(END).expect("the picture has an end");
    let drawn = drawn_rooms();
    if std::env::var_os("AMPHIPOD_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{drawn}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(
        shown, drawn,
        "docs/architecture.md shows other imports than the code has: AMPHIPOD_WRITE_DOCS=1 makes it anew"
    );
}

/// What is told of a circle: its files and what each names of the others.
fn described(circle: &[String], arrows: &graph::Arrows) -> String {
    let named = |from: &String| {
        let to = arrows[from].iter().filter(|(to, _)| circle.contains(to));
        let names =
            to.map(|(to, names)| format!("{from} -> {to}: {}", names.iter().cloned().collect::<Vec<_>>().join(", ")));
        names.collect::<Vec<_>>()
    };
    circle.iter().flat_map(named).collect::<Vec<_>>().join("\n    ")
}

/// The rule is in `tidy/graph.rs`: an arrow leads to the file that defines what is named, so a child that names what its
/// parent's file defines, and is used by the code of that file, is in a circle with it.
#[test]
fn imports_between_files_make_no_circle() {
    let arrows = graph::arrows(&files("src"));
    let broken: Vec<String> = graph::circles(&arrows).iter().map(|c| described(c, &arrows)).collect();
    rule(&broken, "files import one another in no circle: what two of them need is in a third");
}

/// What tests stand on: compiled with tests, in the development profile, or with the feature `fakes`.
#[test]
fn what_only_tests_use_is_not_released() {
    const CONDITION: &str = "#[cfg(any(test, feature = \"fakes\", debug_assertions))]";
    let (mut seen, mut broken) = (0, Vec::new());
    for file in files("src") {
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let declared = line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("pub use "));
            let is_for_tests = declared.is_some_and(|of| {
                let name = of.split([':', ';']).next().unwrap_or_default();
                matches!(name, "fake" | "suite") || (name == "memory" && file.path == "src/store/mod.rs")
            });
            seen += usize::from(is_for_tests);
            if is_for_tests && lines[index.saturating_sub(1)] != CONDITION {
                broken.push(format!("{}:{}: {line}", file.path, index + 1));
            }
        }
    }
    assert!(seen >= 6, "fakes and suites are somewhere else now");
    rule(&broken, "fakes and suites stand behind `cfg(any(test, feature = \"fakes\", debug_assertions))`");
}

#[test]
fn the_store_knows_no_kinds() {
    let knows = |f: &&File| imports(&code(&f.text)).iter().any(|room| room == "kinds" || room == "schema");
    let broken: Vec<String> = files("src/store").iter().filter(knows).map(|f| f.path.clone()).collect();
    rule(&broken, "the store knows bytes, keys and revisions, and no kinds");
}

/// What of the API is about certain kinds; everything else there is for every kind, built in or custom.
const ABOUT_KINDS: &[&str] = &[
    "src/api/admission/",
    "src/api/allocate.rs",
    "src/api/bootstrap.rs",
    "src/api/growth.rs",
    "src/api/http/join.rs",
    "src/api/http/proxy/target.rs",
    "src/api/identity/",
    "src/api/subresource/",
];

#[test]
fn what_serves_every_kind_names_none() {
    let is_generic =
        |path: &str| path.ends_with("admission/mod.rs") || !ABOUT_KINDS.iter().any(|p| path.starts_with(p));
    let mut broken = Vec::new();
    let mut seen = 0;
    for file in files("src/api").into_iter().filter(|f| is_generic(&f.path)) {
        seen += 1;
        let shipped = file.text.split("#[cfg(test)]").next().unwrap_or("");
        let code = code(shipped);
        let named = |import: &String| {
            let mut parts = import.split("::").skip_while(|p| *p != "kinds").skip(1);
            parts.next().is_some_and(|group| Path::new("src/kinds").join(group).is_dir() && group != "check")
        };
        broken.extend(imports(&code).iter().filter(|i| named(i)).map(|i| format!("{}: {i}", file.path)));
        let compares = ["plural() == \"", "plural() != \"", "kind() == \"", "kind() != \""];
        broken.extend(compares.iter().filter(|c| code.contains(**c)).map(|c| format!("{}: {c}", file.path)));
    }
    assert!(seen > 20, "the files of the API are somewhere else now");
    rule(&broken, "what the API does for every kind asks the kind (`Strategy`), and names none");
}

#[test]
fn crates_stay_behind_their_fences() {
    let mut broken = Vec::new();
    for file in files("src") {
        let code = code(&file.text);
        for (name, places) in FENCES {
            let named = code.contains(&format!("use {name}::")) || code.contains(&format!(" {name}::"));
            if named && !places.iter().any(|place| file.path.starts_with(place)) {
                broken.push(format!("{} names {name}, which belongs to {}", file.path, places.join(", ")));
            }
        }
    }
    rule(&broken, "a heavy crate is named in its own places only");
}

#[test]
fn unsafe_is_rare_and_argued() {
    let mut broken = Vec::new();
    for file in files("src") {
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            if !(code.contains("unsafe {") || code.contains("unsafe impl") || code.contains("unsafe fn")) {
                continue;
            }
            let place = format!("{}:{}", file.path, index + 1);
            if !file.path.starts_with("src/containers/") && !file.path.starts_with("src/net/") {
                broken.push(format!("{place}: unsafe code is for containers and net only"));
            }
            let argued =
                lines[index.saturating_sub(16)..=index].iter().any(|l| l.contains("SAFETY") || l.contains("# Safety"));
            if !argued {
                broken.push(format!("{place}: no SAFETY line"));
            }
        }
    }
    rule(&broken, "unsafe code says why it is sound");
}

#[test]
fn every_file_says_what_it_is() {
    let mut all = files("src");
    all.extend(files("tests"));
    all.extend(files("benches"));
    let broken: Vec<String> = all.iter().filter(|f| !f.text.starts_with("//!")).map(|f| f.path.clone()).collect();
    rule(&broken, "a file begins with `//!`: what it is, why, and the invariant it keeps");
}

#[test]
fn files_stay_readable() {
    let mut all = files("src");
    all.extend(files("tests"));
    let mut lengths: Vec<(usize, &str)> =
        all.iter().map(|f| (without_tests(&f.text).lines().count(), f.path.as_str())).collect();
    lengths.sort_unstable();
    let at = |part: usize| lengths[(lengths.len() - 1) * part / 100].0;
    println!("{} files: median {} lines, p90 {}, longest {}", lengths.len(), at(50), at(90), at(100));
    let most = |path: &str| if is_of_product(path) { LINES_MAX } else { TEST_LINES_MAX };
    let broken: Vec<String> =
        lengths.iter().filter(|(n, path)| *n > most(path)).map(|(n, path)| format!("{path}: {n} lines")).collect();
    rule(&broken, "no file is longer than 600 lines without its tests, and none of tests than 1,000");
    let wide = |f: &File| {
        let long = f.text.lines().enumerate().filter(|(_, l)| l.chars().count() > 140 && !l.contains('"'));
        long.map(|(n, _)| format!("{}:{}", f.path, n + 1)).collect::<Vec<_>>()
    };
    rule(
        &all.iter().filter(|f| f.path.starts_with("src/")).flat_map(wide).collect::<Vec<_>>(),
        "no line of code is longer than 140 characters",
    );
}

/// Whether a file is neither tests nor made for them.
fn is_of_product(path: &str) -> bool {
    path.starts_with("src/") && !path.ends_with("/tests.rs") && !path.contains("/tests/")
}

#[test]
fn functions_stay_short() {
    let mut all = Vec::new();
    for file in files("src").iter().filter(|f| is_of_product(&f.path)) {
        let found = sizes::functions(without_tests(&file.text));
        all.extend(found.into_iter().map(|f| (f.lines, format!("{}: {} has {} lines", file.path, f.name, f.lines))));
    }
    all.sort();
    let at = |part: usize| all[(all.len() - 1) * part / 100].0;
    println!("{} functions: median {} lines, p90 {}, longest {}", all.len(), at(50), at(90), at(100));
    let long: Vec<String> = all.iter().filter(|(n, _)| *n > FUNCTION_LINES_MAX).map(|(_, text)| text.clone()).collect();
    rule(&long, "no function is longer than 80 lines");
    assert!(at(50) < FUNCTION_LINES_MEDIAN, "half of the functions are shorter than 10 lines");
    assert!(at(90) < FUNCTION_LINES_P90, "nine of ten functions are shorter than 30 lines");
}

#[test]
fn names_say_something() {
    let mut broken = Vec::new();
    for file in files("src") {
        let stem = Path::new(&file.path).file_stem().unwrap().to_string_lossy().into_owned();
        if BANNED.contains(&stem.as_str()) {
            broken.push(format!("{}: the file's name", file.path));
        }
        for line in code(&file.text).lines() {
            let line = line
                .trim_start()
                .trim_start_matches("pub ")
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub(super) ");
            let Some(name) = ["struct ", "enum ", "trait "].iter().find_map(|k| line.strip_prefix(k)) else { continue };
            let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
            if REPLACED.contains(&name.as_str()) {
                broken.push(format!("{}: type {name} has another name (docs/glossary.md)", file.path));
            }
            let lower = name.to_lowercase();
            if let Some(word) =
                BANNED.iter().find(|w| lower == **w || (name.len() > w.len() && name.ends_with(&capital(w))))
            {
                broken.push(format!("{}: type {name} ends with {word}", file.path));
            }
        }
    }
    rule(&broken, "names are nouns of the field, not util, helper, common, misc, manager, handler, processor, info");
}

fn capital(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

#[test]
fn queues_have_bounds_and_tasks_have_names() {
    let mut broken = Vec::new();
    for file in files("src").iter().filter(|f| f.path != "src/base/task.rs") {
        for word in ["unbounded_channel", "tokio::spawn(", "todo!(", "dbg!("] {
            if code(&file.text).contains(word) {
                broken.push(format!("{}: {word}", file.path));
            }
        }
    }
    rule(&broken, "no unbounded queues, no detached tasks (use base::task::spawn), nothing left over");
}

/// Recursion and names that are looked up twice: what a container makes can be deeper than a stack, and lead elsewhere.
#[test]
fn trees_are_removed_by_the_one_walk() {
    let mut broken = Vec::new();
    for file in files("src").iter().filter(|f| f.path != "src/base/tree.rs" && !f.path.ends_with("/tests.rs")) {
        if code(&file.text).contains("remove_dir_all") {
            broken.push(format!("{}: remove_dir_all", file.path));
        }
    }
    rule(&broken, "trees are removed by base::tree, which neither recurses nor follows links");
}

#[test]
fn every_crate_has_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cargo = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let reasons = fs::read_to_string(root.join("docs/dependencies.md")).unwrap();
    let sources: String = ["src", "tests", "benches"].iter().flat_map(|d| files(d)).map(|f| f.text).collect();
    let (mut section, mut broken) = (String::new(), Vec::new());
    for line in cargo.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        }
        let Some((name, _)) = line.split_once(" = ").filter(|_| section.ends_with("dependencies")) else { continue };
        if !reasons.contains(&format!("- `{name}`:")) {
            broken.push(format!("{name} has no line in docs/dependencies.md"));
        }
        if !sources.contains(&name.replace('-', "_")) {
            broken.push(format!("{name} is not used"));
        }
    }
    rule(&broken, "a crate enters with one line of why, and leaves when nothing uses it");
}

/// Packages of a lock file with what they depend on; a dependency says its version where there are several.
fn locked(text: &str) -> Vec<(String, String, Vec<String>)> {
    let field = |package: &str, name: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
        line.map(|value| value.trim_matches('"').to_owned()).unwrap_or_default()
    };
    let packages = text.split("[[package]]").skip(1);
    packages
        .map(|package| {
            let needs = package.lines().filter_map(|line| line.strip_prefix(" \"")?.strip_suffix("\","));
            (field(package, "name"), field(package, "version"), needs.map(str::to_owned).collect())
        })
        .collect()
}

/// libcontainer brings netlink crates of its own, of versions that no release of rtnetlink goes with.
#[test]
fn there_is_one_version_of_each_netlink_crate() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let packages = locked(&lock);
    let is_netlink = |name: &str| name.contains("netlink");
    let mut by_libcontainer: Vec<(String, String)> = Vec::new();
    let mut next = vec![("libcontainer".to_owned(), String::new())];
    while let Some((name, version)) = next.pop() {
        let of = packages.iter().find(|(n, v, _)| *n == name && (version.is_empty() || *v == version)).unwrap();
        for need in &of.2 {
            let (name, version) = need.split_once(' ').unwrap_or((need, ""));
            let known = packages.iter().find(|(n, v, _)| n == name && (version.is_empty() || v == version)).unwrap();
            let found = (known.0.clone(), known.1.clone());
            if is_netlink(name) && !by_libcontainer.contains(&found) {
                by_libcontainer.push(found.clone());
                next.push(found);
            }
        }
    }
    let (mut seen, mut broken) = (BTreeMap::new(), Vec::new());
    for (name, version, _) in packages.iter().filter(|(name, ..)| is_netlink(name)) {
        if !by_libcontainer.contains(&(name.clone(), version.clone()))
            && let Some(other) = seen.insert(name, version)
        {
            broken.push(format!("{name} is there as {other} and as {version}"));
        }
    }
    assert!(seen.contains_key(&"rtnetlink".to_owned()) && !by_libcontainer.is_empty(), "the lock file is read");
    // Then this test gets simpler, and docs/dependencies.md shorter.
    assert!(by_libcontainer.iter().any(|(name, version)| seen.get(name).is_some_and(|own| *own != version)));
    rule(&broken, "one version of each netlink crate beside those of libcontainer");
}

#[test]
fn scripts_stop_at_the_first_failure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scripts: Vec<PathBuf> = fs::read_dir(root.join("scripts")).unwrap().flatten().map(|e| e.path()).collect();
    scripts.push(root.join(".ci/run"));
    let careless = |p: &&PathBuf| !fs::read_to_string(p).unwrap().contains("\nset -eu\n");
    let broken: Vec<String> = scripts.iter().filter(careless).map(|p| p.display().to_string()).collect();
    rule(&broken, "a script has `set -eu`");
}
