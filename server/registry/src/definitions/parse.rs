//! From TOML to [`Definitions`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use eadem_values::{DataType, Digest, KeyType};
use toml::de::{DeTable, DeValue};

use super::errors::{DefinitionErrors, ErrorList, did_you_mean};
use super::grammar::{SPINE_TIMESTAMP, check_name, parse_service_entry};
use super::toml_reader::{SourceText, TableReader, TomlValue};
use super::{
    BindingDefinition, BoundDefinition, DefinitionFile, Definitions, EntityDefinition, LiteralText, Location, Places,
    ServiceDefinition, SourceDefinition, TransformReference, ViewDefinition,
};
use crate::model::{
    About, Deployment, Entity, EventTime, JoinKey, KnownAt, Origin, Partition, Place, Placement, RowFormat, Source,
    SourceField, StopThreshold, ValidationPolicy,
};

/// The file that may also hold configuration.
const PROJECT_FILE: &str = "eadem.toml";
/// How far ahead of its arrival an event time may lie where the source does not say.
const MAX_AHEAD_DEFAULT_US: i64 = 3_600_000_000;

/// The tables of definitions.
pub const DEFINITION_KINDS: [&str; 4] = ["entity", "source", "view", "service"];
const ENTITY_KEYS: &[&str] = &["keys", "doc", "owner", "tags"];
const SOURCE_KEYS: &[&str] = &[
    "parquet",
    "csv",
    "json",
    "delta",
    "postgres",
    "types",
    "columns",
    "where",
    "time_zone",
    "event_time",
    "known_at",
    "event_id",
    "max_ahead",
    "doc",
    "owner",
    "tags",
];
/// Where rows may come from.
const SOURCE_KINDS: &[&str] = &["parquet", "csv", "json", "delta", "postgres"];
const CSV_KEYS: &[&str] = &["path", "delimiter", "null", "names"];
const POSTGRES_KEYS: &[&str] = &["url_env", "query", "cursor"];
/// Kinds of sources that the design knows and this version does not read.
const LATER_SOURCE_KINDS: &[&str] = &["kafka"];
/// Keys that are refused with what to do instead, and offered to nobody.
const LATER_SOURCE_KEYS: &[&str] = &["kafka", "push", "fields"];
const VIEW_KEYS: &[&str] = &[
    "entity",
    "source",
    "transform",
    "bind",
    "ttl",
    "horizon",
    "defaults",
    "validation",
    "bounds",
    "stop_share",
    "stop_rows_min",
    "placement",
    "online_history",
    "cache",
    "partition",
    "doc",
    "owner",
    "tags",
];
/// Settings that only a view with a table of its own has.
const STORED_VIEW_KEYS: &[&str] =
    &["ttl", "horizon", "stop_share", "stop_rows_min", "placement", "online_history", "cache", "partition"];
/// Of an entry of `bounds`.
const BOUND_KEYS: &[&str] = &["min", "max", "nan", "infinite", "validation"];
const SERVICE_KEYS: &[&str] = &["features", "doc", "owner", "tags"];
/// Names that mean something else where a view is named.
const RESERVED_VIEW_NAMES: &[&str] = &["request"];

pub(super) fn parse_files(
    files: &[DefinitionFile],
    configuration_tables: &[&str],
) -> Result<Definitions, DefinitionErrors> {
    let mut definitions = Definitions::default();
    let mut errors = ErrorList::default();
    for file in files {
        let source = SourceText::new(&file.path, &file.text);
        match DeTable::parse(&file.text) {
            Ok(table) => {
                parse_file(&source, file, table.get_ref(), configuration_tables, &mut definitions, &mut errors)
            }
            Err(error) => {
                let at = source.location(error.span().unwrap_or(0..0));
                errors.push(&at, format!("not valid TOML: {}", error.message().replace('\n', ", ")));
            }
        }
    }
    errors.into_result(definitions)
}

