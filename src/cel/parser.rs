//! Tokens to expressions (cel-go's grammar and the places it gives to nodes).
//!
//! The first error of the grammar ends parsing, except for a single token too many; cel-go goes on and may find more.

use std::sync::Arc;

use super::expr::{Entry, Expr, Id, Kind, Literal, Member};
use super::lexer::{Token, TokenKind, tokens};
use super::macros;
use super::nodes::{Nodes, Stop};
use super::source::Issues;
use super::unescape;

/// Code points of an expression.
const TEXT_LETTERS_MAX: usize = 100_000;
/// Expressions in expressions.
const NESTED_MAX: u32 = 250;

/// Words that no name may be.
pub(super) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
const OPERAND: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, \
                       BYTES, IDENTIFIER}";
/// How tightly operators bind; the names of their functions.
const BINARY: [(&str, u8, &str); 13] = [
    ("<", 1, "_<_"),
    ("<=", 1, "_<=_"),
    (">", 1, "_>_"),
    (">=", 1, "_>=_"),
    ("==", 1, "_==_"),
    ("!=", 1, "_!=_"),
    ("in", 1, "@in"),
    ("+", 2, "_+_"),
    ("-", 2, "_-_"),
    ("*", 3, "_*_"),
    ("/", 3, "_/_"),
    ("%", 3, "_%_"),
    ("", 0, ""),
];

/// What was parsed: the expression, and where each of its nodes is.
#[derive(Debug)]
pub(super) struct Parsed {
    pub root: Arc<Expr>,
    pub places: Vec<u32>,
}

type Outcome<T> = Result<T, Stop>;

/// Parses a text; what is wrong with it is noted.
pub(super) fn parse(text: &str, issues: &mut Issues) -> Option<Parsed> {
    let length = text.chars().count();
    if length > TEXT_LETTERS_MAX {
        let why = format!("expression code point size exceeds limit: size: {length}, limit {TEXT_LETTERS_MAX}");
        issues.push(None, why);
        return None;
    }
    let letters: Vec<char> = text.chars().collect();
    let tokens = tokens(&letters, issues);
    let mut parser = Parser { tokens, letters: &letters, next: 0, nested: 0, nodes: Nodes::new(issues) };
    let root = parser.whole().ok()?;
    let (places, issues) = parser.nodes.done();
    issues.is_empty().then_some(Parsed { root, places })
}

struct Parser<'t> {
    tokens: Vec<Token>,
    letters: &'t [char],
    next: usize,
    nested: u32,
    nodes: Nodes<'t>,
}

// === impl Parser ===

