//! What an expression can cost at most, before it is evaluated (cel-go's `checker/cost.go`).

use std::collections::HashMap;
use std::sync::Arc;

use super::check::Checked;
use super::expr::{Entry, Expr, Fold, Id, Kind, Literal};
use super::library_cost::{Arg, Invocation, call};
use super::range::Range;
use super::types::{Decl, Head, Type};

const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;

/// Through which fields and members a value is reached from a variable.
type Way = Vec<Arc<str>>;

/// How large keys and values of a list or map are.
#[derive(Clone, Copy, Debug)]
struct EntrySize {
    is_list: bool,
    key: Range,
    value: Range,
}

#[derive(Clone, Debug, Default)]
struct Local {
    name: Box<str>,
    way: Way,
    size: Option<Range>,
    entry: Option<EntrySize>,
}

struct Estimator<'e> {
    checked: &'e Checked,
    root: Option<&'e Decl>,
    ways: HashMap<Id, Way>,
    sizes: HashMap<Id, Range>,
    entries: HashMap<Id, EntrySize>,
    locals: Vec<Local>,
}

/// The highest cost of an expression, all of whose variables are as `root` says.
pub(super) fn cost_max(expr: &Expr, checked: &Checked, root: Option<&Decl>) -> u64 {
    let mut estimator = Estimator {
        checked,
        root,
        ways: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
        locals: Vec::new(),
    };
    estimator.cost(expr).max
}

// === impl EntrySize ===

impl EntrySize {
    fn or(self, other: Self) -> Self {
        Self { is_list: self.is_list, key: self.key.or(other.key), value: self.value.or(other.value) }
    }
}

// === impl Estimator ===

