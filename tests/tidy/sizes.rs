//! How long functions are, counted in lines from the signature to the closing brace.

/// A function, as it is written.
pub struct Function {
    pub name: String,
    pub lines: usize,
}

/// The functions of a formatted file.
pub fn functions(code: &str) -> Vec<Function> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let Some(name) = name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let closing = format!("{indent}}}");
        // Either on the line of the signature, or at its indentation; a signature alone ends with a semicolon.
        let body = lines[n..].iter().position(|l| l.trim_end().ends_with('{') || l.contains("{ "));
        let semicolon = lines[n..].iter().position(|l| l.trim_end().ends_with(';'));
        match (body, semicolon) {
            (Some(b), s) if s.is_none_or(|s| b <= s) => {}
            _ => continue,
        }
        let length = match line.trim_end().ends_with('}') {
            true => 1,
            false => lines[n..].iter().position(|l| *l == closing).map_or(1, |end| end + 1),
        };
        found.push(Function { name, lines: length });
    }
    found
}

fn name(line: &str) -> Option<String> {
    let mut rest = line.trim_start();
    loop {
        if let Some(after) = rest.strip_prefix("fn ") {
            return Some(after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
        let words = ["pub ", "async ", "const ", "unsafe ", "default ", "extern \"C\" "];
        rest = match words.iter().find_map(|word| rest.strip_prefix(word)) {
            Some(after) => after,
            None => rest.strip_prefix("pub(")?.split_once(") ")?.1,
        };
    }
}

#[test]
fn functions_are_counted_from_their_signature_to_their_brace() {
    let text = "pub(super) async fn a() {\n    b()\n}\n\ntrait T {\n    fn c(&self);\n    fn d(&self) -> u8 {\n        1\n    }\n}\n\nfn e() {}\n\nfn f(\n    x: u8,\n) -> u8 {\n    x\n}\nstruct Afn;\n";
    let found: Vec<_> = functions(text).into_iter().map(|f| (f.name, f.lines)).collect();
    let expected = [("a", 3), ("d", 3), ("e", 1), ("f", 5)];
    assert_eq!(found, expected.map(|(name, lines)| (name.to_owned(), lines)));
}