fn parse_file(
    source: &SourceText,
    file: &DefinitionFile,
    root: &DeTable<'_>,
    configuration_tables: &[&str],
    definitions: &mut Definitions,
    errors: &mut ErrorList,
) {
    let holds_configuration = file_name(&file.path) == PROJECT_FILE;
    for (key, value) in root {
        let at = source.location(key.span());
        let kind = key.get_ref().as_ref();
        if configuration_tables.contains(&kind) {
            if !holds_configuration {
                errors.push(&at, format!("`[{kind}]` is configuration and only read in {PROJECT_FILE}; move it there"));
            }
            continue;
        }
        if !DEFINITION_KINDS.contains(&kind) {
            let allowed_here = if holds_configuration { configuration_tables } else { &[] };
            let nearest = did_you_mean(kind, DEFINITION_KINDS.iter().chain(allowed_here).copied());
            errors.push(
                &at,
                format!("unknown table `{kind}`{nearest} (definitions are {})", DEFINITION_KINDS.join(", ")),
            );
            continue;
        }
        let DeValue::Table(named) = value.get_ref() else {
            errors.push(&at, format!("`{kind}` must be a table of definitions: write `[{kind}.<name>]`"));
            continue;
        };
        for (name, body) in named {
            let at = source.location(name.span());
            let name = name.get_ref().as_ref();
            if let Err(message) = check_name(name) {
                errors.push(&at, format!("{kind} {name}: {message}"));
                continue;
            }
            let DeValue::Table(table) = body.get_ref() else {
                errors.push(&at, format!("`{kind}.{name}` must be a table: write `[{kind}.{name}]`"));
                continue;
            };
            match kind {
                "entity" => {
                    let parsed = parse_entity(source, name, at, table, errors);
                    add(&mut definitions.entities, "entity", name, parsed, |e| &e.places, errors);
                }
                "source" => {
                    let parsed = parse_source(source, name, at, table, errors);
                    add(&mut definitions.sources, "source", name, parsed, |s| &s.places, errors);
                }
                "view" => {
                    let parsed = parse_view(source, name, at, table, errors);
                    add(&mut definitions.views, "view", name, parsed, |v| &v.places, errors);
                }
                _ => {
                    let parsed = parse_service(source, name, at, table, errors);
                    add(&mut definitions.services, "service", name, parsed, |s| &s.places, errors);
                }
            }
        }
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn add<T>(
    known: &mut BTreeMap<String, T>,
    kind: &str,
    name: &str,
    definition: Option<T>,
    places: impl Fn(&T) -> &Places,
    errors: &mut ErrorList,
) {
    let Some(definition) = definition else { return };
    match known.entry(name.to_owned()) {
        Entry::Vacant(slot) => {
            slot.insert(definition);
        }
        Entry::Occupied(first) => {
            let first_at = places(first.get()).header().clone();
            let second_at = places(&definition).header();
            errors.push(second_at, format!("{kind} {name}: already defined at {first_at}; remove one of the two"));
        }
    }
}

fn read_about(reader: &mut TableReader<'_, '_>) -> About {
    let mut tags: Vec<String> = reader.texts("tags").into_iter().map(|(tag, _)| tag).collect();
    tags.sort();
    tags.dedup();
    About { doc: reader.text("doc").unwrap_or_default(), owner: reader.text("owner").unwrap_or_default(), tags }
}

fn parse_entity(
    source: &SourceText,
    name: &str,
    at: Location,
    table: &DeTable<'_>,
    errors: &mut ErrorList,
) -> Option<EntityDefinition> {
    let mut reader = TableReader::new(source, format!("entity {name}"), at, table, (ENTITY_KEYS, &[]), errors);
    let mut keys = Vec::new();
    for (key, type_name) in reader.text_entries("keys") {
        let place = format!("keys.{key}");
        if let Err(message) = check_column_name(&key) {
            reader.error_at_key(&place, message);
        }
        let key_type = match type_name.as_str() {
            "utf8" => KeyType::Utf8,
            "int64" => KeyType::Int64,
            _ => {
                let nearest = did_you_mean(&type_name, ["utf8", "int64"]);
                reader.error_at_key(&place, format!("key `{key}` must be utf8 or int64, found `{type_name}`{nearest}"));
                continue;
            }
        };
        keys.push(JoinKey { name: key, key_type });
    }
    let about = read_about(&mut reader);
    if reader.value("keys").is_none() || (keys.is_empty() && table_is_empty(reader.value("keys"))) {
        reader.error_at_key("keys", "an entity needs at least one key: `keys = { tailnum = \"utf8\" }`");
        return None;
    }
    Some(EntityDefinition { entity: Entity { name: name.to_owned(), keys, about }, places: reader.places })
}

fn table_is_empty(value: Option<&TomlValue<'_>>) -> bool {
    matches!(value.map(|value| value.get_ref()), Some(DeValue::Table(table)) if table.is_empty())
}

/// Columns that every offline table or spine has of its own.
const RESERVED_COLUMNS: &[&str] = &["event_time", "known_at", "event_date", "event_hour", SPINE_TIMESTAMP];
/// What stands behind a feature's name in a dataset to name its status.
const STATUS_SUFFIX: &str = "__status";

/// Checks the name of a join key or feature: it becomes a column of offline tables and datasets.
pub(crate) fn check_column_name(name: &str) -> Result<(), String> {
    let is_plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_plain || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("`{name}` is not a column name; use letters, digits and `_`, beginning with a letter"));
    }
    if name.starts_with('_') {
        return Err(format!("the name `{name}` is reserved: names that begin with `_` are the store's own columns"));
    }
    if RESERVED_COLUMNS.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(format!("the name `{name}` is reserved: it is a column of the store's own; choose another"));
    }
    if name.ends_with(STATUS_SUFFIX) {
        return Err(format!("the name `{name}` is reserved: datasets name statuses `<feature>{STATUS_SUFFIX}`"));
    }
    Ok(())
}

