//! Text to tokens (the lexer rules of cel-go's grammar).

use super::source::Issues;

/// A token, from and to in code points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: TokenKind,
    pub from: u32,
    pub to: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Sign(&'static str),
    Ident,
    /// An identifier between grave accents.
    Quoted,
    Int,
    Uint,
    Float,
    String,
    Bytes,
    True,
    False,
    Null,
    In,
    End,
}

const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*",
    "/", "%",
];

struct Lexer<'t> {
    text: &'t [char],
    at: usize,
}

/// The tokens of a text, with one for its end; what is none is noted.
pub(super) fn tokens(text: &[char], issues: &mut Issues) -> Vec<Token> {
    let mut lexer = Lexer { text, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip();
        let from = lexer.at;
        if from >= text.len() {
            out.push(Token { kind: TokenKind::End, from: from as u32, to: from as u32 });
            return out;
        }
        match lexer.token() {
            Ok(kind) => out.push(Token { kind, from: from as u32, to: lexer.at as u32 }),
            Err(()) => {
                // What stopped the token belongs to what is wrong.
                lexer.at = (lexer.at + 1).min(text.len());
                let shown: String = text[from..lexer.at].iter().collect();
                let shown = shown.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
                issues.push(Some(from as u32), format!("Syntax error: token recognition error at: '{shown}'"));
            }
        }
    }
}

// === impl Lexer ===

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.text.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn starts_with(&self, sign: &str) -> bool {
        sign.chars().enumerate().all(|(i, c)| self.text.get(self.at + i) == Some(&c))
    }

    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> usize {
        let from = self.at;
        while self.text.get(self.at).is_some_and(|c| fits(*c)) {
            self.at += 1;
        }
        self.at - from
    }

    /// Past white space and comments.
    fn skip(&mut self) {
        loop {
            self.take_while(|c| matches!(c, '\t' | ' ' | '\r' | '\n' | '\u{c}'));
            if !self.starts_with("//") {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    fn token(&mut self) -> Result<TokenKind, ()> {
        let c = self.peek(0);
        let next = self.peek(1);
        if c.is_ascii_digit() || (c == '.' && next.is_ascii_digit()) {
            return Ok(self.number());
        }
        if matches!(c, '"' | '\'') {
            return self.string(false).map(|()| TokenKind::String);
        }
        let quote = |c: char| matches!(c, '"' | '\'');
        let raw = |c: char| matches!(c, 'r' | 'R');
        let bytes = |c: char| matches!(c, 'b' | 'B');
        for (is_bytes, is_raw) in [(false, true), (true, false), (true, true)] {
            let begins = match (is_bytes, is_raw) {
                (false, _) => raw(c) && quote(next),
                (true, false) => bytes(c) && quote(next),
                (true, true) => bytes(c) && raw(next) && quote(self.peek(2)),
            };
            if begins {
                self.at += usize::from(is_bytes) + usize::from(is_raw);
                let kind = if is_bytes { TokenKind::Bytes } else { TokenKind::String };
                return self.string(is_raw).map(|()| kind);
            }
        }
        if c.is_ascii_alphabetic() || c == '_' {
            return Ok(self.word());
        }
        if c == '`' {
            return self.quoted();
        }
        let sign = SIGNS.iter().find(|sign| self.starts_with(sign));
        match sign {
            Some(sign) => {
                self.at += sign.len();
                Ok(TokenKind::Sign(sign))
            }
            None => {
                // The first half of a sign of two.
                self.at += usize::from(matches!(c, '&' | '|' | '='));
                Err(())
            }
        }
    }

    fn word(&mut self) -> TokenKind {
        let from = self.at;
        self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        let is = |word: &str| word.chars().eq(self.text[from..self.at].iter().copied());
        match () {
            () if is("true") => TokenKind::True,
            () if is("false") => TokenKind::False,
            () if is("null") => TokenKind::Null,
            () if is("in") => TokenKind::In,
            () => TokenKind::Ident,
        }
    }

    fn quoted(&mut self) -> Result<TokenKind, ()> {
        self.at += 1;
        let length = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ' '));
        if length == 0 || self.peek(0) != '`' {
            return Err(());
        }
        self.at += 1;
        Ok(TokenKind::Quoted)
    }

    fn number(&mut self) -> TokenKind {
        let suffix = |lexer: &mut Self| {
            let is_uint = matches!(lexer.peek(0), 'u' | 'U');
            lexer.at += usize::from(is_uint);
            if is_uint { TokenKind::Uint } else { TokenKind::Int }
        };
        if self.starts_with("0x") && self.peek(2).is_ascii_hexdigit() {
            self.at += 2;
            self.take_while(|c| c.is_ascii_hexdigit());
            return suffix(self);
        }
        self.take_while(|c| c.is_ascii_digit());
        let mut is_float = false;
        if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
            is_float = true;
            self.at += 1;
            self.take_while(|c| c.is_ascii_digit());
        }
        if matches!(self.peek(0), 'e' | 'E') {
            let sign = usize::from(matches!(self.peek(1), '+' | '-'));
            if self.peek(1 + sign).is_ascii_digit() {
                is_float = true;
                self.at += 1 + sign;
                self.take_while(|c| c.is_ascii_digit());
            }
        }
        if is_float { TokenKind::Float } else { suffix(self) }
    }

    /// A text, from its quotes on.
    fn string(&mut self, raw: bool) -> Result<(), ()> {
        let quote = self.peek(0);
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if triple { 3 } else { 1 };
        loop {
            if self.at >= self.text.len() {
                return Err(());
            }
            let c = self.peek(0);
            if c == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += if triple { 3 } else { 1 };
                return Ok(());
            }
            if !triple && matches!(c, '\n' | '\r') {
                return Err(());
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape()?;
            }
        }
    }

    /// What comes behind a backslash.
    fn escape(&mut self) -> Result<(), ()> {
        let c = self.peek(0);
        let (length, digits): (usize, fn(char) -> bool) = match c {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`' => (0, |_| true),
            '0'..='3' => (2, |c| matches!(c, '0'..='7')),
            'x' | 'X' => (2, |c| c.is_ascii_hexdigit()),
            'u' => (4, |c| c.is_ascii_hexdigit()),
            'U' => (8, |c| c.is_ascii_hexdigit()),
            _ => return Err(()),
        };
        self.at += 1;
        for _ in 0..length {
            if !digits(self.peek(0)) {
                return Err(());
            }
            self.at += 1;
        }
        Ok(())
    }
}
