//! What is said of expressions that are wrong: cel-go's words and places.

use super::*;

/// What is said of an expression about `self`.
fn said(text: &str) -> String {
    let decl = declared();
    let env = Env::new().with("self", decl.type_of());
    env.compile(text).map_or_else(|issues| issues.to_string(), |done| format!("is {}", done.output()))
}

#[test]
fn issues_name_their_place_and_show_it() {
    assert_eq!(said("self.zzz == 1"), "ERROR: <input>:1:5: undefined field 'zzz'\n | self.zzz == 1\n | ....^");
    assert_eq!(
        said("self.a == 'x'"),
        "ERROR: <input>:1:8: found no matching overload for '_==_' applied to '(int, string)'\n | self.a == 'x'\n | .......^"
    );
    assert_eq!(
        said("true &&\n\t'\u{e9}' + other.x == ''"),
        "ERROR: <input>:2:8: undeclared reference to 'other' (in container '')\n |  '\u{e9}' + other.x == ''\n | ..\u{ff0e}....^"
    );
    assert_eq!(
        said("1 + $").split('\n').next(),
        Some("ERROR: <input>:1:5: Syntax error: token recognition error at: '$'")
    );
}

#[test]
fn types_that_do_not_fit_are_named() {
    for (text, why) in [
        ("self.a + 'x' == ''", "1:8: found no matching overload for '_+_' applied to '(int, string)'"),
        ("self.s.size(1) == 1", "1:12: found no matching overload for 'size' applied to 'string.(int)'"),
        ("self.nope()", "1:10: undeclared reference to 'nope' (in container '')"),
        ("nope(1)", "1:5: undeclared reference to 'nope' (in container '')"),
        ("nope", "1:1: undeclared reference to 'nope' (in container '')"),
        ("self.a.b == 1", "1:7: type 'int' does not support field selection"),
        ("self.names.all(x, x)", "1:19: expected type 'bool' but found 'string'"),
        (
            "self.a.all(x, true)",
            "1:5: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("[1, 'a'] == []", "1:5: expected type 'int' but found 'string'"),
        ("{'a': 1, 2: 1} == {}", "1:10: expected type 'string' but found 'int'"),
        ("self == 1", "applied to '(self, int)'"),
        ("self.items[0].k == 1", "applied to '(string, int)'"),
        ("self.labels.x == 1", "applied to '(string, int)'"),
        ("!self.a", "1:1: found no matching overload for '!_' applied to '(int)'"),
        ("self.a ? true : false", "found no matching overload for '_?_:_' applied to '(int, bool, bool)'"),
        ("self.a in 5", "1:8: found no matching overload for '@in' applied to '(int, int)'"),
        ("Message{a: 1}.a == 1", "1:8: undeclared reference to 'Message' (in container '')"),
        ("[1].map(x, y) == []", "1:12: undeclared reference to 'y' (in container '')"),
        ("has(self.a.b)", "type 'int' does not support field selection"),
    ] {
        assert!(said(text).contains(why), "{text}: {}", said(text));
    }
    assert_eq!(
        said("self.a == 1.0"),
        "ERROR: <input>:1:8: found no matching overload for '_==_' applied to '(int, double)'\n | self.a == 1.0\n | .......^"
    );
    assert_eq!(said("self.any == 1 || self.any == 'a'"), "is bool");
    assert_eq!(said("self.items.map(i, i.k)"), "is list(string)");
    assert_eq!(said("optional.of(1)"), "is optional_type(int)");
}

#[test]
fn what_is_no_expression_is_said() {
    const OPERAND: &str = "expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, \
                           STRING, BYTES, IDENTIFIER}";
    for (text, why) in [
        ("self ==", format!("1:8: Syntax error: mismatched input '<EOF>' {OPERAND}")),
        ("(", format!("1:2: Syntax error: mismatched input '<EOF>' {OPERAND}")),
        ("(self.a", "1:8: Syntax error: missing ')' at '<EOF>'".into()),
        ("1 2", "1:3: Syntax error: extraneous input '2' expecting <EOF>".into()),
        ("f(){}", "1:4: Syntax error: mismatched input '{' expecting <EOF>".into()),
        ("* 1", format!("1:1: Syntax error: extraneous input '*' {OPERAND}")),
        ("self = 42", "1:6: Syntax error: token recognition error at: '= '".into()),
        ("'abc", "1:1: Syntax error: token recognition error at: ''abc'".into()),
        ("'\\q'", "1:1: Syntax error: token recognition error at: ''\\q'".into()),
        ("{1}", "1:3: Syntax error: mismatched input '}' expecting ':'".into()),
        ("a.\"b\"", "1:3: Syntax error: no viable alternative at input '.\"b\"'".into()),
        ("a.in", "1:3: Syntax error: mismatched input 'in' expecting IDENTIFIER".into()),
        ("for", "1:1: reserved identifier: for".into()),
        ("99999999999999999999", "1:1: invalid int literal".into()),
        ("1.99e90000009", "1:1: invalid double literal".into()),
        ("has(self)", "1:5: invalid argument to has() macro".into()),
        ("[1].all(1, true)", "1:9: argument must be a simple name".into()),
        ("[1].map(a.b, true)", "1:10: argument is not an identifier".into()),
        ("[1].all(x, x, true)", "1:12: duplicate variable name: x".into()),
        ("'a'.matches('(')", "1:13: invalid matches argument".into()),
        ("", format!("1:1: Syntax error: mismatched input '<EOF>' {OPERAND}")),
    ] {
        assert!(said(text).contains(&why), "{text}: {} has not {why}", said(text));
    }
}
