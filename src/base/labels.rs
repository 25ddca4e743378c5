//! Label selectors, label syntax, and field selectors.
//!
//! The text grammar is that of `k8s.io/apimachinery/pkg/labels`: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`,
//! `a>1`, `a<1`, joined by commas.

use std::collections::BTreeMap;

use serde_json::Value;
use thiserror::Error;

/// A conjunction of requirements on labels; empty matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector(pub Vec<Requirement>);

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: String,
    pub op: Op,
    pub values: Vec<String>,
}

/// How the label's value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The value is one of the listed ones.
    In,
    /// The label is absent or its value is none of the listed ones.
    NotIn,
    Exists,
    DoesNotExist,
    /// The value is an integer greater than the listed one.
    Gt,
    /// The value is an integer less than the listed one.
    Lt,
}

/// A selector that cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("unable to parse requirement: {0}")]
pub struct SelectorError(pub String);

/// Labels by key.
pub type Labels = BTreeMap<Box<str>, Box<str>>;

// === impl Op ===

impl Op {
    /// The operator of a name in an object; none that Kubernetes does not know.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "In" => Self::In,
            "NotIn" => Self::NotIn,
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::DoesNotExist,
            "Gt" => Self::Gt,
            "Lt" => Self::Lt,
            _ => return None,
        })
    }
}

// === impl Selector ===

impl Selector {
    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser { rest: text }.selector()
    }

    /// From a `metav1.LabelSelector`; an empty selector matches everything, and so must an absent one be handled by the caller.
    pub fn from_object(selector: &Value) -> Result<Self, SelectorError> {
        let mut out = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let values = vec![value.as_str().unwrap_or("").to_owned()];
            out.push(Requirement { key: key.clone(), op: Op::In, values });
        }
        for e in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let name = e.get("operator").and_then(Value::as_str).unwrap_or("");
            let unknown = || SelectorError(format!("{name:?} is not a valid label selector operator"));
            let op = Op::named(name).ok_or_else(unknown)?;
            let values = e.get("values").and_then(Value::as_array).into_iter().flatten();
            let values: Vec<String> = values.filter_map(|v| v.as_str().map(str::to_owned)).collect();
            if values.is_empty() && matches!(op, Op::In | Op::NotIn) {
                return Err(SelectorError("for 'in', 'notin' operators, values set can't be empty".into()));
            }
            out.push(Requirement { key: e.get("key").and_then(Value::as_str).unwrap_or("").to_owned(), op, values });
        }
        Ok(Self(out))
    }

    /// From a plain map, as in `Service.spec.selector`.
    pub fn from_map<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let one = |(k, v): (&String, &String)| Requirement { key: k.clone(), op: Op::In, values: vec![v.clone()] };
        Self(map.into_iter().map(one).collect())
    }

    /// Whether the labels meet every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| r.matches(labels.get(r.key.as_str()).map(|v| &**v)))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let values = r.values.join(",");
            match (r.op, r.values.len()) {
                (Op::In, 1) => write!(f, "{comma}{}={values}", r.key)?,
                (Op::NotIn, 1) => write!(f, "{comma}{}!={values}", r.key)?,
                (Op::In, _) => write!(f, "{comma}{} in ({values})", r.key)?,
                (Op::NotIn, _) => write!(f, "{comma}{} notin ({values})", r.key)?,
                (Op::Exists, _) => write!(f, "{comma}{}", r.key)?,
                (Op::DoesNotExist, _) => write!(f, "{comma}!{}", r.key)?,
                (Op::Gt, _) => write!(f, "{comma}{}>{values}", r.key)?,
                (Op::Lt, _) => write!(f, "{comma}{}<{values}", r.key)?,
            }
        }
        Ok(())
    }
}

// === impl Requirement ===

