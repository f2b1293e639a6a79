//! Queries of a real PostgreSQL server.
//!
//! One test starts the server (`tests/services/postgres.sh`) and runs the others, which are ignored otherwise, in a process
//! of its own: the environment that holds a database's URL is set from outside, as in production.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use eadem_offline::{
    BackfillReport, ErasedEntities, ErasureLedger, EventTime, LedgerError, MemoryLedger, OfflineError, Origin,
    PostgresQuery, SourceSpec, ViewSpec, inspect, plan_backfill, run_backfill,
};
use eadem_values::{DataType, ElementType, EntityKey, KeyType, Value};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::ports::free_port;
use crate::postgres_server::Postgres;
use crate::support::{at, backfill, echo, source, store_in, stored_rows};

const URL: &str = "EADEM_TEST_POSTGRES";
const WRONG_PASSWORD: &str = "EADEM_TEST_POSTGRES_WRONG";
const NOBODY: &str = "EADEM_TEST_POSTGRES_NOBODY";

#[test]
fn sources_of_a_real_database() {
    let server = Postgres::start();
    let (port, of_nobody) = (server.port, free_port(&[]));
    let tests = Command::new(std::env::current_exe().unwrap())
        .args(["source_postgres::", "--ignored"])
        .env(URL, server.url())
        .env(WRONG_PASSWORD, format!("postgres://test:wrong%2Fsecret@127.0.0.1:{port}/test"))
        .env(NOBODY, format!("postgres://test:unheard-secret@127.0.0.1:{}/test", of_nobody.number))
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&tests.stdout), String::from_utf8_lossy(&tests.stderr));
    assert!(tests.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("11 passed"), "not every test was run: {stdout}");
}

async fn connect() -> PgConnection {
    PgConnection::connect(&std::env::var(URL).unwrap()).await.unwrap()
}

/// Runs statements in the test's own schema.
async fn run(schema: &str, statements: &[&str]) {
    let mut connection = connect().await;
    let setup = [format!("create schema if not exists {schema}"), format!("set search_path to {schema}")];
    for statement in setup.iter().map(String::as_str).chain(statements.iter().copied()) {
        connection.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
    }
}

fn query(url_env: &str, text: &str, cursor: Option<&str>) -> SourceSpec {
    let mut spec = source("payments", Path::new("/"));
    spec.origin = Origin::Postgres(PostgresQuery {
        url_env: url_env.into(),
        query: text.into(),
        cursor: cursor.map(str::to_owned),
    });
    spec.event_time = EventTime::Literal(at("2000-01-01T00:00:00Z"));
    spec
}

async fn load(job: &str, folder: &Path, view: &ViewSpec) -> Result<BackfillReport, OfflineError> {
    run_backfill(backfill(job, view, &store_in(folder), Arc::new(MemoryLedger::default()))).await
}

/// (key, first value) of all rows, in the order of keys.
async fn stored(folder: &Path, view: &ViewSpec) -> Vec<(String, Value)> {
    let rows = stored_rows(&store_in(folder), view).await;
    let mut rows: Vec<_> = rows.into_iter().map(|row| (row.key, row.values[0].clone())).collect();
    rows.sort_by_key(|(key, value)| format!("{key} {value:?}"));
    rows
}

