//! The canonical texts whose SHA-256 identifies versions. `DIGEST.md` specifies them; this is that page as code.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use eadem_values::{Digest, Field, Value, encode_values};

use crate::model::{
    Binding, BoundTo, Entity, EventTime, KnownAt, OutlierBound, RowFormat, ServiceEntry, Source, ValidationPolicy,
    ViewRef, ViewVersion,
};

/// The canonical text of a view version. `upstream_digest` answers for every view that a binding names; its error is
/// passed on.
pub(crate) fn view_text<E>(
    view: &ViewVersion,
    upstream_digest: impl Fn(&ViewRef) -> Result<Digest, E>,
) -> Result<String, E> {
    let mut text = Text::default();
    text.line("eadem view version 1");
    text.line(&format!("view {}", quoted(&view.id.name)));
    text.line(&format!("transform {}", view.transform));
    if let Some(stored) = &view.stored {
        write_entity(&mut text, &stored.entity);
        write_source(&mut text, &stored.source, &relevant_parts(view));
        let ttl = stored.ttl_us.map_or_else(|| "none".to_owned(), |us| us.to_string());
        text.line(&format!("ttl {ttl}"));
        if let Some(horizon_us) = stored.horizon_us {
            text.line(&format!("horizon {horizon_us}"));
        }
    }
    for binding in &view.bindings {
        let declared = declared_field(&binding.input);
        text.line(&format!("input {declared} {}", binding_text(binding, &upstream_digest)?));
    }
    for output in &view.description.outputs {
        text.line(&format!("output {}", declared_field(output)));
    }
    for (feature, value) in &view.defaults {
        text.line(&format!("default {} {}", quoted(feature), value_hex(value)));
    }
    text.line(&format!("validation {}", view.validation));
    for (feature, bound) in &view.bounds {
        let limit = |limit: &Option<Value>| limit.as_ref().map_or_else(|| "none".to_owned(), value_hex);
        let allowed = [(bound.allow_nan, " nan"), (bound.allow_infinite, " infinite")];
        let allowed: String = allowed.iter().filter(|(allows, _)| *allows).map(|(_, word)| *word).collect();
        let policy = bound.validation.unwrap_or(view.validation);
        let (min, max) = (limit(&bound.min), limit(&bound.max));
        text.line(&format!("bound {} min {min} max {max}{allowed} {policy}", quoted(feature)));
    }
    Ok(text.0)
}

/// The canonical text of a service version. `view_digest` answers for every view that an entry names; its error is
/// passed on.
pub(crate) fn service_text<E>(
    name: &str,
    entries: &[ServiceEntry],
    view_digest: impl Fn(&ViewRef) -> Result<Digest, E>,
) -> Result<String, E> {
    let mut text = Text::default();
    text.line("eadem service version 1");
    text.line(&format!("service {}", quoted(name)));
    for entry in entries {
        let digest = view_digest(&entry.view)?;
        let role = role_suffix(entry.role.as_deref());
        text.line(&format!("entry {} {digest} {}{role}", quoted(&entry.output_name), quoted(&entry.feature)));
    }
    Ok(text.0)
}

/// The digest of an entity's name and keys.
pub(crate) fn entity_digest(entity: &Entity) -> Digest {
    let mut text = Text::default();
    text.line("eadem entity 1");
    write_entity(&mut text, entity);
    Digest::of(text.0.as_bytes())
}

