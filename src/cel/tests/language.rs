//! Operators, macros, types and views of JSON.

use proptest::prelude::*;

use super::*;

#[test]
fn operators_bind_as_in_cel() {
    holds(&[
        "1 + 2 * 3 == 7 && 7 / 2 == 3 && -7 / 2 == -3 && -7 % 3 == -1",
        "2 - 1 - 1 == 0 && 8 / 2 / 2 == 2",
        "!false && !!true && - -1 == 1",
        "true ? 1 == 1 : false ? false : false",
        "'a' + \"b\" == '''ab''' && r'\\d' == '\\\\d' && 'x' < 'y'",
        "b'\\xff' != b'\\x00' && b'abc' == bytes('abc') && '\\u00e9' == '\u{e9}' && '\\101' == 'A'",
        "0xff == 255 && 1e3 == 1000.0 && .5 == 0.5 && 5u == 5u && -9223372036854775808 < 0",
        "1 in [1, 2] && 'a' in {'a': 1} && !(3 in [1, 2])",
        "[1, 2,] == [1] + [2] && {1: 'a',}[1] == 'a' && [[1], [2]][1][0] == 2",
        "{'a': {'b': 1}}.a.b == 1 && size('h\u{e9}') == 2 && [1, 2].size() == 2",
        "type(1) == int && type([]) == list && type(1u) == uint && type(null) == null_type && type(int) == type",
        "type(timestamp(0)) == google.protobuf.Timestamp",
        "// a comment\n true",
        "dyn(1) == 1.0 && dyn(1u) == 1 && dyn('a') != 1 && 1 < 1.5 && 2u > 1",
        "{'a.b': 1}.`a.b` == 1",
    ]);
}

#[test]
fn logic_passes_over_errors_of_the_other_side() {
    holds(&["true || 1 / 0 == 1", "1 / 0 == 1 || true", "!(false && 1 / 0 == 1)", "!(1 / 0 == 1 && false)"]);
    holds(&["[1, 0, 2].exists(x, 4 / x == 2)", "![0, 3].all(x, 3 / x == 2)", "true ? true : 1 / 0 == 1"]);
    fails(&[("false || 1 / 0 == 1", "division by zero"), ("[1, 0].all(x, 1 / x == 1)", "division by zero")]);
}

