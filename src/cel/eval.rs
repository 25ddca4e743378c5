//! Evaluates expressions. What each step costs is counted as cel-go counts it (`interpreter/runtimecost.go`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::charge::STRUCT_COST;
use super::library;
use super::meter::{Failure, Meter};
use super::plan::{FoldNode, How, Invocation, Node, Select, Step, StructNode};
use super::value::{List, Map, Message, Value};

type Outcome<'a> = Result<Value<'a>, Failure>;

const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;

struct Machine<'a, 'm> {
    meter: &'m mut Meter,
    variables: &'m [Option<Value<'a>>],
    /// Variables of the expression itself; an accumulator may be an error that is passed over later.
    locals: Vec<Outcome<'a>>,
}

/// The value of an expression.
pub(super) fn eval<'a>(node: &Node, variables: &[Option<Value<'a>>], meter: &mut Meter) -> Outcome<'a> {
    Machine { meter, variables, locals: Vec::new() }.eval(node)
}

// === impl Machine ===

impl<'a> Machine<'a, '_> {
    fn eval(&mut self, node: &Node) -> Outcome<'a> {
        match node {
            Node::Const(value) => Ok(value.clone()),
            Node::Variable(number) => self.variable(*number),
            Node::Local(place) => {
                self.meter.charge(1)?;
                self.locals[*place].clone()
            }
            Node::Select(select) => self.select(select),
            Node::Index(parts, optional) => self.index(parts, *optional),
            Node::And(parts) => self.logical(parts, false),
            Node::Or(parts) => self.logical(parts, true),
            Node::Conditional(parts) => self.conditional(parts),
            Node::NotStrictlyFalse(inner) => self.not_strictly_false(inner),
            Node::OrOptional(parts, unwrap) => self.or_optional(parts, *unwrap),
            Node::Call(call) => self.call(call),
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Fold(fold) => self.fold(fold),
            Node::Struct(of) => self.message(of),
            Node::Bind(parts) => self.bind(parts),
        }
    }

    fn variable(&mut self, number: usize) -> Outcome<'a> {
        self.meter.charge(1)?;
        let found = self.variables.get(number).cloned().flatten();
        found.ok_or_else(|| Failure::error("no such attribute(s)"))
    }

    fn select(&mut self, select: &Select) -> Outcome<'a> {
        let operand = self.eval(&select.operand)?;
        if select.how != How::Presence {
            self.meter.charge(1 + u64::from(select.costs_more))?;
        }
        let (operand, is_optional) = match operand {
            Value::Optional(None) if select.how == How::Presence => return Ok(Value::Bool(false)),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => ((*inner).clone(), true),
            other => (other, false),
        };
        let found = match &operand {
            Value::Map(map) => map.field(&select.field, self.meter).transpose()?,
            _ if is_optional || select.how == How::Optional => return Err(Failure::no_overload()),
            _ => None,
        };
        match (select.how, found) {
            (How::Presence, found) => Ok(Value::Bool(found.is_some())),
            (How::Optional, found) => Ok(Value::Optional(found.map(Arc::new))),
            (How::Value, Some(value)) if is_optional => Ok(Value::some(value)),
            (How::Value, Some(value)) => Ok(value),
            (How::Value, None) if is_optional => Ok(Value::Optional(None)),
            (How::Value, None) => Err(Failure::error(format!("no such key: {}", select.field))),
        }
    }

    fn index(&mut self, [operand, index]: &[Node; 2], optional: bool) -> Outcome<'a> {
        let operand = self.eval(operand)?;
        let index = self.eval(index)?;
        self.meter.charge(1)?;
        let (operand, is_optional) = match operand {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => ((*inner).clone(), true),
            other => (other, false),
        };
        let found = match &operand {
            Value::List(list) => match library::list_index(&index) {
                Some(at) => usize::try_from(at).ok().and_then(|at| list.get(at)).transpose()?,
                None => return Err(Failure::error(format!("unsupported index type '{}'", index.type_of().name()))),
            },
            Value::Map(map) => map.get(&index, self.meter).transpose()?,
            _ => None,
        };
        match found {
            Some(value) if optional || is_optional => Ok(Value::some(value)),
            Some(value) => Ok(value),
            None if optional || is_optional => Ok(Value::Optional(None)),
            None => {
                let shown = library::shown(&index);
                let what = if matches!(operand, Value::List(_)) { "index out of bounds" } else { "no such key" };
                Err(Failure::error(format!("{what}: {shown}")))
            }
        }
    }

    /// `&&` and `||`: a side that decides passes over an error of the other.
    fn logical(&mut self, [left, right]: &[Node; 2], decides: bool) -> Outcome<'a> {
        let left = match self.eval(left) {
            Ok(Value::Bool(b)) if b == decides => return Ok(Value::Bool(decides)),
            Err(Failure::Cancelled) => return Err(Failure::Cancelled),
            other => other,
        };
        let right = match self.eval(right) {
            Ok(Value::Bool(b)) if b == decides => return Ok(Value::Bool(decides)),
            Err(Failure::Cancelled) => return Err(Failure::Cancelled),
            other => other,
        };
        match (left, right) {
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => Ok(Value::Bool(!decides)),
            (Err(error), _) | (_, Err(error)) => Err(error),
            _ => Err(Failure::no_overload()),
        }
    }

    fn conditional(&mut self, [condition, yes, no]: &[Node; 3]) -> Outcome<'a> {
        match self.eval(condition)? {
            Value::Bool(true) => self.eval(yes),
            Value::Bool(false) => self.eval(no),
            _ => Err(Failure::no_overload()),
        }
    }

    fn not_strictly_false(&mut self, inner: &Node) -> Outcome<'a> {
        let value = self.eval(inner);
        self.meter.charge(1)?;
        match value {
            Ok(Value::Bool(b)) => Ok(Value::Bool(b)),
            Err(Failure::Cancelled) => Err(Failure::Cancelled),
            _ => Ok(Value::Bool(true)),
        }
    }

    fn or_optional(&mut self, [first, second]: &[Node; 2], unwrap: bool) -> Outcome<'a> {
        match self.eval(first)? {
            Value::Optional(Some(value)) if unwrap => Ok((*value).clone()),
            Value::Optional(Some(value)) => Ok(Value::Optional(Some(value))),
            Value::Optional(None) => self.eval(second),
            _ => Err(Failure::no_overload()),
        }
    }

    fn call(&mut self, call: &Invocation) -> Outcome<'a> {
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            args.push(self.eval(arg)?);
        }
        let result = (call.run)(self.meter, &args)?;
        let cost = call.charge.cost(call.overload, &args, &result, self.meter)?;
        self.meter.charge(cost)?;
        Ok(result)
    }

    fn list(&mut self, items: &[(Node, bool)]) -> Outcome<'a> {
        self.meter.make_items(items.len())?;
        let mut out = Vec::with_capacity(items.len());
        for (item, optional) in items {
            match (self.eval(item)?, optional) {
                (value, false) => out.push(value),
                (Value::Optional(value), true) => out.extend(value.map(|v| (*v).clone())),
                (other, true) => {
                    let shown = library::shown(&other);
                    let why = format!("cannot initialize optional list element from non-optional value {shown}");
                    return Err(Failure::error(why));
                }
            }
        }
        self.meter.charge(LIST_COST)?;
        Ok(Value::list(out))
    }

    fn map(&mut self, entries: &[(Node, Node, bool)]) -> Outcome<'a> {
        self.meter.make_items(entries.len().saturating_mul(3))?;
        let mut out = Vec::with_capacity(entries.len());
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            match (self.eval(value)?, optional) {
                (value, false) => out.push((key, value)),
                (Value::Optional(value), true) => out.extend(value.map(|v| (key, (*v).clone()))),
                (other, true) => {
                    let (key, value) = (library::shown(&key), library::shown(&other));
                    let why = format!("cannot initialize optional entry '{key}' from non-optional value {value}");
                    return Err(Failure::error(why));
                }
            }
        }
        self.meter.charge(MAP_COST)?;
        library::map_of(out.into_iter())
    }

    fn message(&mut self, of: &StructNode) -> Outcome<'a> {
        self.meter.make_items(of.fields.len().saturating_mul(3))?;
        let mut fields = BTreeMap::new();
        for (name, value, optional) in &of.fields {
            let value = match (self.eval(value)?, optional) {
                (value, false) => Some(value),
                (Value::Optional(value), true) => value.map(|v| (*v).clone()),
                (other, true) => {
                    let value = library::shown(&other);
                    let why = format!("cannot initialize optional entry '{name}' from non-optional value {value}");
                    return Err(Failure::error(why));
                }
            };
            fields.extend(value.map(|value| (name.clone(), value)));
        }
        self.meter.charge(STRUCT_COST)?;
        Ok(Value::Map(Map::Message(Arc::new(Message { name: of.name.clone(), fields }))))
    }

    fn bind(&mut self, [init, result]: &[Node; 2]) -> Outcome<'a> {
        let init = self.eval(init);
        if matches!(init, Err(Failure::Cancelled)) {
            return init;
        }
        self.locals.push(init);
        let result = self.eval(result);
        self.locals.pop();
        result
    }

    fn fold(&mut self, fold: &FoldNode) -> Outcome<'a> {
        let range = self.eval(&fold.range)?;
        let init = self.eval(&fold.init)?;
        let place = self.locals.len();
        self.locals.push(Ok(init));
        let result = self.steps(fold, &range, place);
        self.locals.truncate(place + 1);
        let result = result.and_then(|()| self.eval(&fold.result));
        self.locals.truncate(place);
        result
    }

    fn steps(&mut self, fold: &FoldNode, range: &Value<'a>, place: usize) -> Result<(), Failure> {
        match range {
            Value::List(list) => {
                for at in 0..list.len() {
                    let Some(item) = list.get(at) else { break };
                    let index = i64::try_from(at).unwrap_or(i64::MAX);
                    let (first, second) =
                        if fold.has_second { (Ok(Value::Int(index)), Some(item)) } else { (item, None) };
                    if !self.step(fold, place, first, second)? {
                        break;
                    }
                }
                Ok(())
            }
            Value::Map(map) => {
                self.meter.make_items(map.len())?;
                for key in map.keys() {
                    let second = if fold.has_second { map.get(&key, self.meter) } else { None };
                    if !self.step(fold, place, Ok(key), second)? {
                        break;
                    }
                }
                Ok(())
            }
            _ => Err(Failure::no_overload()),
        }
    }

    /// One step; whether there may be another one.
    fn step(
        &mut self,
        fold: &FoldNode,
        place: usize,
        first: Outcome<'a>,
        second: Option<Outcome<'a>>,
    ) -> Result<bool, Failure> {
        self.meter.work(4)?;
        self.locals.truncate(place + 1);
        self.locals.push(first);
        self.locals.extend(second);
        if let Ok(Value::Bool(false)) = self.absorbed(&fold.condition)? {
            return Ok(false);
        }
        match &fold.step {
            Step::Any(step) => self.locals[place] = self.absorbed(step)?,
            Step::Append(test, item) => self.grow(place, test.as_ref(), |machine| {
                let item = machine.eval(item)?;
                machine.meter.charge(1 + LIST_COST)?;
                machine.meter.make_items(1)?;
                append(&mut machine.locals[place], item)
            })?,
            Step::Insert(test, key, value) => self.grow(place, test.as_ref(), |machine| {
                let key = machine.eval(key)?;
                let value = value.as_ref().map(|value| machine.eval(value)).transpose()?;
                machine.meter.charge(1)?;
                let added: Vec<(Value<'a>, Value<'a>)> = match (key, value) {
                    (key, Some(value)) => vec![(key, value)],
                    (Value::Map(map), None) => library::entries(&map, machine.meter)?,
                    _ => return Err(Failure::no_overload()),
                };
                machine.meter.make_items(added.len().saturating_mul(3))?;
                insert(&mut machine.locals[place], added)
            })?,
        }
        Ok(true)
    }

    /// What a part gives, errors that may be passed over included.
    fn absorbed(&mut self, node: &Node) -> Result<Outcome<'a>, Failure> {
        match self.eval(node) {
            Err(Failure::Cancelled) => Err(Failure::Cancelled),
            other => Ok(other),
        }
    }

    /// Changes the accumulator, if the test holds; from an error on it is that error.
    fn grow(
        &mut self,
        place: usize,
        test: Option<&Node>,
        change: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let holds = match test.map(|test| self.eval(test)) {
            None | Some(Ok(Value::Bool(true))) => Ok(true),
            Some(Ok(Value::Bool(false))) => Ok(false),
            Some(Ok(_)) => Err(Failure::no_overload()),
            Some(Err(error)) => Err(error),
        };
        self.meter.charge(1)?;
        let changed = holds.and_then(|holds| if holds { change(self) } else { Ok(()) });
        match changed {
            Err(Failure::Cancelled) => Err(Failure::Cancelled),
            Err(error) => {
                self.locals[place] = Err(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn append<'a>(accu: &mut Outcome<'a>, item: Value<'a>) -> Result<(), Failure> {
    match accu {
        Ok(Value::List(List::Made(items))) => {
            Arc::make_mut(items).push(item);
            Ok(())
        }
        Ok(_) => Err(Failure::no_overload()),
        Err(error) => Err(error.clone()),
    }
}

fn insert<'a>(accu: &mut Outcome<'a>, added: Vec<(Value<'a>, Value<'a>)>) -> Result<(), Failure> {
    match accu {
        Ok(Value::Map(Map::Made(entries))) => {
            let entries = Arc::make_mut(entries);
            for (key, value) in added {
                library::insert(entries, &key, value)?;
            }
            Ok(())
        }
        Ok(_) => Err(Failure::no_overload()),
        Err(error) => Err(error.clone()),
    }
}