const PUSH_NOT_SUPPORTED: &str =
    "pushing rows is not supported yet; use `parquet`, `csv`, `json`, `delta` or `postgres`";

fn parse_source(
    source: &SourceText,
    name: &str,
    at: Location,
    table: &DeTable<'_>,
    errors: &mut ErrorList,
) -> Option<SourceDefinition> {
    let mut reader =
        TableReader::new(source, format!("source {name}"), at, table, (SOURCE_KEYS, LATER_SOURCE_KEYS), errors);
    for later in LATER_SOURCE_KINDS {
        if reader.value(later).is_some() {
            let kinds = SOURCE_KINDS.join(", ");
            reader.error_at_key(later, format!("`{later}` sources are not supported yet; there are {kinds}"));
        }
    }
    let origin = parse_origin(&mut reader);
    let types = parse_types(&mut reader);
    let push = reader.boolean("push").unwrap_or(false);
    if push {
        reader.error_at_key("push", format!("`push`: {PUSH_NOT_SUPPORTED}"));
    }
    let fields = parse_source_fields(&mut reader);
    if reader.value("fields").is_some() {
        reader.error_at_key("fields", format!("`fields` declares the columns of pushed rows: {PUSH_NOT_SUPPORTED}"));
    }
    let columns: BTreeMap<String, String> = reader.text_entries("columns").into_iter().collect();
    for (column, expression) in &columns {
        if expression.trim().is_empty() {
            reader.error_at_key(&format!("columns.{column}"), format!("column `{column}` has an empty expression"));
        }
    }
    let filter = reader.text("where").map(|text| text.trim().to_owned());
    if filter.as_deref() == Some("") {
        reader.error_at_key("where", "`where` is empty; leave it out to keep every row");
    }
    let time_zone = reader.text("time_zone");
    let event_time = parse_event_time(&mut reader);
    let known_at = parse_known_at(&mut reader);
    let event_id = reader.text("event_id");
    let max_ahead_us = reader.duration_us("max_ahead").unwrap_or(MAX_AHEAD_DEFAULT_US);
    let about = read_about(&mut reader);

    let is_later_kind = LATER_SOURCE_KINDS.iter().any(|later| reader.value(later).is_some());
    let has_origin = SOURCE_KINDS.iter().any(|kind| reader.value(kind).is_some()) || push || is_later_kind;
    if !has_origin {
        let header = reader.places.header().clone();
        let message =
            "says not where rows come from; give `parquet = \"<path>\"`, or `csv`, `json`, `delta` or `postgres`";
        reader.error(&header, message);
    }
    let event_time = event_time?;
    let known_at = match known_at? {
        KnownAt::Column(column) if event_time == EventTime::Column(column.clone()) => KnownAt::EventTime,
        other => other,
    };
    let source = Source {
        name: name.to_owned(),
        origin,
        types,
        push,
        fields,
        columns: columns.into_iter().map(|(name, text)| (name, text.trim().to_owned())).collect(),
        filter,
        time_zone,
        event_time,
        known_at,
        event_id,
        max_ahead_us,
        about,
    };
    Some(SourceDefinition { source, places: reader.places })
}

