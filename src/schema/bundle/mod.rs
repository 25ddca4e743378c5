//! The schema of every Kubernetes type, read from one text file inside the executable.
//!
//! `types.txt` is written by the test in `generate.rs`. It is parsed at first use, in about a millisecond; names stay
//! slices of the file, so the whole schema costs some hundred kilobytes. Descriptions are several times as large and
//! only wanted for OpenAPI documents: they are kept compressed and are unpacked for the caller alone.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use super::types::{Emit, Field, ListKey, ListKind, Name, Node, PatchStrategy, Scalar, Schema, Struct, TypeRef};

#[cfg(test)]
mod generate;

const TYPES: &str = include_str!("types.txt");
const DESCRIPTIONS: [&[u8]; 2] = [include_bytes!("descriptions-0.zst"), include_bytes!("descriptions-1.zst")];

/// Prefix that the files shorten to nothing: `.core.v1.Pod`.
const API: &str = "io.k8s.api";

static BUNDLE: LazyLock<Schema> = LazyLock::new(|| parse(TYPES));

/// The schema of Kubernetes' own types.
pub fn bundle() -> &'static Schema {
    &BUNDLE
}

/// The built-in type of this definition name, such as `io.k8s.api.core.v1.Pod`.
pub fn type_of(name: &str) -> Option<TypeRef<'static>> {
    bundle().type_of(name)
}

/// Descriptions of built-in types and fields: unpacked when made, gone when dropped.
pub struct Descriptions {
    text: String,
    /// Where each struct's lines begin: its own, then one for each field.
    starts: Vec<usize>,
}

impl Descriptions {
    /// Unpacks all descriptions (one to two megabytes).
    pub fn load() -> Descriptions {
        let mut text = String::new();
        for part in DESCRIPTIONS {
            let bytes = zstd::decode_all(part).expect("written by the generator, checked by its test");
            text.push_str(std::str::from_utf8(&bytes).expect("written from strings"));
        }
        let mut starts = Vec::with_capacity(bundle().structs.len());
        let mut at = 0;
        for s in &bundle().structs {
            starts.push(at);
            for _ in 0..=s.count {
                at += text[at..].find('\n').map_or(text.len() - at, |i| i + 1);
            }
        }
        Descriptions { text, starts }
    }

    /// The description of the `id`th struct, then those of its fields in order.
    pub(super) fn all_of(&self, id: u32) -> impl Iterator<Item = String> {
        let text = &self.text[self.starts[id as usize]..];
        let count = bundle().structs[id as usize].count as usize + 1;
        text.lines().take(count).map(unescape)
    }
}

fn unescape(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, letter == '\\') {
            (_, true) => match letters.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(other) => text.push(other),
                None => {}
            },
            (letter, false) => text.push(letter),
        }
    }
    text
}

// === parsing ===

struct Reader {
    schema: Schema,
    known: HashMap<String, u32>,
}

fn parse(text: &'static str) -> Schema {
    let mut schema = Schema::default();
    for line in text.lines().filter(|l| l.starts_with('@')) {
        let mut words = line[2..].split(' ');
        let name = full_name(words.next().unwrap_or(""));
        let id = schema.structs.len() as u32;
        let mut s =
            Struct { name: name.clone(), first: 0, count: 0, atomic: false, preserve_unknown: false, gvk: None };
        for word in words {
            if word == "atomic" {
                s.atomic = true;
            } else if let Some(gvk) = word.strip_prefix("gvk=") {
                let mut parts = gvk.split('/').map(Cow::Borrowed);
                s.gvk = parts.next().zip(parts.next()).zip(parts.next()).map(|((g, v), k)| (g, v, k));
            }
        }
        schema.nodes.push(Node::Struct { id, atomic: s.atomic });
        schema.by_name.insert(name, id);
        schema.structs.push(s);
    }
    let mut reader = Reader { schema, known: HashMap::new() };
    let mut current = 0;
    for line in text.lines() {
        if line.starts_with('@') {
            let first = reader.schema.fields.len() as u32;
            reader.schema.structs[current].first = first;
            current += 1;
        } else {
            reader.field(line.trim_start());
            reader.schema.structs[current - 1].count += 1;
        }
    }
    reader.schema
}

