//! Mistakes in definitions.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Location;

/// One mistake: where it stands, what is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{at}: {message}")]
pub struct DefinitionError {
    /// The statement at fault.
    pub at: Location,
    /// What it is part of and what is wrong: `view aircraft_legs: …`.
    pub message: String,
}

/// How many mistakes are listed. Who has more of them has one that repeats.
const LISTED_MAX: usize = 200;

/// What is wrong with a set of definitions, in order of file and line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionErrors {
    listed: Vec<DefinitionError>,
    left_out: usize,
}

impl DefinitionErrors {
    /// The first mistakes, in order of file and line; at most 200.
    pub fn errors(&self) -> &[DefinitionError] {
        &self.listed
    }

    /// How many there are besides those that are listed.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.listed.len() + self.left_out
    }

    /// A line for each mistake that is listed, and one for the rest.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let rest = (self.left_out > 0).then(|| format!("and {} more", self.left_out));
        self.listed.iter().map(ToString::to_string).chain(rest)
    }
}

impl fmt::Display for DefinitionErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&line)?;
        }
        Ok(())
    }
}

impl std::error::Error for DefinitionErrors {}

/// Mistakes gathered on the way, so that one run shows all of them.
#[derive(Debug, Default)]
pub(crate) struct ErrorList(Vec<DefinitionError>);

impl ErrorList {
    pub(crate) fn push(&mut self, at: &Location, message: impl Into<String>) {
        self.0.push(DefinitionError { at: at.clone(), message: message.into() });
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the mistakes out that satisfy the condition.
    pub(crate) fn take_if(&mut self, condition: impl Fn(&DefinitionError) -> bool) -> Vec<DefinitionError> {
        let (taken, kept) = std::mem::take(&mut self.0).into_iter().partition(condition);
        self.0 = kept;
        taken
    }

    pub(crate) fn into_result<T>(mut self, value: T) -> Result<T, DefinitionErrors> {
        if self.0.is_empty() {
            return Ok(value);
        }
        self.0.sort_by(|a, b| a.at.cmp(&b.at));
        self.0.dedup();
        let left_out = self.0.len().saturating_sub(LISTED_MAX);
        self.0.truncate(LISTED_MAX);
        Err(DefinitionErrors { listed: self.0, left_out })
    }
}

/// The known name nearest to a misspelt one, as the end of a message: `; did you mean `ttl`?`, or nothing.
pub fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = known
        .into_iter()
        .map(|name| (edit_distance(written, name), name))
        .filter(|(distance, name)| *distance <= (name.chars().count().max(written.chars().count()) / 3).max(1))
        .min();
    match nearest {
        Some((_, name)) => format!("; did you mean `{name}`?"),
        None => String::new(),
    }
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one text into the other.
fn edit_distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    let mut before_previous: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=to.len()).collect();
    for (row, from_char) in from.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, to_char) in to.iter().enumerate() {
            let replaced = previous[column] + usize::from(from_char != to_char);
            let deleted = previous[column + 1] + 1;
            let inserted = current[column] + 1;
            let mut best = replaced.min(deleted).min(inserted);
            let swapped = row > 0 && column > 0 && from[row - 1] == *to_char && *from_char == to[column - 1];
            if swapped {
                best = best.min(before_previous[column - 1] + 1);
            }
            current.push(best);
        }
        before_previous = std::mem::replace(&mut previous, current);
    }
    previous.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{did_you_mean, edit_distance};

    #[test]
    fn distance_counts_edits_and_swaps() {
        assert_eq!(edit_distance("", ""), 0);
        assert_eq!(edit_distance("ttl", "ttl"), 0);
        assert_eq!(edit_distance("tll", "ttl"), 1);
        assert_eq!(edit_distance("soruce", "source"), 1);
        assert_eq!(edit_distance("abc", ""), 3);
    }

    #[test]
    fn only_near_names_are_offered() {
        assert_eq!(did_you_mean("soruce", ["source", "entity"]), "; did you mean `source`?");
        assert_eq!(did_you_mean("zzz", ["source", "entity"]), "");
    }
}
