//! What verbs print: text for people, JSON for programs, progress for those who wait.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use eadem_values::format_timestamp;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document on standard output; progress and notes go to standard error.
    Json,
}

/// Prints results in the chosen format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    pub(crate) format: Format,
}

impl Printer {
    /// Prints a result: as JSON, or the text that `text` makes of it.
    pub(crate) fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::Text => text(value).trim_end().to_owned(),
        };
        print_line(&text);
        Ok(())
    }

    /// Prints a note for people: to standard output as text, to standard error beside JSON.
    pub(crate) fn note(self, text: &str) {
        match self.format {
            Format::Text => print_line(text),
            Format::Json => eprintln!("{text}"),
        }
    }
}

/// A reader that goes away (`| head`) ends the output, not the work.
fn print_line(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// From when on something is complete, in microseconds.
pub(crate) fn since_text(since_us: i64) -> String {
    if since_us == i64::MIN { "the beginning".to_owned() } else { format_timestamp(since_us) }
}

/// Columns under headings, as wide as they need to be.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let padding = width.saturating_sub(cell.chars().count());
            let _ = write!(line, "{cell}{}  ", " ".repeat(padding));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Shows how far long work has come: a bar on a terminal, now and then a plain line elsewhere.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    last_line: Option<(Instant, u64)>,
    quiet: bool,
}

/// How long nothing is said where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Progress of work of this name.
    pub(crate) fn new(label: &str, format: Format) -> Self {
        let on_terminal = std::io::stderr().is_terminal() && format == Format::Text;
        let bar = on_terminal.then(|| {
            let bar = ProgressBar::new(0);
            let template = "{prefix:24} {bar:30} {percent:>3}% {msg}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar.set_prefix(label.to_owned());
            bar
        });
        Self { bar, label: label.to_owned(), last_line: None, quiet: format == Format::Json }
    }

    /// `done` of `total` steps; `message` says what else there is to say.
    pub(crate) fn update(&mut self, done: u64, total: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(1));
            bar.set_position(done);
            bar.set_message(message.to_owned());
            return;
        }
        if self.quiet || total == 0 {
            return;
        }
        let percent = done.saturating_mul(100) / total;
        let is_due = match self.last_line {
            None => true,
            Some((at, last_percent)) => percent != last_percent && (percent >= 100 || at.elapsed() >= LINE_EVERY),
        };
        if is_due {
            eprintln!("{}: {percent}% {message}", self.label);
            self.last_line = Some((Instant::now(), percent));
        }
    }

    /// Says something once, above the bar.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