/// The digest of a source's whole meaning.
pub(crate) fn source_digest(source: &Source) -> Digest {
    let mut text = Text::default();
    text.line("eadem source 1");
    write_source(&mut text, source, &Relevant::All);
    Digest::of(text.0.as_bytes())
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn role_suffix(role: Option<&str>) -> String {
    role.map(|role| format!(" for {}", quoted(role))).unwrap_or_default()
}

fn value_hex(value: &Value) -> String {
    hex::encode(encode_values(std::slice::from_ref(value)))
}

fn declared_field(field: &Field) -> String {
    let null = if field.nullable { "null" } else { "not-null" };
    format!("{} {} {null}", quoted(&field.name), field.data_type)
}

fn binding_text<E>(binding: &Binding, upstream_digest: &impl Fn(&ViewRef) -> Result<Digest, E>) -> Result<String, E> {
    Ok(match &binding.from {
        BoundTo::Column(name) => format!("column {}", quoted(name)),
        BoundTo::Request(name) => format!("request {}", quoted(name)),
        BoundTo::RequestTimestamp => "request-timestamp".to_owned(),
        BoundTo::Literal(value) => format!("literal {}", value_hex(value)),
        BoundTo::Feature(upstream) => {
            let digest = upstream_digest(&upstream.view)?;
            format!("feature {digest} {}{}", quoted(&upstream.feature), role_suffix(upstream.role.as_deref()))
        }
    })
}

fn write_entity(text: &mut Text, entity: &Entity) {
    text.line(&format!("entity {}", quoted(&entity.name)));
    for key in &entity.keys {
        text.line(&format!("key {} {}", quoted(&key.name), key.key_type));
    }
}

fn write_source(text: &mut Text, source: &Source, relevant: &Relevant) {
    text.line(&format!("source {}", quoted(&source.name)));
    match source.origin.as_ref().map(|origin| &origin.format) {
        None | Some(RowFormat::Parquet) => {}
        Some(RowFormat::Csv { delimiter, null, names }) => {
            text.line(&format!("format csv {} {}", quoted(&delimiter.to_string()), quoted(null)));
            for name in names.iter().flatten() {
                text.line(&format!("name {}", quoted(name)));
            }
        }
        Some(RowFormat::Postgres { query }) => text.line(&format!("format postgres {}", quoted(query))),
        Some(other) => text.line(&format!("format {}", other.name())),
    }
    for (name, data_type) in source.types.iter().filter(|(name, _)| relevant.has_type(name)) {
        text.line(&format!("type {} {data_type}", quoted(name)));
    }
    let mut fields: Vec<_> = source.fields.iter().filter(|field| relevant.has_field(&field.name)).collect();
    if matches!(relevant, Relevant::Only { .. }) {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
    }
    for field in fields {
        text.line(&format!("field {} {}", quoted(&field.name), field.data_type));
    }
    for (name, expression) in source.columns.iter().filter(|(name, _)| relevant.has_column(name)) {
        text.line(&format!("column {} {}", quoted(name), quoted(expression)));
    }
    if let Some(filter) = &source.filter {
        text.line(&format!("where {}", quoted(filter)));
    }
    if let Some(zone) = &source.time_zone {
        text.line(&format!("time_zone {}", quoted(zone)));
    }
    match &source.event_time {
        EventTime::Column(name) => text.line(&format!("event_time column {}", quoted(name))),
        EventTime::Literal(us) => text.line(&format!("event_time literal {us}")),
    }
    match &source.known_at {
        KnownAt::EventTime => text.line("known_at event_time"),
        KnownAt::Column(name) => text.line(&format!("known_at column {}", quoted(name))),
        KnownAt::AfterUs(us) => text.line(&format!("known_at after {us}")),
    }
    if let Some(event_id) = &source.event_id {
        text.line(&format!("event_id {}", quoted(event_id)));
    }
}

/// Which declarations of a source a view depends on.
enum Relevant {
    All,
    Only { columns: BTreeSet<String>, words: BTreeSet<String>, used: BTreeSet<String> },
}

impl Relevant {
    fn has_column(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only { columns, .. } => columns.contains(name),
        }
    }

    fn has_field(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only { words, .. } => may_be_named(name, words),
        }
    }

    /// The type in which text is read decides its value also where it is bound as it is.
    fn has_type(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only { words, used, .. } => used.contains(name) || may_be_named(name, words),
        }
    }
}

