//! The functions of Kubernetes' libraries.

use super::*;

#[test]
fn texts() {
    holds(&[
        "'tacocat'.charAt(3) == 'o' && 'h\u{e9}llo'.indexOf('l') == 2 && 'hello'.lastIndexOf('l', 2) == 2",
        "'hello'.indexOf('') == 0 && 'hello'.lastIndexOf('') == 5 && 'hello'.indexOf('l', 9) == -1",
        "'TacoCat'.lowerAscii() == 'tacocat' && 'x\u{e9}'.upperAscii() == 'X\u{e9}' && '  a '.trim() == 'a'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'ab'.split('') == ['a', 'b']",
        "'a,b'.split(',', 0) == [] && 'hello'.replace('l', 'L', 1) == 'heLlo' && 'ab'.replace('', '-') == '-a-b-'",
        "'hello'.substring(1, 3) == 'el' && 'hello'.substring(3) == 'lo'",
        "['a', 'b'].join('-') == 'a-b' && ['a', 'b'].join() == 'ab' && [].join() == ''",
        "strings.quote('a\\n\"b\"') == '\"a\\\\n\\\\\"b\\\\\"\"'",
        "'abc 123'.find('[0-9]+') == '123' && '1a2b3'.findAll('[0-9]') == ['1', '2', '3'] && '123'.findAll('[0-9]', 1) == ['1']",
        "'abc'.matches('^a.c$') && !matches('abc', '^b') && !'\u{664}'.matches('\\\\d')",
        "string(1.5) == '1.5' && string(1e6) == '1e+06' && string(duration('90s')) == '90s' && string(true) == 'true'",
        "bool('True') && int('-5') == -5 && double('1e3') == 1000.0 && uint('7') == 7u",
    ]);
    fails(&[
        ("'a'.charAt(2) == ''", "index out of range: 2"),
        ("'abc'.substring(2, 1) == ''", "invalid substring range. start: 2, end: 1"),
        ("'a'.matches(dyn('('))", "error parsing regexp"),
        ("int(dyn('x')) == 0", "type conversion error from 'string' to 'int'"),
        ("string(dyn([1])) == ''", "type conversion error from 'list' to 'string'"),
        ("string(b'\\xff') == ''", "invalid UTF-8"),
    ]);
}

#[test]
fn formats_of_texts() {
    holds(&[
        "'%s is %d, %.2f%%'.format(['a', dyn(5), dyn(2.345)]) == 'a is 5, 2.35%'",
        "'%x %X %b %o'.format([255, 255, 5, 8]) == 'ff FF 101 10' && '%x'.format(['hi']) == '6869'",
        "'%s'.format([[1, 2]]) == '[1, 2]' && '%s'.format([{'a': 'b'}]) == '{\"a\":\"b\"}'",
        "'%s %s'.format([duration('1s'), dyn(timestamp(0))]) == '1s 1970-01-01T00:00:00Z'",
        // The numbers of the American locale, which Kubernetes' version of the library has.
        "'%.1f'.format([1234567.89]) == '1,234,567.9' && '%e'.format([1052.03]) == '1.052030\u{202f}\u{d7}\u{202f}10\u{2070}\u{b3}'",
        "'%f'.format(['Infinity']) == '\u{221e}' && '%b'.format([-5]) == '-101'",
    ]);
    fails(&[
        (
            "'%d'.format(['a']) == ''",
            "error during formatting: decimal clause can only be used on integers, was given string",
        ),
        ("'%s'.format([]) == ''", "index 0 out of range"),
        ("'%z'.format([1]) == ''", "unrecognized formatting clause \"z\""),
        ("'a'.format([1]) == ''", "too many arguments supplied to string.format (expected 0, got 1)"),
        ("'%'.format([]) == ''", "unexpected end of string"),
    ]);
}

