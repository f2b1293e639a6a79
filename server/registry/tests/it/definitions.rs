//! Mistakes that are found without a registry.

use std::path::Path;

use eadem_registry::definitions::Definitions;
use eadem_registry::model::{EventTime, KnownAt, Origin, Place, Placement, RowFormat, ValidationPolicy};

use crate::support::{FEATURES, PROJECT, company, files, parse};

fn errors(texts: &[(&str, &str)]) -> String {
    parse(texts).expect_err("these definitions have mistakes").to_string()
}

#[test]
fn definitions_are_read_as_written() {
    let definitions = company();
    let legs = &definitions.views["aircraft_legs"];
    assert_eq!(legs.ttl_us, Some(172_800_000_000));
    assert_eq!(legs.horizon_us, None);
    assert_eq!(legs.validation, ValidationPolicy::RefuseRow);
    assert_eq!(legs.deployment.placement, Placement::OnWrite);
    assert_eq!(legs.about.tags, ["aircraft", "delay"]);
    assert_eq!(legs.places.of("ttl").to_string(), "features/all.toml:6");
    assert_eq!(legs.places.of("horizon").to_string(), "features/all.toml:2");

    let landings = &definitions.sources["landings"].source;
    assert_eq!(landings.event_time, EventTime::Column("landed_at".into()));
    assert_eq!(landings.known_at, KnownAt::EventTime, "the same column means the same");
    assert_eq!(landings.max_ahead_us, 3_600_000_000);
    let observations = &definitions.sources["observations"].source;
    assert_eq!(observations.known_at, KnownAt::AfterUs(21_600_000_000));
    assert_eq!(observations.max_ahead_us, 7_200_000_000);

    let service = &definitions.services["departure_delay"];
    assert_eq!(service.features[2].0.to_string(), "airport_weather:visibility_km for dest as dest_visibility");
    assert_eq!(service.features[2].1.to_string(), "features/all.toml:31");
}

#[test]
fn keys_keep_their_declared_order() {
    let definitions =
        parse(&[("eadem.toml", "[entity.leg]\nkeys = { tailnum = 'utf8', day = 'int64', hour = 'int64' }")]);
    let keys: Vec<String> =
        definitions.unwrap().entities["leg"].entity.keys.iter().map(|key| key.name.clone()).collect();
    assert_eq!(keys, ["tailnum", "day", "hour"]);
}

#[test]
fn event_time_may_be_a_literal() {
    for literal in ["2013-01-01T00:00:00Z", "'2013-01-01T00:00:00Z'", "{ literal = '2013-01-01T00:00:00Z' }"] {
        let text = format!("[source.planes]\nparquet = 'p'\nevent_time = {literal}");
        let definitions = parse(&[("eadem.toml", &text)]).unwrap();
        let source = &definitions.sources["planes"].source;
        assert_eq!(source.event_time, EventTime::Literal(1_356_998_400_000_000), "{literal}");
    }
}

#[test]
fn unknown_tables_and_keys() {
    insta::assert_snapshot!(errors(&[
        ("eadem.toml", "[enity.aircraft]\nkeys = { tailnum = 'utf8' }\n[servr]\nport = 1\n[entity]\nx = 1"),
        ("features/a.toml", "[server]\nlisten = 'x'\n\n[view.legs]\ntransform = 't'\ntll = '2d'\nqqqqqq = 1"),
        ("features/b.toml", "[source.s]\nparquet = 'x'\nevent_tiem = 'a'\n[service.s]\nfeature = ['a:b']"),
    ]));
}

#[test]
fn values_of_the_wrong_type() {
    insta::assert_snapshot!(errors(&[(
        "eadem.toml",
        "[entity.a]\nkeys = { id = 'string', n = 5 }\n\n[entity.b]\nkeys = {}\n\n[entity.c]\nkeys = 'x'\n
[source.s]\nparquet = 3\npush = 'yes'\nevent_time = 7\nknown_at = { before = '6h' }\nfields = { x = 'int32' }\n
[view.v]\ntransform = 5\nentity = 'a'\nsource = 's'\nttl = 48\nplacement = 'on_raed'\nvalidation = 'refuse'
bind = { x = { y = 1 } }\ntags = 'one'\n
[service.s]\nfeatures = 'a:b'\n[service.t]\nfeatures = [1]",
    )]));
}

