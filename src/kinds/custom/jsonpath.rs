//! JSONPath as far as definitions use it (`k8s.io/client-go/util/jsonpath`): members, items, ranges, wildcards, descent,
//! filters with one comparison.

use serde_json::Value;

/// Values that a path may lead to, and looks at, at most: `..` and `*` may be written one after the other.
const FOUND_MAX: usize = 1_000;
/// Steps of a path at most.
const STEPS_MAX: usize = 100;

/// A path into an object.
#[derive(Debug)]
pub struct JsonPath(Vec<Step>);

/// Why a text is no path.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PathError(&'static str);

#[derive(Debug)]
enum Step {
    Member(String),
    /// Counted from the end where negative.
    Item(i64),
    Range(Option<i64>, Option<i64>, i64),
    Every,
    /// Everything below, and the value itself.
    Descend,
    Filter(Vec<Step>, Option<(Comparison, Operand)>),
    Union(Vec<Step>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug)]
enum Operand {
    Value(Value),
    Path(Vec<Step>),
}

// === impl JsonPath ===

impl JsonPath {
    /// Reads a path such as `.status.conditions[?(@.type=="Ready")].status`.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let mut reader = Reader { rest: text.strip_prefix('$').unwrap_or(text), filters: 0 };
        let steps = reader.steps()?;
        if !reader.rest.is_empty() {
            return Err(PathError("unexpected text behind the path"));
        }
        Ok(Self(steps))
    }

    /// The first value that it leads to. `looks` is how many values may still be looked at: behind them there is nothing.
    pub fn first<'v>(&self, value: &'v Value, looks: &mut usize) -> Option<&'v Value> {
        follow(&self.0, value, looks).into_iter().next()
    }
}

fn follow<'v>(steps: &[Step], value: &'v Value, looks: &mut usize) -> Vec<&'v Value> {
    let mut found = vec![value];
    for step in steps {
        let mut next = Vec::new();
        for value in found {
            step.take(value, &mut next, looks);
            if next.len() > FOUND_MAX {
                next.truncate(FOUND_MAX);
                break;
            }
        }
        found = next;
    }
    found
}

/// Counts one more look; whether there was one left.
fn look(looks: &mut usize) -> bool {
    let is_left = *looks > 0;
    *looks = looks.saturating_sub(1);
    is_left
}

// === impl Step ===

impl Step {
    fn take<'v>(&self, value: &'v Value, out: &mut Vec<&'v Value>, looks: &mut usize) {
        if !look(looks) {
            return;
        }
        match self {
            Self::Member(name) => out.extend(value.get(name)),
            Self::Item(index) => {
                let Some(items) = value.as_array() else { return };
                out.extend(position(*index, items.len()).and_then(|i| items.get(i)));
            }
            Self::Range(from, to, step) => {
                let Some(items) = value.as_array() else { return };
                let bound = |i: i64| if i < 0 { (items.len() as i64 + i).max(0) } else { i.min(items.len() as i64) };
                let (from, to) = (bound(from.unwrap_or(0)), bound(to.unwrap_or(items.len() as i64)));
                let taken = items.iter().take(to as usize).skip(from as usize).step_by((*step).max(1) as usize);
                out.extend(taken.take(FOUND_MAX + 1).take_while(|_| look(looks)));
            }
            Self::Every => match value {
                Value::Array(items) => out.extend(items.iter().take(FOUND_MAX + 1).take_while(|_| look(looks))),
                Value::Object(members) => {
                    out.extend(members.values().take(FOUND_MAX + 1).take_while(|_| look(looks)));
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            },
            Self::Descend => descend(value, out, looks),
            Self::Filter(path, compared) => {
                for item in value.as_array().into_iter().flatten() {
                    if out.len() > FOUND_MAX || !look(looks) {
                        return;
                    }
                    let left = follow(path, item, looks).into_iter().next();
                    let fits = match (left, compared) {
                        (left, None) => left.is_some(),
                        (None, Some(_)) => false,
                        (Some(left), Some((how, Operand::Value(right)))) => how.holds(left, right),
                        (Some(left), Some((how, Operand::Path(path)))) => {
                            follow(path, item, looks).first().is_some_and(|right| how.holds(left, right))
                        }
                    };
                    if fits {
                        out.push(item);
                    }
                }
            }
            Self::Union(steps) => steps.iter().for_each(|step| step.take(value, out, looks)),
        }
    }
}