fn extracts(folder: &Path, view: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder.join(format!("out/extracts/{view}/v1"))) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn every_type_arrives_exactly_or_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let columns = [
        ("flag", DataType::Boolean),
        ("small", DataType::Int64),
        ("large", DataType::Int64),
        ("double", DataType::Float64),
        ("single", DataType::Float32),
        ("note", DataType::Utf8),
        ("raw", DataType::Binary),
        ("seen", DataType::Timestamp),
        ("local", DataType::Timestamp),
        ("counts", DataType::List(ElementType::Int64)),
        ("words", DataType::List(ElementType::Utf8)),
    ];
    let text = "select * from (values
        ('a', true, 7::smallint, 9223372036854775807, 0.1::float8, 0.1::real, 'x', '\\x00ff'::bytea,
         timestamptz '2024-01-01 00:00:00.000001+02', timestamp '2024-07-01 12:00', array[1, 2]::bigint[], array['é']),
        ('b', null, null, null, 'nan', null, null, null, null, null, '{}', null),
        ('c', false, -1, '-9223372036854775808', '-infinity', '1e-45', '', '', 'infinity', '1999-12-31 23:59:59.999999',
         null, array[]::text[]),
        ('d', false, -1, 0, 0, 0, '', '', null, null, array[null]::bigint[], null)
      ) as t(card, flag, small, large, double, single, note, raw, seen, local, counts, words);";
    let mut spec = query(URL, text, None);
    spec.time_zone = Some("America/New_York".into());
    let view = echo("types", &spec, &columns);
    let report = load("job", folder.path(), &view).await.unwrap();
    assert_eq!((report.rows_read, report.rows_stored), (4, 3));
    let refused: Vec<&str> = report.refused.keys().map(String::as_str).collect();
    assert_eq!(refused, ["column `counts` cannot be converted to list(int64)"]);
    let rows: Vec<Vec<Value>> =
        stored_rows(&store_in(folder.path()), &view).await.into_iter().map(|row| row.values).collect();
    let time = |text: &str| Value::Timestamp(at(text));
    assert_eq!(
        rows[0],
        [
            Value::Boolean(true),
            Value::Int64(7),
            Value::Int64(i64::MAX),
            Value::Float64(0.1),
            Value::Float32(0.1),
            Value::Utf8("x".into()),
            Value::Binary(vec![0, 255]),
            time("2023-12-31T22:00:00.000001Z"),
            time("2024-07-01T16:00:00Z"),
            Value::ListInt64(vec![1, 2]),
            Value::ListUtf8(vec!["é".into()]),
        ]
    );
    assert!(rows[1][3].bits_eq(&Value::Float64(f64::NAN).canonical()));
    assert_eq!(rows[1][9], Value::ListInt64(vec![]));
    assert!(rows[1][..3].iter().chain(&rows[1][4..9]).all(|value| *value == Value::Null));
    assert_eq!(rows[2][2..5], [Value::Int64(i64::MIN), Value::Float64(f64::NEG_INFINITY), Value::Float32(1e-45)]);
    assert_eq!(rows[2][7], Value::Timestamp(i64::MAX), "infinity is later than everything that a job accepts");

    let numeric = "select 'a' as card, 1.5 as price, '{}'::jsonb as doc, array[1, 2] as \"few\"";
    let error = inspect(&query(URL, numeric, None)).await.unwrap_err().to_string();
    for advice in [
        "column `price` is numeric, which is not read; there is no decimal: write `price::float8`",
        "column `doc` is jsonb, which is not read; write `doc::text`",
        "column `few` is int4[], which is not read; write `few::bigint[]`",
    ] {
        assert!(error.contains(advice), "{error}");
    }
    let found = inspect(&query(URL, "select 'a' as card, now()::timestamp as local -- why not", None)).await.unwrap();
    assert_eq!(found[1].data_type, None);
    assert!(found[1].hint.as_ref().unwrap().contains("at time zone"));
    let error = inspect(&query(URL, "select 1 as a, 2 as a", None)).await.unwrap_err().to_string();
    assert!(error.contains("the query gives two columns `a`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn a_cursor_reads_what_is_new_and_a_query_without_one_reads_all() {
    let folder = tempfile::tempdir().unwrap();
    run(
        "cursors",
        &["create table p (id bigint, card text, amount float8)", "insert into p values (1, 'a', 1), (2, 'b', 2)"],
    )
    .await;
    let columns = [("amount", DataType::Float64)];
    let with = echo("with", &query(URL, "select * from cursors.p;", Some("id")), &columns);
    let without = echo("without", &query(URL, "select * from cursors.p order by id", None), &columns);
    for view in [&with, &without] {
        assert_eq!(load("first", folder.path(), view).await.unwrap().rows_stored, 2);
        let again = load("again", folder.path(), view).await.unwrap();
        assert_eq!((again.files, again.rows_read), (0, 0), "nothing is new: {}", view.name);
    }
    // A change behind the cursor is not seen by it. Without one, what the query gives takes the place of what it gave.
    run("cursors", &["insert into p values (3, 'c', 3)", "update p set amount = 20 where id = 2"]).await;
    let later = load("later", folder.path(), &with).await.unwrap();
    assert_eq!((later.rows_stored, later.replaces_extracts, later.rows_removed), (1, false, 0));
    let later = load("later", folder.path(), &without).await.unwrap();
    assert_eq!((later.rows_stored, later.rows_removed, later.files_replaced.len()), (3, 2, 1));
    assert!(later.replaces_extracts);
    let row = |key: &str, amount: f64| (key.to_owned(), Value::Float64(amount));
    assert_eq!(stored(folder.path(), &with).await, [row("a", 1.0), row("b", 2.0), row("c", 3.0)]);
    assert_eq!(stored(folder.path(), &without).await, [row("a", 1.0), row("b", 20.0), row("c", 3.0)]);
    let mut anew = backfill("anew", &with, &store_in(folder.path()), Arc::new(MemoryLedger::default()));
    anew.options.recompute = true;
    assert_eq!(run_backfill(anew).await.unwrap().rows_removed, 3);
    assert_eq!(stored(folder.path(), &with).await, [row("a", 1.0), row("b", 20.0), row("c", 3.0)]);
    run("cursors", &["insert into p values (null, 'd', 4)"]).await;
    let error = load("null", folder.path(), &echo("null", &with.source, &columns)).await.unwrap_err().to_string();
    assert!(error.contains("column `id`: a cursor is never null"), "{error}");
    for (cursor, message) in [("card", "column `card` is no cursor"), ("idd", "gives no column `idd`")] {
        let spec = query(URL, "select * from cursors.p", Some(cursor));
        let error = load("wrong", folder.path(), &echo("wrong", &spec, &columns)).await.unwrap_err().to_string();
        assert!(error.contains("postgres.cursor") && error.contains(message), "{error}");
    }
}

/// Rows of a range are replaced by those that the query gives for it, and nothing else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn a_query_without_a_cursor_takes_the_place_of_what_it_gave_in_the_range_of_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let (march, april) = (at("2023-03-01T00:00:00Z"), at("2023-04-01T00:00:00Z"));
    run(
        "ranges",
        &[
            "create table p (card text, amount float8, at timestamptz)",
            "insert into p values ('a', 1, '2023-02-10 12:00Z'), ('b', 2, '2023-03-10 12:00Z'), ('c', 3, '2023-03-11 12:00Z')",
        ],
    )
    .await;
    let mut spec = query(URL, "select * from ranges.p order by card", None);
    spec.event_time = EventTime::Column("at".into());
    let view = echo("ranges", &spec, &[("amount", DataType::Float64)]);
    let row = |key: &str, amount: f64| (key.to_owned(), Value::Float64(amount));
    let range = async |job: &str| {
        let mut job = backfill(job, &view, &store_in(folder.path()), Arc::new(MemoryLedger::default()));
        job.options.range_us = Some((march, april));
        run_backfill(job).await.unwrap()
    };
    load("first", folder.path(), &view).await.unwrap();
    run("ranges", &["update p set amount = amount * 10", "delete from p where card = 'c'"]).await;
    let report = range("march").await;
    assert_eq!((report.rows_stored, report.rows_removed, report.replaces_extracts), (1, 2, true));
    assert_eq!(stored(folder.path(), &view).await, [row("a", 1.0), row("b", 20.0)]);
    let again = range("again").await;
    assert_eq!((again.version, again.files, again.rows_removed), (report.version, 0, 0));
    let whole = load("whole", folder.path(), &view).await.unwrap();
    assert_eq!((whole.rows_stored, whole.rows_removed, whole.rows_out_of_range), (1, 1, 1), "{whole:?}");
    assert_eq!(stored(folder.path(), &view).await, [row("a", 10.0), row("b", 20.0)]);
    run("ranges", &["delete from p"]).await;
    let empty = load("empty", folder.path(), &view).await.unwrap();
    assert_eq!((empty.files, empty.rows_removed, empty.files_replaced.len()), (0, 2, 1));
    assert!(stored(folder.path(), &view).await.is_empty());
}