impl Requirement {
    /// Whether a label with this value (or none) meets the requirement.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        let number = |v: &str| Some((v.parse::<i64>().ok()?, self.values.first()?.parse::<i64>().ok()?));
        match (self.op, value) {
            (Op::In, Some(v)) => listed(v),
            (Op::NotIn, Some(v)) => !listed(v),
            (Op::Exists, v) => v.is_some(),
            (Op::DoesNotExist, v) => v.is_none(),
            (Op::Gt, Some(v)) => number(v).is_some_and(|(a, b)| a > b),
            (Op::Lt, Some(v)) => number(v).is_some_and(|(a, b)| a < b),
            (Op::NotIn, None) => true,
            (Op::In | Op::Gt | Op::Lt, None) => false,
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

// === impl Parser ===

impl<'a> Parser<'a> {
    fn selector(mut self) -> Result<Selector, SelectorError> {
        let mut out: Vec<Requirement> = Vec::new();
        self.space();
        if self.rest.is_empty() {
            return Ok(Selector::default());
        }
        loop {
            out.push(self.requirement()?);
            self.space();
            if self.rest.is_empty() {
                break;
            }
            if !self.eat(",") {
                return Err(self.error("found an unexpected token, expected ','"));
            }
            self.space();
            if self.rest.is_empty() {
                return Err(self.error("expected an identifier after ','"));
            }
        }
        out.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector(out))
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.eat("!") {
            let key = self.key()?;
            return Ok(Requirement { key, op: Op::DoesNotExist, values: Vec::new() });
        }
        let key = self.key()?;
        self.space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Requirement { key, op: Op::Exists, values: Vec::new() });
        }
        let (op, many) = self.operator()?;
        let values = if many { self.values()? } else { vec![self.word().to_owned()] };
        if matches!(op, Op::Gt | Op::Lt) && values.iter().any(|v| v.parse::<i64>().is_err()) {
            return Err(self.error("for 'Gt', 'Lt' operators, the value must be an integer"));
        }
        if let Some(why) = values.iter().find_map(|v| label_value_error(v)) {
            return Err(SelectorError(why));
        }
        Ok(Requirement { key, op, values })
    }

    fn operator(&mut self) -> Result<(Op, bool), SelectorError> {
        for (token, op) in [("==", Op::In), ("=", Op::In), ("!=", Op::NotIn), (">", Op::Gt), ("<", Op::Lt)] {
            if self.eat(token) {
                return Ok((op, false));
            }
        }
        match self.word() {
            "in" => Ok((Op::In, true)),
            "notin" => Ok((Op::NotIn, true)),
            other => Err(SelectorError(format!("found {other:?}, expected: in, notin, =, ==, !=, gt, lt"))),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.space();
        if !self.eat("(") {
            return Err(self.error("expected '('"));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.word().to_owned());
            self.space();
            if self.eat(")") {
                values.sort();
                values.dedup();
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(self.error("expected ',' or ')'"));
            }
        }
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let key = self.word();
        match label_key_error(key) {
            None => Ok(key.to_owned()),
            Some(why) => Err(SelectorError(why)),
        }
    }

    fn word(&mut self) -> &'a str {
        self.space();
        let end = self.rest.find(|c: char| c.is_whitespace() || "=!(),<>".contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn error(&self, why: &str) -> SelectorError {
        SelectorError(format!("{why} at {:?}", self.rest))
    }
}

/// Why `key` is no label key (`IsQualifiedName`), if it is none.
pub fn label_key_error(key: &str) -> Option<String> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            if prefix.is_empty() {
                return Some("prefix part must be non-empty".into());
            }
            if let Some(why) = dns_subdomain_error(prefix) {
                return Some(format!("prefix part {why}"));
            }
            name
        }
        None => key,
    };
    if name.is_empty() {
        return Some("name part must be non-empty".into());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 bytes".into());
    }
    (!is_qualified(name)).then(|| {
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
         alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
         '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            .into()
    })
}

/// Why `value` is no label value (`IsValidLabelValue`), if it is none.
pub fn label_value_error(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some("must be no more than 63 bytes".into());
    }
    (!value.is_empty() && !is_qualified(value)).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
         start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
         validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            .into()
    })
}

