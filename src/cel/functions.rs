//! The functions that expressions can call: names, overloads and their types, as Kubernetes 1.37 gives them to new
//! expressions. What they do is in [`super::library`].

use std::collections::HashMap;
use std::sync::LazyLock;

use super::format::FORMATS;
use super::types::{OPAQUE, Type};

/// All ways to call a function.
#[derive(Debug)]
pub(super) struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
}

/// One way to call a function.
#[derive(Debug)]
pub(super) struct Overload {
    pub id: &'static str,
    pub is_member: bool,
    /// With the target first.
    pub params: Vec<Type>,
    pub result: Type,
    /// How many types stand for others.
    pub type_params: u32,
}

/// What can be compared, sorted and ordered: in overload ids and as a type.
const COMPARABLE: [(&str, &str); 8] = [
    ("int", "int"),
    ("uint", "uint"),
    ("double", "double"),
    ("bool", "bool"),
    ("duration", "duration"),
    ("timestamp", "timestamp"),
    ("string", "string"),
    ("bytes", "bytes"),
];

/// What a name is in the path of a JSON patch: only for expressions that make patches.
pub(super) const ESCAPE_KEY: &str = "jsonpatch.escapeKey";

/// Function, overload, and its types as messages write them: `target.(arguments) -> result`.
const OVERLOADS: &[(&str, &str, &str)] = &[
    ("_?_:_", "conditional", "(bool, A, A) -> A"),
    ("_&&_", "logical_and", "(bool, bool) -> bool"),
    ("_||_", "logical_or", "(bool, bool) -> bool"),
    ("!_", "logical_not", "(bool) -> bool"),
    ("@not_strictly_false", "not_strictly_false", "(bool) -> bool"),
    ("_==_", "equals", "(A, A) -> bool"),
    ("_!=_", "not_equals", "(A, A) -> bool"),
    ("_+_", "add_bytes", "(bytes, bytes) -> bytes"),
    ("_+_", "add_double", "(double, double) -> double"),
    ("_+_", "add_duration_duration", "(duration, duration) -> duration"),
    ("_+_", "add_duration_timestamp", "(duration, timestamp) -> timestamp"),
    ("_+_", "add_timestamp_duration", "(timestamp, duration) -> timestamp"),
    ("_+_", "add_int64", "(int, int) -> int"),
    ("_+_", "add_list", "(list(A), list(A)) -> list(A)"),
    ("_+_", "add_string", "(string, string) -> string"),
    ("_+_", "add_uint64", "(uint, uint) -> uint"),
    ("_/_", "divide_double", "(double, double) -> double"),
    ("_/_", "divide_int64", "(int, int) -> int"),
    ("_/_", "divide_uint64", "(uint, uint) -> uint"),
    ("_%_", "modulo_int64", "(int, int) -> int"),
    ("_%_", "modulo_uint64", "(uint, uint) -> uint"),
    ("_*_", "multiply_double", "(double, double) -> double"),
    ("_*_", "multiply_int64", "(int, int) -> int"),
    ("_*_", "multiply_uint64", "(uint, uint) -> uint"),
    ("-_", "negate_double", "(double) -> double"),
    ("-_", "negate_int64", "(int) -> int"),
    ("_-_", "subtract_double", "(double, double) -> double"),
    ("_-_", "subtract_duration_duration", "(duration, duration) -> duration"),
    ("_-_", "subtract_int64", "(int, int) -> int"),
    ("_-_", "subtract_timestamp_duration", "(timestamp, duration) -> timestamp"),
    ("_-_", "subtract_timestamp_timestamp", "(timestamp, timestamp) -> duration"),
    ("_-_", "subtract_uint64", "(uint, uint) -> uint"),
    ("_[_]", "index_list", "(list(A), int) -> A"),
    ("_[_]", "index_map", "(map(A, B), A) -> B"),
    ("_[_]", "optional_list_index_int", "(optional_type(list(V)), int) -> optional_type(V)"),
    ("_[_]", "optional_map_index_value", "(optional_type(map(K, V)), K) -> optional_type(V)"),
    ("_[?_]", "list_optindex_optional_int", "(list(V), int) -> optional_type(V)"),
    ("_[?_]", "optional_list_optindex_optional_int", "(optional_type(list(V)), int) -> optional_type(V)"),
    ("_[?_]", "map_optindex_optional_value", "(map(K, V), K) -> optional_type(V)"),
    ("_[?_]", "optional_map_optindex_optional_value", "(optional_type(map(K, V)), K) -> optional_type(V)"),
    ("@in", "in_list", "(A, list(A)) -> bool"),
    ("@in", "in_map", "(A, map(A, B)) -> bool"),
    ("size", "size_bytes", "(bytes) -> int"),
    ("size", "bytes_size", "bytes.() -> int"),
    ("size", "size_list", "(list(A)) -> int"),
    ("size", "list_size", "list(A).() -> int"),
    ("size", "size_map", "(map(A, B)) -> int"),
    ("size", "map_size", "map(A, B).() -> int"),
    ("size", "size_string", "(string) -> int"),
    ("size", "string_size", "string.() -> int"),
    // Conversions.
    ("type", "type", "(A) -> type(A)"),
    ("dyn", "to_dyn", "(A) -> dyn"),
    ("bool", "bool_to_bool", "(bool) -> bool"),
    ("bool", "string_to_bool", "(string) -> bool"),
    ("bytes", "bytes_to_bytes", "(bytes) -> bytes"),
    ("bytes", "string_to_bytes", "(string) -> bytes"),
    ("double", "double_to_double", "(double) -> double"),
    ("double", "int64_to_double", "(int) -> double"),
    ("double", "string_to_double", "(string) -> double"),
    ("double", "uint64_to_double", "(uint) -> double"),
    ("duration", "duration_to_duration", "(duration) -> duration"),
    ("duration", "int64_to_duration", "(int) -> duration"),
    ("duration", "string_to_duration", "(string) -> duration"),
    ("int", "int64_to_int64", "(int) -> int"),
    ("int", "double_to_int64", "(double) -> int"),
    ("int", "duration_to_int64", "(duration) -> int"),
    ("int", "string_to_int64", "(string) -> int"),
    ("int", "timestamp_to_int64", "(timestamp) -> int"),
    ("int", "uint64_to_int64", "(uint) -> int"),
    ("string", "string_to_string", "(string) -> string"),
    ("string", "bool_to_string", "(bool) -> string"),
    ("string", "bytes_to_string", "(bytes) -> string"),
    ("string", "double_to_string", "(double) -> string"),
    ("string", "duration_to_string", "(duration) -> string"),
    ("string", "int64_to_string", "(int) -> string"),
    ("string", "timestamp_to_string", "(timestamp) -> string"),
    ("string", "uint64_to_string", "(uint) -> string"),
    ("string", "ip_to_string", "(net.IP) -> string"),
    ("string", "cidr_to_string", "(net.CIDR) -> string"),
    ("timestamp", "timestamp_to_timestamp", "(timestamp) -> timestamp"),
    ("timestamp", "int64_to_timestamp", "(int) -> timestamp"),
    ("timestamp", "string_to_timestamp", "(string) -> timestamp"),
    ("uint", "uint64_to_uint64", "(uint) -> uint"),
    ("uint", "double_to_uint64", "(double) -> uint"),
    ("uint", "int64_to_uint64", "(int) -> uint"),
    ("uint", "string_to_uint64", "(string) -> uint"),
    // Texts.
    ("contains", "contains_string", "string.(string) -> bool"),
    ("endsWith", "ends_with_string", "string.(string) -> bool"),
    ("startsWith", "starts_with_string", "string.(string) -> bool"),
    ("matches", "matches", "(string, string) -> bool"),
    ("matches", "matches_string", "string.(string) -> bool"),
    ("charAt", "string_char_at_int", "string.(int) -> string"),
    ("indexOf", "string_index_of_string", "string.(string) -> int"),
    ("indexOf", "string_index_of_string_int", "string.(string, int) -> int"),
    ("lastIndexOf", "string_last_index_of_string", "string.(string) -> int"),
    ("lastIndexOf", "string_last_index_of_string_int", "string.(string, int) -> int"),
    ("lowerAscii", "string_lower_ascii", "string.() -> string"),
    ("replace", "string_replace_string_string", "string.(string, string) -> string"),
    ("replace", "string_replace_string_string_int", "string.(string, string, int) -> string"),
    ("split", "string_split_string", "string.(string) -> list(string)"),
    ("split", "string_split_string_int", "string.(string, int) -> list(string)"),
    ("substring", "string_substring_int", "string.(int) -> string"),
    ("substring", "string_substring_int_int", "string.(int, int) -> string"),
    ("trim", "string_trim", "string.() -> string"),
    ("upperAscii", "string_upper_ascii", "string.() -> string"),
    ("format", "string_format", "string.(list(dyn)) -> string"),
    ("strings.quote", "strings_quote", "(string) -> string"),
    (ESCAPE_KEY, "jsonpatch_escapeKey_string", "(string) -> string"),
    ("join", "list_join", "list(string).() -> string"),
    ("join", "list_join_string", "list(string).(string) -> string"),
    ("find", "string_find_string", "string.(string) -> string"),
    ("findAll", "string_find_all_string", "string.(string) -> list(string)"),
    ("findAll", "string_find_all_string_int", "string.(string, int) -> list(string)"),
    // Lists and maps.
    ("indexOf", "list_a_index_of_int", "list(A).(A) -> int"),
    ("lastIndexOf", "list_a_last_index_of_int", "list(A).(A) -> int"),
    ("slice", "list_slice", "list(T).(int, int) -> list(T)"),
    ("flatten", "list_flatten", "list(list(T)).() -> list(T)"),
    ("flatten", "list_flatten_int", "list(dyn).(int) -> list(dyn)"),
    ("lists.range", "lists_range", "(int) -> list(int)"),
    ("reverse", "list_reverse", "list(T).() -> list(T)"),
    ("distinct", "list_distinct", "list(T).() -> list(T)"),
    ("cel.@mapInsert", "@mapInsert_map_key_value", "(map(K, V), K, V) -> map(K, V)"),
    ("cel.@mapInsert", "@mapInsert_map_map", "(map(K, V), map(K, V)) -> map(K, V)"),
    ("sets.contains", "list_sets_contains_list", "(list(T), list(T)) -> bool"),
    ("sets.equivalent", "list_sets_equivalent_list", "(list(T), list(T)) -> bool"),
    ("sets.intersects", "list_sets_intersects_list", "(list(T), list(T)) -> bool"),
    // Optional values.
    ("optional.of", "optional_of", "(V) -> optional_type(V)"),
    ("optional.ofNonZeroValue", "optional_ofNonZeroValue", "(V) -> optional_type(V)"),
    ("optional.none", "optional_none", "() -> optional_type(V)"),
    ("value", "optional_value", "optional_type(V).() -> V"),
    ("hasValue", "optional_hasValue", "optional_type(V).() -> bool"),
    ("or", "optional_or_optional", "optional_type(V).(optional_type(V)) -> optional_type(V)"),
    ("orValue", "optional_orValue_value", "optional_type(V).(V) -> V"),
    ("last", "list_last", "list(V).() -> optional_type(V)"),
    ("first", "list_first", "list(V).() -> optional_type(V)"),
    ("optional.unwrap", "optional_unwrap", "(list(optional_type(V))) -> list(V)"),
    ("unwrapOpt", "optional_unwrapOpt", "list(optional_type(V)).() -> list(V)"),
    // Times.
    ("getHours", "duration_to_hours", "duration.() -> int"),
    ("getMinutes", "duration_to_minutes", "duration.() -> int"),
    ("getSeconds", "duration_to_seconds", "duration.() -> int"),
    ("getMilliseconds", "duration_to_milliseconds", "duration.() -> int"),
    // URLs.
    ("url", "string_to_url", "(string) -> kubernetes.URL"),
    ("getScheme", "url_get_scheme", "kubernetes.URL.() -> string"),
    ("getHost", "url_get_host", "kubernetes.URL.() -> string"),
    ("getHostname", "url_get_hostname", "kubernetes.URL.() -> string"),
    ("getPort", "url_get_port", "kubernetes.URL.() -> string"),
    ("getEscapedPath", "url_get_escaped_path", "kubernetes.URL.() -> string"),
    ("getQuery", "url_get_query", "kubernetes.URL.() -> map(string, list(string))"),
    ("isURL", "is_url_string", "(string) -> bool"),
    // Quantities.
    ("quantity", "string_to_quantity", "(string) -> kubernetes.Quantity"),
    ("isQuantity", "is_quantity_string", "(string) -> bool"),
    ("sign", "quantity_sign", "(kubernetes.Quantity) -> int"),
    ("isGreaterThan", "quantity_is_greater_than", "kubernetes.Quantity.(kubernetes.Quantity) -> bool"),
    ("isLessThan", "quantity_is_less_than", "kubernetes.Quantity.(kubernetes.Quantity) -> bool"),
    ("compareTo", "quantity_compare_to", "kubernetes.Quantity.(kubernetes.Quantity) -> int"),
    ("asApproximateFloat", "quantity_get_float", "kubernetes.Quantity.() -> double"),
    ("asInteger", "quantity_get_int", "kubernetes.Quantity.() -> int"),
    ("isInteger", "quantity_is_integer", "kubernetes.Quantity.() -> bool"),
    ("add", "quantity_add", "kubernetes.Quantity.(kubernetes.Quantity) -> kubernetes.Quantity"),
    ("add", "quantity_add_int", "kubernetes.Quantity.(int) -> kubernetes.Quantity"),
    ("sub", "quantity_sub", "kubernetes.Quantity.(kubernetes.Quantity) -> kubernetes.Quantity"),
    ("sub", "quantity_sub_int", "kubernetes.Quantity.(int) -> kubernetes.Quantity"),
    // Addresses.
    ("ip", "string_to_ip", "(string) -> net.IP"),
    ("ip", "cidr_ip", "net.CIDR.() -> net.IP"),
    ("isIP", "is_ip", "(string) -> bool"),
    ("ip.isCanonical", "ip_is_canonical", "(string) -> bool"),
    ("family", "ip_family", "net.IP.() -> int"),
    ("isUnspecified", "ip_is_unspecified", "net.IP.() -> bool"),
    ("isLoopback", "ip_is_loopback", "net.IP.() -> bool"),
    ("isLinkLocalMulticast", "ip_is_link_local_multicast", "net.IP.() -> bool"),
    ("isLinkLocalUnicast", "ip_is_link_local_unicast", "net.IP.() -> bool"),
    ("isGlobalUnicast", "ip_is_global_unicast", "net.IP.() -> bool"),
    ("cidr", "string_to_cidr", "(string) -> net.CIDR"),
    ("isCIDR", "is_cidr", "(string) -> bool"),
    ("containsIP", "cidr_contains_ip_string", "net.CIDR.(string) -> bool"),
    ("containsIP", "cidr_contains_ip_ip", "net.CIDR.(net.IP) -> bool"),
    ("containsCIDR", "cidr_contains_cidr_string", "net.CIDR.(string) -> bool"),
    ("containsCIDR", "cidr_contains_cidr", "net.CIDR.(net.CIDR) -> bool"),
    ("prefixLength", "cidr_prefix_length", "net.CIDR.() -> int"),
    ("masked", "cidr_masked", "net.CIDR.() -> net.CIDR"),
    // Formats of names and values.
    ("format.named", "format-named", "(string) -> optional_type(kubernetes.NamedFormat)"),
    ("validate", "format-validate", "kubernetes.NamedFormat.(string) -> optional_type(list(string))"),
    // Semantic versions.
    ("semver", "string_to_semver", "(string) -> kubernetes.Semver"),
    ("semver", "string_bool_to_semver", "(string, bool) -> kubernetes.Semver"),
    ("isSemver", "is_semver_string", "(string) -> bool"),
    ("isSemver", "is_semver_string_bool", "(string, bool) -> bool"),
    ("isGreaterThan", "semver_is_greater_than", "kubernetes.Semver.(kubernetes.Semver) -> bool"),
    ("isLessThan", "semver_is_less_than", "kubernetes.Semver.(kubernetes.Semver) -> bool"),
    ("compareTo", "semver_compare_to", "kubernetes.Semver.(kubernetes.Semver) -> int"),
    ("major", "semver_major", "kubernetes.Semver.() -> int"),
    ("minor", "semver_minor", "kubernetes.Semver.() -> int"),
    ("patch", "semver_patch", "kubernetes.Semver.() -> int"),
];

