use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::types::{TimestampMicrosecondType, UInt64Type};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use eadem_query::{EVENT_TIME_COLUMN, HistoryColumns, PLACE_COLUMN, PointInTimeJoin, PointInTimeJoinExec, TieReader};
use eadem_semantics::{KnownAtCut, Lifetime};
use eadem_values::TieDigest;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use proptest::prelude::*;

use crate::support::cases;

type Key = (Option<String>, i64);

#[derive(Debug, Clone)]
struct HistoryRow {
    key: (String, i64),
    event_us: i64,
    known_us: i64,
    tie: u8,
}

#[derive(Debug, Clone)]
struct Case {
    spine: Vec<(Key, i64)>,
    history: Vec<HistoryRow>,
    cut: KnownAtCut,
    ttl_us: Option<i64>,
    horizon_us: Option<i64>,
    partitions: usize,
    batch_rows: usize,
}

impl Case {
    /// Whether no read can tell a row of this time from none. A horizon that is not given is as long as the TTL.
    fn is_gone(&self, at_us: i64, event_us: i64) -> bool {
        self.ttl_us.is_some_and(|ttl_us| at_us - event_us >= ttl_us + self.horizon_us.unwrap_or(ttl_us))
    }
}

/// Gives the ties of a case's rows, whose places are their numbers.
#[derive(Debug, Default)]
struct Ties {
    ties: Vec<u8>,
    asked: AtomicUsize,
    /// The most that was asked for in one go.
    most: AtomicUsize,
}

impl TieReader for Ties {
    fn ties<'a>(&'a self, places: &'a [u64]) -> BoxFuture<'a, datafusion::error::Result<Vec<TieDigest>>> {
        assert!(places.is_sorted_by(|one, other| one < other), "each place once, ascending");
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.most.fetch_max(places.len(), Ordering::Relaxed);
        let ties = places.iter().map(|place| TieDigest::from_bytes([self.ties[*place as usize]; 16])).collect();
        std::future::ready(Ok(ties)).boxed()
    }
}

/// Event time, known-at and tie of the winner.
type Found = Option<(i64, i64, u8)>;

/// The winner for every spine row, or `None` if there is no winner that a read could tell from none.
fn oracle(case: &Case) -> Vec<Found> {
    let winner = |(key, at_us): &(Key, i64)| {
        let mut best: Option<&HistoryRow> = None;
        for row in &case.history {
            let same = key.0.as_ref().is_some_and(|first| *first == row.key.0) && key.1 == row.key.1;
            let known = match case.cut {
                KnownAtCut::Spine => row.known_us <= *at_us,
                KnownAtCut::Fixed(known_by_us) => row.known_us <= known_by_us,
                KnownAtCut::None => true,
            };
            if !same || row.event_us > *at_us || !known {
                continue;
            }
            let beats = best
                .is_none_or(|best| (row.event_us, row.known_us, row.tie) > (best.event_us, best.known_us, best.tie));
            if beats {
                best = Some(row);
            }
        }
        let row = best?;
        (!case.is_gone(*at_us, row.event_us)).then_some((row.event_us, row.known_us, row.tie))
    };
    case.spine.iter().map(winner).collect()
}

fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn times(times_us: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(times_us).with_timezone("UTC"))
}

fn spine_batch(case: &Case) -> RecordBatch {
    let names: StringArray = case.spine.iter().map(|(key, _)| key.0.clone()).collect();
    let schema = Schema::new(vec![
        Field::new("at", time_type(), false),
        Field::new("role_number", DataType::Int64, false),
        Field::new("role_name", DataType::Utf8, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        times(case.spine.iter().map(|(_, at_us)| *at_us)),
        Arc::new(Int64Array::from_iter_values(case.spine.iter().map(|(key, _)| key.1))),
        Arc::new(names),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

fn history_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("number", DataType::Int64, false),
        Field::new("event_time", time_type(), false),
        Field::new("known_at", time_type(), false),
        Field::new("place", DataType::UInt64, false),
    ]))
}

fn history_batch(first_place: usize, rows: &[HistoryRow]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.key.0))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.key.1))),
        times(rows.iter().map(|row| row.event_us)),
        times(rows.iter().map(|row| row.known_us)),
        Arc::new(UInt64Array::from_iter_values((first_place..first_place + rows.len()).map(|place| place as u64))),
    ];
    RecordBatch::try_new(history_schema(), columns).unwrap()
}

