//! Definitions that an editor, a merge or a disk has damaged: read or refused with a place, never a panic.

use crate::support::{FEATURES, PROJECT, parse};

/// What definitions consist of, and what does not belong there.
const PIECES: [&str; 24] = [
    "[",
    "]",
    "[[",
    "{",
    "}",
    "=",
    "\"",
    "'''",
    ",",
    ".",
    "\n",
    "#",
    "0",
    "-1",
    "9223372036854775808",
    "nan",
    "true",
    "\"2d\"",
    "1979-05-27T07:32:00Z",
    "é",
    "\u{0}",
    "\u{feff}",
    "[view.a.b]",
    "ttl = \"-1d\"",
];

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    /// An index at which the text can be cut.
    fn cut(&mut self, text: &str) -> usize {
        let mut at = self.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }

    fn damage(&mut self, text: &mut String) {
        let lines: Vec<&str> = text.lines().collect();
        let (one, other) = (self.below(lines.len()), self.below(lines.len()));
        match self.below(6) {
            0 => {
                let at = self.cut(text);
                text.insert_str(at, PIECES[self.below(PIECES.len())]);
            }
            1 => {
                let (from, to) = (self.cut(text), self.cut(text));
                let end = to.max(from).min(from.min(to) + 12);
                let end = (0..=end).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
                text.replace_range(from.min(to).min(end)..end, "");
            }
            2 if !lines.is_empty() => {
                let mut lines = lines;
                lines.swap(one, other);
                *text = lines.join("\n");
            }
            3 if !lines.is_empty() => {
                let mut lines = lines;
                lines.insert(one, lines[other]);
                *text = lines.join("\n");
            }
            4 if !lines.is_empty() => {
                let mut lines = lines;
                lines.remove(one);
                *text = lines.join("\n");
            }
            _ => {
                let at = self.cut(text);
                if self.below(8) == 0 {
                    text.truncate(at);
                }
            }
        }
    }
}

#[test]
fn damaged_definitions_are_read_or_refused_with_a_place() {
    let soak = std::env::var("EADEM_SOAK").is_ok_and(|soak| soak == "1");
    let cases = if soak { 200_000 } else { 3_000 };
    let seed: u64 = std::env::var("EADEM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_130_101);
    println!("EADEM_SEED={seed}");
    let mut dice = Dice(seed);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..cases {
        let (mut project, mut features) = (PROJECT.to_owned(), FEATURES.to_owned());
        for _ in 0..=dice.below(4) {
            let text = if dice.below(2) == 0 { &mut project } else { &mut features };
            dice.damage(text);
        }
        match parse(&[("eadem.toml", &project), ("features/all.toml", &features)]) {
            Ok(_) => read += 1,
            Err(errors) => {
                refused += 1;
                assert!(!errors.errors().is_empty(), "refused without a reason:\n{project}\n{features}");
                for error in errors.errors() {
                    let said = error.to_string();
                    let has_place = said.starts_with("eadem.toml:") || said.starts_with("features/all.toml:");
                    assert!(has_place, "no place: {said}\n{project}\n{features}");
                }
            }
        }
    }
    assert!(read > 0 && refused > 0, "{read} were read, {refused} refused");
}