/// Where rows come from: one of the kinds.
fn parse_origin(reader: &mut TableReader<'_, '_>) -> Option<Origin> {
    let given: Vec<&str> = SOURCE_KINDS.iter().copied().filter(|kind| reader.value(kind).is_some()).collect();
    if let [first, second, ..] = given.as_slice() {
        let message = format!("`{first}` and `{second}` are given; a source reads one of them: make two sources");
        reader.error_at_key(second, message);
        return None;
    }
    let kind = *given.first()?;
    let format = match kind {
        "csv" => return parse_csv(reader),
        "postgres" => return parse_postgres(reader),
        "json" => RowFormat::Json,
        "delta" => RowFormat::Delta,
        _ => RowFormat::Parquet,
    };
    let path = reader.text(kind)?;
    let place = parse_path(reader, kind, path)?;
    Some(Origin { format, place })
}

fn parse_path(reader: &mut TableReader<'_, '_>, kind: &str, path: String) -> Option<Place> {
    if path.trim().is_empty() {
        let what = if kind == "delta" { "the folder of a table" } else { "a file, a folder or an object store URL" };
        reader.error_at_key(kind, format!("`{kind}` is empty; name {what}"));
        return None;
    }
    Some(Place::Path(path))
}

/// `csv = "path"`, or a table that says how it is written.
fn parse_csv(reader: &mut TableReader<'_, '_>) -> Option<Origin> {
    let (mut delimiter, mut null, mut names) = (',', String::new(), None);
    if reader.value("csv").is_some_and(|value| value.get_ref().is_str()) {
        let path = reader.text("csv")?;
        let place = parse_path(reader, "csv", path)?;
        return Some(Origin { format: RowFormat::Csv { delimiter, null, names }, place });
    }
    let mut path = None;
    let mut is_sound = true;
    for (key, value) in reader.known_entries("csv", CSV_KEYS, "a path, or a table with one")? {
        let place = format!("csv.{key}");
        match key.as_str() {
            "path" => path = reader.text_in(&place, value),
            "null" => null = reader.text_in(&place, value)?,
            "delimiter" => {
                let text = reader.text_in(&place, value)?;
                let mut characters = text.chars();
                match (characters.next(), characters.next()) {
                    (Some(one), None) if one.is_ascii() && !matches!(one, '"' | '\n' | '\r') => delimiter = one,
                    _ => {
                        let message = "`csv.delimiter` must be one ASCII character, such as `;` or a tab, and no quote";
                        reader.error_at_key(&place, message);
                        is_sound = false;
                    }
                }
            }
            _ => names = Some(parse_names(reader, &place, value)?),
        }
    }
    let Some(path) = path else {
        reader.error_at_key("csv", "`csv.path` is missing; name a file, a folder or an object store URL");
        return None;
    };
    let place = parse_path(reader, "csv", path)?;
    is_sound.then_some(Origin { format: RowFormat::Csv { delimiter, null, names }, place })
}

fn parse_names(reader: &mut TableReader<'_, '_>, place: &str, value: &TomlValue<'_>) -> Option<Vec<String>> {
    let DeValue::Array(items) = value.get_ref() else {
        reader.error_at_key(place, format!("`{place}` must be a list of the columns' names"));
        return None;
    };
    let names: Option<Vec<String>> = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect();
    let names = names.filter(|names| !names.is_empty() && names.iter().all(|name| !name.is_empty()));
    let Some(names) = names else {
        reader.error_at_key(place, format!("`{place}` must be a list of the columns' names, one for each column"));
        return None;
    };
    if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        reader.error_at_key(place, format!("`{place}` names `{}` twice", twice.1));
        return None;
    }
    Some(names)
}

const POSTGRES_SHAPE: &str = "`postgres = { url_env = \"PAYMENTS_URL\", query = \"select …\" }`";

