//! The graph of imports between the files of `src`, drawn from every path in their code.
//!
//! An arrow goes from a file to the file that **defines** what it names. `crate::`, `super::`, `self::`, names brought in by
//! `use`, and names of child modules are followed through modules and through re-exports (`pub use child::Item` hands on an
//! item: who names it there imports from the child). So:
//! - `mod child;` and `pub use child::Item;` alone are no arrow: a module that only gathers its children imports nothing;
//! - a module whose own code uses what a child defines imports from the child, and a child that names an item which its
//!   parent's file defines imports from the parent. Both together are a circle, as between any two files;
//! - methods are not seen, only paths: what a file adds to a type of another one (`impl Api { ... }`) is no arrow to the file
//!   by itself;
//! - what is compiled for tests alone (`#[cfg(test)]`) is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::File;

/// An arrow: the file that imports, the file that defines, and what is named.
pub type Arrows = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    /// `::`
    Path,
    Sign(char),
}

/// A module: a file's own, or one written inside a file.
#[derive(Default)]
struct Module {
    file: String,
    children: HashSet<String>,
    /// What `use` brings in, by the name it has here.
    uses: HashMap<String, Vec<String>>,
    /// Modules all of whose items come in.
    globs: Vec<Vec<String>>,
    /// Items that are defined here.
    items: HashSet<String>,
    /// Paths in the code, with the first segment as it stands there.
    named: Vec<Vec<String>>,
    /// Words of the code, to tell a `use` for oneself from one that only hands on.
    words: HashSet<String>,
}

/// All modules, by path from the root; the root's is empty.
type Modules = HashMap<Vec<String>, Module>;

/// The code as words and signs; comments, texts, characters and lifetimes are left out.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut out) = (0, Vec::new());
    let get = |i: usize| chars.get(i).copied().unwrap_or('\0');
    while at < chars.len() {
        let c = chars[at];
        match c {
            '/' if get(at + 1) == '/' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if get(at + 1) == '*' => {
                at += 2;
                while at < chars.len() && !(chars[at] == '*' && get(at + 1) == '/') {
                    at += 1;
                }
                at += 2;
            }
            '"' => at = after_text(&chars, at),
            '\'' => {
                // A lifetime has no closing quote after its first character.
                if get(at + 1) == '\\' {
                    at += 3;
                    while at < chars.len() && chars[at] != '\'' {
                        at += 1;
                    }
                    at += 1;
                } else if get(at + 2) == '\'' {
                    at += 3;
                } else {
                    at += 1;
                    while get(at).is_alphanumeric() || get(at) == '_' {
                        at += 1;
                    }
                }
            }
            c if c.is_alphabetic() || c == '_' => {
                let start = at;
                while get(at).is_alphanumeric() || get(at) == '_' {
                    at += 1;
                }
                let word: String = chars[start..at].iter().collect();
                let is_prefix = matches!(word.as_str(), "r" | "b" | "br" | "c" | "cr");
                if is_prefix && (get(at) == '"' || get(at) == '#') {
                    let raw = word.contains('r');
                    let mut hashes = 0;
                    while get(at + hashes) == '#' {
                        hashes += 1;
                    }
                    if raw && get(at + hashes) == '"' {
                        at = after_raw_text(&chars, at + hashes, hashes);
                        continue;
                    }
                    if get(at) == '"' {
                        at = after_text(&chars, at);
                        continue;
                    }
                }
                out.push(Token::Word(word));
            }
            ':' if get(at + 1) == ':' => {
                out.push(Token::Path);
                at += 2;
            }
            c if c.is_whitespace() => at += 1,
            c => {
                out.push(Token::Sign(c));
                at += 1;
            }
        }
    }
    out
}

