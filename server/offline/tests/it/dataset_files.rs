//! What stands in a training set's file besides the join: formats, splits, statistics, reports, and comparing two.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::ipc::writer::FileWriter;
use arrow_array::cast::AsArray;
use arrow_array::types::Int8Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType as ArrowType;
use eadem_offline::{
    Cancel, DatasetOptions, DatasetSpec, DatasetWatch, DiffSide, MatchedBy, OfflineError, OutputFormat, Split, SplitBy,
    SplitRule, SplitShare, TimeRange, create_dataset, diff_datasets, file_digest_of, open_rows, rebuild_dataset,
};
use eadem_values::Value;
use futures::TryStreamExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use crate::dataset::{
    SECOND_US, dataset, doubler, history, keys, load_later, loaded, plain_of, read_back, roles_example, stored, times,
    value,
};
use crate::support::{at, source, view, write_parquet};

async fn rows_of(file: &Path) -> RecordBatch {
    let rows = open_rows(file.to_str().unwrap()).await.unwrap();
    let batches: Vec<RecordBatch> = rows.batches.try_collect().await.unwrap();
    arrow_select::concat::concat_batches(&rows.schema, &batches).unwrap()
}

fn with_options(spec: &DatasetSpec, change: impl FnOnce(&mut DatasetOptions)) -> DatasetSpec {
    let mut spec = spec.clone();
    change(&mut spec.options);
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_arrow_file_has_the_content_of_the_parquet_file_and_is_rebuilt_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut spec) = roles_example(folder.path()).await;
    let text = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let parquet = create_dataset(&store, &spec, &text("set.parquet")).await.unwrap();

    // The spine too, in batches of dictionaries that differ, which an Arrow file could not hold.
    let spine = read_back(Path::new(&spec.spine));
    let dictionary = ArrowType::Dictionary(Box::new(ArrowType::Int32), Box::new(ArrowType::Utf8));
    let columns = spine.schema().fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
    let columns = columns.iter().zip(spine.columns()).map(|(name, column)| match name.as_str() {
        "payer" => (name, arrow_cast::cast(column, &dictionary).unwrap(), true),
        _ => (name, column.clone(), true),
    });
    let spine = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    write_parquet(&folder.path().join("dictionaries.parquet"), &spine, 3);
    let as_arrow = with_options(&spec, |options| options.format = OutputFormat::Arrow);
    let as_arrow = DatasetSpec { spine: text("dictionaries.parquet"), ..as_arrow };
    let report = create_dataset(&store, &as_arrow, &text("set.arrow")).await.unwrap();
    assert_eq!(report.content_digest, parquet.content_digest);
    assert_eq!(report.statistics, parquet.statistics);
    assert_ne!(report.recipe.digest().unwrap(), parquet.recipe.digest().unwrap(), "both recipes are kept");
    assert_eq!(store.recipe(&report.recipe.digest().unwrap()).await.unwrap().unwrap(), report.recipe);
    assert_eq!(file_digest_of(&text("set.arrow")).await.unwrap(), report.recipe.file_digest);
    let (from_arrow, from_parquet) =
        (rows_of(&folder.path().join("set.arrow")).await, rows_of(&folder.path().join("set.parquet")).await);
    assert_eq!(from_arrow.column_by_name("gap__status"), from_parquet.column_by_name("gap__status"));
    assert_eq!(from_arrow.column_by_name("payer").unwrap().data_type(), &ArrowType::Utf8);

    let again = rebuild_dataset(&store, &report.recipe, &as_arrow, &text("again.arrow")).await.unwrap();
    assert_eq!(again.notes, Vec::<String>::new());
    assert_eq!(std::fs::read(text("set.arrow")).unwrap(), std::fs::read(text("again.arrow")).unwrap());
    let error = rebuild_dataset(&store, &report.recipe, &as_arrow, &text("again.parquet")).await.unwrap_err();
    assert!(error.to_string().contains("does not end in `.arrow`"), "{error}");

    // An Arrow file as the spine.
    let spine = read_back(Path::new(&spec.spine));
    let mut writer = FileWriter::try_new(File::create(text("spine.arrow")).unwrap(), &spine.schema()).unwrap();
    writer.write(&spine.slice(0, 5)).unwrap();
    writer.write(&spine.slice(5, spine.num_rows() - 5)).unwrap();
    writer.finish().unwrap();
    spec.spine = text("spine.arrow");
    let report = create_dataset(&store, &spec, &text("set.parquet")).await.unwrap();
    assert_eq!(report.content_digest, parquet.content_digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_and_what_was_not_found_are_told_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut spec) = roles_example(folder.path()).await;
    spec.features[0].default = None;
    let out = folder.path().join("set.parquet").to_str().unwrap().to_owned();
    let report = create_dataset(&store, &spec, &out).await.unwrap();
    let kept = store.statistics(&report.recipe.digest().unwrap()).await.unwrap().unwrap();
    assert_eq!(report.statistics.as_ref(), Some(&kept));
    assert_eq!((kept.rows, kept.sampled_rows), (8, 8));
    let payer = &kept.features[0];
    assert_eq!((payer.name.as_str(), payer.values, payer.nulls), ("payer_doubled", 5, 3));
    assert_eq!(payer.statuses, report.statuses["payer_doubled"]);
    assert_eq!((&payer.min, &payer.mean, payer.top[0].count), (&json!(3.0), &json!(3.0), 5));
    assert_eq!(kept.features[3].mean, json!(0.5), "one of `noted` is true, one false, the others absent");
    assert_eq!(report.spine.rows, 8);
    assert_eq!(report.spine.null_keys, BTreeMap::new());
    assert_eq!(report.spine.null_request_fields, BTreeMap::from([("extra".to_owned(), 1)]));
    let not_found = [("plain@1 for payer".to_owned(), 1), ("plain@1 for to".to_owned(), 1)];
    assert_eq!(report.spine.not_found, BTreeMap::from(not_found));
    // Cards 0 and 0, at one time, twice.
    assert_eq!((report.spine.duplicate_rows, report.spine.duplicates_are_exact), (1, true));

    let at_us = at("2023-01-01T00:00:10Z");
    let payers = arrow_select::concat::concat(&[&keys(&[0]), &arrow_array::new_null_array(&ArrowType::Utf8, 2)]);
    let spine = RecordBatch::try_from_iter_with_nullable([
        ("seen_at", times(&[at_us; 3]), false),
        ("payer", payers.unwrap(), true),
        ("payee", keys(&[0, 0, 1]), true),
        ("more", Arc::new(arrow_array::Int64Array::from(vec![1, 2, 3])) as ArrayRef, true),
    ]);
    spec.spine = folder.path().join("nulls.parquet").to_str().unwrap().to_owned();
    write_parquet(Path::new(&spec.spine), &spine.unwrap(), 50);
    let spec = with_options(&spec, |options| options.statistics = false);
    let report = create_dataset(&store, &spec, &out).await.unwrap();
    assert_eq!(report.spine.null_keys, BTreeMap::from([("payer".to_owned(), 2)]));
    assert_eq!((report.spine.not_found["plain@1 for payer"], report.spine.duplicate_rows), (2, 0));
    assert_eq!((&report.statistics, store.statistics(&report.recipe.digest().unwrap()).await.unwrap()), (&None, None));
    assert!(report.spine.lines()[0].contains("key `payer` is null in 2 of 3"), "{:?}", report.spine.lines());
}