fn parse_postgres(reader: &mut TableReader<'_, '_>) -> Option<Origin> {
    let (mut url_env, mut query, mut cursor) = (None, None, None);
    for (key, value) in reader.known_entries("postgres", POSTGRES_KEYS, &format!("a table: {POSTGRES_SHAPE}"))? {
        let place = format!("postgres.{key}");
        let text = reader.text_in(&place, value)?;
        match key.as_str() {
            "url_env" => url_env = Some(text),
            "query" => query = Some(text.trim().to_owned()),
            _ => cursor = Some(text),
        }
    }
    let (Some(url_env), Some(query)) = (url_env, query) else {
        reader.error_at_key("postgres", format!("`postgres` needs `url_env` and `query`: {POSTGRES_SHAPE}"));
        return None;
    };
    let is_variable = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if url_env.is_empty() || !url_env.chars().all(is_variable) || url_env.starts_with(|c: char| c.is_ascii_digit()) {
        // What stands here may be the URL itself, with a password: it is not repeated.
        let message = "`postgres.url_env` must be the name of an environment variable that holds the database's URL; \
                       credentials do not stand in definitions";
        reader.error_at_key("postgres.url_env", message);
        return None;
    }
    if query.is_empty() || cursor.as_deref() == Some("") {
        let empty = if query.is_empty() { "query" } else { "cursor" };
        reader.error_at_key(&format!("postgres.{empty}"), format!("`postgres.{empty}` is empty"));
        return None;
    }
    Some(Origin { format: RowFormat::Postgres { query }, place: Place::Database { url_env, cursor } })
}

/// The types of columns that are written as text.
fn parse_types(reader: &mut TableReader<'_, '_>) -> BTreeMap<String, DataType> {
    let mut types = BTreeMap::new();
    for (name, type_name) in reader.text_entries("types") {
        let place = format!("types.{name}");
        match type_name.parse::<DataType>() {
            Ok(DataType::Binary | DataType::Vector(_) | DataType::List(_)) if reader.value("json").is_none() => {
                let message = format!(
                    "`{place}` is {type_name}, which text does not hold; give boolean, int64, float32, float64, utf8 or timestamp"
                );
                reader.error_at_key(&place, message);
            }
            Ok(data_type) => {
                types.insert(name, data_type);
            }
            Err(error) => reader.error_at_key(&place, format!("`{place}`: {error}")),
        }
    }
    for (kind, advice) in [("delta", "in `columns`"), ("postgres", "in the query")] {
        if reader.value(kind).is_some() && reader.value("types").is_some() {
            let message =
                format!("`types` are for text; the columns of `{kind}` have types of their own: cast them {advice}");
            reader.error_at_key("types", message);
        }
    }
    if reader.value("json").is_some() && reader.value("types").is_none() {
        let message = "`json` needs `types`: every member that is read, `types = { amount = \"float64\" }`";
        reader.error_at_key("json", message);
    }
    types
}

fn parse_source_fields(reader: &mut TableReader<'_, '_>) -> Vec<SourceField> {
    let mut fields = Vec::new();
    for (name, type_name) in reader.text_entries("fields") {
        match type_name.parse::<DataType>() {
            Ok(data_type) => fields.push(SourceField { name, data_type }),
            Err(error) => reader.error_at_key(&format!("fields.{name}"), format!("field `{name}`: {error}")),
        }
    }
    fields
}

fn parse_event_time(reader: &mut TableReader<'_, '_>) -> Option<EventTime> {
    const SHAPE: &str = "name a column, or give a timestamp such as 2013-01-01T00:00:00Z for data that does not change";
    let Some(value) = reader.value("event_time") else {
        let header = reader.places.header().clone();
        reader.error(&header, format!("`event_time` is missing; {SHAPE}"));
        return None;
    };
    let literal = match value.get_ref() {
        DeValue::String(text) => match eadem_values::parse_timestamp(text) {
            Ok(us) => Some(us),
            Err(_) => return Some(EventTime::Column(text.as_ref().to_owned())),
        },
        _ => literal_text(value).and_then(|literal| match literal {
            LiteralText::Timestamp(us) => Some(us),
            LiteralText::Text(text) => eadem_values::parse_timestamp(&text).ok(),
            _ => None,
        }),
    };
    let Some(us) = literal else {
        reader
            .error_at_key("event_time", format!("`event_time` is neither a column nor a timestamp with zone; {SHAPE}"));
        return None;
    };
    let is_supported = (eadem_values::TIME_MIN_US..eadem_values::TIME_MAX_US).contains(&us);
    if !is_supported {
        reader.error_at_key("event_time", "`event_time` must lie from 1900 to before 2200");
        return None;
    }
    Some(EventTime::Literal(us))
}