fn descend<'v>(value: &'v Value, out: &mut Vec<&'v Value>, looks: &mut usize) {
    if out.len() > FOUND_MAX || !look(looks) {
        return;
    }
    out.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|v| descend(v, out, looks)),
        Value::Object(members) => members.values().for_each(|v| descend(v, out, looks)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn position(index: i64, len: usize) -> Option<usize> {
    let index = if index < 0 { len as i64 + index } else { index };
    usize::try_from(index).ok()
}

// === impl Comparison ===

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left, right) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            _ => None,
        };
        match self {
            Self::Equal => order.is_some_and(|o| o.is_eq()) || (left.is_null() && right.is_null()),
            // Lists and objects are not compared at all.
            Self::Unequal => {
                let is_plain = |v: &Value| !v.is_array() && !v.is_object();
                is_plain(left) && is_plain(right) && !Self::Equal.holds(left, right)
            }
            Self::Less => order.is_some_and(|o| o.is_lt()),
            Self::LessOrEqual => order.is_some_and(|o| o.is_le()),
            Self::Greater => order.is_some_and(|o| o.is_gt()),
            Self::GreaterOrEqual => order.is_some_and(|o| o.is_ge()),
        }
    }
}

struct Reader<'t> {
    rest: &'t str,
    /// How many filters we are in: one in another is not followed.
    filters: usize,
}

// === impl Reader ===

impl<'t> Reader<'t> {
    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn steps(&mut self) -> Result<Vec<Step>, PathError> {
        let mut steps = Vec::new();
        loop {
            if steps.len() > STEPS_MAX {
                return Err(PathError("the path has too many steps"));
            }
            if self.eat("..") {
                steps.push(Step::Descend);
                if !self.rest.starts_with('[') {
                    steps.push(self.name()?);
                }
            } else if self.rest == "." {
                self.rest = "";
            } else if self.eat(".") {
                if !self.rest.starts_with('[') {
                    steps.push(self.name()?);
                }
            } else if self.eat("[") {
                steps.push(self.bracket()?);
            } else {
                return Ok(steps);
            }
        }
    }