#[test]
fn bounds_and_stop_thresholds() {
    insta::assert_snapshot!(errors(&[(
        "eadem.toml",
        "[view.v]\ntransform = 't'\nentity = 'e'\nsource = 's'\n
[view.v.bounds]\na = 5\nb = { mni = 1 }\nc = { min = [1, {}] }\nd = { nan = 1 }\ne = { validation = 'drop' }\n
[view.w]\ntransform = 't'\nentity = 'e'\nsource = 's'\nstop_share = 1.0\nstop_rows_min = 0\n
[view.x]\ntransform = 't'\nentity = 'e'\nsource = 's'\nstop_rows_min = 5\n
[view.y]\ntransform = 't'\nentity = 'e'\nsource = 's'\nstop_share = 0.0000001\n
[view.demand]\ntransform = 't'\nstop_share = 0.5\nbounds.x = { max = 1, validation = 'stop_job' }",
    )]));
}

#[test]
fn durations() {
    insta::assert_snapshot!(errors(&[(
        "eadem.toml",
        "[view.v]\ntransform = 't'\nentity = 'e'\nsource = 's'\nttl = '2 fortnights'\n
[view.w]\ntransform = 't'\nentity = 'e'\nsource = 's'\nttl = '0s'\n
[view.x]\ntransform = 't'\nentity = 'e'\nsource = 's'\nhorizon = '1d'\n
[view.y]\ntransform = 't'\nentity = 'e'\nsource = 's'\nttl = '60000000d'\n
[source.s]\nparquet = 'p'\nevent_time = 't'\nknown_at = { after = '-6h' }\nmax_ahead = 'later'",
    )]));
}

#[test]
fn feature_references() {
    insta::assert_snapshot!(errors(&[(
        "features/service.toml",
        "[service.s]\nfeatures = [\n  'legs',\n  'legs:',\n  'legs@0:delay',\n  'legs@x:delay',\n  'legs:delay for',
  'legs:delay as a for b',\n  'legs:* as a',\n  'Legs:delay',\n  '',\n]",
    )]));
}

#[test]
fn duplicates_name_both_places() {
    insta::assert_snapshot!(errors(&[
        ("eadem.toml", PROJECT),
        ("features/all.toml", FEATURES),
        (
            "features/more.toml",
            "\n\n[view.aircraft_legs]\ntransform = 't'\n\n[entity.aircraft]\nkeys = { id = 'int64' }"
        ),
        ("features/twice.toml", "[service.a]\nfeatures = ['a:b']\n[service.a]\nfeatures = ['a:c']"),
    ]));
}

#[test]
fn names_and_reserved_names() {
    insta::assert_snapshot!(errors(&[(
        "eadem.toml",
        "[entity.Aircraft]\nkeys = { id = 'utf8' }\n[entity.e]\nkeys = { _id = 'utf8', event_time = 'utf8' }\n
[view.request]\ntransform = 't'\n[source.'a-b']\nparquet = 'x'\nevent_time = 't'",
    )]));
}

#[test]
fn sources_that_say_too_little_or_too_much() {
    insta::assert_snapshot!(errors(&[(
        "eadem.toml",
        "[source.nowhere]\nevent_time = 't'\n[source.later]\nkafka = 'topic'\nevent_time = 't'\n
[source.pushed]\npush = true\nevent_time = 't'\n[source.undated]\nparquet = 'p'\n
[source.fields]\nparquet = 'p'\nfields = { t = 'timestamp' }\nevent_time = 't'
[source.both]\nparquet = 'p'\npush = true\nfields = { t = 'timestamp' }\nevent_time = 't'\n[source.files]\nparquet = 'p'
push = false\nevent_time = 't'\n[source.old]\nparquet = 'p'\nevent_time = 1812-06-24T00:00:00Z\n[source.local]\nparquet = 'p'\nevent_time = 2013-01-01",
    )]));
}