fn parse_known_at(reader: &mut TableReader<'_, '_>) -> Option<KnownAt> {
    const SHAPE: &str = "`known_at` must be a column or a delay: `known_at = { after = \"6h\" }`";
    let Some(value) = reader.value("known_at") else {
        return Some(KnownAt::EventTime);
    };
    match value.get_ref() {
        DeValue::String(column) => Some(KnownAt::Column(column.as_ref().to_owned())),
        DeValue::Table(table) => {
            let after = match table.get("after").map(|after| after.get_ref()) {
                Some(DeValue::String(after)) if table.len() == 1 => after.as_ref(),
                _ => {
                    reader.error_at_key("known_at", SHAPE);
                    return None;
                }
            };
            match eadem_values::parse_duration(after) {
                Ok(us) => Some(KnownAt::AfterUs(us)),
                Err(error) => {
                    reader.error_at_key("known_at", format!("`known_at`: {error}"));
                    None
                }
            }
        }
        _ => {
            reader.error_at_key("known_at", SHAPE);
            None
        }
    }
}

/// A constant; `{ literal = … }` stands for what is in it.
fn literal_text(value: &TomlValue<'_>) -> Option<LiteralText> {
    match value.get_ref() {
        DeValue::Boolean(flag) => Some(LiteralText::Boolean(*flag)),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(LiteralText::Integer),
        DeValue::Float(number) => float_literal(number.as_str()).map(LiteralText::Float),
        DeValue::String(text) => Some(LiteralText::Text(text.as_ref().to_owned())),
        DeValue::Datetime(instant) => {
            eadem_values::parse_timestamp(&instant.to_string()).ok().map(LiteralText::Timestamp)
        }
        DeValue::Array(items) => items.iter().map(literal_text).collect::<Option<Vec<_>>>().map(LiteralText::List),
        DeValue::Table(table) => {
            let only = if table.len() == 1 { table.get("literal") } else { None };
            only.filter(|inner| !inner.get_ref().is_table()).and_then(literal_text)
        }
    }
}

/// A number that is too large for a float64 is not meant to be infinite.
fn float_literal(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    let overflowed = number.is_infinite() && !text.ends_with("inf");
    (!overflowed).then_some(number)
}

const LITERAL_SHAPE: &str = "a constant is a number, true or false, a timestamp with zone, a list of constants, or \
                             `{ literal = \"text\" }`; numbers must fit 64 bits";

fn parse_transform(reader: &mut TableReader<'_, '_>) -> Option<TransformReference> {
    let hint = "give a folder to build, a `.wasm` file, or `name@sha256:…`";
    let text = reader.required_text("transform", hint)?;
    if let Some((name, digest)) = text.split_once("@sha256:") {
        return match format!("sha256:{digest}").parse::<Digest>() {
            Ok(digest) => Some(TransformReference::Uploaded { name: name.to_owned(), digest }),
            Err(error) => {
                reader.error_at_key("transform", format!("`transform`: {error}"));
                None
            }
        };
    }
    if text.trim().is_empty() {
        reader.error_at_key("transform", format!("`transform` is empty; {hint}"));
        return None;
    }
    if text.ends_with(".wasm") {
        return Some(TransformReference::File(text));
    }
    Some(TransformReference::Folder(text.trim_end_matches('/').to_owned()))
}