#[test]
fn lists_and_sets() {
    holds(&[
        "[1, 2, 3].isSorted() && !['b', 'a'].isSorted() && [].isSorted()",
        "[1, 2].sum() == 3 && [1.5, 2.5].sum() == 4.0 && [duration('1s'), duration('2s')].sum() == duration('3s')",
        "[1.5].filter(x, false).sum() + 1.5 == 1.5",
        "[1, 3, 2].max() == 3 && ['b', 'a'].min() == 'a' && [1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2",
        "[1].indexOf(5) == -1 && [1, 2, 3].slice(1, 3) == [2, 3] && [[1], [2]].flatten() == [1, 2]",
        "[dyn(1), dyn([dyn(2), dyn([3])])].flatten(2) == [1, 2, 3] && lists.range(3) == [0, 1, 2] && [1, 2].reverse() == [2, 1]",
        "[1, 1, 2].distinct() == [1, 2] && [3, 1, 2].sort() == [1, 2, 3] && ['b', 'a'].sort() == ['a', 'b']",
        "sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && !sets.intersects([1], [2])",
    ]);
    fails(&[
        ("[].max() == 1", "max called on empty list"),
        ("[1].slice(0, 5) == []", "cannot slice(0, 5), list is length 1"),
        ("[1].slice(1, 0) == []", "start index must be less than or equal to end index"),
        // Of 1.38, or of no version of Kubernetes.
        ("[1].includes(1)", "undeclared reference to 'includes'"),
        ("math.greatest(1, 2) == 2", "undeclared reference"),
        ("base64.encode(b'a') == ''", "undeclared reference"),
        ("cel.bind(x, 1, x == 1)", "undeclared reference"),
        ("'ab'.reverse() == 'ba'", "no matching overload for 'reverse'"),
    ]);
}

#[test]
fn times() {
    holds(&[
        "timestamp('2023-07-14T10:30:45.123Z').getMilliseconds() == 123 && timestamp(0).getDayOfWeek() == 4",
        "timestamp('2024-02-29T00:00:00Z').getDayOfYear() == 59 && timestamp('2024-12-31T00:00:00Z').getMonth() == 11",
        "timestamp('2023-01-01T05:30:00Z').getFullYear('-08:00') == 2022 && timestamp(0).getHours('02:30') == 2",
        "timestamp('2023-07-01T05:00:00Z').getHours('America/Los_Angeles') == 22 && timestamp(0).getDate() == 1",
        "timestamp('2023-01-01T00:00:00Z') - timestamp('2022-01-01T00:00:00Z') == duration('8760h')",
        "timestamp('2020-01-01T00:00:00+01:00') == timestamp('2019-12-31T23:00:00Z')",
        "string(timestamp('9999-12-31T23:59:59.999999999Z')) == '9999-12-31T23:59:59.999999999Z'",
        "timestamp('0001-01-01T00:00:00Z').getFullYear() == 1 && int(timestamp(12)) == 12",
        "duration('1h2m3.5s').getMinutes() == 62 && duration('-1.5h') == duration('-90m') && duration('0') == duration('0s')",
        "duration('1.5s').getMilliseconds() == 1500 && string(duration('1.5s')) == '1.5s' && duration('1us') > duration('1ns')",
    ]);
    fails(&[
        ("timestamp(0).getHours(dyn('Mars')) == 0", "unknown time zone Mars"),
        ("timestamp('2023-02-30T00:00:00Z') == timestamp(0)", "invalid timestamp argument"),
        ("duration('1 day') == duration('24h')", "invalid duration argument"),
        ("timestamp(dyn('x')) == timestamp(0)", "type conversion error from 'string' to 'google.protobuf.Timestamp'"),
    ]);
}

#[test]
fn urls_and_addresses() {
    holds(&[
        "url('https://u@example.com:80/a%20b?k=1&k=2#f').getHost() == 'example.com:80'",
        "url('https://[::1]:80/').getHostname() == '::1' && url('https://[::1]:80/').getPort() == '80'",
        "url('/a b').getEscapedPath() == '/a%20b' && url('HTTP://x/').getScheme() == 'http'",
        "url('https://x/?k=1&k=2&z').getQuery() == {'k': ['1', '2'], 'z': ['']}",
        "isURL('/path') && !isURL('path') && !isURL('https://a:b/') && !isURL('../x') && !isURL('')",
        "ip('127.0.0.1').family() == 4 && ip('::1').family() == 6 && isIP('1.2.3.4') && !isIP('1.2.3') && !isIP('::ffff:1.2.3.4')",
        "ip.isCanonical('2001:db8::abcd') && !ip.isCanonical('2001:DB8::ABCD') && ip('::1').isLoopback()",
        "ip('224.0.0.1').isLinkLocalMulticast() && ip('fe80::1').isLinkLocalUnicast() && ip('10.0.0.1').isGlobalUnicast()",
        "cidr('192.168.0.0/24').containsIP('192.168.0.1') && !cidr('192.168.0.0/24').containsIP(ip('192.168.1.1'))",
        "cidr('192.168.0.0/16').containsCIDR('192.168.10.0/24') && !cidr('192.168.0.0/24').containsCIDR(cidr('192.168.0.0/23'))",
        "cidr('192.168.0.5/24').ip() == ip('192.168.0.5') && cidr('192.168.0.5/24').masked() == cidr('192.168.0.0/24')",
        "cidr('::1/128').prefixLength() == 128 && isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0/33') && !isCIDR('10.0.0.0/08')",
        "cidr('0.0.0.0/0').containsIP('1.2.3.4') && string(ip('1.2.3.4')) == '1.2.3.4' && type(ip('::1')) == net.IP",
    ]);
    fails(&[
        ("url(dyn('x')).getHost() == ''", "URL parse error during conversion from string"),
        ("ip(dyn('x')) == ip('::1')", "IP Address \"x\" parse error during conversion from string"),
        ("ip(dyn('fe80::1%eth0')) == ip('::1')", "with zone value is not allowed"),
        ("cidr(dyn('1.2.3.4')) == cidr('::/0')", "network address parse error"),
    ]);
}

