//! What the text of a string or bytes literal stands for.

/// The text between the quotes; newlines are `\n`.
struct Inner {
    text: String,
    is_raw: bool,
}

fn inner(token: &str) -> Option<Inner> {
    let text = token.replace("\r\n", "\n").replace('\r', "\n");
    let (is_raw, quoted) = match text.strip_prefix(['r', 'R']) {
        Some(rest) => (true, rest),
        None => (false, text.as_str()),
    };
    for quotes in ["'''", "\"\"\"", "'", "\""] {
        let between = quoted.strip_prefix(quotes).and_then(|rest| rest.strip_suffix(quotes));
        if let Some(between) = between {
            return Some(Inner { text: between.to_owned(), is_raw });
        }
    }
    None
}

/// The string of a token.
pub(super) fn string(token: &str) -> Result<String, &'static str> {
    let inner = inner(token).ok_or("unable to unescape string")?;
    if inner.is_raw || !inner.text.contains('\\') {
        return Ok(inner.text);
    }
    let mut out = String::with_capacity(inner.text.len());
    let mut letters = inner.text.chars();
    while let Some(c) = letters.next() {
        let c = match c {
            '\\' => char::from_u32(code(&mut letters)?.0).ok_or("invalid unicode code point")?,
            c => c,
        };
        out.push(c);
    }
    Ok(out)
}

/// The bytes of a token, without its `b`.
pub(super) fn bytes(token: &str) -> Result<Vec<u8>, &'static str> {
    let inner = inner(token).ok_or("unable to unescape string")?;
    if inner.is_raw {
        return Ok(inner.text.into_bytes());
    }
    let mut out = Vec::with_capacity(inner.text.len());
    let mut letters = inner.text.chars();
    while let Some(c) = letters.next() {
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let (code, is_unicode) = code(&mut letters)?;
        if is_unicode {
            return Err("unable to unescape string");
        }
        out.push(u8::try_from(code).map_err(|_| "unable to unescape string")?);
    }
    Ok(out)
}

/// The code of an escape, and whether it is one of Unicode.
fn code(letters: &mut std::str::Chars<'_>) -> Result<(u32, bool), &'static str> {
    let c = letters.next().ok_or("unable to unescape string, found '\\' as last character")?;
    let mut digits = |count: usize, radix: u32, first: u32| {
        let mut code = first;
        for _ in 0..count {
            let digit = letters.next().and_then(|c| c.to_digit(radix)).ok_or("unable to unescape string")?;
            code = code.checked_mul(radix).ok_or("invalid unicode code point")? + digit;
        }
        Ok::<u32, &'static str>(code)
    };
    let code = match c {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => 10,
        'r' => 13,
        't' => 9,
        'v' => 11,
        '\\' | '\'' | '"' | '`' | '?' => c.into(),
        'x' | 'X' => digits(2, 16, 0)?,
        'u' => return Ok((digits(4, 16, 0)?, true)),
        'U' => return Ok((digits(8, 16, 0)?, true)),
        '0'..='3' => digits(2, 8, c.to_digit(8).unwrap_or(0))?,
        _ => return Err("unable to unescape string"),
    };
    Ok((code, false))
}
