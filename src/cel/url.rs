//! URLs as Go's `net/url` reads them.

use percent_encoding::percent_decode_str;

/// A URL in its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Url {
    pub scheme: String,
    pub host: String,
    pub escaped_path: String,
    query: String,
    user: String,
    opaque: String,
    fragment: String,
}

// === impl Url ===

impl Url {
    /// Reads an absolute URL or an absolute path, as the first line of a request has it.
    pub(super) fn parse_request(text: &str) -> Result<Self, String> {
        Self::read(text).map_err(|why| format!("parse {text:?}: {why}"))
    }

    /// Reads a URL that may have a fragment.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        Ok(Self { fragment: fragment.to_owned(), ..Self::parse_request(rest)? })
    }

    fn read(text: &str) -> Result<Self, String> {
        if text.bytes().any(|b| b < b' ' || b == 0x7f) {
            return Err("net/url: invalid control character in URL".into());
        }
        if text.is_empty() {
            return Err("empty url".into());
        }
        if text == "*" {
            return Ok(Self { escaped_path: "*".into(), ..Self::default() });
        }
        let (scheme, rest) = split_scheme(text)?;
        let mut url = Self { scheme: scheme.to_ascii_lowercase(), ..Self::default() };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        url.query = query.to_owned();
        if !rest.starts_with('/') {
            if url.scheme.is_empty() {
                return Err("invalid URI for request".into());
            }
            url.opaque = rest.to_owned();
            return Ok(url);
        }
        let mut path = rest;
        if !url.scheme.is_empty()
            && let Some(behind) = rest.strip_prefix("//")
        {
            let (authority, tail) = behind.find('/').map_or((behind, ""), |i| behind.split_at(i));
            let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
            url.user = checked_user(user)?.to_owned();
            url.host = checked_host(host)?;
            path = tail;
        }
        url.escaped_path = escaped_path(path)?;
        Ok(url)
    }

    /// The host without its port and brackets.
    pub(super) fn hostname(&self) -> &str {
        let host = self.split_port().0;
        host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
    }

    pub(super) fn port(&self) -> &str {
        self.split_port().1
    }

    fn split_port(&self) -> (&str, &str) {
        match self.host.rfind(':') {
            Some(colon) if is_port(&self.host[colon..]) => (&self.host[..colon], &self.host[colon + 1..]),
            _ => (&self.host, ""),
        }
    }

    /// The values of the query by their names; what cannot be read is left out.
    pub(super) fn query(&self) -> Vec<(String, String)> {
        let decode = |part: &str| {
            let spaced = part.replace('+', " ");
            has_valid_escapes(part).then(|| percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
        };
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';'));
        pairs
            .filter_map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Some((decode(name)?, decode(value)?))
            })
            .collect()
    }
}

fn split_scheme(text: &str) -> Result<(&str, &str), String> {
    for (i, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            '0'..='9' | '+' | '-' | '.' => return Ok(("", text)),
            ':' if i == 0 => return Err("missing protocol scheme".into()),
            ':' => return Ok((&text[..i], &text[i + 1..])),
            _ => return Ok(("", text)),
        }
    }
    Ok(("", text))
}

fn has_valid_escapes(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_hexdigit);
    bytes.iter().enumerate().all(|(i, b)| *b != b'%' || (hex(i + 1) && hex(i + 2)))
}

fn checked_user(user: &str) -> Result<&str, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c);
    if user.chars().all(fits) && has_valid_escapes(user) { Ok(user) } else { Err("net/url: invalid userinfo".into()) }
}

/// `:` and digits, or nothing.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
}

fn checked_host(host: &str) -> Result<String, String> {
    let port = if host.starts_with('[') {
        let end = host.rfind(']').ok_or("missing ']' in host")?;
        &host[end + 1..]
    } else {
        host.rfind(':').map_or("", |i| &host[i..])
    };
    if !is_port(port) {
        return Err(format!("invalid port {port:?} after host"));
    }
    let fits = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"%".contains(c);
    if let Some(c) = host.chars().find(|c| !fits(*c)) {
        return Err(format!("invalid character {:?} in host name", c.to_string()));
    }
    if !has_valid_escapes(host) {
        return Err("invalid URL escape".into());
    }
    Ok(percent_decode_str(host).decode_utf8_lossy().into_owned())
}

/// A path as it is written where that is a way to write it, else escaped.
fn escaped_path(path: &str) -> Result<String, String> {
    if !has_valid_escapes(path) {
        return Err("invalid URL escape".into());
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@[]%/".contains(&b);
    if path.bytes().all(plain) {
        return Ok(path.to_owned());
    }
    let kept = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b);
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    let mut out = String::with_capacity(path.len());
    for b in decoded {
        if kept(b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    Ok(out)
}