/// A job that has an older extract than what another has loaded meanwhile must not bring it back beside the newer one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn an_extract_that_another_job_has_overtaken_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    run("overtaken", &["create table p (card text, note bigint)", "insert into p values ('a', 1)"]).await;
    let view = echo("overtaken", &query(URL, "select * from overtaken.p", None), &[("note", DataType::Int64)]);
    load("first", folder.path(), &view).await.unwrap();
    run("overtaken", &["update p set note = 2"]).await;
    let ledger = Arc::new(MemoryLedger::default());
    let late = backfill("late", &view, &store_in(folder.path()), ledger);
    plan_backfill(&late).await.unwrap();
    run("overtaken", &["update p set note = 3"]).await;
    load("other", folder.path(), &view).await.unwrap();
    let error = run_backfill(late).await.unwrap_err().to_string();
    assert!(error.contains("was extracted and loaded by another job"), "{error}");
    assert_eq!(stored(folder.path(), &view).await, [("a".to_owned(), Value::Int64(3))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn times_and_dates_are_cursors_to_the_microsecond() {
    let folder = tempfile::tempdir().unwrap();
    run("clocks", &["create table p (card text, zoned timestamptz, plain timestamp, day date)"]).await;
    let views = ["zoned", "plain", "day"].map(|cursor| {
        let text = format!("select 'k' || card as card, card as note, {cursor} from clocks.p");
        echo(cursor, &query(URL, &text, Some(cursor)), &[("note", DataType::Utf8)])
    });
    for (number, day) in [("1", "1969-12-31"), ("2", "2024-02-29"), ("3", "2024-03-01")] {
        let time = format!("{day} 23:59:59.99999{number}");
        run("clocks", &[&format!("insert into p values ('{number}', '{time}+00', '{time}', '{day}')")]).await;
        for view in &views {
            let report = load(&format!("job-{number}"), folder.path(), view).await.unwrap();
            assert_eq!((report.rows_read, report.rows_stored), (1, 1), "{}: {number}", view.name);
        }
    }
}

/// A connection that breaks while rows stream, and a query that would change something, leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn what_breaks_on_the_way_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    run("breaks", &["create sequence numbers"]).await;
    let broken = "select 'c' || n as card, n as note, case when n = 300000 then pg_terminate_backend(pg_backend_pid()) end as ended
        from generate_series(1, 400000) as n";
    let writing = "select 'c' as card, nextval('breaks.numbers') as note";
    let failing = "select 'c' as card, 1 / (n - 50000) as note from generate_series(1, 100000) as n";
    for (name, text, reason) in [
        ("broken", broken, "terminating connection"),
        ("writing", writing, "read-only transaction"),
        ("failing", failing, "division by zero"),
        ("missing", "select * from breaks.nothing", "relation \"breaks.nothing\" does not exist"),
    ] {
        let view = echo(name, &query(URL, text, None), &[("note", DataType::Int64)]);
        let error = load("job", folder.path(), &view).await.unwrap_err().to_string();
        assert!(error.starts_with("source `payments`, postgres: ") && error.contains(reason), "{error}");
        assert_eq!(extracts(folder.path(), name), [""; 0]);
        assert!(!folder.path().join(format!("out/views/{name}")).exists());
    }
}

/// Queries with this text in them that sleep in the database.
async fn running(text: &str) -> i64 {
    let count = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and query like '%' || $1 || '%'";
    sqlx::query_scalar(count).bind(text).fetch_one(&mut connect().await).await.unwrap()
}

/// A query that computes for hours before its first row, or gives a row now and then, ends with its job, also in the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn a_query_that_keeps_its_job_waiting_is_called_off() {
    for (name, text) in [
        ("computing", "select 'c' as card, pg_sleep(36000)::text as note"),
        ("trickling", "select 'c' || n as card, pg_sleep(n * 3600)::text as note from generate_series(0, 9) as n"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let view = echo(name, &query(URL, text, None), &[("note", DataType::Utf8)]);
        let job = backfill("job", &view, &store_in(folder.path()), Arc::new(MemoryLedger::default()));
        let cancel = job.cancel.clone();
        let called_off = async {
            while running(text).await == 0 {}
            cancel.cancel();
        };
        let (ended, ()) = tokio::join!(run_backfill(job), called_off);
        assert!(matches!(ended, Err(OfflineError::Cancelled)), "{name}: {ended:?}");
        assert_eq!(extracts(folder.path(), name), [""; 0]);
        while running(text).await > 0 {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn a_job_that_is_resumed_reads_its_extract_and_checks_it() {
    let folder = tempfile::tempdir().unwrap();
    run("resumed", &["create table p as select 'c' || n as card, n as note from generate_series(1, 3000) as n"]).await;
    let view = echo("resumed", &query(URL, "select * from resumed.p", None), &[("note", DataType::Int64)]);
    let ledger = Arc::new(MemoryLedger::default());
    let mut job = backfill("job", &view, &store_in(folder.path()), ledger.clone());
    let cancel = job.cancel.clone();
    job.progress = Some(Arc::new(move |_: &eadem_offline::Progress| cancel.cancel()));
    assert!(matches!(run_backfill(job).await, Err(OfflineError::Cancelled)));
    run("resumed", &["delete from p"]).await;
    let report = run_backfill(backfill("job", &view, &store_in(folder.path()), ledger)).await.unwrap();
    assert_eq!(report.rows_stored, 3000);
    let name = extracts(folder.path(), "resumed");
    assert_eq!(name.len(), 1);
    let digest = name[0].trim_end_matches(".parquet");
    assert!(
        stored_rows(&store_in(folder.path()), &view).await.iter().all(|row| row.lane == format!("sha256:{digest}"))
    );
}

/// Nobody is erased; but more is from the moment on when there is an extract.
#[derive(Debug)]
struct ErasedMeanwhile {
    folder: PathBuf,
    /// The extracts that were there at any time.
    seen: Mutex<BTreeSet<String>>,
}

#[derive(Debug)]
struct Nobody(u64);

impl ErasedEntities for Nobody {
    fn up_to_us(&self, _: &EntityKey) -> Option<i64> {
        None
    }

    fn latest_us(&self) -> i64 {
        i64::MIN
    }

    fn keys(&self) -> &[(String, KeyType)] {
        &[]
    }

    fn revision(&self) -> u64 {
        self.0
    }
}

#[async_trait]
impl ErasureLedger for ErasedMeanwhile {
    async fn of_view(&self, _: &str, _: bool) -> Result<Option<Arc<dyn ErasedEntities>>, LedgerError> {
        let mut seen = self.seen.lock().unwrap();
        seen.extend(extracts(&self.folder, "meanwhile"));
        let revision = u64::from(!seen.is_empty());
        Ok(Some(Arc::new(Nobody(revision))))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn an_extract_is_made_anew_if_more_was_erased_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    // Another extract each time.
    let text = "select 'a' as card, clock_timestamp()::text as note";
    let view = echo("meanwhile", &query(URL, text, None), &[("note", DataType::Utf8)]);
    let ledger = Arc::new(ErasedMeanwhile { folder: folder.path().to_owned(), seen: Mutex::default() });
    let store = store_in(folder.path()).with_erasures(ledger.clone());
    let report = run_backfill(backfill("job", &view, &store, Arc::new(MemoryLedger::default()))).await.unwrap();
    assert_eq!(report.rows_stored, 1);
    let names = extracts(folder.path(), "meanwhile");
    assert_eq!((names.len(), ledger.seen.lock().unwrap().len()), (1, 2), "the first was taken back");
    let rows = stored_rows(&store_in(folder.path()), &view).await;
    assert_eq!(rows[0].lane, format!("sha256:{}", names[0].trim_end_matches(".parquet")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn credentials_stand_in_no_message() {
    for (variable, reason) in [
        (WRONG_PASSWORD, "password authentication failed"),
        (NOBODY, "cannot connect to 127.0.0.1:"),
        ("EADEM_TEST_POSTGRES_UNSET", "EADEM_TEST_POSTGRES_UNSET is not set"),
    ] {
        let error = inspect(&query(variable, "select 1 as a", None)).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(reason) && text.contains(variable), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

/// What a query gives is kept and loaded below the ceiling, and is the same lane under any of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by sources_of_a_real_database, which starts the server"]
async fn the_rows_of_a_query_stay_below_the_ceiling() {
    const MIB: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let text = |rows: usize, digests: usize| {
        format!(
            "select 'c' || row as card, row::float8 as amount, note from generate_series(1, {rows}) as row, lateral (
               select string_agg(md5((row * 1000 + part)::text), '') as note from generate_series(1, {digests}) as part
             ) as notes order by row"
        )
    };
    let columns = [("amount", DataType::Float64), ("note", DataType::Utf8)];
    let run = async |name: &str, text: &str, memory_bytes_max: usize| {
        let view = echo(name, &query(URL, text, None), &columns);
        let store = store_in(&folder.path().join(memory_bytes_max.to_string()));
        let mut job = backfill("job", &view, &store, Arc::new(MemoryLedger::default()));
        job.options.memory_bytes_max = memory_bytes_max;
        let report = run_backfill(job).await?;
        Ok::<_, OfflineError>((report.memory_bytes_peak, stored_rows(&store, &view).await))
    };
    // 58 MB.
    let wide = text(6_000, 300);
    let tight = 56 * MIB;
    let (peak, rows) = run("wide", &wide, tight).await.unwrap();
    let (peak_of_all, expected) = run("wide", &wide, 1 << 30).await.unwrap();
    assert!(rows == expected && rows.len() == 6_000, "{} of {}", rows.len(), expected.len());
    assert!(peak > 0 && peak <= tight, "{peak} of {tight}");
    assert!(peak_of_all > tight, "{peak_of_all}");

    let error = run("wide", &wide, 8 * MIB).await.unwrap_err().to_string();
    assert!(error.contains("jobs.memory_bytes_max") && error.contains("8388608"), "{error}");
    let one = text(1, 100_000);
    let error = run("one", &one, tight).await.unwrap_err().to_string();
    for part in ["payments", "row 0 has 32", "jobs.memory_bytes_max", "2097152", "raise it"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(run("one", &one, 1 << 30).await.unwrap().1.len(), 1);
}