#[test]
fn what_overflows_is_an_error() {
    fails(&[
        ("9223372036854775807 + 1 == 0", "integer overflow"),
        ("-9223372036854775808 - 1 == 0", "integer overflow"),
        ("9223372036854775807 * 2 == 0", "integer overflow"),
        ("-(-9223372036854775808) == 0", "integer overflow"),
        ("1u - 2u == 0u", "unsigned integer overflow"),
        ("1 % 0 == 0", "modulus by zero"),
        ("int(1e19) == 0", "integer overflow"),
        ("uint(-1) == 0u", "unsigned integer overflow"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('1s') == timestamp(0)", "timestamp overflow"),
        ("duration('2562047h') + duration('2562047h') == duration('0')", "duration overflow"),
        ("double('NaN') < 1.0", "NaN values cannot be ordered"),
    ]);
}

#[test]
fn macros_go_through_lists_and_maps() {
    holds(&[
        "[1, 2, 3].all(x, x > 0) && [1, 2].exists(x, x == 2) && [1, 2].exists_one(x, x == 2)",
        "[1, 2, 3].map(x, x * 2) == [2, 4, 6] && [1, 2, 3].map(x, x > 1, x * 2) == [4, 6]",
        "[1, 2, 3].filter(x, x % 2 == 1) == [1, 3] && {'a': 1, 'b': 2}.filter(k, k != 'a') == ['b']",
        "[[1], [2, 3]].all(l, l.all(x, x > 0)) && [1, 2].all(x, [3].all(x, x == 3))",
        "[1, 1].exists(i, v, i == 1 && v == 1) && {'a': 1}.all(k, v, k == 'a' && v == 1)",
        "[5, 6].transformList(i, v, i + v) == [5, 7] && {'a': 1}.transformMap(k, v, v + 1) == {'a': 2}",
        "['a', 'b'].transformMapEntry(i, v, {v: i}) == {'a': 0, 'b': 1}",
        "[1, 2, 3].transformList(i, v, i > 0, v) == [2, 3] && [4, 5].existsOne(i, v, i == v - 4 && i == 1)",
        "has({'a': 1}.a) && !has({'a': 1}.b)",
        "[{'n': 2}, {'n': 1}].sortBy(x, x.n) == [{'n': 1}, {'n': 2}]",
    ]);
    fails(&[("['a', 'a'].transformMapEntry(i, v, {v: i}) == {}", "insert failed: key a already exists")]);
}

#[test]
fn optional_values_are_there_or_not() {
    holds(&[
        "{'a': 1}.?a.value() == 1 && !{'a': 1}.?b.hasValue() && {'a': 1}.?b.orValue(2) == 2",
        "{'a': {'b': 1}}.?a.b.orValue(0) == 1 && {'a': {'b': 1}}.?x.b.orValue(7) == 7",
        "[1][?0].hasValue() && ![1][?1].hasValue() && {'k': 'v'}[?'k'].or(optional.of('x')).value() == 'v'",
        "[?optional.of(1), ?optional.none()] == [1] && {?'a': optional.of(1), ?'b': optional.none()} == {'a': 1}",
        "optional.of(2).optMap(x, x + 1).value() == 3 && !optional.none().optMap(x, x + 1).hasValue()",
        "optional.of({'a': 1}).optFlatMap(m, m.?a).value() == 1",
        "optional.ofNonZeroValue('') == optional.none() && [1, 2].last().value() == 2 && ![].first().hasValue()",
        "[optional.of(1), optional.none()].unwrapOpt() == [1]",
    ]);
    fails(&[("optional.none().value() == 1", "optional.none() dereference")]);
}

#[test]
fn json_is_what_its_schema_says() {
    let (decl, new) = (declared(), sample());
    let old = json!({"a": 4, "names": ["b", "a"], "items": [{"k": "y", "n": 2}, {"k": "x", "n": 1}], "plain": []});
    for text in [
        "self.a == 5 && self.a > oldSelf.a && self.d == 1.0 && type(self.d) == double",
        "self.s.size() == 5 && self.s.startsWith('h\u{e9}')",
        "type(self.any) == string && self.any.matches('^[0-9]+%$')",
        "self.when.getFullYear() == 2026 && self.wait == duration('1m30s') && self.raw == b'\\x00\\x01'",
        // Sets and lists with keys are equal whatever the order.
        "self.names == oldSelf.names && self.items == oldSelf.items && self.plain != oldSelf.plain",
        "(self.names + ['b', 'c']).size() == 3 && (self.items + self.plain).size() == 2",
        "self.labels['app'] == 'web' && 'a.b/c' in self.labels && self.labels.all(k, size(k) > 0)",
        "!has(self.__in__) && !has(oldSelf.s) && self.with__dash__dash__dot__and__slash__slash__underscores__x == 'w'",
        "self.json.n == 1 && self.json.l[1] == 'a' && self.json.f == 1.5 && self.json.l[2] == null",
        "self.items.exists_one(i, i.k == 'y' && i.n == 2) && self.items.map(i, i.n).sum() == 3",
        "self.?any.orValue('') == '50%' && oldSelf.?s.orValue('none') == 'none'",
    ] {
        assert!(
            matches!(about(&decl, text, &new, &old), Ok(Value::Bool(true))),
            "{text}: {:?}",
            about(&decl, text, &new, &old)
        );
    }
    for (text, why) in [
        ("oldSelf.s == ''", "no such key: s"),
        ("self.names[2] == ''", "index out of bounds: 2"),
        ("self.any > 5", "no such overload"),
        ("self.labels['x'] == ''", "no such key: x"),
        ("self.hidden == 1", "undefined field 'hidden'"),
    ] {
        let error = about(&decl, text, &new, &old).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    let wrong = json!({"a": "five"});
    assert!(about(&decl, "self.a == 5", &wrong, &old).unwrap_err().contains("invalid data, expected int"));
}

#[test]
fn names_of_fields_are_escaped() {
    for (name, escaped) in [
        ("plain_1", Some("plain_1")),
        ("in", Some("__in__")),
        ("namespace", Some("__namespace__")),
        ("a.b-c/d", Some("a__dot__b__dash__c__slash__d")),
        ("a__b", Some("a__underscores__b")),
        ("1a", None),
        ("a b", None),
        ("", None),
        ("\u{e9}", None),
    ] {
        assert_eq!(escape(name).as_deref(), escaped, "{name}");
    }
}

proptest! {
    #[test]
    fn whole_numbers_are_counted_as_rust_counts_them(a in any::<i64>(), b in any::<i64>()) {
        for (sign, result) in [
            ("+", a.checked_add(b)), ("-", a.checked_sub(b)), ("*", a.checked_mul(b)), ("/", a.checked_div(b)), ("%", a.checked_rem(b)),
        ] {
            let value = eval(&format!("{a} {sign} ({b})"));
            match result {
                Some(n) => prop_assert!(matches!(value, Ok(Value::Int(found)) if found == n), "{a} {sign} {b}: {value:?}"),
                None => prop_assert!(value.is_err(), "{a} {sign} {b}: {value:?}"),
            }
        }
        let order = eval(&format!("{a} < {b}"));
        prop_assert!(matches!(order, Ok(Value::Bool(less)) if less == (a < b)), "{a} {b}: {order:?}");
    }

    #[test]
    fn texts_keep_what_they_are_made_of(text in "\\PC{0,20}", part in "\\PC{0,3}") {
        let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let (text, part) = (quoted(&text), quoted(&part));
        for law in [
            format!("{text}.split({part}).join({part}) == {text}"),
            format!("{text}.size() == {text}.split('').size()"),
            format!("string(bytes({text})) == {text}"),
            format!("{text}.contains({part}) == ({text}.indexOf({part}) >= 0)"),
            format!("{text}.replace({part}, {part}) == {text}"),
            format!("{text}.substring(0, {text}.size()) == {text} && {text}.charAt({text}.size()) == ''"),
        ] {
            prop_assert!(matches!(eval(&law), Ok(Value::Bool(true))), "{law}: {:?}", eval(&law));
        }
    }
}
