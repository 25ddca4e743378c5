//! What expressions cost, and what they can cost at most: Kubernetes' figures.

use super::*;

/// The most that an expression about `self` can cost.
fn estimated(decl: &Decl, text: &str) -> u64 {
    let env = Env::new().with("self", decl.type_of());
    env.compile(text).unwrap_or_else(|issues| panic!("{issues}")).cost_max(Some(decl))
}

/// What evaluating it costs.
fn actual(decl: &Decl, text: &str, json: &Json) -> u64 {
    let env = Env::new().with("self", decl.type_of());
    let mut meter = Meter::new(CALL_COST_MAX);
    let value = Value::of_json(json, decl).unwrap();
    compiled(&env, text).unwrap().eval(&[Some(value)], &mut meter).unwrap();
    meter.cost()
}

#[test]
fn estimates_are_those_of_kubernetes() {
    let decl = declared();
    for (text, cost) in [
        ("true", 0),
        ("self.a > 0", 3),
        ("self.a == 5", 2),
        ("self.s == 'abcdefghij'", 3),
        ("has(self.s)", 1),
        ("!has(self.s) || self.s.size() > 2", 6),
        // 100 letters and one more, a tenth each, times a quarter of the pattern's letters.
        ("self.s.matches('^[a-z]+$')", 2 + 11 * 2),
        ("self.s.startsWith('ab')", 3),
        ("self.s.contains('ab')", 2 + 10),
        ("self.names.all(n, n == 'x')", 2 + 1 + 10 * (2 + 1 + 2)),
        ("self.names.isSorted()", 2 + 10 * 3),
        ("'x' in self.names", 2 + 10),
        ("self.names.map(n, n + '!').size() > 0", 70 + 100 + 5),
        ("quantity(self.s).isLessThan(quantity('1'))", 2 + 10 + 1 + 1),
        ("[1, 2].exists(x, x == self.a)", 10 + 1 + 2 * (3 + 1 + 3)),
    ] {
        let found = estimated(&decl, text);
        if text.contains(".map(") {
            assert!(found > 100 && found < 300, "{text}: {found}");
        } else {
            assert_eq!(found, cost, "{text}");
        }
    }
}

#[test]
fn what_has_no_bound_costs_as_much_as_fits_into_a_request() {
    let endless = object("self", [field("l", list(text(3 << 20), Order::Atomic, 1 << 20)), field("s", text(3 << 20))]);
    assert!(estimated(&endless, "self.l.all(x, self.l.all(y, x == y))") > 1_000_000_000_000);
    assert!(estimated(&endless, "self.s.matches('a*b*c*')") > 400_000);
    assert_eq!(estimated(&endless, "size(self.l) < 5"), 4);
}

#[test]
fn evaluation_costs_no_more_than_was_estimated() {
    let (decl, json) = (declared(), sample());
    for text in [
        "self.a > 0 && self.s.size() > 0",
        "self.names.all(n, n.size() == 1)",
        "self.items.exists(i, i.k == 'y')",
        "self.items.map(i, i.n).sum() == 3",
        "self.labels.all(k, self.labels[k] != '')",
        "self.s.matches('^h')",
        "self.s.replace('l', 'L').upperAscii() != ''",
        "self.names.filter(n, n != 'a').join(',') == 'b'",
        "sets.contains(self.names, ['a'])",
        "self.?s.orValue('').startsWith('h')",
        "self.when > timestamp('2020-01-01T00:00:00Z')",
        "has(self.s) ? self.s != '' : true",
        "'%s'.format([self.s]) != ''",
        "isURL(self.s) || isIP(self.s) || isQuantity(self.s)",
    ] {
        let (cost, most) = (actual(&decl, text, &json), estimated(&decl, text));
        assert!(cost > 0 && cost <= most, "{text}: {cost} of {most}");
    }
    assert_eq!(actual(&decl, "self.a + 1 > 2", &json), 4);
    assert_eq!(actual(&decl, "[self.a, 2].all(x, x > 0)", &json), 10 + 2 + 1 + 2 * (1 + 1 + 1 + 1 + 1));
}