fn parse_view(
    source: &SourceText,
    name: &str,
    at: Location,
    table: &DeTable<'_>,
    errors: &mut ErrorList,
) -> Option<ViewDefinition> {
    let mut reader = TableReader::new(source, format!("view {name}"), at, table, (VIEW_KEYS, &[]), errors);
    if RESERVED_VIEW_NAMES.contains(&name) {
        let header = reader.places.header().clone();
        reader
            .error(&header, format!("the name `{name}` is reserved: bindings use it for the request; choose another"));
    }
    let entity = reader.text("entity");
    let source_name = reader.text("source");
    let is_on_demand = reader.value("entity").is_none() && reader.value("source").is_none();
    if entity.is_some() != source_name.is_some() {
        let (given, missing) = if entity.is_some() { ("entity", "source") } else { ("source", "entity") };
        reader.error_at_key(
            given,
            format!("`{given}` is given without `{missing}`; a stored view has both, an on-demand view neither"),
        );
    }
    if is_on_demand {
        for key in STORED_VIEW_KEYS {
            if reader.value(key).is_some() {
                let message =
                    format!("`{key}` has no meaning for an on-demand view (one without `entity` and `source`)");
                reader.error_at_key(key, message);
            }
        }
    }
    let transform = parse_transform(&mut reader);
    let ttl_us = match reader.value("ttl").map(|ttl| ttl.get_ref().as_str()) {
        Some(Some("none")) => None,
        _ => reader.duration_us("ttl"),
    };
    if ttl_us == Some(0) {
        reader.error_at_key("ttl", "`ttl` must be more than zero, or no value would ever be present");
    }
    let horizon_us = reader.duration_us("horizon");
    if horizon_us.is_some() && ttl_us.is_none() && !is_on_demand {
        reader.error_at_key("horizon", "`horizon` counts from the TTL; give a `ttl` or remove it");
    }
    let lifetime_fits = ttl_us.unwrap_or(0).checked_add(horizon_us.or(ttl_us).unwrap_or(0)).is_some();
    if !lifetime_fits {
        reader.error_at_key("ttl", "`ttl` and `horizon` together are longer than time can be counted in microseconds");
    }
    let bind = parse_bind(&mut reader);
    let mut defaults = BTreeMap::new();
    for (feature, value) in reader.entries("defaults") {
        match literal_text(value) {
            Some(literal) => {
                defaults.insert(feature, literal);
            }
            None => {
                reader.error_at_key(&format!("defaults.{feature}"), format!("default of `{feature}`: {LITERAL_SHAPE}"))
            }
        }
    }
    let validation = reader.choice("validation", ValidationPolicy::NAMES, ValidationPolicy::from_name);
    if is_on_demand && validation == Some(ValidationPolicy::StopJob) {
        reader.error_at_key("validation", "`stop_job` has no meaning for an on-demand view; no job writes it");
    }
    let bounds = parse_bounds(&mut reader, is_on_demand);
    let stop = parse_stop(&mut reader);
    let partition = reader.choice("partition", Partition::NAMES, Partition::from_name).unwrap_or_default();
    if partition == Partition::Hour {
        let message = "`partition = \"hour\"` is not supported yet; tables are partitioned by day: remove it";
        reader.error_at_key("partition", message);
    }
    let deployment = Deployment {
        placement: reader.choice("placement", Placement::NAMES, Placement::from_name).unwrap_or_default(),
        online_history_us: reader.duration_us("online_history"),
        cache_us: reader.duration_us("cache"),
        partition,
        stop,
        ..Deployment::default()
    };
    let about = read_about(&mut reader);
    Some(ViewDefinition {
        name: name.to_owned(),
        entity,
        source: source_name,
        transform: transform?,
        ttl_us,
        horizon_us,
        bind,
        defaults,
        validation: validation.unwrap_or_default(),
        bounds,
        deployment,
        about,
        places: reader.places,
    })
}

