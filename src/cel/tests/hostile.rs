//! Expressions that mean harm end soon, within the stack and the memory that they may have.

use std::time::{Duration, Instant};

use super::*;

fn ends(text: &str) -> Result<(), String> {
    let begun = Instant::now();
    let result = eval(text).map(drop);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}: {}", text.chars().take(80).collect::<String>());
    result
}

#[test]
fn nothing_is_deeper_than_the_stack() {
    for text in [
        format!("{}1{}", "(".repeat(50_000), ")".repeat(50_000)),
        format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)),
        format!("{}true", "!".repeat(49_999)),
        format!("{}1", "- ".repeat(40_000)),
        vec!["1"; 40_000].join("+"),
        vec!["true"; 20_000].join("?true:"),
        format!("{{}}{}", ".a".repeat(40_000)),
        format!("[]{}", "[0]".repeat(30_000)),
        format!("[1]{}", ".map(x, [x])".repeat(7_000)),
        format!("{}1{}", "[".repeat(240), "]".repeat(240)),
        format!("optional.of(1){}", ".optMap(x, x)".repeat(40)),
        format!("{}x{}", "[1].all(x, ".repeat(240), ")".repeat(240)),
        "a".repeat(100_001),
        format!("{}{}", "{1: ".repeat(20_000), "}".repeat(20_000)),
    ] {
        let _ = ends(&text);
    }
    // A pod's worth of conditions side by side is no harm.
    holds(&[&vec!["1 == 1"; 3_000].join(" && ")]);
    assert!(
        ends(&format!("{}1{}", "(".repeat(251), ")".repeat(251)))
            .unwrap_err()
            .contains("recursion limit exceeded: 250")
    );
}

/// A test thread has as much stack as a worker of the server.
#[test]
fn what_is_as_deep_as_may_be_fits_into_a_worker() {
    let deep = |inner: &str| format!("{}{inner}{}", "[1].map(x, ".repeat(70), ")".repeat(70));
    let texts = [deep("x"), format!("{}1{}", "[".repeat(249), "]".repeat(249)), vec!["1"; 290].join("+")];
    let run = move || texts.iter().for_each(|text| drop(ends(text)));
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn types_do_not_grow_without_end() {
    let mut text = String::from("[1]");
    for _ in 0..60 {
        text = format!("{text}.map(x, {{1: [[x], [x]]}})");
    }
    let _ = ends(&text);
    let mut text = String::from("[1]");
    for _ in 0..40 {
        text = format!("[{text}].map(a, {{a: a}})");
    }
    let _ = ends(&text);
}

#[test]
fn what_takes_much_is_stopped() {
    let doubled = |times: usize| {
        let twice = |text: String, _| format!("[{text}].map(x, x + x)[0]");
        (0..times).fold("'xxxxxxxxxxxxxxxx'".to_owned(), twice)
    };
    for text in [
        doubled(60),
        "lists.range(1000000000).size() > 0".into(),
        "lists.range(100000).map(x, lists.range(100000)).size() > 0".into(),
        "'a'.replace('', lists.range(100000).map(x, 'aaaaaaaaaaaaaaaaaaaaaaaa').join()).size() > 0".into(),
        "lists.range(100000).all(x, lists.range(100000).all(y, true))".into(),
        "lists.range(3000).distinct().size() > 0 && lists.range(100000).distinct().size() > 0".into(),
        "lists.range(100000).map(x, 'a').join().matches('(a+)+$(b|c)*')".into(),
        "lists.range(1000).all(x, 'a'.matches('[a-z]{1,' + string(x + 1) + '}'))".into(),
        "lists.range(100000).map(x, string(x)).sort().size() > 0".into(),
        "lists.range(100000) == lists.range(100000).map(x, x)".into(),
        "'%.999f'.format([1.0]).size() > 0 && lists.range(100000).all(x, '%.999f'.format([1.0]).size() > 0)".into(),
    ] {
        let error = ends(&text).map_or_else(|e| e, |()| String::new());
        let stopped = error.is_empty() || error.contains("cost limit exceeded") || error.contains("recursion");
        assert!(stopped, "{}: {error}", text.chars().take(80).collect::<String>());
    }
    assert!(eval("lists.range(1000000000).size() > 0").unwrap_err().contains("actual cost limit exceeded"));
    assert!(eval("'a'.matches(dyn('(?:[a-z]{1,500}){500}'))").unwrap_err().contains("too large"));
}

#[test]
fn an_evaluation_ends_at_its_cost() {
    let env = Env::new();
    let program = compiled(&env, "lists.range(100).all(x, x >= 0)").unwrap();
    assert!(program.eval(&[], &mut Meter::new(10_000)).is_ok());
    let mut meter = Meter::new(300);
    assert_eq!(program.eval(&[], &mut meter).unwrap_err(), Failure::Cancelled);
    assert!((301..400).contains(&meter.cost()), "{}", meter.cost());
    // Nor is it passed over.
    let program = compiled(&env, "true || lists.range(100).all(x, x >= 0)").unwrap();
    assert!(program.eval(&[], &mut Meter::new(5)).is_ok());
    let program = compiled(&env, "lists.range(100).all(x, x >= 0) || true").unwrap();
    assert!(program.eval(&[], &mut Meter::new(300)).is_err());
}