    fn name(&mut self) -> Result<Step, PathError> {
        if self.eat("*") {
            return Ok(Step::Every);
        }
        let (mut name, mut letters) = (String::new(), self.rest.char_indices());
        let mut end = self.rest.len();
        while let Some((i, c)) = letters.next() {
            match c {
                '\\' => name.extend(letters.next().map(|(_, c)| c)),
                c if c.is_whitespace() || ".[]()=!<>@,\"'?*&|{}".contains(c) => {
                    end = i;
                    break;
                }
                c => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        if name.is_empty() { Err(PathError("a name is missing")) } else { Ok(Step::Member(name)) }
    }

    fn bracket(&mut self) -> Result<Step, PathError> {
        self.spaces();
        if self.eat("?(") {
            return self.filter();
        }
        let mut all = vec![self.element()?];
        loop {
            self.spaces();
            if self.eat("]") {
                break;
            }
            if !self.eat(",") {
                return Err(PathError("unterminated array"));
            }
            self.spaces();
            all.push(self.element()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Step::Union(all) })
    }

    fn element(&mut self) -> Result<Step, PathError> {
        if self.eat("*") {
            return Ok(Step::Every);
        }
        if self.rest.starts_with(['\'', '"']) {
            return Ok(Step::Member(self.quoted()?));
        }
        let first = self.number()?;
        if !self.eat(":") {
            return first.map(Step::Item).ok_or(PathError("invalid array index"));
        }
        let second = self.number()?;
        let step = if self.eat(":") { self.number()?.unwrap_or(1) } else { 1 };
        if step < 1 {
            return Err(PathError("the step of a range must be above zero"));
        }
        Ok(Step::Range(first, second, step))
    }

    fn number(&mut self) -> Result<Option<i64>, PathError> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map(Some).map_err(|_| PathError("invalid array index"))
    }

    fn quoted(&mut self) -> Result<String, PathError> {
        let quote = self.rest.chars().next().unwrap_or('"');
        let (mut text, mut letters) = (String::new(), self.rest.char_indices().skip(1));
        while let Some((i, c)) = letters.next() {
            match c {
                '\\' => text.extend(letters.next().map(|(_, c)| c)),
                c if c == quote => {
                    self.rest = &self.rest[i + 1..];
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        Err(PathError("unterminated quoted string"))
    }

    fn filter(&mut self) -> Result<Step, PathError> {
        if self.filters > 0 {
            return Err(PathError("a filter may not be in another"));
        }
        self.filters += 1;
        self.spaces();
        let path = self.operand_path()?;
        self.spaces();
        let how = [
            ("==", Comparison::Equal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let compared = match how.into_iter().find(|(text, _)| self.eat(text)) {
            None => None,
            Some((_, how)) => {
                self.spaces();
                Some((how, self.operand()?))
            }
        };
        self.spaces();
        self.filters -= 1;
        if self.eat(")]") { Ok(Step::Filter(path, compared)) } else { Err(PathError("unterminated filter")) }
    }

    fn operand_path(&mut self) -> Result<Vec<Step>, PathError> {
        if !self.eat("@") {
            return Err(PathError("a filter compares something of @"));
        }
        self.steps()
    }

    fn operand(&mut self) -> Result<Operand, PathError> {
        if self.rest.starts_with('@') {
            return self.operand_path().map(Operand::Path);
        }
        if self.rest.starts_with(['\'', '"']) {
            return self.quoted().map(|text| Operand::Value(text.into()));
        }
        let end = self.rest.find([')', ' ']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        serde_json::from_str(word).map(Operand::Value).map_err(|_| PathError("unrecognized operand of a filter"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_where_they_lead_in_kubectl() {
        let object = json!({
            "a": {"b": "x"}, "l": [{"t": "Ready", "x": 1}, {"t": "Other", "x": 2}, {"x": 3}],
            "metadata": {"labels": {"app.kubernetes.io/name": "n"}}, "n": [1, 2, 3, 4],
        });
        for (path, found) in [
            (".a.b", Some(json!("x"))),
            (".l[*].x", Some(json!(1))),
            (".l[1].x", Some(json!(2))),
            (".l[-1].x", Some(json!(3))),
            (".n[1:3]", Some(json!(2))),
            (".n[7]", None),
            (".l[?(@.t==\"Other\")].x", Some(json!(2))),
            (".l[?(@.t == 'Other')].x", Some(json!(2))),
            (".l[?(@.x>2)].x", Some(json!(3))),
            (".l[?(@.t!='Ready')].t", Some(json!("Other"))),
            (".l[?(@.none)].x", None),
            (".metadata.labels['app.kubernetes.io/name']", Some(json!("n"))),
            (".metadata.labels.app\\.kubernetes\\.io/name", Some(json!("n"))),
            ("..b", Some(json!("x"))),
            (".a.*", Some(json!("x"))),
            ("['a'].b", Some(json!("x"))),
            (".n[3,0]", Some(json!(4))),
            (".missing.b", None),
        ] {
            let read = JsonPath::parse(path).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!(read.first(&object, &mut 1000).cloned(), found, "{path}");
        }
        for wrong in ["spec[[", ".a[", ".l[?(@.t==", ".l[x]", ".l[?(@.a[?(@.b)])]", ".a{}"] {
            assert!(JsonPath::parse(wrong).is_err(), "{wrong}");
        }
        assert!(JsonPath::parse(&"..*".repeat(60)).is_err());
    }

    #[test]
    fn a_path_finds_no_more_than_so_many() {
        let mut deep = json!([1]);
        for _ in 0..14 {
            deep = json!([deep, deep]);
        }
        let path = JsonPath::parse(&"..[*]".repeat(10)).unwrap();
        assert!(path.first(&deep, &mut 1_000_000).is_some());
    }

    #[test]
    fn a_path_looks_at_no_more_than_it_may() {
        // Each item of each list below is filtered by paths that descend again.
        let items = json!({"l": vec![json!({"a": [1, 2, 3], "b": {"c": []}}); 20_000]});
        let mut looks = 20_000;
        JsonPath::parse("..[?(@..a..x..y==1)]..z").unwrap().first(&items, &mut looks);
        assert_eq!(looks, 0);
        let mut looks = 20_000;
        JsonPath::parse(".l[3].a[2]").unwrap().first(&items, &mut looks);
        assert!(looks > 19_990);
    }
}