fn parse_bounds(reader: &mut TableReader<'_, '_>, is_on_demand: bool) -> BTreeMap<String, BoundDefinition> {
    const SHAPE: &str = "bounds of a feature are a table: `{ min = 0.0, max = 10000.0 }`";
    let mut bounds = BTreeMap::new();
    for (feature, value) in reader.entries("bounds") {
        let place = format!("bounds.{feature}");
        let DeValue::Table(table) = value.get_ref() else {
            reader.error_at_key(&place, format!("bounds of `{feature}`: {SHAPE}"));
            continue;
        };
        let mut bound = BoundDefinition::default();
        for (key, value) in table {
            let key = key.get_ref().as_ref();
            let wrong = match key {
                "min" | "max" => match literal_text(value) {
                    Some(limit) => {
                        *(if key == "min" { &mut bound.min } else { &mut bound.max }) = Some(limit);
                        None
                    }
                    None => Some("must be a number, or a timestamp with zone".to_owned()),
                },
                "nan" | "infinite" => match value.get_ref() {
                    DeValue::Boolean(flag) => {
                        *(if key == "nan" { &mut bound.nan } else { &mut bound.infinite }) = *flag;
                        None
                    }
                    _ => Some("must be true or false".to_owned()),
                },
                "validation" => {
                    bound.validation = value.get_ref().as_str().and_then(ValidationPolicy::from_name);
                    match bound.validation {
                        None => Some(format!("must be one of {}", ValidationPolicy::NAMES.join(", "))),
                        Some(ValidationPolicy::StopJob) if is_on_demand => {
                            Some("`stop_job` has no meaning for an on-demand view; no job writes it".to_owned())
                        }
                        Some(_) => None,
                    }
                }
                _ => {
                    let nearest = did_you_mean(key, BOUND_KEYS.iter().copied());
                    let known = BOUND_KEYS.join(", ");
                    reader.error_at_key(
                        &place,
                        format!("bounds of `{feature}`: unknown key `{key}`{nearest} (known: {known})"),
                    );
                    continue;
                }
            };
            if let Some(message) = wrong {
                reader.error_at_key(&place, format!("bounds of `{feature}`: `{key}`: {message}"));
            }
        }
        bounds.insert(feature, bound);
    }
    bounds
}

/// Rows of which a share is taken where the view does not say.
const STOP_ROWS_MIN_DEFAULT: u64 = 100;

fn parse_stop(reader: &mut TableReader<'_, '_>) -> Option<StopThreshold> {
    const SHARE: &str = "`stop_share` is a share of the rows, from 0 to below 1, with at most six decimals: \
                         `stop_share = 0.05`";
    let rows_min = match reader.value("stop_rows_min").map(|value| value.get_ref()) {
        None => STOP_ROWS_MIN_DEFAULT,
        Some(DeValue::Integer(number)) => match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(rows) if rows > 0 => rows,
            _ => {
                reader.error_at_key("stop_rows_min", "`stop_rows_min` is a number of rows, 1 at least");
                return None;
            }
        },
        Some(_) => {
            reader.error_at_key("stop_rows_min", "`stop_rows_min` is a number of rows, 1 at least");
            return None;
        }
    };
    let Some(value) = reader.value("stop_share") else {
        if reader.value("stop_rows_min").is_some() {
            reader.error_at_key("stop_rows_min", "`stop_rows_min` says when `stop_share` counts; give a `stop_share`");
        }
        return None;
    };
    let share_ppm = match literal_text(value) {
        Some(LiteralText::Float(share)) => StopThreshold::share_ppm_of(share),
        Some(LiteralText::Integer(0)) => Some(0),
        _ => None,
    };
    let Some(share_ppm) = share_ppm else {
        reader.error_at_key("stop_share", SHARE);
        return None;
    };
    Some(StopThreshold { share_ppm, rows_min })
}

fn parse_bind(reader: &mut TableReader<'_, '_>) -> BTreeMap<String, BindingDefinition> {
    let mut bind = BTreeMap::new();
    for (input, value) in reader.entries("bind") {
        let binding = match value.get_ref() {
            DeValue::String(name) => Some(BindingDefinition::Name(name.trim().to_owned())),
            _ => literal_text(value).map(BindingDefinition::Literal),
        };
        match binding {
            Some(binding) => {
                bind.insert(input, binding);
            }
            None => reader.error_at_key(&format!("bind.{input}"), format!("input `{input}`: {LITERAL_SHAPE}")),
        }
    }
    bind
}

fn parse_service(
    source: &SourceText,
    name: &str,
    at: Location,
    table: &DeTable<'_>,
    errors: &mut ErrorList,
) -> Option<ServiceDefinition> {
    let mut reader = TableReader::new(source, format!("service {name}"), at, table, (SERVICE_KEYS, &[]), errors);
    let written = reader.texts("features");
    if written.is_empty() {
        reader.error_at_key("features", "a service lists at least one feature: `features = [\"view:feature\"]`");
    }
    let mut features = Vec::new();
    for (text, at) in written {
        match parse_service_entry(&text) {
            Ok(entry) => features.push((entry, at)),
            Err(message) => reader.error(&at, message),
        }
    }
    let about = read_about(&mut reader);
    Some(ServiceDefinition { name: name.to_owned(), features, about, places: reader.places })
}