/// The definition's name in full.
fn full_name(short: &'static str) -> Name {
    if short.starts_with('.') { Cow::Owned(format!("{API}{short}")) } else { Cow::Borrowed(short) }
}

impl Reader {
    fn field(&mut self, line: &'static str) {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or("");
        let kind = words.next().unwrap_or("");
        let (mut emit, mut required) = (Emit::Set, false);
        let (mut list, mut atomic) = (None, None);
        let (mut patch, mut merge_key) = (PatchStrategy::default(), None);
        for word in words {
            match word {
                "s" => emit = Emit::NonEmpty,
                "p" => emit = Emit::Set,
                "e" => emit = Emit::Always,
                "n" => emit = Emit::Null,
                "z" => emit = Emit::NonZero,
                "!" => required = true,
                "atomic" => (atomic, list) = (Some(true), Some(ListKind::Atomic)),
                "granular" => atomic = Some(false),
                "set" => list = Some(ListKind::Set),
                _ => {
                    if let Some(keys) = word.strip_prefix("map:") {
                        list = Some(ListKind::Map(keys.split(',').map(list_key).collect()));
                    } else if let Some(strategies) = word.strip_prefix("patch:") {
                        patch.merge = strategies.split(',').any(|s| s == "merge");
                        patch.replace = strategies == "replace";
                        patch.retain_keys = strategies.split(',').any(|s| s == "retainKeys");
                    } else if let Some(key) = word.strip_prefix("key:") {
                        merge_key = Some(Cow::Borrowed(key));
                    }
                }
            }
        }
        let node = self.node(kind, list, atomic);
        self.schema.fields.push(Field { name: Cow::Borrowed(name), node, emit, required, patch, merge_key });
    }

    /// The node for this type text and these marks, made once.
    fn node(&mut self, kind: &'static str, list: Option<ListKind>, atomic: Option<bool>) -> u32 {
        let marked = list.is_some() || atomic.is_some();
        if !marked && let Some(node) = self.known.get(kind) {
            return *node;
        }
        let node = match kind.as_bytes().first() {
            Some(b'[') => {
                let item = self.node(&kind[1..], None, None);
                Node::List { item, marked: list.is_some(), kind: list.unwrap_or(ListKind::Atomic) }
            }
            Some(b'{') => Node::Map { value: self.node(&kind[1..], None, None), atomic: atomic == Some(true) },
            Some(b'&') => {
                let id = self.schema.by_name[full_name(&kind[1..]).as_ref()];
                if atomic.is_none_or(|a| a == self.schema.structs[id as usize].atomic) {
                    return id;
                }
                Node::Struct { id, atomic: atomic == Some(true) }
            }
            Some(b'x') => Node::SchemaOr(self.schema.by_name[full_name(&kind[1..]).as_ref()]),
            Some(b'j') => Node::Any,
            Some(b'r') => Node::Raw,
            _ => Node::Scalar(scalar(kind)),
        };
        let at = self.schema.nodes.len() as u32;
        self.schema.nodes.push(node);
        if !marked {
            self.known.insert(kind.to_owned(), at);
        }
        at
    }
}

/// `protocol` and `name` are the built-in list keys with a default.
fn list_key(name: &'static str) -> ListKey {
    let default = match name {
        "protocol" => Some(serde_json::Value::from("TCP")),
        "name" => Some(serde_json::Value::from("")),
        _ => None,
    };
    ListKey { name: Cow::Borrowed(name), default }
}

fn scalar(kind: &str) -> Scalar {
    match kind {
        "y" => Scalar::Bytes,
        "b" => Scalar::Bool,
        "i" => Scalar::Int32,
        "l" => Scalar::Int64,
        "d" => Scalar::Double,
        "q" => Scalar::Quantity,
        "t" => Scalar::Time,
        "m" => Scalar::MicroTime,
        "u" => Scalar::Duration,
        "o" => Scalar::IntOrString,
        _ => Scalar::String,
    }
}
