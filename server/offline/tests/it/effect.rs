//! The effect of a new version, against an oracle that computes every row on its own.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use eadem_offline::{
    Cancel, CsvFormat, Effect, EffectOptions, EffectOutcome, EffectReport, ErasedEntities, ErasureLedger,
    FeatureChange, KnownAt, LedgerError, OfflineError, Origin, ViewSpec, compare_versions,
};
use eadem_query::RowTransform;
use eadem_values::{Constraint, DataType, EntityKey, Field, KeyType, Literal, Value, encode_values};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::support::{NOW, NativeTransform, Outcome, at, cases, seed, source, view, write_parquet};

/// A row of the source.
#[derive(Debug, Clone)]
struct SourceRow {
    card: Option<String>,
    at_us: Option<i64>,
    amount: Option<f64>,
    flag: i64,
}

fn write_rows(folder: &Path, name: &str, rows: &[SourceRow], row_group_rows: usize) {
    let times: Vec<Option<i64>> = rows.iter().map(|row| row.at_us).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("card", Arc::new(rows.iter().map(|row| row.card.clone()).collect::<StringArray>())),
        ("at", Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))),
        ("amount", Arc::new(rows.iter().map(|row| row.amount).collect::<Float64Array>())),
        ("flag", Arc::new(rows.iter().map(|row| Some(row.flag)).collect::<Int64Array>())),
    ];
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)));
    write_parquet(&folder.join(name), &batch.unwrap(), row_group_rows);
}

fn inputs() -> Vec<Field> {
    vec![Field::new("amount", DataType::Float64, true), Field::new("flag", DataType::Int64, false)]
}

fn outputs() -> Vec<Field> {
    let mut doubled = Field::new("doubled", DataType::Float64, true);
    doubled.constraints = vec![Constraint::Max(Literal::Float64(1e6))];
    vec![doubled, Field::new("size", DataType::Utf8, true)]
}

/// What a version makes of a row's inputs.
type Rule = fn(Option<f64>, i64) -> Outcome;

fn transform(name: &str, outputs: Vec<Field>, rule: Rule) -> Arc<dyn RowTransform> {
    NativeTransform::shared(name, false, inputs(), outputs, move |values| rule(amount_of(values), flag_of(values)))
}

fn amount_of(values: &[Value]) -> Option<f64> {
    match values[0] {
        Value::Float64(amount) => Some(amount),
        _ => None,
    }
}

fn flag_of(values: &[Value]) -> i64 {
    match values[1] {
        Value::Int64(flag) => flag,
        _ => panic!("a null reached the transform"),
    }
}

fn value(number: Option<f64>) -> Value {
    number.map_or(Value::Null, Value::Float64)
}

fn old_rule(amount: Option<f64>, flag: i64) -> Outcome {
    match flag % 11 {
        3 => Outcome::Drop,
        4 => Outcome::Fail("no".to_owned()),
        _ => Outcome::Row(vec![value(amount.map(|amount| amount * 2.0)), Value::Utf8("small".to_owned())]),
    }
}

fn new_rule(amount: Option<f64>, flag: i64) -> Outcome {
    match flag % 11 {
        4 => Outcome::Drop,
        5 => Outcome::Fail("not that".to_owned()),
        6 => Outcome::Row(vec![value(amount.map(|amount| -amount)), Value::Null]),
        _ => Outcome::Row(vec![value(amount.map(|amount| amount * 2.0)), Value::Utf8("small".to_owned())]),
    }
}

fn options(rows_max: u64) -> EffectOptions {
    EffectOptions { workers: 2, batch_rows: 97, ..EffectOptions::of_rows(rows_max, at(NOW)) }
}

async fn compare(before: &ViewSpec, after: &ViewSpec, rows_max: u64) -> Result<EffectReport, OfflineError> {
    let effect = Effect {
        before: before.clone(),
        after: after.clone(),
        erasures: None,
        options: options(rows_max),
        progress: None,
        cancel: Cancel::default(),
    };
    compare_versions(&effect).await
}

fn outcomes_of(report: &EffectReport) -> BTreeMap<(EffectOutcome, EffectOutcome), u64> {
    report.outcomes.iter().map(|count| ((count.before, count.after), count.rows)).collect()
}

/// What becomes of a row, by the words of the documentation and nothing of the product's.
fn judge(row: &SourceRow, rule: Rule, keeps: fn(&SourceRow) -> bool) -> (EffectOutcome, Vec<Value>) {
    if !keeps(row) {
        return (EffectOutcome::LeftOut, Vec::new());
    }
    if row.card.is_none() || row.at_us.is_none() {
        return (EffectOutcome::Refused, Vec::new());
    }
    match rule(row.amount, row.flag) {
        Outcome::Drop => (EffectOutcome::Dropped, Vec::new()),
        Outcome::Fail(_) => (EffectOutcome::Failed, Vec::new()),
        Outcome::Row(values) => match values[0] {
            Value::Float64(doubled) if doubled > 1e6 || doubled.is_nan() => (EffectOutcome::Refused, Vec::new()),
            _ => (EffectOutcome::Computed, values),
        },
    }
}

