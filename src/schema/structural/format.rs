//! Formats that strings of custom objects may have to be in, and numbers
//! (`k8s.io/kube-openapi/pkg/validation/strfmt`, `.../pkg/apiserver/validation/formats.go`).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Type;

const KNOWN: [&str; 27] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
    "",
];

/// Whether a format is checked for values of this type; any other is only a note.
pub fn is_known_format(format: &str, of: Type) -> bool {
    match of {
        Type::Any | Type::String => KNOWN.contains(&format.replace('-', "").as_str()),
        Type::Integer => matches!(format, "int32" | "int64"),
        Type::Number => matches!(format, "float" | "double"),
        Type::Object | Type::Array | Type::Boolean => false,
    }
}

/// Whether a text is not in this format.
pub fn format_error(format: &str, text: &str) -> bool {
    let fits = match format.replace('-', "").as_str() {
        "bsonobjectid" => text.len() == 24 && is_hex(text),
        "uri" => text.starts_with('/') || text.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)),
        "email" => is_email(text),
        "hostname" => is_hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "mac" => is_mac(text),
        "uuid" => is_uuid(text, None),
        "uuid3" => is_uuid(text, Some('3')),
        "uuid4" => is_uuid(text, Some('4')),
        "uuid5" => is_uuid(text, Some('5')),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => is_card(text),
        "ssn" => is_ssn(text),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && is_hex(digits)
        }
        "rgbcolor" => is_rgb(text),
        "byte" => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" => is_date_time(text),
        "duration" => is_duration(text),
        "k8sshortname" => crate::base::labels::dns_label_error(text).is_none(),
        "k8slongname" => text.len() <= 253 && text.split('.').all(is_name_part),
        _ => true,
    };
    !fits
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// `a@b`, or with a name in front and angles around it.
fn is_email(text: &str) -> bool {
    let address = match text.strip_suffix('>').and_then(|t| t.rsplit_once('<')) {
        Some((_, address)) => address,
        None => text,
    };
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.ends_with('.')
            && !part.contains("..")
            && !part.contains(|c: char| c.is_whitespace() || "()<>[]:;@\\,\"".contains(c))
    };
    address.split_once('@').is_some_and(|(local, domain)| plain(local) && plain(domain))
}

/// Labels of letters, digits, dashes and underscores, as RFC 1034 with the freedoms of today.
fn is_hostname(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
    };
    !name.is_empty() && name.len() <= 255 && name.split('.').all(is_label)
}

fn is_mac(text: &str) -> bool {
    let pairs = |separator: char| {
        let parts: Vec<&str> = text.split(separator).collect();
        matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|p| p.len() == 2 && is_hex(p))
    };
    let fours: Vec<&str> = text.split('.').collect();
    pairs(':') || pairs('-') || (matches!(fours.len(), 3 | 4 | 10) && fours.iter().all(|p| p.len() == 4 && is_hex(p)))
}

/// Thirty-two digits with or without the usual dashes; the version is the thirteenth.
fn is_uuid(text: &str, version: Option<char>) -> bool {
    let plain: String = text.chars().filter(|c| *c != '-').collect();
    let dashes: Vec<usize> = text.match_indices('-').map(|(i, _)| i).collect();
    let variant = plain.chars().nth(16).is_some_and(|c| matches!(c.to_ascii_lowercase(), '8' | '9' | 'a' | 'b'));
    plain.len() == 32
        && is_hex(&plain)
        && dashes.len() <= 4
        && version.is_none_or(|v| plain.chars().nth(12) == Some(v))
        && (variant || matches!(version, None | Some('3')))
}

fn plain_book_number(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '-' | ' ')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let text = plain_book_number(text);
    let (Some(body), Some(check)) = (text.get(..9), text.get(9..)) else { return false };
    if check.len() != 1 || !body.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let check = if matches!(check, "X" | "x") { Some(10) } else { check.parse().ok() };
    let sum: u32 = digits(body).iter().zip(1..).map(|(d, i)| d * i).sum();
    check.is_some_and(|check: u32| (sum + 10 * check).is_multiple_of(11))
}

fn is_isbn13(text: &str) -> bool {
    let text = plain_book_number(text);
    if text.len() != 13 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let sum: u32 = digits(&text).iter().zip([1, 3].iter().cycle()).map(|(d, w)| d * w).sum();
    sum.is_multiple_of(10)
}