#[test]
fn every_kind_of_source_is_read_as_written() {
    let definitions = parse(&[(
        "eadem.toml",
        "[source.files]\nparquet = 'p'\ntypes = { region = 'utf8' }\nevent_time = 't'\n
[source.plain]\ncsv = 'p.csv'\nevent_time = 't'\n
[source.odd]\ncsv = { path = 'p', delimiter = \"\\t\", null = 'NA', names = ['t', 'x'] }\nevent_time = 't'\n
[source.lines]\njson = 'p.jsonl'\ntypes = { t = 'timestamp', v = 'vector(3)' }\nevent_time = 't'\n
[source.table]\ndelta = 's3://lake/t'\nevent_time = 't'\n
[source.query]\nevent_time = 't'\n[source.query.postgres]\nurl_env = 'DB_URL'\nquery = ' select 1 '\ncursor = 'id'",
    )])
    .unwrap();
    let origin = |name: &str| definitions.sources[name].source.origin.clone().unwrap();
    let path = |path: &str| Place::Path(path.to_owned());
    let csv = |delimiter, null: &str, names| RowFormat::Csv { delimiter, null: null.to_owned(), names };
    let names = Some(vec!["t".to_owned(), "x".to_owned()]);
    let database = Place::Database { url_env: "DB_URL".into(), cursor: Some("id".into()) };
    for (name, format, place) in [
        ("files", RowFormat::Parquet, path("p")),
        ("plain", csv(',', "", None), path("p.csv")),
        ("odd", csv('\t', "NA", names), path("p")),
        ("lines", RowFormat::Json, path("p.jsonl")),
        ("table", RowFormat::Delta, path("s3://lake/t")),
        ("query", RowFormat::Postgres { query: "select 1".into() }, database),
    ] {
        assert_eq!(origin(name), Origin { format, place }, "{name}");
    }
    let types = &definitions.sources["lines"].source.types;
    assert_eq!(types["v"], eadem_values::DataType::Vector(3));
}

/// Each with the end of its message. None repeats what may be a password.
#[test]
fn mistakes_in_where_rows_come_from_say_what_to_write() {
    for (text, message) in [
        (
            "parquet = 'p'\ncsv = 'p'",
            ":3: source s: `parquet` and `csv` are given; a source reads one of them: make two sources",
        ),
        ("csv = 5", "`csv` must be a path, or a table with one, found an integer"),
        ("csv = { delimiter = ';' }", "`csv.path` is missing; name a file, a folder or an object store URL"),
        ("csv = { path = '' }", "`csv` is empty; name a file, a folder or an object store URL"),
        (
            "csv = { path = 'p', delimeter = ';' }",
            "`csv` has no key `delimeter`; did you mean `delimiter`? (known: path, delimiter, null, names)",
        ),
        (
            "csv = { path = 'p', delimiter = ';;' }",
            "`csv.delimiter` must be one ASCII character, such as `;` or a tab, and no quote",
        ),
        ("csv = { path = 'p', names = ['a', 'a'] }", "`csv.names` names `a` twice"),
        ("csv = { path = 'p', names = [] }", "`csv.names` must be a list of the columns' names, one for each column"),
        (
            "csv = 'p'\ntypes = { v = 'vector(3)' }",
            "`types.v` is vector(3), which text does not hold; give boolean, int64, float32, float64, utf8 or timestamp",
        ),
        ("csv = 'p'\ntypes = { v = 'float' }", "`types.v`: unknown type `float`"),
        ("json = 'p'", "`json` needs `types`: every member that is read, `types = { amount = \"float64\" }`"),
        (
            "delta = 'p'\ntypes = { v = 'int64' }",
            "`types` are for text; the columns of `delta` have types of their own: cast them in `columns`",
        ),
        ("delta = ' '", "`delta` is empty; name the folder of a table"),
        (
            "postgres = 'postgres://me:secret@db/x'",
            "`postgres` must be a table: `postgres = { url_env = \"PAYMENTS_URL\", query = \"select …\" }`, found a string",
        ),
        (
            "postgres = { url_env = 'DB' }",
            "`postgres` needs `url_env` and `query`: `postgres = { url_env = \"PAYMENTS_URL\", query = \"select …\" }`",
        ),
        (
            "postgres = { url_env = 'postgres://me:secret@db/x', query = 'select 1' }",
            "`postgres.url_env` must be the name of an environment variable that holds the database's URL; credentials do not stand in definitions",
        ),
        ("postgres = { url_env = 'DB', query = '' }", "`postgres.query` is empty"),
        (
            "postgres = { url = 'postgres://me:secret@db/x', url_env = 'DB', query = 'q' }",
            "`postgres` has no key `url` (known: url_env, query, cursor)",
        ),
    ] {
        let errors = errors(&[("a.toml", &format!("[source.s]\n{text}\nevent_time = 't'"))]);
        assert!(errors.starts_with("a.toml:"), "{errors}");
        assert!(errors.contains(message), "{text}: {errors}");
        assert!(!errors.contains("secret"), "{errors}");
    }
}

#[test]
fn what_is_not_there_yet_is_refused() {
    insta::assert_snapshot!(errors(&[(
        "features/views.toml",
        "[view.hourly]\nentity = 'e'\nsource = 's'\ntransform = 't'\npartition = 'hour'\n
[view.daily]\nentity = 'e'\nsource = 's'\ntransform = 't'\npartition = 'day'"
    )]));
}

#[test]
fn numbers_that_are_too_large_are_refused_and_infinity_is_not() {
    let with = |number: &str| {
        parse(&[("a.toml", &format!("[view.v]\ntransform = 't'\nbind.x = {number}\ndefaults.y = [{number}]"))])
    };
    for number in ["1e999", "-1e999", "1e309", "18446744073709551616"] {
        let errors = with(number).unwrap_err().to_string();
        assert!(errors.contains("a.toml:3: view v: input `x`") && errors.contains("a.toml:4: view v:"), "{errors}");
        assert!(errors.contains("numbers must fit 64 bits"), "{errors}");
    }
    for number in ["inf", "-inf", "+inf", "nan", "1e308", "9223372036854775807"] {
        with(number).unwrap();
    }
}

#[test]
fn a_role_is_not_called_like_the_instant_of_a_request() {
    let errors = errors(&[("a.toml", "[service.s]\nfeatures = ['v:x for timestamp']")]);
    assert!(errors.starts_with("a.toml:2: service s: the role `timestamp` is reserved"), "{errors}");
}

#[test]
fn very_many_mistakes_are_counted_and_the_first_listed() {
    const MISTAKES: usize = 20_000;
    let text = "[view.v]\ntransform = 't'\n".to_owned()
        + &(0..MISTAKES).map(|number| format!("key_{number} = 1\n")).collect::<String>();
    let errors = parse(&[("a.toml", &text)]).unwrap_err();
    assert_eq!((errors.errors().len(), errors.count()), (200, MISTAKES));
    assert_eq!(errors.errors()[199].at.line, 202);
    assert!(errors.to_string().ends_with("\nand 19800 more"), "{errors}");
}

#[test]
fn views_that_are_neither_stored_nor_on_demand() {
    insta::assert_snapshot!(errors(&[(
        "eadem.toml",
        "[view.half]\ntransform = 't'\nentity = 'e'\n[view.other]\ntransform = 't'\nsource = 's'\n
[view.demand]\ntransform = 't'\nttl = '1d'\nplacement = 'on_read'\nonline_history = '1d'\nvalidation = 'stop_job'
[view.digest]\ntransform = 'weather@sha256:12'\n[view.none]\nttl = 'none'",
    )]));
}

#[test]
fn text_that_is_not_toml() {
    insta::assert_snapshot!(errors(&[("eadem.toml", "[entity.a]\nkeys = { id = 'utf8'\n[entity.b]\n")]));
}

#[test]
fn the_demonstration_asks_for_nothing_that_is_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/features");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let texts = ["entities.toml", "sources.toml", "views.toml", "services.toml"].map(|name| (name, read(name)));
    let definitions = parse(&texts.each_ref().map(|(name, text)| (*name, text.as_str()))).unwrap();
    assert!(definitions.views["nearest_hubs"].deployment.placement == Placement::OnRead);
    assert!(definitions.sources.len() > 1 && definitions.services.contains_key("departure_delay"));
}

#[test]
fn every_definition_stands_on_its_own_line() {
    let definitions = Definitions::parse(&files(&[("a.toml", "\n\r\n[entity.a]\r\nkeys = { id = 'utf8' }")]), &[]);
    assert_eq!(definitions.unwrap().entities["a"].places.header().to_string(), "a.toml:3");
}