/// Why `name` is no DNS-1123 subdomain, if it is none.
pub fn dns_subdomain_error(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some("must be no more than 253 bytes".into());
    }
    (!name.split('.').all(is_dns_label)).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
         start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .into()
    })
}

/// Why `name` is no DNS-1123 label, if it is none.
pub fn dns_label_error(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 bytes".into());
    }
    (!is_dns_label(name)).then(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
         end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            .into()
    })
}

/// Why `name` is no DNS-1035 label (begins with a letter), if it is none.
pub fn dns_1035_error(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 bytes".into());
    }
    (!is_dns_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase())).then(|| {
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
         character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
         validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            .into()
    })
}

fn is_dns_label(s: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    edge(s.chars().next())
        && edge(s.chars().last())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_qualified(s: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    edge(s.chars().next())
        && edge(s.chars().last())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// A conjunction of `field=value` and `field!=value` terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<FieldTerm>);

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    pub equal: bool,
}

// === impl FieldSelector ===

impl FieldSelector {
    /// Reads the text form (`k8s.io/apimachinery/pkg/fields`), with its escapes of `\`, `,` and `=`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text, ',') {
            if part.is_empty() {
                continue;
            }
            terms.push(
                field_term(part)
                    .ok_or_else(|| SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'")))?,
            );
        }
        Ok(Self(terms))
    }

    /// The value that a field must equal, if a term says so.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

fn split_unescaped(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == separator {
            parts.push(&text[start..i]);
            start = i + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

fn field_term(part: &str) -> Option<FieldTerm> {
    let mut escaped = false;
    for (i, c) in part.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        let rest = &part[i..];
        let (len, equal) = match c {
            '\\' => {
                escaped = true;
                continue;
            }
            _ if rest.starts_with("!=") => (2, false),
            _ if rest.starts_with("==") => (2, true),
            '=' => (1, true),
            _ => continue,
        };
        return Some(FieldTerm { field: part[..i].into(), value: unescape(&part[i + len..])?, equal });
    }
    None
}

fn unescape(text: &str) -> Option<String> {
    let (mut out, mut chars) = (String::with_capacity(text.len()), text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                e @ ('\\' | ',' | '=') => out.push(e),
                _ => return None,
            },
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| (Box::from(*k), Box::from(*v))).collect()
    }

    #[test]
    fn selectors_select() {
        let l = labels(&[("a", "1"), ("b", "x"), ("k.io/n", "y")]);
        for (text, want) in [
            ("", true),
            ("a=1", true),
            ("a==1,b!=y", true),
            ("a in (1, 2),k.io/n", true),
            ("a notin (1)", false),
            ("c notin (1)", true),
            ("!c", true),
            ("!a", false),
            ("a>0", true),
            ("a<1", false),
            ("b>0", false),
            ("a=", false),
            ("c in (,x)", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&l), want, "{text}");
        }
    }

    #[test]
    fn bad_selectors_are_refused() {
        for expression in [r#"{"key":"a","operator":"In"}"#, r#"{"key":"a","operator":"Is"}"#] {
            let selector = serde_json::from_str(&format!(r#"{{"matchExpressions":[{expression}]}}"#)).unwrap();
            assert!(Selector::from_object(&selector).is_err(), "{selector}");
        }
        for text in ["a=1,", ",", "a in 1", "a in (1", "a ~ b", "-a=1", "a=-b", "a>x", "a b", "/a=1"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_printed_reads_the_same() {
        for text in ["a=1,b!=2,c", "!a,b in (x,y)", "a notin (x,y)", "a>3"] {
            let s = Selector::parse(text).unwrap();
            assert_eq!(Selector::parse(&s.to_string()).unwrap(), s);
        }
    }

    #[test]
    fn field_selectors_unescape() {
        let s = FieldSelector::parse(r"metadata.name=a\,b,spec.x!=,status.phase==Running").unwrap();
        assert_eq!(s.0.len(), 3);
        assert_eq!(s.0[0].value, "a,b");
        assert!(!s.0[1].equal && s.0[1].value.is_empty());
        assert!(FieldSelector::parse("metadata.name").is_err());
    }
}