/// A number of one of the usual kinds, whose digits check.
fn is_card(text: &str) -> bool {
    let digits = digits(text);
    let number: String = digits.iter().map(u32::to_string).collect();
    let begins = |all: &[&str]| all.iter().any(|p| number.starts_with(p));
    let shaped = match number.len() {
        13 => begins(&["4"]),
        14 => begins(&["300", "301", "302", "303", "304", "305", "36", "38"]),
        15 => begins(&["34", "37", "2131", "1800"]),
        16 => begins(&["4", "51", "52", "53", "54", "55", "6011", "65", "35"]),
        _ => false,
    };
    let luhn: u32 =
        digits.iter().rev().enumerate().map(|(i, d)| if i % 2 == 0 { *d } else { d * 2 / 10 + d * 2 % 10 }).sum();
    shaped && luhn.is_multiple_of(10)
}

fn is_ssn(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let separators = text.len() - plain.len();
    plain.len() == 9 && plain.bytes().all(|b| b.is_ascii_digit()) && separators <= 2
}

fn is_rgb(text: &str) -> bool {
    let Some(inner) = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')')) else { return false };
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    parts.len() == 3 && parts.iter().all(|p| p.parse::<u8>().is_ok() && !p.starts_with('+'))
}

fn is_date_time(text: &str) -> bool {
    let (Some(date), Some(b'T' | b't' | b' ')) = (text.get(..10), text.as_bytes().get(10)) else { return false };
    date.parse::<jiff::civil::Date>().is_ok() && {
        let text = text.to_ascii_uppercase().replacen(' ', "T", 1);
        // Without a zone it is one in UTC.
        text.parse::<jiff::Timestamp>().is_ok() || format!("{text}Z").parse::<jiff::Timestamp>().is_ok()
    }
}

/// As Go writes durations, or a number and a word.
fn is_duration(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    if text == "0" {
        return true;
    }
    const UNITS: [&str; 27] = [
        "ns",
        "us",
        "\u{b5}s",
        "\u{3bc}s",
        "ms",
        "s",
        "m",
        "h",
        "d",
        "w",
        "nano",
        "nanos",
        "nanosecond",
        "nanoseconds",
        "micro",
        "micros",
        "milli",
        "millis",
        "sec",
        "secs",
        "second",
        "seconds",
        "minute",
        "minutes",
        "hour",
        "hours",
        "days",
    ];
    let mut rest = text.trim();
    let mut parts = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (value, tail) = rest.split_at(number);
        let tail = tail.trim_start();
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.' || c == ' ').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        if value.parse::<f64>().is_err() || !UNITS.contains(&unit) {
            return false;
        }
        (rest, parts) = (tail.trim_start(), parts + 1);
    }
    parts > 0
}

fn is_name_part(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('-')
        && !part.ends_with('-')
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_in_their_format_or_not() {
        for (format, good, bad) in [
            ("date-time", "2024-01-01T00:00:00Z", "2024-01-01"),
            ("date", "2024-01-01", "2024-13-01"),
            ("email", "a@b.c", "a"),
            ("ipv4", "1.2.3.4", "::1"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0"),
            ("duration", "1h30m", "x"),
            ("duration", "22 ns", "1"),
            ("hexcolor", "#fff", "zz"),
            ("isbn", "0321751043", "1"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("creditcard", "4111 1111 1111 1111", "4111111111111112"),
            ("ssn", "123-45-6789", "1"),
            ("rgbcolor", "rgb(1,2,3)", "rgb(1,2,300)"),
            ("bsonobjectid", "507f1f77bcf86cd799439011", "1"),
            ("k8s-short-name", "abc", "A_B"),
            ("k8s-long-name", "a.b", "A_B"),
            ("uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810"),
            ("uuid4", "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
            ("mac", "01:23:45:67:89:ab", "01:23"),
            ("hostname", "a.example.com", "a..b"),
            ("uri", "https://a/b", "a b"),
            ("byte", "YWJj", "*"),
        ] {
            assert!(!format_error(format, good), "{format} {good}");
            assert!(format_error(format, bad), "{format} {bad}");
        }
        assert!(!format_error("unknown", "x") && !format_error("password", "x"));
        assert!(is_known_format("date-time", Type::String) && !is_known_format("foo", Type::Any));
        assert!(is_known_format("int32", Type::Integer) && !is_known_format("int32", Type::String));
    }
}
