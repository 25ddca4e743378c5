//! What is wrong with literals that are of the right type: times that are none, patterns, formats whose arguments do not fit,
//! lists of several types (cel-go's `cel/validator.go`, `ext/formatting.go`).

use std::collections::HashSet;
use std::sync::Arc;

use super::check::Checked;
use super::expr::{Expr, Id, Kind, Literal};
use super::library::text_format::{Piece, pieces, wrong};
use super::parser::Parsed;
use super::source::Issues;
use super::time::{Time, duration};
use super::types::{Head, Type};
use crate::base::pattern::Pattern;

struct Validator<'v> {
    checked: &'v Checked,
    places: &'v [u32],
    issues: &'v mut Issues,
    seen: HashSet<Id>,
}

/// Notes what is wrong with literals.
pub(super) fn validate(parsed: &Parsed, checked: &Checked, issues: &mut Issues) {
    let mut validator = Validator { checked, places: &parsed.places, issues, seen: HashSet::new() };
    validator.look(&parsed.root, false);
}

// === impl Validator ===

impl Validator<'_> {
    fn issue(&mut self, expr: &Expr, message: String) {
        self.issues.push(Some(self.places[expr.id as usize]), message);
    }

    fn look(&mut self, expr: &Arc<Expr>, in_format: bool) {
        // What macros repeat is looked at once.
        if !self.seen.insert(expr.id) {
            return;
        }
        let mut in_format = in_format;
        match &expr.kind {
            Kind::Call { function, target, args } => {
                self.call(expr, function, target.as_ref(), args);
                in_format |= &**function == "format";
            }
            Kind::List(items) if !in_format => {
                let items: Vec<_> = items.iter().map(|(item, optional)| (item, *optional)).collect();
                self.alike(&items, true);
            }
            Kind::Map(entries) if !in_format => {
                let keys: Vec<_> = entries.iter().map(|e| (&e.key, false)).collect();
                let values: Vec<_> = entries.iter().map(|e| (&e.value, e.optional)).collect();
                self.alike(&keys, false);
                self.alike(&values, false);
            }
            _ => {}
        }
        expr.kind.each(&mut |below| self.look(below, in_format));
    }

    fn alike(&mut self, members: &[(&Arc<Expr>, bool)], once: bool) {
        let mut first: Option<Type> = None;
        for (member, optional) in members {
            let of = self.checked.type_of(member).clone();
            let of = if *optional { of.unwrapped().0.clone() } else { of };
            match &first {
                None => first = Some(of),
                Some(first) if !first.is_equivalent(&of) => {
                    let why = format!("expected type '{first}' but found '{of}'");
                    self.issue(member, why);
                    if once {
                        return;
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn call(&mut self, expr: &Expr, function: &str, target: Option<&Arc<Expr>>, args: &[Arc<Expr>]) {
        let Some(arg) = args.first() else { return };
        let fits = match (function, arg.literal()) {
            ("duration", Some(Literal::String(text))) => duration(text).is_some(),
            ("timestamp", Some(Literal::String(text))) => Time::parse(text).is_some(),
            ("timestamp", Some(Literal::Int(seconds))) => Time::from_seconds(*seconds).is_some(),
            ("matches", Some(Literal::String(pattern))) => Pattern::check(pattern).is_ok(),
            _ => true,
        };
        if !fits {
            self.issue(arg, format!("invalid {function} argument"));
        }
        if let (Some(format), Kind::List(items), 1) = (target.and_then(|t| t.text()), &arg.kind, args.len())
            && function == "format"
        {
            self.format(expr, format, items);
        }
    }

    fn format(&mut self, expr: &Expr, format: &str, items: &[(Arc<Expr>, bool)]) {
        let pieces = match pieces(format, items.len()) {
            Ok(pieces) => pieces,
            Err(why) => return self.issue(expr, why),
        };
        let mut used = 0;
        for piece in pieces {
            let Piece::Clause(letter, _) = piece else { continue };
            let item = &items[used].0;
            used += 1;
            if let Some(bad) = self.unwritten(letter, item) {
                let given = self.checked.type_of(&bad).name().to_owned();
                self.issue(&bad, format!("error during formatting: {}", wrong(letter, &given)));
                return;
            }
        }
        if items.len() > used {
            let given = items.len();
            self.issue(expr, format!("too many arguments supplied to string.format (expected {used}, got {given})"));
        }
    }

    /// The part of an argument that cannot be written by this letter.
    fn unwritten(&self, letter: char, item: &Arc<Expr>) -> Option<Arc<Expr>> {
        let of = self.checked.type_of(item);
        let fits = match (letter, of) {
            (_, Type::Dyn) => true,
            ('d' | 'o', of) => matches!(of, Type::Int | Type::Uint),
            ('f' | 'e', of) => matches!(of, Type::Double | Type::String),
            ('b', of) => matches!(of, Type::Int | Type::Uint | Type::Bool),
            ('x' | 'X', of) => matches!(of, Type::Int | Type::Uint | Type::String | Type::Bytes),
            (_, Type::Compound(c)) => c.head != Head::Optional,
            (_, Type::Object(_) | Type::Named(_) | Type::Error | Type::Param(_)) => false,
            _ => true,
        };
        if !fits {
            return Some(item.clone());
        }
        match &item.kind {
            Kind::List(items) if letter == 's' => items.iter().find_map(|(item, _)| self.unwritten(letter, item)),
            Kind::Map(entries) if letter == 's' => {
                entries.iter().find_map(|e| self.unwritten(letter, &e.key).or_else(|| self.unwritten(letter, &e.value)))
            }
            _ => None,
        }
    }
}