#[test]
fn quantities_versions_and_formats() {
    holds(&[
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('500m').add(quantity('500m')).asInteger() == 1",
        "quantity('1k').compareTo(quantity('1000')) == 0 && quantity('-1').isLessThan(quantity('0')) && sign(quantity('-5')) == -1",
        "isQuantity('1.3Gi') && !isQuantity('1.3 Gi') && !quantity('50m').isInteger() && quantity('50k').sub(20) == quantity('49980')",
        "quantity('1.5').asApproximateFloat() == 1.5 && quantity('200M') == quantity('0.2G')",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-alpha.1').compareTo(semver('1.0.0-alpha.beta')) == -1",
        "isSemver('1.2.3-rc.1+build') && !isSemver('v1.2') && isSemver('v1.2', true) && semver('v01.2', true) == semver('1.2.0')",
        "semver('1.2.3').major() == 1 && semver('1.2.3').minor() == 2 && semver('1.2.3').patch() == 3",
        "!format.dns1123Label().validate('my-name').hasValue() && format.dns1123Label().validate('My_Name').hasValue()",
        "format.named('uuid').value().validate('x').value() == ['does not match the UUID format'] && !format.named('none').hasValue()",
        "!format.uri().validate('https://example.com').hasValue() && !format.dns1123LabelPrefix().validate('ab-').hasValue()",
        "!format.qualifiedName().validate('example.com/name').hasValue() && format.labelValue().validate('a b').hasValue()",
        "!format.date().validate('2026-01-02').hasValue() && !format.datetime().validate('2026-01-02T03:04:05Z').hasValue()",
        "!format.byte().validate('aGVsbG8=').hasValue() && !format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue()",
    ]);
    fails(&[
        ("quantity(dyn('1.3.1')) == quantity('1')", "quantities must match"),
        ("quantity('50m').asInteger() == 0", "cannot convert value to integer"),
        ("semver(dyn('1.2')) == semver('1.2.0')", "No Major.Minor.Patch elements found"),
    ]);
}

#[derive(Debug)]
struct OnlyPods;

impl Authorizer for OnlyPods {
    fn decide(&self, query: &Query, verb: &str) -> Decision {
        let allowed = match &query.about {
            About::Resource(r) => r.resource == "pods" && r.namespace == "ns" && verb == "get",
            About::Path(path) => path == "/healthz",
            About::Nothing | About::Group(_) => false,
        };
        let account = query.service_account.as_ref().map(|(namespace, name)| format!("{namespace}:{name}"));
        Decision { allowed, reason: account.unwrap_or_default(), error: None }
    }
}

#[test]
fn the_authorizer_is_asked_what_the_expression_says() {
    let env = Env::new().with("authorizer", Type::Named("kubernetes.authorization.Authorizer"));
    let value = || Some(Value::Query(Arc::new(Query::new(Arc::new(OnlyPods)))));
    for text in [
        "authorizer.group('').resource('pods').namespace('ns').check('get').allowed()",
        "!authorizer.group('').resource('pods').namespace('other').check('get').allowed()",
        "authorizer.path('/healthz').check('get').allowed()",
        "authorizer.serviceAccount('ns', 'name').group('apps').resource('x').subresource('y').name('z').check('get').reason() == 'ns:name'",
        "!authorizer.group('').resource('pods').labelSelector('a=b').fieldSelector('x=y').check('list').errored()",
    ] {
        let value = compiled(&env, text).unwrap().eval(&[value()], &mut Meter::new(CALL_COST_MAX));
        assert!(matches!(value, Ok(Value::Bool(true))), "{text}: {value:?}");
    }
    // Two questions and no third.
    let ask = "authorizer.path('/healthz').check('get').allowed()";
    let thrice = [ask; 3].join(" && ");
    let value = compiled(&env, &thrice).unwrap().eval(&[value()], &mut Meter::new(CALL_COST_MAX));
    assert_eq!(value.unwrap_err(), Failure::Cancelled);
}
