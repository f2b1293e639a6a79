//! What the programs that measure have in common: they choose bars, measure them one by one and keep their figures.

use anyhow::{Result, bail, ensure};

use crate::results::{self, Figure};

/// A bar's id and what measures it.
pub type Bar = (&'static str, fn() -> Result<Measured>);

/// What a bar's measurement gave.
#[derive(Debug)]
pub struct Measured {
    /// Kept in the file of results, also where something was wrong.
    pub figures: Vec<Figure>,
    /// What was wrong: the program goes on and ends with an error.
    pub failure: Option<String>,
}

impl From<Vec<Figure>> for Measured {
    fn from(figures: Vec<Figure>) -> Self {
        Self { figures, failure: None }
    }
}

/// Measures the bars that `words` name, all of them if they name none, and replaces their figures. `--bar` is skipped,
/// and `F2.string` names `F2`. A bar that fails does not keep the others from being measured; one that gives no figure
/// loses its old ones.
///
/// # Errors
/// An unknown name, before anything is measured; results that cannot be written; in the end, bars that failed.
pub fn measure(bars: &[Bar], words: &[&str]) -> Result<()> {
    let named: Vec<&str> = words.iter().copied().filter(|word| *word != "--bar").collect();
    if let Some(unknown) = named.iter().find(|name| bars.iter().all(|(id, _)| !is_of_bar(name, id))) {
        let known: Vec<&str> = bars.iter().map(|(id, _)| *id).collect();
        bail!("there is no bar {unknown}; the bars here are {}", known.join(", "));
    }
    let path = results::path();
    let mut failed = Vec::new();
    for (id, measure) in bars {
        let is_wanted = named.is_empty() || named.iter().any(|name| is_of_bar(name, id));
        if !is_wanted {
            continue;
        }
        let measured =
            measure().unwrap_or_else(|error| Measured { figures: Vec::new(), failure: Some(format!("{error:#}")) });
        for figure in &measured.figures {
            println!("{figure}");
        }
        results::replace(&path, id, measured.figures)?;
        if let Some(failure) = measured.failure {
            eprintln!("error: {id}: {failure}");
            failed.push(*id);
        }
    }
    println!("written to {}", path.display());
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn is_of_bar(name: &str, id: &str) -> bool {
    name == id || name.strip_prefix(id).is_some_and(|suffix| suffix.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_names_its_bar() {
        assert!(is_of_bar("F6", "F6") && is_of_bar("F6.wall", "F6"));
        assert!(!is_of_bar("F60", "F6") && !is_of_bar("F", "F6"));
    }

    #[test]
    fn an_unknown_name_is_refused_before_anything_is_measured() {
        let bars: &[Bar] = &[("F2", || panics())];
        let refusal = measure(bars, &["F2", "F9"]).map_err(|error| error.to_string());
        assert_eq!(refusal, Err("there is no bar F9; the bars here are F2".to_owned()));
    }

    fn panics() -> Result<Measured> {
        unreachable!("F2 was measured")
    }
}