fn plan(case: &Case, ties: Arc<Ties>) -> Arc<dyn ExecutionPlan> {
    let spine = spine_batch(case);
    let spine_plan = MemorySourceConfig::try_new_exec(&[vec![spine.clone()]], spine.schema(), None).unwrap();
    let mut partitions: Vec<Vec<RecordBatch>> = vec![Vec::new(); case.partitions];
    for (number, rows) in case.history.chunks(case.batch_rows).enumerate() {
        partitions[number % case.partitions].push(history_batch(number * case.batch_rows, rows));
    }
    let history = MemorySourceConfig::try_new_exec(&partitions, history_schema(), None).unwrap();
    let join = PointInTimeJoin {
        spine_keys: vec![2, 1],
        spine_time: 0,
        spine_kept: vec![0, 1, 2],
        history: HistoryColumns { keys: vec![0, 1], event_time: 2, known_at: 3, place: 4 },
        cut: case.cut,
        lifetime: Lifetime { ttl_us: case.ttl_us, horizon_us: case.horizon_us },
    };
    Arc::new(PointInTimeJoinExec::try_new(spine_plan, history, ties, join).unwrap())
}

fn ties_of(case: &Case) -> Arc<Ties> {
    Arc::new(Ties { ties: case.history.iter().map(|row| row.tie).collect(), ..Ties::default() })
}

fn run(case: &Case) -> Vec<Found> {
    run_with(case, ties_of(case))
}

/// What the join finds; each winner must be the row it says it is.
fn run_with(case: &Case, ties: Arc<Ties>) -> Vec<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let plan = plan(case, ties);
    let batches: Vec<RecordBatch> = runtime
        .block_on(async { plan.execute(0, Arc::new(TaskContext::default())).unwrap().try_collect().await })
        .unwrap();
    let joined = arrow_select::concat::concat_batches(&plan.schema(), &batches).unwrap();
    assert_eq!(joined.num_rows(), case.spine.len());
    assert_eq!(joined.columns()[..3], *spine_batch(case).columns(), "the spine passes through in its order");
    let column = |name: &str| joined.column_by_name(name).unwrap();
    let event_times = column(EVENT_TIME_COLUMN).as_primitive::<TimestampMicrosecondType>();
    let places = column(PLACE_COLUMN).as_primitive::<UInt64Type>();
    (0..joined.num_rows())
        .map(|row| {
            assert_eq!(event_times.is_valid(row), places.is_valid(row));
            places.is_valid(row).then(|| {
                let of_place = &case.history[places.value(row) as usize];
                assert_eq!(event_times.value(row), of_place.event_us);
                (of_place.event_us, of_place.known_us, of_place.tie)
            })
        })
        .collect()
}

fn case() -> impl Strategy<Value = Case> {
    // Few keys and few instants, so that ties, duplicates and edges of TTL and horizon are common.
    let key = || (prop::sample::select(vec!["", "a", "b", "ab"]), prop::sample::select(vec![-1_i64, 0, 1, i64::MIN]));
    let instant =
        || prop_oneof![8 => -4_i64..12, 1 => Just(eadem_values::TIME_MIN_US), 1 => Just(eadem_values::TIME_MAX_US - 1)];
    let spine_key = (prop::option::weighted(0.9, key()), any::<bool>())
        .prop_map(|(key, _)| key.map_or((None, 0), |(name, number)| (Some(name.to_owned()), number)));
    let spine = prop::collection::vec((spine_key, instant()), 0..24);
    let row = (key(), instant(), -3_i64..5, 0_u8..3).prop_map(|((name, number), event_us, delay_us, tie)| HistoryRow {
        key: (name.to_owned(), number),
        event_us,
        known_us: event_us.saturating_add(delay_us),
        tie,
    });
    let history = prop::collection::vec(row, 0..60);
    let cut = prop_oneof![Just(KnownAtCut::Spine), Just(KnownAtCut::None), (-4_i64..12).prop_map(KnownAtCut::Fixed)];
    let lifetime = prop::option::of((1_i64..6, prop::option::of(0_i64..6)))
        .prop_map(|lifetime| lifetime.map_or((None, None), |(ttl_us, horizon_us)| (Some(ttl_us), horizon_us)));
    let partitions = prop::sample::select(vec![1_usize, 2, 7]);
    let epochs_us = prop::sample::select(EPOCHS_US.to_vec());
    (spine, history, cut, lifetime, partitions, 1_usize..20, epochs_us).prop_map(
        |(spine, history, cut, (ttl_us, horizon_us), partitions, batch_rows, epoch_us)| {
            Case { spine, history, cut, ttl_us, horizon_us, partitions, batch_rows }.moved_by(epoch_us)
        },
    )
}

