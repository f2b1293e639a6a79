//! SPDX licence expressions, as far as packages use them.

/// Whether the expression can be satisfied by licences that `is_allowed`. `A/B` is an old way to write `A OR B`.
///
/// # Errors
/// What is wrong with an expression that cannot be read.
pub(crate) fn is_satisfied(expression: &str, is_allowed: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Reader { words: &words, is_allowed };
    let satisfied = reader.any()?;
    match reader.words.first() {
        None => Ok(satisfied),
        Some(word) => Err(format!("`{word}` was not expected in `{expression}`")),
    }
}

struct Reader<'a> {
    words: &'a [&'a str],
    is_allowed: &'a dyn Fn(&str) -> bool,
}

impl<'a> Reader<'a> {
    /// Alternatives; AND binds tighter.
    fn any(&mut self) -> Result<bool, String> {
        let mut satisfied = self.all()?;
        while self.takes("OR") {
            satisfied |= self.all()?;
        }
        Ok(satisfied)
    }

    fn all(&mut self) -> Result<bool, String> {
        let mut satisfied = self.one()?;
        while self.takes("AND") {
            satisfied &= self.one()?;
        }
        Ok(satisfied)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.takes("(") {
            let satisfied = self.any()?;
            return if self.takes(")") { Ok(satisfied) } else { Err("a parenthesis is not closed".to_owned()) };
        }
        let name = self.name()?;
        if self.takes("WITH") {
            let exception = self.name()?;
            return Ok((self.is_allowed)(&format!("{name} WITH {exception}")));
        }
        Ok((self.is_allowed)(name))
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let (word, rest) = self.words.split_first().ok_or("a licence was expected at the end")?;
        if ["AND", "OR", "WITH", "(", ")"].contains(word) {
            return Err(format!("a licence was expected instead of `{word}`"));
        }
        self.words = rest;
        Ok(word)
    }

    fn takes(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }
}

#[test]
fn expressions_are_read() {
    let is_allowed = |name: &str| ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&name);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("GPL-3.0-only/MIT", true),
        ("GPL-3.0-only AND MIT", false),
        ("GPL-3.0-only OR MIT AND ISC", true),
        ("(GPL-3.0-only OR MIT) AND ISC", true),
        ("MIT AND (GPL-3.0-only OR BSD-2-Clause)", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
    ] {
        assert_eq!(is_satisfied(expression, &is_allowed), Ok(expected), "{expression}");
    }
    for expression in ["", "MIT OR", "(MIT", "MIT MIT", "AND MIT"] {
        assert!(is_satisfied(expression, &is_allowed).is_err(), "{expression:?} was read");
    }
}