fn shares(of: &[(&str, f64)], by: SplitBy, salt: &str) -> SplitRule {
    let shares = of.iter().map(|(name, share)| SplitShare::new(name, *share).unwrap()).collect();
    SplitRule::Shares { by, salt: salt.to_owned(), shares }
}

fn splits(rows: &RecordBatch) -> Vec<Option<String>> {
    let column = rows.column_by_name("split").unwrap().as_dictionary::<Int8Type>();
    let names = column.values().as_string::<i32>();
    let keys = column.keys();
    (0..keys.len()).map(|row| keys.is_valid(row).then(|| names.value(keys.value(row) as usize).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_are_as_asked_for_and_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut spec) = roles_example(folder.path()).await;
    let start = at("2023-01-01T00:00:00Z");
    let spine = RecordBatch::try_from_iter_with_nullable([
        ("seen_at", times(&(0..400).map(|row| start + row * SECOND_US).collect::<Vec<_>>()), false),
        ("payer", keys(&(0..400).map(|row| (row % 200) as u8).collect::<Vec<_>>()), true),
        ("payee", keys(&[0; 400]), true),
        ("more", Arc::new(arrow_array::Int64Array::from(vec![1; 400])) as ArrayRef, true),
    ]);
    spec.spine = folder.path().join("many.parquet").to_str().unwrap().to_owned();
    write_parquet(Path::new(&spec.spine), &spine.unwrap(), 50);
    let out = folder.path().join("set.parquet");
    let split_by =
        |rule: SplitRule| with_options(&spec, |options| options.split = Some(Split { column: "split".into(), rule }));
    let halves = [("train", 0.8), ("test", 0.2)];
    let by_payer = SplitBy::Columns(vec!["payer".into()]);
    let split = split_by(shares(&halves, by_payer.clone(), ""));
    let report = create_dataset(&store, &split, out.to_str().unwrap()).await.unwrap();
    let rows = rows_of(&out).await;
    let found = splits(&rows);
    let mut of_payer: BTreeMap<String, BTreeSet<Option<String>>> = BTreeMap::new();
    for (row, split) in found.iter().enumerate() {
        let Value::Utf8(payer) = value(&rows, "payer", row) else { panic!("no payer") };
        of_payer.entry(payer).or_default().insert(split.clone());
    }
    assert!(of_payer.values().all(|splits| splits.len() == 1), "an entity is in two splits");
    let in_test = found.iter().filter(|split| split.as_deref() == Some("test")).count() as u64;
    assert!((40..120).contains(&in_test), "{in_test} of 400 in a fifth");
    assert_eq!(
        report.spine.splits,
        BTreeMap::from([("train".to_owned(), 400 - in_test), ("test".to_owned(), in_test)])
    );
    let again = folder.path().join("again.parquet");
    rebuild_dataset(&store, &report.recipe, &split, again.to_str().unwrap()).await.unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&again).unwrap());
    // The digest is for ever: a card is where it always was.
    let test: Vec<&str> =
        of_payer.iter().filter(|(_, of)| of.contains(&Some("test".into()))).map(|(payer, _)| payer.as_str()).collect();
    assert_eq!(test[..4], GOLDEN_TEST_CARDS, "{test:?}");

    let salted = split_by(shares(&halves, by_payer.clone(), "another"));
    create_dataset(&store, &salted, out.to_str().unwrap()).await.unwrap();
    assert_ne!(splits(&rows_of(&out).await), found);
    let by_row = split_by(shares(&halves, SplitBy::Row, ""));
    create_dataset(&store, &by_row, out.to_str().unwrap()).await.unwrap();
    assert_ne!(splits(&rows_of(&out).await), found);

    let range = |name: &str, from: Option<i64>, to: Option<i64>| TimeRange {
        name: name.into(),
        from_us: from.map(|second| start + second * SECOND_US),
        to_us: to.map(|second| start + second * SECOND_US),
    };
    let by_time = split_by(SplitRule::Time(vec![range("test", Some(300), None), range("train", None, Some(250))]));
    let report = create_dataset(&store, &by_time, out.to_str().unwrap()).await.unwrap();
    let found = splits(&rows_of(&out).await);
    assert_eq!(
        (&found[249], &found[250], &found[299], &found[300]),
        (&Some("train".into()), &None, &None, &Some("test".into()))
    );
    assert_eq!(report.spine.rows_in_no_split, 50);

    let error_of =
        async |spec: &DatasetSpec| create_dataset(&store, spec, out.to_str().unwrap()).await.unwrap_err().to_string();
    for (rule, why) in [
        (shares(&halves[..1], by_payer.clone(), ""), "add up to 0.8, not to 1"),
        (shares(&[("a", 0.5), ("a", 0.5)], by_payer, ""), "`a` is there twice"),
        (shares(&halves, SplitBy::Entity, ""), "has 2 entities (payee; payer)"),
        (shares(&halves, SplitBy::Columns(vec!["nobody".into()]), ""), "the spine has no column `nobody`"),
        (SplitRule::Time(vec![range("a", None, Some(5)), range("b", Some(4), None)]), "`a` and `b` overlap"),
        (SplitRule::Time(vec![range("a", Some(5), Some(5))]), "`a` ends before it begins"),
        (SplitRule::Time(Vec::new()), "there are 0 splits"),
    ] {
        let error = error_of(&split_by(rule)).await;
        assert!(error.contains(why), "{error}");
    }
    let mut taken = split_by(shares(&halves, SplitBy::Row, ""));
    taken.options.split.as_mut().unwrap().column = "payer".into();
    assert!(error_of(&taken).await.contains("column `payer` would occur twice"));
    taken.options.left_out = BTreeSet::from(["payer".to_owned(), "more".to_owned()]);
    create_dataset(&store, &taken, out.to_str().unwrap()).await.unwrap();
    let rows = rows_of(&out).await;
    assert_eq!(rows.schema().field(0).name(), "seen_at");
    assert!(rows.column_by_name("more").is_none());
    assert_eq!(rows.schema().fields().last().unwrap().name(), "payer", "it is the split now");
    taken.options.left_out = BTreeSet::from(["gap".to_owned()]);
    assert!(error_of(&taken).await.contains("no column `gap` to leave out"));
}