/// What a case's small times count from: the epoch, the last microsecond of 1969, the ends of the accepted years, hours that
/// clocks in New York skip and repeat.
const EPOCHS_US: [i64; 6] = [
    0,
    -1,
    eadem_values::TIME_MIN_US + 7,
    eadem_values::TIME_MAX_US - 17,
    1_362_898_800_000_000,
    1_383_458_400_000_000,
];

impl Case {
    fn moved_by(mut self, us: i64) -> Self {
        self.spine.iter_mut().for_each(|(_, at_us)| *at_us = at_us.saturating_add(us));
        for row in &mut self.history {
            row.event_us = row.event_us.saturating_add(us);
            row.known_us = row.known_us.saturating_add(us);
        }
        if let KnownAtCut::Fixed(known_by_us) = &mut self.cut {
            *known_by_us = known_by_us.saturating_add(us);
        }
        self
    }
}

/// Tells the bench how many cases were tried; a difference would have ended the test before.
fn report(cases: &AtomicU64) {
    println!("H8: cases={} differences=0", cases.load(Ordering::Relaxed));
}

#[test]
fn the_join_finds_what_the_oracle_finds() {
    let tried = AtomicU64::new(0);
    proptest!(cases(1_500), |(case in case())| {
        tried.fetch_add(1, Ordering::Relaxed);
        // A row that no read can tell from none may be handed on or not: its status is `missing` either way.
        let found = run(&case);
        let told_apart: Vec<_> = found
            .into_iter()
            .zip(&case.spine)
            .map(|(row, (_, at_us))| row.filter(|(event_us, ..)| !case.is_gone(*at_us, *event_us)))
            .collect();
        prop_assert_eq!(told_apart, oracle(&case));
    });
    report(&tried);
}

#[test]
fn order_and_partitions_of_the_history_do_not_matter() {
    let tried = AtomicU64::new(0);
    proptest!(cases(1_500), |(case in case(), partitions in 1_usize..8, batch_rows in 1_usize..9)| {
        tried.fetch_add(1, Ordering::Relaxed);
        let mut turned = case.clone();
        turned.history.reverse();
        turned.partitions = partitions;
        turned.batch_rows = batch_rows;
        prop_assert_eq!(run(&case), run(&turned));
    });
    report(&tried);
}

#[test]
fn explain_shows_the_join() {
    let case = Case {
        spine: vec![((Some("a".into()), 1), 5)],
        history: vec![],
        cut: KnownAtCut::Spine,
        ttl_us: None,
        horizon_us: None,
        partitions: 2,
        batch_rows: 1,
    };
    let shown = displayable(plan(&case, ties_of(&case)).as_ref()).indent(false).to_string();
    assert!(
        shown.starts_with("PointInTimeJoinExec: keys=[role_name, role_number], time=at, known_at_cut=spine\n"),
        "{shown}"
    );
}

/// A history in which nothing but ties decides: they are asked for now and then, so that memory goes with the spine, and
/// what was decided stays.
#[test]
fn rows_with_equal_times_are_told_apart_in_bounded_memory() {
    let entities = 50_usize;
    let key_of = |entity: usize| ("a".to_owned(), entity as i64);
    let rows = 300_000_usize;
    let case = Case {
        spine: (0..entities).map(|entity| ((Some("a".to_owned()), entity as i64), 9)).collect(),
        history: (0..rows)
            .map(|row| HistoryRow {
                key: key_of(row % entities),
                event_us: 5,
                known_us: 5,
                // The greatest of every entity stands somewhere in the middle, once.
                tie: if row / entities == 2_000 + row % entities { 255 } else { (row / entities % 251) as u8 },
            })
            .collect(),
        cut: KnownAtCut::Spine,
        ttl_us: None,
        horizon_us: None,
        partitions: 3,
        batch_rows: 8_192,
    };
    let ties = ties_of(&case);
    assert_eq!(run_with(&case, Arc::clone(&ties)), vec![Some((5, 5, 255)); entities]);
    let asked = ties.asked.load(Ordering::Relaxed);
    assert!(asked > 3, "asked {asked} times");
    let most = ties.most.load(Ordering::Relaxed);
    assert!(most <= 65_536 + 3 * 8_192 + entities, "{most} rows waited");
}
