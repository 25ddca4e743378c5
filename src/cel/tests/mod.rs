//! What expressions mean, what is said of those that are wrong, and what they may take.

mod costs;
mod hostile;
mod language;
mod libraries;
mod words;

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::*;

/// The value of an expression without variables, or why it has none.
fn eval(text: &str) -> Result<Value<'static>, String> {
    let env = Env::new();
    let program = compiled(&env, text)?;
    program.eval(&[], &mut Meter::new(CALL_COST_MAX)).map_err(|e| e.to_string())
}

fn compiled(env: &Env, text: &str) -> Result<Program, String> {
    let expression = env.compile(text).map_err(|issues| issues.to_string())?;
    expression.program(env).map_err(|e| format!("program: {e}"))
}

/// Each of these is true.
fn holds(all: &[&str]) {
    for text in all {
        assert!(matches!(eval(text), Ok(Value::Bool(true))), "{text}: {:?}", eval(text));
    }
}

/// Each of these is wrong in these words.
fn fails(all: &[(&str, &str)]) {
    for (text, why) in all {
        match eval(text) {
            Ok(value) => panic!("{text} is {value:?}, not an error: {why}"),
            Err(error) => assert!(error.contains(why), "{text}: {error:?} has not {why:?}"),
        }
    }
}

fn field(name: &str, decl: Decl) -> (Box<str>, Field) {
    (escape(name).unwrap(), Field { name: name.into(), decl: Arc::new(decl) })
}

fn object(name: &str, fields: impl IntoIterator<Item = (Box<str>, Field)>) -> Decl {
    let fields = fields.into_iter().collect();
    Decl::new(DeclKind::Object(Arc::new(ObjectType { name: name.into(), fields })), 0, 2)
}

fn text(letters_max: u64) -> Decl {
    Decl::new(DeclKind::String, letters_max, 2)
}

fn list(of: Decl, order: Order, items_max: u64) -> Decl {
    Decl::new(DeclKind::List(Arc::new(of), order), items_max, 2)
}

/// An object with a field of every kind.
fn declared() -> Decl {
    let item = || object("self.item", [field("k", text(10)), field("n", Decl::new(DeclKind::Int, 0, 1))]);
    object(
        "self",
        [
            field("a", Decl::new(DeclKind::Int, 0, 1)),
            field("d", Decl::new(DeclKind::Double, 0, 1)),
            field("s", text(100)),
            field("any", Decl::new(DeclKind::IntOrString, 100, 1)),
            field("when", Decl::new(DeclKind::DateTime, 32, 21)),
            field("wait", Decl::new(DeclKind::Duration, 32, 3)),
            field("raw", Decl::new(DeclKind::Bytes, 100, 2)),
            field("names", list(text(20), Order::Set, 10)),
            field("items", list(item(), Order::Map(["k".into()].into()), 10)),
            field("plain", list(item(), Order::Atomic, 10)),
            field("labels", Decl::new(DeclKind::Map(Arc::new(text(20))), 10, 2)),
            field("in", Decl { nullable: true, ..text(5) }),
            field("with-dash.and/slash__x", text(5)),
            field("json", Decl::new(DeclKind::Untyped, 0, 2)),
        ],
    )
}

fn sample() -> Json {
    json!({
        "a": 5, "d": 1, "s": "h\u{e9}llo", "any": "50%", "when": "2026-01-02T03:04:05Z", "wait": "90s", "raw": "AAE=",
        "names": ["a", "b"], "items": [{"k": "x", "n": 1}, {"k": "y", "n": 2}], "plain": [{"k": "x"}],
        "labels": {"app": "web", "a.b/c": "1"}, "in": null, "with-dash.and/slash__x": "w",
        "json": {"n": 1, "l": [1, "a", null], "f": 1.5}, "hidden": 1,
    })
}

/// The value of an expression about [`sample`], which was `old`.
fn about<'j>(decl: &'j Decl, text: &str, new: &'j Json, old: &'j Json) -> Result<Value<'j>, String> {
    let env = Env::new().with("self", decl.type_of()).with("oldSelf", decl.type_of());
    let program = compiled(&env, text)?;
    let of = |json| Value::of_json(json, decl).map(Some).map_err(|e| e.to_string());
    program.eval(&[of(new)?, of(old)?], &mut Meter::new(CALL_COST_MAX)).map_err(|e| e.to_string())
}