fn after_text(chars: &[char], quote: usize) -> usize {
    let mut at = quote + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn after_raw_text(chars: &[char], quote: usize, hashes: usize) -> usize {
    let mut at = quote + 1;
    while at < chars.len() {
        if chars[at] == '"' && (1..=hashes).all(|n| chars.get(at + n) == Some(&'#')) {
            return at + 1 + hashes;
        }
        at += 1;
    }
    at
}

/// The code without what is compiled for tests alone, and the modules of files that are.
fn shipped(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let is = |i: usize, c: char| tokens.get(i) == Some(&Token::Sign(c));
    let word = |i: usize, w: &str| matches!(tokens.get(i), Some(Token::Word(x)) if x == w);
    let (mut at, mut out, mut left_out) = (0, Vec::new(), Vec::new());
    while at < tokens.len() {
        let for_tests = is(at, '#')
            && is(at + 1, '[')
            && word(at + 2, "cfg")
            && is(at + 3, '(')
            && word(at + 4, "test")
            && is(at + 5, ')')
            && is(at + 6, ']');
        if !for_tests {
            out.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += 7;
        let start = at;
        let mut depth = 0;
        while at < tokens.len() {
            match &tokens[at] {
                Token::Sign('{' | '(' | '[') => depth += 1,
                Token::Sign('}' | ')' | ']') => {
                    depth -= 1;
                    let ends = depth == 0 && is(at, '}');
                    if ends || depth < 0 {
                        at += usize::from(ends);
                        break;
                    }
                }
                Token::Sign(';' | ',') if depth == 0 => {
                    at += 1;
                    break;
                }
                _ => {}
            }
            at += 1;
        }
        let item = &tokens[start..at];
        let declared = item.iter().position(|t| *t == Token::Word("mod".into()));
        if let (Some(i), Some(Token::Sign(';'))) = (declared, item.last())
            && let Some(Token::Word(name)) = item.get(i + 1)
        {
            left_out.push(name.clone());
        }
    }
    (out, left_out)
}

/// The module path of a file: `src/net/proxy/mod.rs` is `net::proxy`.
fn module_of(path: &str) -> Vec<String> {
    let inside = path.strip_prefix("src/").unwrap_or(path).trim_end_matches(".rs");
    let mut parts: Vec<String> = inside.split('/').map(str::to_owned).collect();
    let last = parts.last().map(String::as_str);
    if last == Some("mod") || (parts.len() == 1 && last == Some("lib")) {
        parts.pop();
    }
    parts
}

const KEYWORDS: &[&str] = &["struct", "enum", "trait", "fn", "type", "const", "static", "union"];

/// Reads one file's code into its module and those written inside it.
fn read(modules: &mut Modules, file: &str, root: &[String], tokens: &[Token]) {
    let mut stack: Vec<(Vec<String>, i32)> = vec![(root.to_vec(), -1)];
    let mut depth = 0;
    let mut at = 0;
    let word = |i: usize| match tokens.get(i) {
        Some(Token::Word(word)) => Some(word.as_str()),
        _ => None,
    };
    modules.entry(root.to_vec()).or_default().file = file.to_owned();
    while at < tokens.len() {
        let here = stack.last().expect("the file's own module stays").0.clone();
        match &tokens[at] {
            Token::Sign('{') => depth += 1,
            Token::Sign('}') => {
                depth -= 1;
                if stack.len() > 1 && stack.last().is_some_and(|(_, d)| *d == depth) {
                    stack.pop();
                }
            }
            Token::Word(w) if w == "mod" && word(at + 1).is_some() => {
                let name = word(at + 1).unwrap_or_default().to_owned();
                let module = modules.entry(here.clone()).or_default();
                module.children.insert(name.clone());
                if tokens.get(at + 2) == Some(&Token::Sign('{')) {
                    let mut inner = here;
                    inner.push(name);
                    modules.entry(inner.clone()).or_default().file = file.to_owned();
                    stack.push((inner, depth));
                }
                at += 2;
                continue;
            }
            Token::Word(w) if w == "use" => {
                let end = (at..tokens.len()).find(|i| tokens[*i] == Token::Sign(';')).unwrap_or(tokens.len());
                let mut leaves = Vec::new();
                tree(&tokens[at + 1..end], &mut 0, &mut Vec::new(), &mut leaves);
                let module = modules.entry(here).or_default();
                for (path, name) in leaves {
                    if name == "*" {
                        module.globs.push(path);
                    } else {
                        module.uses.insert(name, path);
                    }
                }
                at = end;
                continue;
            }
            Token::Word(first) => {
                let defines = at > 0 && matches!(&tokens[at - 1], Token::Word(k) if KEYWORDS.contains(&k.as_str()));
                let follows_path = at > 0 && tokens[at - 1] == Token::Path;
                let is_member = at > 0
                    && tokens[at - 1] == Token::Sign('.')
                    && tokens.get(at.wrapping_sub(2)) != Some(&Token::Sign('.'));
                let module = modules.entry(here).or_default();
                if defines && stack.last().is_some_and(|(_, d)| *d + 1 == depth) {
                    module.items.insert(first.clone());
                } else if defines {
                    // A method, or an item inside a function.
                } else if !follows_path && !is_member {
                    module.words.insert(first.clone());
                    let mut path = vec![first.clone()];
                    let mut next = at + 1;
                    while tokens.get(next) == Some(&Token::Path)
                        && let Some(Token::Word(w)) = tokens.get(next + 1)
                    {
                        path.push(w.clone());
                        next += 2;
                    }
                    if path.len() > 1 {
                        module.named.push(path);
                        at = next;
                        continue;
                    }
                    // An item that a glob brings in.
                    module.named.push(path);
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// The leaves of a `use`: path and the name it has here.
fn tree(tokens: &[Token], at: &mut usize, prefix: &mut Vec<String>, out: &mut Vec<(Vec<String>, String)>) {
    let start = prefix.len();
    while *at < tokens.len() {
        match &tokens[*at] {
            Token::Word(w) if w == "as" => {
                if let Some(Token::Word(alias)) = tokens.get(*at + 1) {
                    let whole = prefix.strip_suffix(&["self".to_owned()]).unwrap_or(prefix);
                    out.push((whole.to_vec(), alias.clone()));
                }
                *at += 2;
                prefix.truncate(start);
                return;
            }
            Token::Word(w) => {
                prefix.push(w.clone());
                *at += 1;
            }
            Token::Path => *at += 1,
            Token::Sign('*') => {
                out.push((prefix.clone(), "*".into()));
                *at += 1;
                prefix.truncate(start);
                return;
            }
            Token::Sign('{') => {
                *at += 1;
                while *at < tokens.len() && tokens[*at] != Token::Sign('}') {
                    if tokens[*at] == Token::Sign(',') {
                        *at += 1;
                        continue;
                    }
                    tree(tokens, at, prefix, out);
                }
                *at += 1;
                prefix.truncate(start);
                return;
            }
            _ => break,
        }
    }
    if prefix.last().is_some_and(|w| w == "self") && prefix.len() > 1 {
        prefix.pop();
    }
    if !prefix.is_empty() {
        out.push((prefix.clone(), prefix.last().cloned().unwrap_or_default()));
    }
    prefix.truncate(start);
}

/// Where a path leads: the module that defines its item; none for other crates and for modules themselves.
fn resolve(
    modules: &Modules,
    from: &[String],
    path: &[String],
    through: &mut HashSet<(Vec<String>, String)>,
) -> Option<Vec<String>> {
    let mut module: Vec<String> = from.to_vec();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => {
            module.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|w| w == "super") {
                module.pop()?;
                rest = &rest[1..];
            }
        }
        _ => {}
    }
    loop {
        let name = rest.first()?;
        let here = modules.get(&module)?;
        let mut child = module.clone();
        child.push(name.clone());
        if here.items.contains(name) && !(here.children.contains(name) && rest.len() > 1) {
            return Some(module);
        }
        if here.children.contains(name) && modules.contains_key(&child) {
            module = child;
            rest = &rest[1..];
            continue;
        }
        if !through.insert((module.clone(), name.clone())) {
            return None;
        }
        if let Some(used) = here.uses.get(name) {
            let whole: Vec<String> = used.iter().chain(&rest[1..]).cloned().collect();
            return resolve(modules, &module, &whole, through);
        }
        for glob in &here.globs {
            let whole: Vec<String> = glob.iter().chain(rest).cloned().collect();
            if let Some(found) = resolve(modules, &module, &whole, through) {
                return Some(found);
            }
        }
        return None;
    }
}

/// Reads all files and draws the arrows.
pub fn arrows(files: &[File]) -> Arrows {
    let mut codes = Vec::new();
    let mut for_tests: HashSet<Vec<String>> = HashSet::new();
    for file in files {
        let module = module_of(&file.path);
        let (code, left_out) = shipped(&tokens(&file.text));
        for name in left_out {
            for_tests.insert(module.iter().cloned().chain([name]).collect());
        }
        codes.push((module, file.path.as_str(), code));
    }
    codes.retain(|(module, ..)| !(1..=module.len()).any(|n| for_tests.contains(&module[..n])));
    let mut modules = Modules::new();
    for (module, file, code) in &codes {
        read(&mut modules, file, module, code);
    }
    let mut out = Arrows::new();
    for (module, content) in &modules {
        let mut paths: Vec<&Vec<String>> = content.named.iter().collect();
        // A name that comes in and is not only handed on.
        let used = content.uses.iter().filter(|(name, _)| content.words.contains(*name));
        paths.extend(used.map(|(_, path)| path));
        for path in paths {
            let Some(defined) = resolve(&modules, module, path, &mut HashSet::new()) else { continue };
            let to = &modules[&defined].file;
            if *to != content.file {
                let named = out.entry(content.file.clone()).or_default().entry(to.clone()).or_default();
                named.insert(path.join("::"));
            }
        }
    }
    out
}

/// Groups of files that import one another, directly or through others, largest first.
pub fn circles(arrows: &Arrows) -> Vec<Vec<String>> {
    let reach = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(file) = next.pop() {
            for to in arrows.get(&file).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<String>> = arrows.keys().map(|f| (f.as_str(), reach(f))).collect();
    let (mut done, mut out) = (BTreeSet::new(), Vec::new());
    for (file, to) in &reached {
        if !to.contains(*file) || done.contains(*file) {
            continue;
        }
        let back = |other: &&String| reached.get(other.as_str()).is_some_and(|r| r.contains(*file));
        let group: Vec<String> = to.iter().filter(back).cloned().collect();
        done.extend(group.iter().map(|f| reached.get_key_value(f.as_str()).expect("it imports").0.to_owned()));
        out.push(group);
    }
    out.sort_by_key(|group| std::cmp::Reverse(group.len()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(files: &[(&str, &str)]) -> Vec<String> {
        let file = |(path, text): &(&str, &str)| File { path: format!("src/{path}"), text: (*text).into() };
        let files: Vec<File> = files.iter().map(file).collect();
        let arrows = arrows(&files);
        let all = arrows.iter().flat_map(|(from, to)| to.keys().map(move |to| (from, to)));
        all.map(|(from, to)| format!("{} -> {}", &from[4..], &to[4..])).collect()
    }

    #[test]
    fn paths_are_followed_to_the_file_that_defines() {
        let lib = ("lib.rs", "mod a; mod b;");
        let b = ("b/mod.rs", "mod inner; pub use inner::Item; pub struct Own; pub fn f() {}");
        let inner = ("b/inner.rs", "pub struct Item; impl Item { pub fn new() {} }");
        let with = |a: &str| drawn(&[lib, ("a.rs", a), b, inner]);
        assert_eq!(with("use crate::b::Own; fn g(o: Own) {}"), ["a.rs -> b/mod.rs"]);
        assert_eq!(with("use crate::b::Item; fn g(o: Item) {}"), ["a.rs -> b/inner.rs"], "through a re-export");
        assert_eq!(with("use crate::b; fn g() { b::Item::new() }"), ["a.rs -> b/inner.rs"], "through a module");
        assert_eq!(with("fn g() { crate::b::f() }"), ["a.rs -> b/mod.rs"], "in the code");
        assert_eq!(with("use crate::{b::{self as c, Own}}; fn g(_: Own) { c::Item::new() }").len(), 2, "in groups");
        assert_eq!(with("pub mod m { pub fn g() { super::super::b::f() } }"), ["a.rs -> b/mod.rs"], "from inside");
        assert_eq!(with("use crate::b::*; fn g(_: Item) {}"), ["a.rs -> b/inner.rs"], "by a glob");
        let silent = "// crate::b::f()\n/* crate::b::f() */ #[cfg(test)] mod tests { use crate::b::Own; fn g(_: Own) {} }\n\
                      #[cfg(test)] fn h() { crate::b::f() } const T: &str = \"crate::b::f()\"; fn g<'a>(c: char) { c == '\"' }";
        assert!(with(silent).is_empty(), "texts, comments and tests are none");
    }

    #[test]
    fn a_parent_that_uses_its_child_and_is_used_by_it_is_a_circle() {
        let lib = ("lib.rs", "mod b;");
        let child = ("b/inner.rs", "use super::Own; pub fn f(_: Own) {}");
        let gathers = ("b/mod.rs", "mod inner; pub use inner::f; pub struct Own;");
        let uses = ("b/mod.rs", "mod inner; pub struct Own; fn g() { inner::f(Own) }");
        assert_eq!(drawn(&[lib, gathers, child]), ["b/inner.rs -> b/mod.rs"]);
        assert_eq!(drawn(&[lib, uses, child]), ["b/inner.rs -> b/mod.rs", "b/mod.rs -> b/inner.rs"]);
        let arrows = BTreeMap::from(
            [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]
                .map(|(from, to)| (from.to_owned(), BTreeMap::from([(to.to_owned(), BTreeSet::new())]))),
        );
        assert_eq!(circles(&arrows), [["a", "b", "c"]]);
    }
}
