//! `target/bench/results.json`: a list of objects, one per figure.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// The bar's id for the figure that is held to its limit; id, dot and suffix for others.
    pub bar: String,
    /// What was measured.
    pub name: String,
    /// Ours.
    pub value: f64,
    /// Of `value` and `baseline`.
    pub unit: String,
    /// The other's, where there is another.
    pub baseline: Option<f64>,
    /// `value / baseline`.
    pub ratio: Option<f64>,
    /// Runs on each side, or cases tried.
    pub runs: u64,
    /// The machine's load average over the minute before.
    pub load: f64,
}

impl Figure {
    /// A figure beside another's.
    pub fn against(bar: &str, name: &str, unit: &str, value: f64, baseline: f64, runs: u64, load: f64) -> Self {
        Self {
            bar: bar.to_owned(),
            name: name.to_owned(),
            value: rounded(value),
            unit: unit.to_owned(),
            baseline: Some(rounded(baseline)),
            ratio: Some(rounded(value / baseline)),
            runs,
            load,
        }
    }

    /// A figure of its own.
    pub fn alone(bar: &str, name: &str, unit: &str, value: f64, runs: u64, load: f64) -> Self {
        Self {
            bar: bar.to_owned(),
            name: name.to_owned(),
            value: rounded(value),
            unit: unit.to_owned(),
            baseline: None,
            ratio: None,
            runs,
            load,
        }
    }
}

/// Five significant digits: more than any of these measurements has. What was counted is whole, and stays.
fn rounded(number: f64) -> f64 {
    if number.fract() == 0.0 {
        return number;
    }
    format!("{number:.4e}").parse().unwrap_or(number)
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<12} {:>12.3} {:<10}", self.bar, self.value, self.unit)?;
        match (self.baseline, self.ratio) {
            (Some(baseline), Some(ratio)) => write!(f, " against {baseline:>12.3}  ratio {ratio:<8.3}")?,
            _ => write!(f, "{:>38}", "")?,
        }
        write!(f, " {} (runs {}, load {})", self.name, self.runs, self.load)
    }
}

/// Where the figures are kept.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/results.json")
}

/// Replaces the figures of one bar, its own and those with a suffix, and keeps all other objects as they are.
///
/// # Errors
/// The file cannot be read or written, or holds something else.
pub fn replace(path: &Path, bar: &str, figures: Vec<Figure>) -> io::Result<()> {
    let mut kept: Vec<Value> = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let suffixed = format!("{bar}.");
    kept.retain(|figure| bar_of(figure) != bar && !bar_of(figure).starts_with(&suffixed));
    for figure in figures {
        kept.push(serde_json::to_value(figure)?);
    }
    kept.sort_by(|left, right| bar_of(left).cmp(bar_of(right)));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut text = serde_json::to_vec_pretty(&kept)?;
    text.push(b'\n');
    let unfinished = path.with_extension("json.new");
    fs::write(&unfinished, text)?;
    fs::rename(unfinished, path)
}

fn bar_of(figure: &Value) -> &str {
    figure["bar"].as_str().unwrap_or_default()
}

/// The load average of the last minute; 0 where the system does not tell.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_bar_replaces_its_own_figures_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bench/results.json");
        let figure = |bar: &str, value: f64| Figure::alone(bar, "n", "us", value, 1, 0.0);
        replace(&path, "F2", vec![figure("F2", 1.0), figure("F2.string", 2.0)]).unwrap();
        replace(&path, "F20", vec![figure("F20", 3.0)]).unwrap();
        replace(&path, "F2", vec![figure("F2", 4.0)]).unwrap();
        let kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let expected = [figure("F2", 4.0), figure("F20", 3.0)];
        assert_eq!(kept, serde_json::to_value(expected).unwrap());
    }

    #[test]
    fn objects_of_other_bars_stay_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.json");
        let others = serde_json::json!([{"bar": "G1", "value": 7, "note": [1.5, null]}, {"bar": "S2.x", "ratio": 0.1}]);
        fs::write(&path, others.to_string()).unwrap();
        replace(&path, "G", vec![]).unwrap();
        replace(&path, "S", vec![]).unwrap();
        let kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(kept, others);
    }

    #[test]
    fn counts_are_not_rounded() {
        assert_eq!(Figure::alone("F7", "n", "bits", 1_234_567.0, 1, 0.0).value, 1_234_567.0);
        assert_eq!(Figure::alone("F2", "n", "us", 1.234_567, 1, 0.0).value, 1.2346);
    }
}