fn random_rows(random: &mut StdRng, count: usize) -> Vec<SourceRow> {
    let amounts = [0.0, -0.0, f64::NAN, f64::INFINITY, 1e6, 5e5, f64::MIN_POSITIVE];
    (0..count)
        .map(|_| SourceRow {
            card: random.random_bool(0.97).then(|| format!("c{}", random.random_range(0..50))),
            at_us: random.random_bool(0.97).then(|| at("2023-05-01T00:00:00Z") + random.random_range(0..1_000_000_000)),
            amount: match random.random_range(0..10) {
                0 => None,
                1..=3 => Some(amounts[random.random_range(0..amounts.len())]),
                _ => Some(random.random_range(-1e3..1e3)),
            },
            flag: random.random_range(0..1_000),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_finds_is_what_every_row_on_its_own_says() {
    let (seed, rounds) = (seed(), cases(6, 60));
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..rounds {
        let folder = tempfile::tempdir().unwrap();
        let files = random.random_range(1..5);
        let mut rows = Vec::new();
        for file in 0..files {
            let count = random.random_range(1..900);
            let of_file = random_rows(&mut random, count);
            write_rows(&folder.path().join("data"), &format!("{file}.parquet"), &of_file, random.random_range(1..400));
            rows.extend(of_file);
        }
        let spec = source("payments", &folder.path().join("data"));
        let before = view("payments", spec.clone(), transform("old", outputs(), old_rule));
        let filtered = eadem_offline::SourceSpec { filter: Some("flag < 900".to_owned()), ..spec };
        let after = view("payments", filtered, transform("new", outputs(), new_rule));
        let report = compare(&before, &after, u64::MAX).await.unwrap();

        let mut outcomes: BTreeMap<(EffectOutcome, EffectOutcome), u64> = BTreeMap::new();
        let (mut changed, mut values_changed, mut nulls, mut computed) = (0, [0_u64; 2], [[0_u64; 2]; 2], [0_u64; 2]);
        for row in &rows {
            let (old, old_values) = judge(row, old_rule, |_| true);
            let (new, new_values) = judge(row, new_rule, |row| row.flag < 900);
            *outcomes.entry((old, new)).or_default() += 1;
            let mut differs = old != new;
            for (side, values) in [&old_values, &new_values].into_iter().enumerate() {
                computed[side] += u64::from(!values.is_empty());
                for (feature, value) in values.iter().enumerate() {
                    nulls[side][feature] += u64::from(value.is_null());
                }
            }
            if old == EffectOutcome::Computed && new == old {
                for feature in 0..2 {
                    let bytes = |values: &[Value]| encode_values(&values[feature..=feature]);
                    if bytes(&old_values) != bytes(&new_values) {
                        values_changed[feature] += 1;
                        differs = true;
                    }
                }
            }
            changed += u64::from(differs);
        }
        let context = format!("seed {seed}, round {round}");
        assert_eq!(report.rows_compared, rows.len() as u64, "{context}");
        assert_eq!(outcomes_of(&report), outcomes, "{context}");
        assert_eq!(report.rows_changed, changed, "{context}");
        assert!(report.is_whole_history && !report.out_of_time, "{context}");
        for (feature, effect) in report.features.iter().enumerate() {
            assert_eq!(effect.rows_changed, Some(values_changed[feature]), "{context}: {}", effect.name);
            for (side, found) in [&effect.before, &effect.after].into_iter().enumerate() {
                let found = found.as_ref().unwrap();
                assert_eq!(found.nulls, nulls[side][feature], "{context}: {}", effect.name);
                assert_eq!(found.nulls + found.values, computed[side], "{context}: {}", effect.name);
            }
            assert_eq!(effect.examples.len() as u64, values_changed[feature].min(5), "{context}: {}", effect.name);
        }
        // The number of threads and the size of batches change nothing.
        let other = EffectOptions { workers: 1, batch_rows: 8_192, ..options(u64::MAX) };
        let effect =
            Effect { before, after, erasures: None, options: other, progress: None, cancel: Cancel::default() };
        let again = compare_versions(&effect).await.unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&report).unwrap(), "{context}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bit_in_one_row_is_found_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<SourceRow> = (0..30_000)
        .map(|row| SourceRow {
            card: Some(format!("c{}", row % 7)),
            at_us: Some(at("2023-05-01T00:00:00Z") + row),
            amount: Some(row as f64 / 3.0),
            flag: row,
        })
        .collect();
    for (number, rows) in rows.chunks(10_000).enumerate() {
        write_rows(&folder.path().join("data"), &format!("{number}.parquet"), rows, 3_000);
    }
    let rule: Rule = |amount, _| Outcome::Row(vec![value(amount), Value::Utf8("same".to_owned())]);
    let planted: Rule = |amount, flag| {
        let flipped = |amount: f64| if flag == 23_456 { f64::from_bits(amount.to_bits() ^ 1) } else { amount };
        Outcome::Row(vec![value(amount.map(flipped)), Value::Utf8("same".to_owned())])
    };
    let spec = source("payments", &folder.path().join("data"));
    let before = view("payments", spec.clone(), transform("old", outputs(), rule));
    let after = view("payments", spec, transform("new", outputs(), planted));
    let report = compare(&before, &after, 1_000_000).await.unwrap();
    assert_eq!((report.rows_compared, report.rows_changed), (30_000, 1));
    let [doubled, size] = report.features.as_slice() else { panic!("{report:?}") };
    assert_eq!((doubled.rows_changed, size.rows_changed), (Some(1), Some(0)));
    let [example] = doubled.examples.as_slice() else { panic!("{doubled:?}") };
    let (old, new) = (23_456.0_f64 / 3.0, f64::from_bits((23_456.0_f64 / 3.0).to_bits() ^ 1));
    assert_eq!((example.before.as_f64(), example.after.as_f64()), (Some(old), Some(new)));
    assert_eq!((example.row, example.key["card"].as_str()), (3_456, Some("c6")));
    assert!(example.file.ends_with("2.parquet"), "{example:?}");
    assert_eq!(example.event_time.as_deref(), Some("2023-05-01T00:00:00.023456Z"));
    let text = report.to_text();
    assert!(text.starts_with("1 of 30,000 rows change (all rows of history)\n"), "{text}");
    assert!(text.contains("size: no value changes"), "{text}");

    let same = compare(&before, &before, 1_000_000).await.unwrap();
    assert_eq!((same.rows_changed, same.rows_compared), (0, 30_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_of_all_times_and_as_large_as_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for file in 0..20_i64 {
        let rows: Vec<SourceRow> = (0..1_000)
            .map(|row| SourceRow {
                card: Some("c".to_owned()),
                at_us: Some(at("2023-05-01T00:00:00Z") + file * 1_000 + row),
                amount: Some(1.0),
                flag: file,
            })
            .collect();
        write_rows(&folder.path().join("data"), &format!("{file:02}.parquet"), &rows, 1_000);
    }
    let seen: Arc<Mutex<HashMap<i64, u64>>> = Arc::default();
    let noting = Arc::clone(&seen);
    let note = NativeTransform::shared("note", false, inputs(), outputs(), move |values| {
        *noting.lock().unwrap().entry(flag_of(values)).or_default() += 1;
        old_rule(amount_of(values), 0)
    });
    let spec = source("payments", &folder.path().join("data"));
    let before = view("payments", spec.clone(), note);
    let after = view("payments", spec, transform("new", outputs(), old_rule));
    let report = compare(&before, &after, 1_600).await.unwrap();
    assert_eq!(report.rows_compared, 1_600);
    assert!(!report.is_whole_history && !report.out_of_time);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.values().sum::<u64>(), 1_600);
    assert!(seen.contains_key(&0) && seen.contains_key(&19) && seen.len() >= 16, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn features_come_and_go_and_rows_move() {
    let folder = tempfile::tempdir().unwrap();
    let rows = random_rows(&mut StdRng::seed_from_u64(1), 300);
    write_rows(&folder.path().join("data"), "a.parquet", &rows, 100);
    let spec = source("payments", &folder.path().join("data"));
    let rule: Rule = |amount, flag| Outcome::Row(vec![value(amount), Value::Int64(flag)]);
    let fields = |names: [(&str, DataType); 2]| names.map(|(name, of)| Field::new(name, of, true)).to_vec();
    let old = fields([("amount_out", DataType::Float64), ("flag_out", DataType::Int64)]);
    let before = view("payments", spec.clone(), transform("old", old, rule));
    let swapped: Rule = |amount, flag| Outcome::Row(vec![Value::Float64(flag as f64), value(amount)]);
    let new = fields([("flag_out", DataType::Float64), ("third", DataType::Float64)]);
    let delayed = eadem_offline::SourceSpec { known_at: KnownAt::After(1), ..spec };
    let after = view("payments", delayed, transform("new", new, swapped));
    let report = compare(&before, &after, u64::MAX).await.unwrap();
    let changes: Vec<(&str, FeatureChange, Option<u64>)> =
        report.features.iter().map(|feature| (feature.name.as_str(), feature.change, feature.rows_changed)).collect();
    assert_eq!(
        changes,
        [
            ("flag_out", FeatureChange::Retyped, None),
            ("third", FeatureChange::Added, None),
            ("amount_out", FeatureChange::Removed, None)
        ]
    );
    let kept = rows.iter().filter(|row| row.card.is_some() && row.at_us.is_some()).count() as u64;
    assert_eq!((report.rows_moved, report.rows_changed, report.rows_of_other_key), (kept, kept, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_is_said_and_what_is_called_off_ends() {
    let folder = tempfile::tempdir().unwrap();
    let rows = random_rows(&mut StdRng::seed_from_u64(2), 300);
    write_rows(&folder.path().join("data"), "a.parquet", &rows, 100);
    let spec = source("payments", &folder.path().join("data"));
    let before = view("payments", spec.clone(), transform("old", outputs(), old_rule));
    let mut csv = spec.clone();
    csv.origin = Origin::Csv { locations: vec!["elsewhere".to_owned()], format: CsvFormat::default() };
    let after = view("payments", csv, transform("new", outputs(), old_rule));
    let refused = compare(&before, &after, 10).await.unwrap_err();
    assert!(
        matches!(&refused, OfflineError::NotComparable(reason) if reason.contains("different kinds of files")),
        "{refused}"
    );

    let after = view("payments", spec, transform("new", outputs(), old_rule));
    let cancel = Cancel::default();
    cancel.cancel();
    let effect = Effect { before, after, erasures: None, options: options(10), progress: None, cancel };
    assert!(matches!(compare_versions(&effect).await, Err(OfflineError::Cancelled)));
    let in_no_time = EffectOptions { duration_max: Duration::ZERO, ..options(1_000) };
    let effect = Effect { options: in_no_time, cancel: Cancel::default(), ..effect };
    let report = compare_versions(&effect).await.unwrap();
    assert_eq!((report.rows_compared, report.out_of_time, report.is_whole_history), (0, true, false));
}

/// One card, up to an instant.
#[derive(Debug)]
struct OneErased {
    card: &'static str,
    up_to_us: i64,
    keys: Vec<(String, KeyType)>,
}

impl ErasedEntities for OneErased {
    fn up_to_us(&self, key: &EntityKey) -> Option<i64> {
        (key.to_path() == self.card).then_some(self.up_to_us)
    }

    fn latest_us(&self) -> i64 {
        self.up_to_us
    }

    fn keys(&self) -> &[(String, KeyType)] {
        &self.keys
    }

    fn revision(&self) -> u64 {
        1
    }
}

#[derive(Debug)]
struct OneErasure(i64);

#[async_trait::async_trait]
impl ErasureLedger for OneErasure {
    async fn of_view(&self, view: &str, _: bool) -> Result<Option<Arc<dyn ErasedEntities>>, LedgerError> {
        assert_eq!(view, "payments@1", "the version that is known");
        let keys = vec![("card".to_owned(), KeyType::Utf8)];
        Ok(Some(Arc::new(OneErased { card: "c1", up_to_us: self.0, keys })))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_erased_entity_is_compared_or_shown() {
    let folder = tempfile::tempdir().unwrap();
    let start_us = at("2023-05-01T00:00:00Z");
    let rows: Vec<SourceRow> = (0..100)
        .map(|row| SourceRow {
            card: Some(format!("c{}", row % 2)),
            at_us: Some(start_us + row),
            amount: Some(row as f64),
            flag: row,
        })
        .collect();
    write_rows(&folder.path().join("data"), "a.parquet", &rows, 30);
    let old: Rule = |amount, _| Outcome::Row(vec![value(amount), Value::Null]);
    let new: Rule = |amount, _| Outcome::Row(vec![value(amount.map(|amount| amount + 1.0)), Value::Null]);
    let spec = source("payments", &folder.path().join("data"));
    let effect = Effect {
        before: view("payments", spec.clone(), transform("old", outputs(), old)),
        after: ViewSpec { version: 2, ..view("payments", spec, transform("new", outputs(), new)) },
        erasures: Some(Arc::new(OneErasure(start_us + 59))),
        options: EffectOptions { examples_max: 100, ..options(1_000) },
        progress: None,
        cancel: Cancel::default(),
    };
    let report = compare_versions(&effect).await.unwrap();
    // Of the odd rows, those up to the sixtieth are gone.
    assert_eq!((report.rows_compared, report.rows_changed), (100, 70));
    let left_out = outcomes_of(&report)[&(EffectOutcome::LeftOut, EffectOutcome::LeftOut)];
    assert_eq!((left_out, report.features[0].before.as_ref().unwrap().values), (30, 70));
    let shown: Vec<(&str, i64)> = report.features[0]
        .examples
        .iter()
        .map(|example| (example.key["card"].as_str().unwrap(), example.row))
        .collect();
    assert!(shown.len() == 70 && shown.iter().all(|(card, row)| *card == "c0" || *row >= 60), "{shown:?}");
}