impl Estimator<'_> {
    fn cost(&mut self, expr: &Expr) -> Range {
        match &expr.kind {
            Kind::Literal(_) | Kind::Missing | Kind::Struct { .. } => Range::NONE,
            Kind::Ident(name) => self.ident(expr, name),
            Kind::Select { operand, field, test } => self.select(expr, operand, field, *test),
            Kind::Call { .. } => self.call(expr),
            Kind::List(items) => self.list(expr, items),
            Kind::Map(entries) => self.map(expr, entries),
            Kind::Fold(fold) if fold.is_bind() => self.bind(expr, fold),
            Kind::Fold(fold) => self.fold(expr, fold),
        }
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|l| *l.name == *name)
    }

    fn way(&self, expr: &Expr) -> Way {
        if let Some(local) = expr.ident().and_then(|name| self.local(name)) {
            return local.way.clone();
        }
        self.ways.get(&expr.id).cloned().unwrap_or_default()
    }

    fn way_to(&self, expr: &Expr, step: &str) -> Way {
        let mut way = self.way(expr);
        way.push(step.into());
        way
    }

    /// How many elements there may be at a place, if the declarations say.
    fn declared(&self, way: &Way) -> Option<Range> {
        let mut at = self.root?;
        for step in way.get(1..)? {
            at = match &**step {
                "@items" | "@values" => at.element()?,
                "@keys" => return None,
                field => at.field(field)?,
            };
        }
        Some(Range::new(0, at.elements_max))
    }

    fn size(&mut self, expr: &Expr) -> Option<Range> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        match &expr.kind {
            Kind::Literal(literal) => return Some(Range::fixed(literal.size())),
            Kind::List(items) => return Some(Range::fixed(items.len() as u64)),
            Kind::Map(entries) => return Some(Range::fixed(entries.len() as u64)),
            _ => {}
        }
        let way = self.way(expr);
        if let Some(size) = self.declared(&way) {
            self.sizes.insert(expr.id, size);
            return Some(size);
        }
        if self.checked.type_of(expr).is_scalar() {
            return Some(Range::fixed(1));
        }
        expr.ident().and_then(|name| self.local(name)).and_then(|local| local.size)
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Range {
        self.size(expr).unwrap_or(Range::UNKNOWN)
    }

    fn set_size(&mut self, expr: &Expr, size: Option<Range>) {
        if let Some(size) = size {
            self.sizes.insert(expr.id, size);
        }
    }

    fn entry(&self, expr: &Expr) -> Option<EntrySize> {
        let known = self.entries.get(&expr.id).copied();
        known.or_else(|| expr.ident().and_then(|name| self.local(name)).and_then(|local| local.entry))
    }

    fn ident(&mut self, expr: &Expr, name: &str) -> Range {
        let way = self.local(name).map_or_else(|| vec![name.into()], |local| local.way.clone());
        self.ways.insert(expr.id, way);
        Range::fixed(1)
    }

    fn select(&mut self, expr: &Expr, operand: &Arc<Expr>, field: &str, test: bool) -> Range {
        if self.checked.named(expr).is_some() {
            self.ways.insert(expr.id, vec![field.into()]);
            return Range::fixed(1);
        }
        let sum = self.cost(operand);
        if test {
            return sum;
        }
        let way = self.way_to(operand, field);
        self.ways.insert(expr.id, way);
        let of = self.checked.type_of(operand);
        let is_costly = match of {
            Type::Compound(c) => c.head == Head::Map,
            Type::Object(_) | Type::Named(_) | Type::Param(_) => true,
            _ => false,
        };
        if is_costly { sum.plus(Range::fixed(1)) } else { sum }
    }

    fn list(&mut self, expr: &Expr, items: &[(Arc<Expr>, bool)]) -> Range {
        let mut sum = Range::fixed(LIST_COST);
        let mut value = Range::new(if items.is_empty() { 0 } else { u64::MAX }, 0);
        for (item, _) in items {
            sum = sum.plus(self.cost(item));
            value = value.or(self.size_or_unknown(item));
        }
        self.entries.insert(expr.id, EntrySize { is_list: true, key: Range::fixed(1), value });
        sum
    }

    fn map(&mut self, expr: &Expr, entries: &[Entry]) -> Range {
        let mut sum = Range::fixed(MAP_COST);
        let none = Range::new(if entries.is_empty() { 0 } else { u64::MAX }, 0);
        let (mut keys, mut values) = (none, none);
        for Entry { key, value, .. } in entries {
            sum = sum.plus(self.cost(key)).plus(self.cost(value));
            keys = keys.or(self.size_or_unknown(key));
            values = values.or(self.size_or_unknown(value));
        }
        self.entries.insert(expr.id, EntrySize { is_list: false, key: keys, value: values });
        sum
    }

    fn push(&mut self, name: &str, way: Way, size: Option<Range>, entry: Option<EntrySize>) {
        self.locals.push(Local { name: name.into(), way, size, entry });
    }

    fn push_value(&mut self, name: &str, value: &Expr) {
        let (way, size, entry) = (self.way(value), self.size(value), self.entry(value));
        self.push(name, way, size, entry);
    }

    fn bind(&mut self, expr: &Expr, fold: &Fold) -> Range {
        let sum = self.cost(&fold.range).plus(self.cost(&fold.init));
        self.push_value(&fold.accu, &fold.init);
        let sum = sum.plus(self.cost(&fold.result));
        let (size, entry) = (self.size(&fold.result), self.entry(&fold.result));
        self.locals.pop();
        self.set_size(expr, size);
        if let Some(entry) = entry {
            self.entries.insert(expr.id, entry);
        }
        sum
    }

    fn fold(&mut self, expr: &Expr, fold: &Fold) -> Range {
        let mut sum = self.cost(&fold.range).plus(self.cost(&fold.init));
        self.push_value(&fold.accu, &fold.init);
        let outer = self.locals.len();
        let entry = self.entry(&fold.range);
        let is_list =
            entry.map_or_else(|| self.checked.type_of(&fold.range).params(Head::List).is_some(), |entry| entry.is_list);
        let (key, value) = (entry.map(|e| e.key), entry.map(|e| e.value));
        let (keys, values) = if is_list { ("@indices", "@items") } else { ("@keys", "@values") };
        let steps = match &fold.second {
            Some(second) => vec![(&fold.var, keys, key), (second, values, value)],
            None if is_list => vec![(&fold.var, values, value)],
            None => vec![(&fold.var, keys, key)],
        };
        for (name, step, size) in steps {
            let way = self.way_to(&fold.range, step);
            self.push(name, way, size, None);
        }
        let loop_cost = self.cost(&fold.condition);
        let step_cost = self.cost(&fold.step);
        let step_entry = self.entry(&fold.step);
        self.locals.truncate(outer);
        sum = sum.plus(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        sum = sum.plus(count.times(step_cost.plus(loop_cost)));
        match &fold.init.kind {
            Kind::Literal(_) => {
                let size = self.size(&fold.init);
                self.set_size(expr, size);
            }
            Kind::List(_) | Kind::Map(_) => {
                self.set_size(expr, Some(count));
                if let Some(entry) = step_entry {
                    self.entries.insert(expr.id, entry);
                }
            }
            _ => {}
        }
        sum
    }

    fn call(&mut self, expr: &Expr) -> Range {
        let Kind::Call { function, target, args } = &expr.kind else { return Range::NONE };
        if matches!(&**function, "_?._" | "dyn") {
            let cost = self.cost(&args[0]).plus(Range::fixed(1));
            if &**function == "dyn" {
                let (size, entry) = (self.size(&args[0]), self.entry(&args[0]));
                self.set_size(expr, size);
                if let Some(entry) = entry {
                    self.entries.insert(expr.id, entry);
                }
            }
            return cost;
        }
        let costs: Vec<Range> = args.iter().map(|arg| self.cost(arg)).collect();
        let Some(called) = self.checked.called(expr).cloned() else { return Range::NONE };
        let target = target.as_ref().filter(|_| !called.is_qualified);
        let sum = target.map_or(Range::NONE, |target| self.cost(target));
        let target = target.map(|target| self.arg(target));
        let nodes: Vec<Arg<'_>> = args.iter().map(|arg| self.arg(arg)).collect();
        let mut all = Range::new(u64::MAX, 0);
        let mut result: Option<Range> = None;
        for overload in &called.overloads {
            let call_of = Invocation {
                function: called.function.name,
                overload: overload.id,
                target: target.as_ref(),
                args: &nodes,
                costs: &costs,
            };
            let (cost, size) = call(&call_of);
            all = all.or(cost);
            if let Some(size) = size {
                result = Some(result.map_or(size, |known| known.or(size)));
            }
            self.reached(expr, args, overload.id, &mut result);
            result = result.or_else(|| self.size(expr));
        }
        self.set_size(expr, result);
        sum.plus(all)
    }

    /// What is known of the result of a call that only hands on what it was given.
    fn reached(&mut self, expr: &Expr, args: &[Arc<Expr>], overload: &str, result: &mut Option<Range>) {
        match overload {
            "index_list" | "index_map" => {
                *result = self.entry(&args[0]).map(|entry| entry.value);
                let way = self.way_to(&args[0], if overload == "index_list" { "@items" } else { "@values" });
                self.ways.insert(expr.id, way);
            }
            "conditional" | "add_list" | "add_string" | "add_bytes" => {
                let (a, b) = if overload == "conditional" { (&args[1], &args[2]) } else { (&args[0], &args[1]) };
                if let (Some(a), Some(b)) = (self.entry(a), self.entry(b)) {
                    self.entries.insert(expr.id, a.or(b));
                }
            }
            _ => {}
        }
    }

    fn arg<'x>(&mut self, expr: &'x Expr) -> Arg<'x> {
        let of = self.checked.type_of(expr).clone();
        let way = self.way(expr);
        let item = match &of {
            Type::Compound(c) if !c.params.is_empty() => {
                let mut below = way.clone();
                below.push("@items".into());
                let size = if way.is_empty() { None } else { self.declared(&below) };
                Some((c.params[0].clone(), size.unwrap_or(Range::UNKNOWN)))
            }
            _ => None,
        };
        Arg { expr, size: self.size(expr), of, item }
    }
}

// === impl Literal ===

impl Literal {
    fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.chars().count() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Uint(_) | Self::Double(_) => 1,
        }
    }
}