/// The relations, and what their overloads are called.
const RELATIONS: [(&str, &str); 4] =
    [("_<_", "less"), ("_<=_", "less_equals"), ("_>_", "greater"), ("_>=_", "greater_equals")];
const RELATED: [(&str, &str); 14] = [
    ("bool", "(bool, bool) -> bool"),
    ("int64", "(int, int) -> bool"),
    ("int64_double", "(int, double) -> bool"),
    ("int64_uint64", "(int, uint) -> bool"),
    ("uint64", "(uint, uint) -> bool"),
    ("uint64_double", "(uint, double) -> bool"),
    ("uint64_int64", "(uint, int) -> bool"),
    ("double", "(double, double) -> bool"),
    ("double_int64", "(double, int) -> bool"),
    ("double_uint64", "(double, uint) -> bool"),
    ("string", "(string, string) -> bool"),
    ("bytes", "(bytes, bytes) -> bool"),
    ("timestamp", "(timestamp, timestamp) -> bool"),
    ("duration", "(duration, duration) -> bool"),
];
const TIMESTAMP_PARTS: [&str; 10] = [
    "getFullYear",
    "getMonth",
    "getDayOfYear",
    "getDayOfMonth",
    "getDate",
    "getDayOfWeek",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
];
const NAMED: [&str; 10] = [
    "kubernetes.URL",
    "kubernetes.Quantity",
    "kubernetes.NamedFormat",
    "kubernetes.Semver",
    "kubernetes.authorization.Authorizer",
    "kubernetes.authorization.PathCheck",
    "kubernetes.authorization.GroupCheck",
    "kubernetes.authorization.ResourceCheck",
    "kubernetes.authorization.Decision",
    "",
];