fn relevant_parts(view: &ViewVersion) -> Relevant {
    let Some(stored) = &view.stored else { return Relevant::All };
    let source = &stored.source;
    let mut used: BTreeSet<String> = stored.entity.keys.iter().map(|key| key.name.clone()).collect();
    used.extend(view.bindings.iter().filter_map(|binding| match &binding.from {
        BoundTo::Column(name) => Some(name.clone()),
        _ => None,
    }));
    if let EventTime::Column(name) = &source.event_time {
        used.insert(name.clone());
    }
    if let KnownAt::Column(name) = &source.known_at {
        used.insert(name.clone());
    }
    used.extend(source.event_id.clone());

    let mut words = BTreeSet::new();
    if let Some(filter) = &source.filter {
        add_words(filter, &mut words);
    }
    let mut columns: BTreeSet<String> = BTreeSet::new();
    loop {
        let newly_relevant: Vec<(&String, &String)> = source
            .columns
            .iter()
            .filter(|(name, _)| !columns.contains(*name))
            .filter(|(name, _)| used.contains(*name) || may_be_named(name, &words))
            .collect();
        if newly_relevant.is_empty() {
            return Relevant::Only { columns, words, used };
        }
        for (name, expression) in newly_relevant {
            columns.insert(name.clone());
            add_words(expression, &mut words);
        }
    }
}

fn words_of(text: &str) -> impl Iterator<Item = String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.split(move |c| !is_word(c)).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

fn add_words(expression: &str, words: &mut BTreeSet<String>) {
    words.extend(words_of(expression));
}

/// Whether expressions with these words may name the column. A name of several words stands in them as a quoted one,
/// and all of its words with it; one without any word is taken to be named.
fn may_be_named(name: &str, words: &BTreeSet<String>) -> bool {
    words_of(name).all(|word| words.contains(&word))
}

/// The parts of a view that its version stands for, as lines for people: what `plan` compares.
pub(crate) fn explained(view: &ViewVersion) -> Vec<(String, String)> {
    let mut parts: Vec<(String, String)> = Vec::new();
    let mut add = |what: &str, value: String| parts.push((what.to_owned(), value));
    add("transform", format!("{} ({})", view.description.name, view.transform.short()));
    if let Some(stored) = &view.stored {
        let keys: Vec<String> = stored.entity.keys.iter().map(|key| format!("{} {}", key.name, key.key_type)).collect();
        add("entity", format!("{} ({})", stored.entity.name, keys.join(", ")));
        let ttl = stored.ttl_us.map_or_else(|| "none".to_owned(), eadem_values::format_duration);
        add("ttl", ttl);
        if let Some(horizon_us) = stored.horizon_us {
            add("horizon", eadem_values::format_duration(horizon_us));
        }
        add("source", stored.source.name.clone());
        let relevant = relevant_parts(view);
        if let Some((what, value)) = source_format(&stored.source) {
            add(&format!("source {what}"), value);
        }
        for (name, data_type) in stored.source.types.iter().filter(|(name, _)| relevant.has_type(name)) {
            add(&format!("source type {name}"), data_type.to_string());
        }
        let Relevant::Only { columns, words, .. } = relevant else { return parts };
        for field in stored.source.fields.iter().filter(|field| may_be_named(&field.name, &words)) {
            add(&format!("source field {}", field.name), field.data_type.to_string());
        }
        for (name, expression) in stored.source.columns.iter().filter(|(name, _)| columns.contains(*name)) {
            add(&format!("source column {name}"), expression.clone());
        }
        for (what, value) in source_times(&stored.source) {
            add(what, value);
        }
    }
    for binding in &view.bindings {
        add(&format!("input {}", binding.input.name), bound_to_text(&binding.from));
    }
    for (feature, value) in &view.defaults {
        add(&format!("default {feature}"), eadem_values::value_to_json(value).to_string());
    }
    add("validation", view.validation.to_string());
    for (feature, bound) in &view.bounds {
        add(&format!("bounds of {feature}"), outliers_to_text(bound, view.validation));
    }
    parts
}