const GOLDEN_TEST_CARDS: [&str; 4] = ["card106", "card107", "card123", "card128"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_says_what_has_changed_and_where() {
    let folder = tempfile::tempdir().unwrap();
    let (store, spec) = roles_example(folder.path()).await;
    let text = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let side = async |spec: &DatasetSpec, name: &str| {
        let report = create_dataset(&store, spec, &text(name)).await.unwrap();
        DiffSide { file: text(name), recipe: report.recipe, statistics: report.statistics }
    };
    let before = side(&spec, "before.parquet").await;
    let arrow = side(&with_options(&spec, |options| options.format = OutputFormat::Arrow), "same.arrow").await;
    let unwatched = DatasetWatch::default();
    let diff = diff_datasets(&before, &arrow, &unwatched).await.unwrap();
    assert!(diff.same_content && diff.matched_by == MatchedBy::Content && diff.views.is_empty());
    assert_eq!(diff.recipe.keys().collect::<Vec<_>>(), ["format"]);

    // A row of card 0 that beats the others: it pays in rows 0 and 4 to 7.
    load_later(folder.path(), &store, &plain_of(&spec)).await;
    let after = side(&spec, "after.arrow.parquet").await;
    let diff = diff_datasets(&before, &after, &unwatched).await.unwrap();
    assert_eq!((diff.same_content, &diff.matched_by), (false, &MatchedBy::Position));
    assert_eq!(diff.views["plain"].b["commit"], json!(2));
    let payer = &diff.changes["payer_doubled"];
    assert_eq!((payer.rows, payer.statuses), (5, 0));
    let first = &payer.first[0];
    assert_eq!((first.row.a, &first.value.a, &first.value.b), (0, &json!(3.0), &json!(198.0)));
    assert_eq!(first.identity["payer"], json!("card0"));
    assert_eq!(first.identity["seen_at"], json!("2023-01-01T00:00:10Z"));
    assert_eq!(diff.statistics["payer_doubled"]["max"].b, json!(198.0));
    assert!(!diff.statistics["payer_doubled"].contains_key("status present"));
    assert_eq!(diff.rows_changed, 8, "each row has card 0 on one side or the other");

    // Whoever watches is told of the rows of both, and may call it off between any two batches.
    let told = Arc::new(Mutex::new(Vec::new()));
    for calls_off in [false, true] {
        let (tell, cancel) = (Arc::clone(&told), Cancel::default());
        let switch = cancel.clone();
        let progress = move |read, all| {
            tell.lock().unwrap().push((read, all));
            if calls_off {
                switch.cancel();
            }
        };
        let watch = DatasetWatch { cancel, progress: Some(Arc::new(progress)) };
        let compared = diff_datasets(&before, &after, &watch).await;
        assert_eq!(matches!(compared, Err(OfflineError::Cancelled)), calls_off, "{compared:?}");
        let expected: &[(u64, u64)] = if calls_off { &[(8, 16)] } else { &[(8, 16), (16, 16)] };
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), expected);
    }

    // Other rows: found by keys and time, whatever their order; of rows that are there twice the second is matched last.
    let spine = read_back(Path::new(&spec.spine));
    let picks = arrow_array::UInt32Array::from(vec![7, 6, 5, 3, 2, 1, 0, 0]);
    let spine = arrow_select::take::take_record_batch(&spine, &picks).unwrap();
    write_parquet(&folder.path().join("other.parquet"), &spine, 3);
    let other = side(&DatasetSpec { spine: text("other.parquet"), ..spec.clone() }, "other-set.parquet").await;
    let diff = diff_datasets(&after, &other, &unwatched).await.unwrap();
    assert_eq!(diff.matched_by, MatchedBy::KeysAndTime);
    assert_eq!((diff.rows_only_in.a, diff.rows_only_in.b), (1, 1), "row 4 is gone, row 0 is there twice");
    // Rows 6 and 7 agree in keys and time, and have changed places.
    assert_eq!(diff.changes.keys().collect::<Vec<_>>(), ["gap", "more", "noted"]);
    assert_eq!((diff.changes["more"].rows, diff.rows_changed), (2, 2));

    let fewer = with_options(&spec, |options| options.left_out = BTreeSet::from(["payer".to_owned()]));
    let fewer = DatasetSpec { spine: text("other.parquet"), ..fewer };
    let fewer = side(&fewer, "fewer.parquet").await;
    let diff = diff_datasets(&after, &fewer, &unwatched).await.unwrap();
    assert_eq!((&diff.columns["payer"].a, &diff.columns["payer"].b), (&Some("utf8".to_owned()), &None));
    assert!(matches!(&diff.matched_by, MatchedBy::Nothing(why) if why.contains("`payer`")), "{:?}", diff.matched_by);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_set_that_is_called_off_half_way_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let start = at("2023-01-01T00:00:00Z");
    let rows = history(&mut StdRng::seed_from_u64(3), start, 20);
    let (store, plain) = loaded(folder, view("plain", source("h", folder), doubler()), &rows).await;
    // A row group and a bit.
    let rows = 140_000;
    let spine = RecordBatch::try_from_iter([("card", keys(&vec![1; rows])), ("seen_at", times(&vec![start; rows]))]);
    write_parquet(&folder.join("spine.parquet"), &spine.unwrap(), 100_000);
    let views = vec![stored(&plain, "card")];
    let mut spec = dataset(&folder.join("spine.parquet"), views, &[("doubled", 0, "doubled")]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    spec.watch.progress = Some(Arc::new(move |done, all| tell.lock().unwrap().push((done, all))));
    let out = folder.join("sets/set.parquet");
    let made = create_dataset(&store, &spec, out.to_str().unwrap()).await.unwrap();
    assert_eq!(made.rows, rows);
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [(131_072, 140_000), (140_000, 140_000)]);
    std::fs::remove_dir_all(folder.join("sets")).unwrap();

    for memory_bytes_max in [spec.memory_bytes_max, 1 << 20] {
        let (tell, cancel) = (Arc::clone(&told), Cancel::default());
        let switch = cancel.clone();
        let progress = move |done, all| {
            tell.lock().unwrap().push((done, all));
            switch.cancel();
        };
        let watch = DatasetWatch { cancel, progress: Some(Arc::new(progress)) };
        let called_off = DatasetSpec { watch, memory_bytes_max, ..spec.clone() };
        let error = create_dataset(&store, &called_off, out.to_str().unwrap()).await.unwrap_err();
        assert!(matches!(error, OfflineError::Cancelled), "{error}");
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [(131_072, 140_000)]);
        let left: Vec<_> = std::fs::read_dir(folder.join("sets")).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        // And what was called off does not begin.
        let error = create_dataset(&store, &called_off, out.to_str().unwrap()).await.unwrap_err();
        assert!(matches!(error, OfflineError::Cancelled), "{error}");
        assert_eq!(*told.lock().unwrap(), []);
    }
}