static TABLE: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(table);

/// The function of this name.
pub(super) fn function(name: &str) -> Option<&'static Function> {
    TABLE.get(name)
}

/// The type that an identifier names.
pub(super) fn named_type(name: &str) -> Option<Type> {
    Some(match name {
        "null_type" => Type::Null,
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "type" => Type::type_of(Type::Dyn),
        "optional_type" => Type::optional(Type::Dyn),
        "bool" | "bytes" | "double" | "int" | "string" | "uint" | "net.IP" | "net.CIDR" => Signature(name).read(),
        _ => return None,
    })
}

fn table() -> HashMap<&'static str, Function> {
    let mut all = HashMap::new();
    let mut add = |name: &'static str, id: &'static str, types: &str| {
        let function = all.entry(name).or_insert_with(|| Function { name, overloads: Vec::new() });
        function.overloads.push(Overload::parse(id, types));
    };
    for (name, id, types) in OVERLOADS {
        add(name, id, types);
    }
    for (name, relation) in RELATIONS {
        for (of, types) in RELATED {
            add(name, leaked(format!("{relation}_{of}")), types);
        }
    }
    for (short, of) in COMPARABLE {
        add("isSorted", leaked(format!("list_{short}_is_sorted_bool")), &format!("list({of}).() -> bool"));
        for name in ["max", "min"] {
            add(name, leaked(format!("list_{short}_{name}_{short}")), &format!("list({of}).() -> {of}"));
        }
        if ["int", "uint", "double", "duration"].contains(&short) {
            add("sum", leaked(format!("list_{short}_sum_{short}")), &format!("list({of}).() -> {of}"));
        }
        let long = Signature(of).read().name().to_owned();
        add("sort", leaked(format!("list_{long}_sort")), &format!("list({of}).() -> list({of})"));
        let by = format!("list(T).(list({of})) -> list(T)");
        add("@sortByAssociatedKeys", leaked(format!("list_{long}_sortByAssociatedKeys")), &by);
    }
    for name in TIMESTAMP_PARTS {
        add(name, leaked(format!("timestamp_{name}")), "timestamp.() -> int");
        add(name, leaked(format!("timestamp_{name}_with_tz")), "timestamp.(string) -> int");
    }
    for format in &FORMATS {
        let name = leaked(format!("format.{}", format.key));
        add(name, name, "() -> kubernetes.NamedFormat");
    }
    authorizer(&mut add);
    all
}