/// `min 0.0, max 10000.0, clamp`
fn outliers_to_text(bound: &OutlierBound, of_view: ValidationPolicy) -> String {
    let limit = |name: &str, limit: &Option<Value>| {
        limit.as_ref().map(|limit| format!("{name} {}", eadem_values::value_to_json(limit)))
    };
    let parts = [
        limit("min", &bound.min),
        limit("max", &bound.max),
        bound.allow_nan.then(|| "NaN allowed".to_owned()),
        bound.allow_infinite.then(|| "infinities allowed".to_owned()),
        Some(bound.validation.unwrap_or(of_view).to_string()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What feeds an input, as written in definitions, with versions.
pub(crate) fn bound_to_text(from: &BoundTo) -> String {
    match from {
        BoundTo::Column(name) => name.clone(),
        BoundTo::Request(name) => format!("request.{name}"),
        BoundTo::RequestTimestamp => "request.timestamp".to_owned(),
        BoundTo::Literal(value) => eadem_values::value_to_json(value).to_string(),
        BoundTo::Feature(upstream) => {
            let mut text = format!("{}.{}", upstream.view, upstream.feature);
            if let Some(role) = &upstream.role {
                let _infallible = write!(text, " for {role}");
            }
            text
        }
    }
}

/// How a source's rows are written, for people; nothing for Parquet, which says everything itself.
pub(crate) fn source_format(source: &Source) -> Option<(&'static str, String)> {
    match &source.origin.as_ref()?.format {
        RowFormat::Parquet => None,
        RowFormat::Csv { delimiter, null, names } => {
            let mut text = format!("csv, delimiter {delimiter:?}, null {null:?}");
            if let Some(names) = names {
                let _infallible = write!(text, ", names {}", names.join(", "));
            }
            Some(("format", text))
        }
        RowFormat::Postgres { query } => Some(("query", query.clone())),
        other => Some(("format", other.name().to_owned())),
    }
}

/// The statements of a source besides fields and columns, for people.
pub(crate) fn source_times(source: &Source) -> Vec<(&'static str, String)> {
    let mut parts = Vec::new();
    if let Some(filter) = &source.filter {
        parts.push(("where", filter.clone()));
    }
    if let Some(zone) = &source.time_zone {
        parts.push(("time_zone", zone.clone()));
    }
    parts.push(match &source.event_time {
        EventTime::Column(name) => ("event_time", name.clone()),
        EventTime::Literal(us) => ("event_time", eadem_values::format_timestamp(*us)),
    });
    match &source.known_at {
        KnownAt::EventTime => {}
        KnownAt::Column(name) => parts.push(("known_at", name.clone())),
        KnownAt::AfterUs(us) => parts.push(("known_at", format!("{} after", eadem_values::format_duration(*us)))),
    }
    if let Some(event_id) = &source.event_id {
        parts.push(("event_id", event_id.clone()));
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::Arc;

    use eadem_values::{DataType, Description, KeyType};

    use super::*;
    use crate::model::{About, Deployment, JoinKey, SourceField, StoredView, UpstreamFeature};

    fn text_of(view: &ViewVersion) -> String {
        let Ok(text) = view_text(view, |view| Ok::<_, Infallible>(Digest::of(view.to_string().as_bytes())));
        text
    }

    fn description() -> Description {
        Description {
            name: "weather".into(),
            doc: String::new(),
            owner: String::new(),
            total: true,
            inputs: vec![Field::new("visib", DataType::Float64, true), Field::new("limit", DataType::Float64, false)],
            outputs: vec![
                Field::new("gusty", DataType::Boolean, false),
                Field::new("embedding", DataType::Vector(8), true),
            ],
        }
    }

    fn view(bindings: Vec<BoundTo>, stored: Option<StoredView>) -> ViewVersion {
        let description = description();
        let bindings = description.inputs.iter().cloned().zip(bindings);
        ViewVersion {
            id: ViewRef { name: "airport_weather".into(), version: 7 },
            digest: Digest::of(b"not read"),
            transform: Digest::of(b"component"),
            bindings: bindings.map(|(input, from)| Binding { input, from }).collect(),
            description: Arc::new(description),
            stored,
            defaults: BTreeMap::from([("gusty".to_owned(), Value::Boolean(false))]),
            validation: ValidationPolicy::Clamp,
            bounds: BTreeMap::new(),
            about: About { doc: "never read".into(), ..About::default() },
            created_at_us: 99,
            mark: None,
        }
    }

    fn stored() -> StoredView {
        StoredView {
            entity: Entity {
                name: "airport".into(),
                keys: vec![JoinKey { name: "airport".into(), key_type: KeyType::Utf8 }],
                about: About::default(),
            },
            source: Source {
                name: "observations".into(),
                origin: None,
                types: BTreeMap::new(),
                push: true,
                fields: ["zulu", "speed", "unseen"]
                    .map(|name| SourceField { name: name.into(), data_type: DataType::Int64 })
                    .into(),
                columns: [("visib", "cast(Speed as double) / \"a\\b\""), ("speed_ok", "zulu > 1"), ("never", "unseen")]
                    .map(|(name, text)| (name.to_owned(), text.to_owned()))
                    .into(),
                filter: Some("speed_ok".into()),
                time_zone: Some("America/New_York".into()),
                event_time: EventTime::Column("at".into()),
                known_at: KnownAt::AfterUs(5),
                event_id: Some("id".into()),
                max_ahead_us: 1,
                about: About::default(),
            },
            ttl_us: Some(10),
            horizon_us: Some(20),
            deployment: Deployment::default(),
        }
    }

    const STORED: &str = r#"eadem view version 1
view "airport_weather"
transform sha256:6985ca1f4daa5a584a28eae043a239cb96689af1337ea13afb63e00c2bf512fa
entity "airport"
key "airport" utf8
source "observations"
field "speed" int64
field "zulu" int64
column "speed_ok" "zulu > 1"
column "visib" "cast(Speed as double) / \"a\\b\""
where "speed_ok"
time_zone "America/New_York"
event_time column "at"
known_at after 5
event_id "id"
ttl 10
horizon 20
input "visib" float64 null column "visib"
input "limit" float64 not-null literal 040000000000000080
output "gusty" boolean not-null
output "embedding" vector(8) null
default "gusty" 0100
validation clamp
"#;

    #[test]
    fn text_of_a_stored_view() {
        let bindings = vec![BoundTo::Column("visib".into()), BoundTo::Literal(Value::Float64(-0.0))];
        let text = text_of(&view(bindings, Some(stored())));
        assert_eq!(text, STORED);
        assert_eq!(
            Digest::of(text.as_bytes()).to_string(),
            "sha256:e19f259f1f1868f0bd67559aa140625dbc077b2cc4913645ef6e55561c543fc5"
        );
    }

    #[test]
    fn text_of_an_on_demand_view() {
        let upstream = UpstreamFeature {
            view: ViewRef { name: "planes".into(), version: 3 },
            feature: "age".into(),
            role: Some("origin".into()),
        };
        let view = view(vec![BoundTo::Feature(upstream), BoundTo::Request("limit".into())], None);
        let text = text_of(&view);
        assert_eq!(
            Digest::of(text.as_bytes()).to_string(),
            "sha256:1826d3f6788ce25dff16f9768d6a19d1c4d15ce625bf879d4fc464dc9cf148e0",
            "{text}"
        );
    }

    #[test]
    fn texts_of_services_entities_and_sources() {
        let entry = |name: &str, role: Option<&str>| ServiceEntry {
            output_name: name.into(),
            view: ViewRef { name: "planes".into(), version: 3 },
            feature: "age".into(),
            data_type: DataType::Int64,
            role: role.map(str::to_owned),
        };
        let entries = [entry("age", None), entry("origin_age", Some("origin"))];
        let digest_of = |view: &ViewRef| Ok::<_, Infallible>(Digest::of(view.to_string().as_bytes()));
        let Ok(text) = service_text("delay", &entries, digest_of);
        let planes = Digest::of(b"planes@3");
        let expected = format!(
            "eadem service version 1\nservice \"delay\"\nentry \"age\" {planes} \"age\"\n\
             entry \"origin_age\" {planes} \"age\" for \"origin\"\n"
        );
        assert_eq!(text, expected);
        let stored = stored();
        assert_eq!(
            entity_digest(&stored.entity).to_string(),
            "sha256:0acea50d1b02e9e0ccb1a4e5016b6da99089d820fad29be2553d28e1ff8e3639"
        );
        assert_eq!(
            source_digest(&stored.source).to_string(),
            "sha256:83cbf3db46d7588c8280602ced3f9fd53ef62a2ee21bfa6ebbecd5edb4026784"
        );
    }

    #[test]
    fn deployment_and_documentation_are_not_in_the_text() {
        let bindings = || vec![BoundTo::Column("visib".into()), BoundTo::Literal(Value::Float64(1.0))];
        let text = text_of(&view(bindings(), Some(stored())));
        let mut moved = stored();
        moved.source.push = false;
        moved.source.max_ahead_us = 77;
        moved.source.columns.insert("never".into(), "unseen + 1".into());
        moved.deployment.online_history_us = Some(5);
        moved.deployment.cache_us = Some(6);
        moved.deployment.stop = Some(crate::model::StopThreshold { share_ppm: 1, rows_min: 1 });
        assert_eq!(text_of(&view(bindings(), Some(moved))), text);
        let mut changed = stored();
        changed.source.columns.insert("speed_ok".into(), "zulu > 2".into());
        assert_ne!(text_of(&view(bindings(), Some(changed))), text);
    }

    #[test]
    fn bounds_are_in_the_text_with_the_policy_that_counts() {
        let bindings = || vec![BoundTo::Column("visib".into()), BoundTo::Literal(Value::Float64(1.0))];
        let with_bound = |bound: OutlierBound| {
            let mut view = view(bindings(), Some(stored()));
            view.bounds.insert("gusty".into(), bound);
            text_of(&view)
        };
        let limited = OutlierBound { min: Some(Value::Float64(-0.0)), allow_nan: true, ..OutlierBound::default() };
        let text = with_bound(limited.clone());
        assert!(
            text.ends_with("validation clamp\nbound \"gusty\" min 040000000000000080 max none nan clamp\n"),
            "{text}"
        );
        // The view's own policy, written out, changes nothing; another one does.
        let written = |validation| with_bound(OutlierBound { validation: Some(validation), ..limited.clone() });
        assert_eq!(written(ValidationPolicy::Clamp), text);
        assert_ne!(written(ValidationPolicy::NullValue), text);
        assert_ne!(with_bound(OutlierBound { allow_infinite: true, ..limited.clone() }), text);
        assert_ne!(with_bound(OutlierBound { min: Some(Value::Float64(0.0)), ..limited }), text);
    }

    #[test]
    fn columns_that_only_the_filter_names_are_in_the_text_whatever_they_are_called() {
        let bindings = || vec![BoundTo::Column("visib".into()), BoundTo::Literal(Value::Float64(1.0))];
        let with_column = |name: &str, expression: &str, filter: &str| {
            let mut stored = stored();
            stored.source.columns.insert(name.into(), expression.into());
            stored.source.filter = Some(filter.into());
            text_of(&view(bindings(), Some(stored)))
        };
        for (name, filter) in [
            ("wind speed", r#""wind speed" > 3"#),
            ("Wind-Speed", r#""Wind-Speed" > 3"#),
            ("größe.m", r#""größe.m" > 3"#),
            (r#"a"b"#, r#""a""b" > 3"#),
            ("°", r#""°" > 3"#),
        ] {
            let text = with_column(name, "unseen * 2", filter);
            let line = format!("\ncolumn {} \"unseen * 2\"\n", quoted(name));
            assert!(text.contains(&line) && text.contains("\nfield \"unseen\" int64\n"), "{text}");
            assert_ne!(with_column(name, "unseen * 3", filter), text, "another filter, another version");
        }
        let unrelated = with_column("wind speed", "unseen * 2", "speed > 3");
        assert!(!unrelated.contains("wind speed"), "{unrelated}");
    }

    #[test]
    fn a_zone_is_in_the_text_if_one_is_written() {
        let bindings = || vec![BoundTo::Column("visib".into()), BoundTo::Literal(Value::Float64(1.0))];
        let with_zone = |zone: Option<&str>| {
            let mut stored = stored();
            stored.source.time_zone = zone.map(str::to_owned);
            text_of(&view(bindings(), Some(stored)))
        };
        assert!(with_zone(Some("UTC")).contains("\ntime_zone \"UTC\"\n"), "without it those times are no instants");
        assert!(!with_zone(None).contains("time_zone"));
    }
}
