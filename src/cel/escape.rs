//! Names of fields as expressions write them (`k8s.io/apiserver/pkg/cel/escaping.go`).

use super::parser::RESERVED;

/// What the grammar reads as something else than a name, besides the reserved words.
const KEYWORDS: [&str; 4] = ["true", "false", "null", "in"];

/// Whether a variable can have the name.
pub fn is_identifier(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit()) && !is_word(name)
}

fn is_word(name: &str) -> bool {
    RESERVED.contains(&name) || KEYWORDS.contains(&name)
}

/// The name of a field in expressions: what no identifier can have is written out. None where it cannot be named.
pub fn escape(name: &str) -> Option<Box<str>> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if is_word(name) {
        return Some(format!("__{name}__").into());
    }
    let mut out = String::with_capacity(name.len());
    let mut letters = name.chars().peekable();
    while let Some(c) = letters.next() {
        match c {
            '_' if letters.peek() == Some(&'_') => {
                letters.next();
                out.push_str("__underscores__");
            }
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => out.push(c),
            _ => return None,
        }
    }
    Some(out.into())
}