fn authorizer(add: &mut dyn FnMut(&'static str, &'static str, &str)) {
    const WORD: &str = "kubernetes.authorization.";
    for (name, id, from, args, to) in [
        ("path", "authorizer_path", "Authorizer", "string", "PathCheck"),
        ("group", "authorizer_group", "Authorizer", "string", "GroupCheck"),
        ("serviceAccount", "authorizer_serviceaccount", "Authorizer", "string, string", "Authorizer"),
        ("resource", "groupcheck_resource", "GroupCheck", "string", "ResourceCheck"),
        ("subresource", "resourcecheck_subresource", "ResourceCheck", "string", "ResourceCheck"),
        ("namespace", "resourcecheck_namespace", "ResourceCheck", "string", "ResourceCheck"),
        ("name", "resourcecheck_name", "ResourceCheck", "string", "ResourceCheck"),
        ("fieldSelector", "authorizer_fieldselector", "ResourceCheck", "string", "ResourceCheck"),
        ("labelSelector", "authorizer_labelselector", "ResourceCheck", "string", "ResourceCheck"),
        ("check", "pathcheck_check", "PathCheck", "string", "Decision"),
        ("check", "resourcecheck_check", "ResourceCheck", "string", "Decision"),
    ] {
        add(name, id, &format!("{WORD}{from}.({args}) -> {WORD}{to}"));
    }
    for (name, to) in [("errored", "bool"), ("error", "string"), ("allowed", "bool"), ("reason", "string")] {
        add(name, leaked(format!("decision_{name}")), &format!("{WORD}Decision.() -> {to}"));
    }
}

