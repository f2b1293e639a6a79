//! Reading TOML tables key by key, with a position for everything.

use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::errors::{ErrorList, did_you_mean};
use super::{Location, Places};

/// A file and where its lines begin.
pub(super) struct SourceText {
    path: Arc<str>,
    /// Where the line breaks stand, ascending.
    line_breaks: Vec<usize>,
}

impl SourceText {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let line_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { path: path.into(), line_breaks }
    }

    /// Where a span begins.
    pub(super) fn location(&self, span: Range<usize>) -> Location {
        let breaks_before = self.line_breaks.partition_point(|at| *at < span.start);
        Location { file: Arc::clone(&self.path), line: u32::try_from(breaks_before + 1).unwrap_or(u32::MAX) }
    }
}

pub(super) type TomlValue<'i> = Spanned<DeValue<'i>>;

/// One table of a definition, with its subject (`view aircraft_legs`) for messages.
pub(super) struct TableReader<'a, 'i> {
    source: &'a SourceText,
    subject: String,
    table: &'a DeTable<'i>,
    pub(super) places: Places,
    errors: &'a mut ErrorList,
}

impl<'a, 'i> TableReader<'a, 'i> {
    /// Refuses keys that are neither among `known` nor `hidden`, and notes where the others stand. Hidden keys are not
    /// offered in messages.
    pub(super) fn new(
        source: &'a SourceText,
        subject: String,
        header: Location,
        table: &'a DeTable<'i>,
        (known, hidden): (&[&str], &[&str]),
        errors: &'a mut ErrorList,
    ) -> Self {
        let mut places = Places::new(header);
        for key in table.keys() {
            let at = source.location(key.span());
            let name = key.get_ref().as_ref();
            if !known.contains(&name) && !hidden.contains(&name) {
                let nearest = did_you_mean(name, known.iter().copied());
                let known_keys = known.join(", ");
                errors.push(&at, format!("{subject}: unknown key `{name}`{nearest} (known: {known_keys})"));
            }
            places.record(name, at);
        }
        Self { source, subject, table, places, errors }
    }

    pub(super) fn error(&mut self, at: &Location, message: impl AsRef<str>) {
        self.errors.push(at, format!("{}: {}", self.subject, message.as_ref()));
    }

    pub(super) fn error_at_key(&mut self, key: &str, message: impl AsRef<str>) {
        let at = self.places.of(key).clone();
        self.error(&at, message);
    }

    pub(super) fn value(&self, key: &str) -> Option<&'a TomlValue<'i>> {
        self.table.get(key)
    }

    fn wrong_type<T>(&mut self, key: &str, value: &TomlValue<'i>, expected: &str) -> Option<T> {
        let found = value.get_ref().type_str();
        let at = self.source.location(value.span());
        self.error(&at, format!("`{key}` must be {expected}, found {}", with_article(found)));
        None
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(text.as_ref().to_owned()),
            _ => self.wrong_type(key, value, "a string"),
        }
    }

    pub(super) fn required_text(&mut self, key: &str, hint: &str) -> Option<String> {
        if self.value(key).is_none() {
            let header = self.places.header().clone();
            self.error(&header, format!("`{key}` is missing; {hint}"));
            return None;
        }
        self.text(key)
    }

    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            _ => self.wrong_type(key, value, "true or false"),
        }
    }

    pub(super) fn duration_us(&mut self, key: &str) -> Option<i64> {
        let text = self.text(key)?;
        match eadem_values::parse_duration(&text) {
            Ok(us) => Some(us),
            Err(error) => {
                self.error_at_key(key, format!("`{key}`: {error}"));
                None
            }
        }
    }

    /// Strings of an array, each with its position.
    pub(super) fn texts(&mut self, key: &str) -> Vec<(String, Location)> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type::<()>(key, value, "a list of strings");
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::String(text) => texts.push((text.as_ref().to_owned(), self.source.location(item.span()))),
                _ => {
                    self.wrong_type::<()>(key, item, "a list of strings");
                }
            }
        }
        texts
    }

    /// Entries of an inner table in the order in which they are written; each place is noted as `key.name`.
    pub(super) fn entries(&mut self, key: &str) -> Vec<(String, &'a TomlValue<'i>)> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type::<()>(key, value, "a table");
            return Vec::new();
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut named = Vec::new();
        for (name, value) in entries {
            let text = name.get_ref().as_ref().to_owned();
            self.places.record(format!("{key}.{text}"), self.source.location(name.span()));
            named.push((text, value));
        }
        named
    }

    /// Entries of an inner table that may have these keys and no others; `None` if it is no table.
    pub(super) fn known_entries(
        &mut self,
        key: &str,
        known: &[&str],
        expected: &str,
    ) -> Option<Vec<(String, &'a TomlValue<'i>)>> {
        let value = self.value(key)?;
        if !value.get_ref().is_table() {
            return self.wrong_type(key, value, expected);
        }
        let mut entries = self.entries(key);
        entries.retain(|(name, _)| {
            let is_known = known.contains(&name.as_str());
            if !is_known {
                let nearest = did_you_mean(name, known.iter().copied());
                let keys = known.join(", ");
                self.error_at_key(
                    &format!("{key}.{name}"),
                    format!("`{key}` has no key `{name}`{nearest} (known: {keys})"),
                );
            }
            is_known
        });
        Some(entries)
    }

    /// A string inside an inner table, at a place such as `csv.path`.
    pub(super) fn text_in(&mut self, place: &str, value: &TomlValue<'i>) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.as_ref().to_owned()),
            _ => self.wrong_type(place, value, "a string"),
        }
    }

    /// Entries of an inner table whose values are strings.
    pub(super) fn text_entries(&mut self, key: &str) -> Vec<(String, String)> {
        let mut texts = Vec::new();
        for (name, value) in self.entries(key) {
            match value.get_ref() {
                DeValue::String(text) => texts.push((name, text.as_ref().to_owned())),
                _ => {
                    self.wrong_type::<()>(&format!("{key}.{name}"), value, "a string");
                }
            }
        }
        texts
    }

    /// One of a fixed set of words.
    pub(super) fn choice<T>(&mut self, key: &str, names: &[&str], read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(key)?;
        let choice = read(&text);
        if choice.is_none() {
            let nearest = did_you_mean(&text, names.iter().copied());
            self.error_at_key(key, format!("`{key}` must be one of {}, found `{text}`{nearest}", names.join(", ")));
        }
        choice
    }
}

fn with_article(type_name: &str) -> String {
    let article = if type_name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {type_name}")
}
