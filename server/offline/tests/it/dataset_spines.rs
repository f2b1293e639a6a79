//! Spines that are no files: queries over sources, and all entities at given times.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use eadem_offline::{
    Cancel, EventTime, KnownAt, OfflineError, SpineOrigin, SpineQuery, create_dataset, keep_entities_spine,
    rebuild_dataset, tables_of_query,
};
use eadem_semantics::KnownAtCut;
use eadem_values::Value;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::dataset::{
    SECOND_US, dataset, doubler, history, keys, loaded, read_back, roles_example, stored, times, value,
};
use crate::support::{at, source, stored_rows, view, write_parquet};

/// Every entity that a naive look at all stored rows finds known, at each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_spine_there_is_every_entity_that_is_known_at_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut random = StdRng::seed_from_u64(7);
    let start = at("2023-01-01T00:00:00Z");
    let rows = history(&mut random, start, 12);
    let (store, plain) = loaded(folder, view("plain", source("h", folder), doubler()), &rows).await;
    let rows = stored_rows(&store, &plain).await;
    let times_us: Vec<i64> = [40, -1, 10, 20, 10].map(|second| start + second * SECOND_US).to_vec();
    let mut seen = 0;
    for cut in [KnownAtCut::Spine, KnownAtCut::None, KnownAtCut::Fixed(start + 15 * SECOND_US)] {
        let mut spec = dataset(folder, vec![stored(&plain, "payer")], &[("doubled", 0, "doubled")]);
        spec.options.spine = SpineOrigin::Entities("times".into());
        spec.columns.renamed = BTreeMap::from([("payer".into(), "who".into())]);
        spec.cut = cut;
        let kept = keep_entities_spine(&store, &spec, &times_us, "job").await.unwrap();
        spec.kept_spine = Some(kept);
        let out = folder.join("set.parquet");
        let report = create_dataset(&store, &spec, out.to_str().unwrap()).await.unwrap();
        let set = read_back(&out);
        let mut expected = Vec::new();
        for second in [-1, 10, 20, 40] {
            let at_us = start + second * SECOND_US;
            let mut cards: Vec<&str> = Vec::new();
            for row in &rows {
                let known_by_us = match cut {
                    KnownAtCut::Spine => at_us,
                    KnownAtCut::Fixed(known_by_us) => known_by_us,
                    KnownAtCut::None => i64::MAX,
                };
                if row.order.event_time_us <= at_us && row.order.known_at_us <= known_by_us {
                    cards.push(&row.key);
                }
            }
            cards.sort_unstable();
            cards.dedup();
            expected.extend(cards.into_iter().map(|card| (Value::Utf8(card.to_owned()), Value::Timestamp(at_us))));
        }
        let found: Vec<(Value, Value)> =
            (0..set.num_rows()).map(|row| (value(&set, "who", row), value(&set, "seen_at", row))).collect();
        assert_eq!(found, expected, "{cut}");
        // What is listed is found: no row is missing.
        assert_eq!(report.spine.not_found, BTreeMap::new(), "{cut}");
        seen += found.len();
    }
    assert!(seen > 20, "only {seen} rows in all: nothing was tried");

    let (store, spec) = roles_example(&folder.join("roles")).await;
    let error = keep_entities_spine(&store, &spec, &times_us, "job").await.unwrap_err().to_string();
    assert!(error.contains("needs fields of a request (extra)"), "{error}");
    let mut spec = spec;
    spec.views.truncate(2);
    let error = keep_entities_spine(&store, &spec, &times_us, "job").await.unwrap_err().to_string();
    assert!(error.contains("needs the keys payer, to, and none of its views has all of them"), "{error}");
    spec.views.truncate(1);
    let error = keep_entities_spine(&store, &spec, &[], "job").await.unwrap_err().to_string();
    assert!(error.contains("there are 0 times"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_over_sources_is_a_spine() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let start = at("2023-01-01T00:00:00Z");
    let rows = RecordBatch::try_from_iter_with_nullable([
        ("card", keys(&[0, 1, 2, 3]), true),
        ("at", times(&[start; 4]), true),
        ("known", times(&[start; 4]), true),
        ("value", Arc::new(Float64Array::from(vec![1.5, 2.5, 3.5, 4.5])) as ArrayRef, true),
        ("count", Arc::new(StringArray::from(vec!["1", "2", "x", "4"])) as ArrayRef, true),
    ]);
    let (store, plain) = loaded(folder, view("plain", source("h", folder), doubler()), &rows.unwrap()).await;
    let mut h = plain.source.clone();
    h.columns =
        vec![("n".into(), "cast(count as bigint)".into()), ("Later".into(), "at + interval '5 seconds'".into())];
    h.filter = Some("value > 2".into());
    h.known_at = KnownAt::EventTime;
    let days = RecordBatch::try_from_iter([("day", Arc::new(arrow_array::Date32Array::from(vec![1])) as ArrayRef)]);
    write_parquet(&folder.join("days/days.parquet"), &days.unwrap(), 10);
    let sources = || {
        vec![h.clone(), {
            let mut days = source("days", &folder.join("days"));
            days.event_time = EventTime::Literal(0);
            days
        }]
    };

    // The filter and the computed columns are the source's; a count that is none leaves its row out, and says so.
    let sql = "select h.card, \"Later\" as seen_at, sum(n) as label from h group by card, \"Later\" order by card desc";
    assert_eq!(tables_of_query(sql).unwrap(), ["h"]);
    let cancel = Cancel::default();
    let found = SpineQuery::plan(sql, sources()).await.unwrap().keep(&store, "job", &cancel).await.unwrap();
    assert_eq!(found.rows, 2);
    assert!(found.notes[0].starts_with("1 rows of source h were left out"), "{:?}", found.notes);
    let mut spec = dataset(folder, vec![stored(&plain, "card")], &[("doubled", 0, "doubled")]);
    spec.options.spine = SpineOrigin::Query(sql.to_owned());
    spec.kept_spine = Some(found.kept.clone());
    let out = folder.join("set.parquet");
    let made = create_dataset(&store, &spec, out.to_str().unwrap()).await.unwrap();
    let set = read_back(&out);
    let row = |row: usize| (value(&set, "card", row), value(&set, "label", row), value(&set, "doubled", row));
    assert_eq!(row(0), (Value::Utf8("card3".into()), Value::Int64(4), Value::Float64(9.0)));
    assert_eq!(row(1), (Value::Utf8("card1".into()), Value::Int64(2), Value::Float64(5.0)));
    assert_eq!(value(&set, "seen_at", 0), Value::Timestamp(start + 5 * SECOND_US));
    // Columns that are not asked for hinder nothing; the same rows are the same spine.
    let all = SpineQuery::plan("select card, at as seen_at from h", sources()).await.unwrap();
    assert_eq!(all.columns(), ["card", "seen_at"]);
    let all = all.keep(&store, "job", &cancel).await.unwrap();
    assert_eq!((all.rows, all.notes.len()), (3, 0));
    let again = SpineQuery::plan(sql, sources()).await.unwrap().keep(&store, "other", &cancel).await.unwrap();
    assert_eq!(again.kept, found.kept);
    assert!(!folder.join("out/spines/_building/job.parquet").exists(), "a spine under construction was left");

    // Gone with its sources, it is made again from the spine that was kept.
    std::fs::remove_dir_all(folder.join("in-plain")).unwrap();
    let again = rebuild_dataset(&store, &made.recipe, &spec, out.to_str().unwrap()).await.unwrap();
    assert_eq!(again.content_digest, made.content_digest);
}

/// Whatever a spine is made of: the job that wants it is called off, and nothing is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spine_that_is_called_off_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let start = at("2023-01-01T00:00:00Z");
    let rows = history(&mut StdRng::seed_from_u64(5), start, 12);
    let (store, plain) = loaded(folder, view("plain", source("h", folder), doubler()), &rows).await;
    let left = || {
        let spines = folder.join("out/spines");
        let files = ["", "_building"].map(|below| std::fs::read_dir(spines.join(below)).into_iter().flatten());
        files.into_iter().flatten().filter(|file| file.as_ref().unwrap().path().is_file()).count()
    };
    let mut spec = dataset(folder, vec![stored(&plain, "card")], &[("doubled", 0, "doubled")]);
    spec.watch.cancel.cancel();
    let error = keep_entities_spine(&store, &spec, &[start + 50 * SECOND_US], "entities").await.unwrap_err();
    assert!(matches!(error, OfflineError::Cancelled), "{error}");
    let query = SpineQuery::plan("select card, at as seen_at from h", vec![plain.source.clone()]).await.unwrap();
    let error = query.keep(&store, "query", &spec.watch.cancel).await.unwrap_err();
    assert!(matches!(error, OfflineError::Cancelled), "{error}");
    assert_eq!(left(), 0);

    spec.watch.cancel = Cancel::default();
    keep_entities_spine(&store, &spec, &[start + 50 * SECOND_US], "entities").await.unwrap();
    assert_eq!(left(), 1, "it was looked for where spines are");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_cannot_be_a_spine_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let day = Arc::new(arrow_array::Date32Array::from(vec![1])) as ArrayRef;
    let rows = RecordBatch::try_from_iter([("card", keys(&[1])), ("at", times(&[0])), ("day", day)]).unwrap();
    write_parquet(&folder.join("h/h.parquet"), &rows, 10);
    let error_of =
        async |sql: &str| SpineQuery::plan(sql, vec![source("h", &folder.join("h"))]).await.unwrap_err().to_string();
    for (sql, why) in [
        ("select card, at from g", "the tables are the sources: h"),
        ("select card, day from h", "source h has a column `day`, but a date is no instant"),
        ("select card, now() as at from h", "calls `now`, which has another value each time"),
        ("select card, at from h where random() > 0.5", "calls `random`"),
        ("select card, at from h where card in (select cast(uuid() as varchar) from h)", "calls `uuid`"),
        ("select a.card, b.card from h a cross join h b", "two columns `card`"),
        ("create table t as select card from h", "DDL not supported"),
        ("select card from h; select at from h", "only supports a single SQL statement"),
        ("select", "the spine's query"),
    ] {
        let error = error_of(sql).await;
        assert!(error.contains(why), "{sql}: {error}");
    }
    assert!(tables_of_query("selec 1").is_err());
}