impl Parser<'_> {
    fn peek(&self) -> Token {
        self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn is(&self, sign: &str) -> bool {
        self.peek().kind == TokenKind::Sign(sign_of(sign))
    }

    fn take(&mut self) -> Token {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn eat(&mut self, sign: &str) -> Option<Token> {
        self.is(sign).then(|| self.take())
    }

    fn text(&self, token: Token) -> String {
        match token.kind {
            TokenKind::End => "<EOF>".into(),
            _ => self.letters[token.from as usize..token.to as usize].iter().collect(),
        }
    }

    fn syntax(&mut self, token: Token, message: &str) -> Stop {
        self.nodes.issue(Some(token.from), format!("Syntax error: {message}"));
        Stop
    }

    fn mismatched(&mut self, expected: &str) -> Stop {
        let token = self.peek();
        let shown = self.text(token);
        self.syntax(token, &format!("mismatched input '{shown}' expecting {expected}"))
    }

    fn expect(&mut self, sign: &str) -> Outcome<Token> {
        if let Some(token) = self.eat(sign) {
            return Ok(token);
        }
        let token = self.peek();
        if token.kind == TokenKind::End && sign != ":" {
            return Err(self.syntax(token, &format!("missing '{sign}' at '<EOF>'")));
        }
        Err(self.mismatched(&format!("'{sign}'")))
    }

    fn whole(&mut self) -> Outcome<Arc<Expr>> {
        let root = self.expr()?;
        let token = self.peek();
        if token.kind == TokenKind::End {
            return Ok(root);
        }
        let shown = self.text(token);
        let is_last = self.next + 2 == self.tokens.len();
        let what = if is_last { "extraneous" } else { "mismatched" };
        Err(self.syntax(token, &format!("{what} input '{shown}' expecting <EOF>")))
    }

    fn expr(&mut self) -> Outcome<Arc<Expr>> {
        self.nested += 1;
        if self.nested > NESTED_MAX {
            self.nodes.issue(None, format!("expression recursion limit exceeded: {NESTED_MAX}"));
            return Err(Stop);
        }
        let condition = self.logical("||", "_||_")?;
        let done = match self.eat("?") {
            None => condition,
            Some(op) => {
                let id = self.nodes.id(op.from);
                let yes = self.logical("||", "_||_")?;
                self.expect(":")?;
                let no = self.expr()?;
                let args = vec![condition, yes, no];
                self.nodes.node(id, Kind::Call { function: "_?_:_".into(), target: None, args })?
            }
        };
        self.nested -= 1;
        Ok(done)
    }

    /// `a || b || c` and `a && b && c` as balanced trees.
    fn logical(&mut self, sign: &str, function: &str) -> Outcome<Arc<Expr>> {
        let mut terms = Vec::new();
        let mut operators = Vec::new();
        loop {
            terms.push(match sign {
                "||" => self.logical("&&", "_&&_")?,
                _ => self.binary(1)?,
            });
            match self.eat(sign) {
                Some(token) => operators.push(self.nodes.id(token.from)),
                None => break,
            }
        }
        self.balanced(&mut terms.into_iter(), &operators, function)
    }

    fn balanced(
        &mut self,
        terms: &mut std::vec::IntoIter<Arc<Expr>>,
        operators: &[Id],
        function: &str,
    ) -> Outcome<Arc<Expr>> {
        if operators.is_empty() {
            return terms.next().ok_or(Stop);
        }
        let middle = operators.len() / 2;
        let left = self.balanced(terms, &operators[..middle], function)?;
        let right = self.balanced(terms, &operators[middle + 1..], function)?;
        let args = vec![left, right];
        self.nodes.node(operators[middle], Kind::Call { function: function.into(), target: None, args })
    }

    fn binary(&mut self, level: u8) -> Outcome<Arc<Expr>> {
        let mut left = self.unary()?;
        loop {
            let sign = match self.peek().kind {
                TokenKind::Sign(sign) => sign,
                TokenKind::In => "in",
                _ => "",
            };
            let Some((_, binds, function)) = BINARY.iter().find(|(s, l, _)| *s == sign && *l >= level) else {
                return Ok(left);
            };
            let token = self.take();
            let id = self.nodes.id(token.from);
            let right = if *binds < 3 { self.binary(binds + 1)? } else { self.unary()? };
            let args = vec![left, right];
            left = self.nodes.node(id, Kind::Call { function: (*function).into(), target: None, args })?;
        }
    }

    fn unary(&mut self) -> Outcome<Arc<Expr>> {
        for (sign, function) in [("!", "!_"), ("-", "-_")] {
            let mut signs = Vec::new();
            while self.is(sign) && !(sign == "-" && self.negative_number()) {
                signs.push(self.take());
            }
            if let Some(first) = signs.first() {
                let id = self.nodes.id(first.from);
                let operand = self.member()?;
                if signs.len() % 2 == 0 {
                    return Ok(operand);
                }
                return self
                    .nodes
                    .node(id, Kind::Call { function: function.into(), target: None, args: vec![operand] });
            }
        }
        self.member()
    }

    /// Whether a minus belongs to the number behind it.
    fn negative_number(&self) -> bool {
        let behind = self.tokens.get(self.next + 1).map(|t| t.kind);
        matches!(behind, Some(TokenKind::Int | TokenKind::Float))
    }

    fn member(&mut self) -> Outcome<Arc<Expr>> {
        let mut operand = self.primary()?;
        loop {
            if let Some(dot) = self.eat(".") {
                operand = self.selected(operand, dot)?;
            } else if let Some(bracket) = self.eat("[") {
                let id = self.nodes.id(bracket.from);
                let function = if self.eat("?").is_some() { "_[?_]" } else { "_[_]" };
                let index = self.expr()?;
                self.expect("]")?;
                let args = vec![operand, index];
                operand = self.nodes.node(id, Kind::Call { function: function.into(), target: None, args })?;
            } else {
                return Ok(operand);
            }
        }
    }

    fn selected(&mut self, operand: Arc<Expr>, dot: Token) -> Outcome<Arc<Expr>> {
        let optional = self.eat("?").is_some();
        let token = self.peek();
        let name = match token.kind {
            TokenKind::Ident => self.text(token),
            TokenKind::Quoted => self.text(token).trim_matches('`').to_owned(),
            TokenKind::True | TokenKind::False | TokenKind::Null | TokenKind::In => {
                return Err(self.mismatched("IDENTIFIER"));
            }
            _ => {
                let shown = format!(".{}", self.text(token));
                return Err(self.syntax(token, &format!("no viable alternative at input '{shown}'")));
            }
        };
        self.take();
        if optional {
            let field = self.nodes.literal(token.from, Literal::String(name.into()))?;
            return self.nodes.call(dot.from, "_?._", vec![operand, field]);
        }
        match self.eat("(").filter(|_| token.kind == TokenKind::Ident) {
            Some(open) => {
                let id = self.nodes.id(open.from);
                let args = self.args()?;
                if let Some(expanded) = macros::expand(&mut self.nodes, id, &name, Some(&operand), &args)? {
                    return Ok(expanded);
                }
                self.nodes.node(id, Kind::Call { function: name.into(), target: Some(operand), args })
            }
            None => self.nodes.add(dot.from, Kind::Select { operand, field: name.into(), test: false }),
        }
    }

    /// Arguments, from behind the opening bracket to behind the closing one.
    fn args(&mut self) -> Outcome<Vec<Arc<Expr>>> {
        let mut args = Vec::new();
        if self.eat(")").is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.eat(",").is_none() {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    fn primary(&mut self) -> Outcome<Arc<Expr>> {
        let token = self.peek();
        match token.kind {
            TokenKind::Sign("(") => {
                self.take();
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            TokenKind::Sign("[") => self.list(),
            TokenKind::Sign("{") => self.map(),
            TokenKind::Sign(".") | TokenKind::Ident => self.name(),
            TokenKind::Sign("-") if self.negative_number() => {
                self.take();
                let number = self.take();
                self.number(token, number, "-")
            }
            TokenKind::Int | TokenKind::Uint | TokenKind::Float => {
                self.take();
                self.number(token, token, "")
            }
            TokenKind::String | TokenKind::Bytes => {
                self.take();
                self.quoted(token)
            }
            TokenKind::True | TokenKind::False => {
                self.take();
                self.nodes.literal(token.from, Literal::Bool(token.kind == TokenKind::True))
            }
            TokenKind::Null => {
                self.take();
                self.nodes.literal(token.from, Literal::Null)
            }
            TokenKind::Sign(_) | TokenKind::In | TokenKind::Quoted | TokenKind::End => self.no_operand(token),
        }
    }

    /// Goes on behind one token that should not be there.
    fn no_operand(&mut self, token: Token) -> Outcome<Arc<Expr>> {
        let behind = self.tokens.get(self.next + 1).map_or(TokenKind::End, |t| t.kind);
        let begins = !matches!(behind, TokenKind::End | TokenKind::In | TokenKind::Quoted)
            && !matches!(behind, TokenKind::Sign(s) if !matches!(s, "[" | "{" | "(" | "."));
        if token.kind == TokenKind::End || !begins {
            return Err(self.mismatched(OPERAND));
        }
        let shown = self.text(token);
        let _ = self.syntax(token, &format!("extraneous input '{shown}' expecting {OPERAND}"));
        self.take();
        self.primary()
    }

    fn number(&mut self, from: Token, number: Token, sign: &str) -> Outcome<Arc<Expr>> {
        let text = self.text(number);
        let digits = text.trim_end_matches(['u', 'U']);
        let (digits, radix) = match digits.strip_prefix("0x") {
            Some(rest) if number.kind != TokenKind::Float => (rest, 16),
            _ => (digits, 10),
        };
        let (literal, what) = match number.kind {
            TokenKind::Int => (i64::from_str_radix(&format!("{sign}{digits}"), radix).ok().map(Literal::Int), "int"),
            TokenKind::Uint => (u64::from_str_radix(digits, radix).ok().map(Literal::Uint), "uint"),
            _ => {
                let double = format!("{sign}{text}").parse().ok().filter(|d: &f64| d.is_finite());
                (double.map(Literal::Double), "double")
            }
        };
        match literal {
            Some(literal) => self.nodes.literal(from.from, literal),
            None => self.nodes.wrong(from.from, format!("invalid {what} literal")),
        }
    }

    fn quoted(&mut self, token: Token) -> Outcome<Arc<Expr>> {
        let text = self.text(token);
        let literal = match token.kind {
            TokenKind::Bytes => unescape::bytes(&text[1..]).map(|b| Literal::Bytes(b.into())),
            _ => unescape::string(&text).map(|s| Literal::String(s.into())),
        };
        match literal {
            Ok(literal) => self.nodes.literal(token.from, literal),
            Err(why) => self.nodes.wrong(token.from, why),
        }
    }

    /// A variable, a function or a message.
    fn name(&mut self) -> Outcome<Arc<Expr>> {
        let dot = self.eat(".");
        let token = self.peek();
        if token.kind != TokenKind::Ident {
            let shown = self.text(token);
            return Err(self.syntax(token, &format!("no viable alternative at input '.{shown}'")));
        }
        let from = dot.unwrap_or(token);
        if self.is_message() {
            return self.message(dot.is_some());
        }
        self.take();
        let name = self.text(token);
        if RESERVED.contains(&name.as_str()) {
            if self.eat("(").is_some() {
                self.args()?;
            }
            return self.nodes.wrong(from.from, format!("reserved identifier: {name}"));
        }
        let full = if dot.is_some() { format!(".{name}") } else { name };
        match self.eat("(") {
            Some(open) => {
                let id = self.nodes.id(open.from);
                let args = self.args()?;
                if let Some(expanded) = macros::expand(&mut self.nodes, id, &full, None, &args)? {
                    return Ok(expanded);
                }
                self.nodes.node(id, Kind::Call { function: full.into(), target: None, args })
            }
            None => self.nodes.ident(token.from, &full),
        }
    }

    /// Whether `a.b.c {` comes next.
    fn is_message(&self) -> bool {
        let kind = |ahead: usize| self.tokens.get(self.next + ahead).map_or(TokenKind::End, |t| t.kind);
        let mut ahead = 1;
        while kind(ahead) == TokenKind::Sign(".") && kind(ahead + 1) == TokenKind::Ident {
            ahead += 2;
        }
        kind(ahead) == TokenKind::Sign("{")
    }

    fn message(&mut self, dot: bool) -> Outcome<Arc<Expr>> {
        let mut name = String::from(if dot { "." } else { "" });
        while !self.is("{") {
            let token = self.take();
            name += &self.text(token);
        }
        let open = self.take();
        let id = self.nodes.id(open.from);
        let mut fields = Vec::new();
        while self.eat("}").is_none() {
            if self.eat(",").is_some() {
                self.expect("}")?;
                break;
            }
            let optional = self.eat("?").is_some();
            if !matches!(self.peek().kind, TokenKind::Ident | TokenKind::Quoted) {
                return Err(self.mismatched("{'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}"));
            }
            let token = self.take();
            let (id, name) = (self.nodes.id(token.from), self.text(token).trim_matches('`').into());
            self.expect(":")?;
            fields.push(Member { id, name, value: self.expr()?, optional });
            if !self.is("}") && self.eat(",").is_none() {
                self.expect("}")?;
            }
        }
        self.nodes.node(id, Kind::Struct { name: name.into(), fields })
    }

    fn list(&mut self) -> Outcome<Arc<Expr>> {
        let open = self.take();
        let id = self.nodes.id(open.from);
        let mut items = Vec::new();
        loop {
            if self.eat("]").is_some() {
                break;
            }
            if self.is(",") && items.is_empty() {
                self.take();
                self.expect("]")?;
                break;
            }
            let optional = self.eat("?").is_some();
            items.push((self.expr()?, optional));
            if self.eat(",").is_none() {
                self.expect("]")?;
                break;
            }
        }
        self.nodes.node(id, Kind::List(items))
    }

    fn map(&mut self) -> Outcome<Arc<Expr>> {
        let open = self.take();
        let id = self.nodes.id(open.from);
        let mut entries = Vec::new();
        loop {
            if self.eat("}").is_some() {
                break;
            }
            if self.is(",") && entries.is_empty() {
                self.take();
                self.expect("}")?;
                break;
            }
            let optional = self.eat("?").is_some();
            let key = self.expr()?;
            self.expect(":")?;
            let value = self.expr()?;
            entries.push(Entry { key, value, optional });
            if self.eat(",").is_none() {
                self.expect("}")?;
                break;
            }
        }
        self.nodes.node(id, Kind::Map(entries))
    }
}

/// The one text of a sign, so that tokens can be compared with it.
fn sign_of(sign: &str) -> &'static str {
    const ALL: [&str; 14] = ["||", "&&", "?", ":", "!", "-", ".", "[", "]", "(", ")", "{", "}", ","];
    ALL.iter().find(|s| **s == sign).copied().unwrap_or("")
}