/// The table is made once, for as long as the process runs.
fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

// === impl Overload ===

impl Overload {
    fn parse(id: &'static str, types: &str) -> Self {
        let (call, result) = types.split_once(" -> ").unwrap_or((types, "dyn"));
        let split = call.find(".(").map(|i| (&call[..i], &call[i + 1..]));
        let (target, args) = split.map_or((None, call), |(target, args)| (Some(target), args));
        let mut params: Vec<Type> = target.iter().map(|t| Signature(t).read()).collect();
        let mut rest = Signature(args.strip_prefix('(').unwrap_or(args));
        while !rest.0.starts_with(')') && !rest.0.is_empty() {
            params.push(rest.read());
            rest.0 = rest.0.strip_prefix(", ").unwrap_or(rest.0);
        }
        let result = Signature(result).read();
        let mut type_params = 0;
        for of in params.iter().chain([&result]) {
            of.replaced(&mut |n| {
                type_params = type_params.max(n + 1);
                Type::Param(n)
            });
        }
        Self { id, is_member: target.is_some(), params, result, type_params }
    }
}

/// A type as it is written above.
struct Signature<'t>(&'t str);

// === impl Signature ===

impl Signature<'_> {
    fn read(&mut self) -> Type {
        let end = self.0.find(['(', ')', ',']).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        let mut inner = Vec::new();
        if let Some(rest) = self.0.strip_prefix('(') {
            self.0 = rest;
            while !self.0.starts_with(')') {
                inner.push(self.read());
                self.0 = self.0.strip_prefix(", ").unwrap_or(self.0);
            }
            self.0 = &self.0[1..];
        }
        let mut inner = inner.into_iter();
        let mut next = || inner.next().unwrap_or(Type::Dyn);
        match word {
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "duration" => Type::Duration,
            "timestamp" => Type::Timestamp,
            "list" => Type::list(next()),
            "map" => Type::map(next(), next()),
            "optional_type" => Type::optional(next()),
            "type" => Type::type_of(next()),
            "A" | "K" | "T" => Type::Param(0),
            "B" | "V" => Type::Param(1),
            other => NAMED.iter().chain(&OPAQUE).find(|n| **n == other).map_or(Type::Dyn, |n| Type::Named(n)),
        }
    }
}
