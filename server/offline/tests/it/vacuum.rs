//! Compaction and vacuum: files change, rows do not, and nothing that is needed goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use eadem_offline::{
    Cancel, CompactReport, FilesInUse, InUse, JobLedger, MemoryLedger, OfflineError, VacuumOptions, VacuumReport,
    compact,
};
use serde_json::json;

use crate::backfill::DyingLedger;
use crate::replace::Place;

/// What the test says is in use.
pub struct Used(FilesInUse);

#[async_trait]
impl InUse for Used {
    async fn in_use(&self) -> Result<FilesInUse, String> {
        Ok(self.0.clone())
    }
}

pub fn nothing() -> Used {
    Used(FilesInUse::default())
}

const DAY_US: i64 = 86_400_000_000;

/// So many days from now.
pub fn in_days(days: i64) -> VacuumOptions {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    VacuumOptions::at(i64::try_from(now.as_micros()).unwrap() + days * DAY_US)
}

async fn vacuum(place: &Place, used: &Used, options: VacuumOptions) -> VacuumReport {
    place.store.vacuum(used, options, None, &Cancel::default()).await.unwrap()
}

/// All data files below a folder, relative to it.
fn data_files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "parquet") {
                found.insert(entry.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

fn table_files(place: &Place) -> BTreeSet<String> {
    data_files(&place.root().join("views/payments/v1"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_leaves_one_file_a_date_and_every_row() {
    let place = Place::new();
    place.write("a.parquet", 90, 0);
    place.write("b.parquet", 40, 500);
    place.run("first").await.unwrap();
    let before = place.rows().await;
    let dates: BTreeSet<String> = table_files(&place).iter().map(|file| file[..21].to_owned()).collect();
    let report = compact(place.compaction("compact")).await.unwrap();
    assert_eq!(report.version, Some(2));
    assert_eq!(report.files_before - report.files_after, table_files(&place).len() - report.files_after - dates.len());
    assert_eq!(place.rows().await, before);
    assert_eq!(place.store.table(&place.view).unwrap().withdrawn_at().await.unwrap(), None);

    // The same job again finds its commit; another one finds nothing to do.
    let found = compact(place.compaction("compact")).await.unwrap();
    assert_eq!(found, CompactReport { memory_bytes_peak: 0, ..report });
    assert_eq!(compact(place.compaction("again")).await.unwrap().version, None);

    // Rows that come later are put to the others.
    place.write("c.parquet", 50, 700);
    place.run("second").await.unwrap();
    let more = place.rows().await;
    let report = compact(place.compaction("third")).await.unwrap();
    assert_eq!(report.version, Some(4));
    assert_eq!(place.rows().await, more);
    assert_eq!(place.run("nothing").await.unwrap().files, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_large_enough_are_left_alone() {
    let place = Place::new();
    place.write("a.parquet", 90, 0);
    place.write("b.parquet", 40, 500);
    place.run("first").await.unwrap();
    let mut compaction = place.compaction("compact");
    compaction.options.target_bytes = 100;
    assert_eq!(compact(compaction).await.unwrap().version, None);
    assert_eq!(
        compact({
            let mut none = place.compaction("no table");
            none.table = Place::new().compaction("x").table;
            none
        })
        .await
        .unwrap()
        .version,
        None
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_kept_version_needs_goes_when_its_time_has_come() {
    let place = Place::new();
    place.write("a.parquet", 60, 0);
    place.run("first").await.unwrap();
    place.write("a.parquet", 50, 7);
    place.run("second").await.unwrap();
    compact(place.compaction("compact")).await.unwrap();
    let rows = place.rows().await;
    let all = table_files(&place);

    // Today every version can still be read.
    let report = vacuum(&place, &nothing(), in_days(0)).await;
    assert_eq!((report.files_deleted(), table_files(&place)), (0, all.clone()));
    // In six days as well; in eight only the current one, and it is whole.
    assert_eq!(vacuum(&place, &nothing(), in_days(6)).await.files_deleted(), 0);
    let dry = VacuumOptions { dry_run: true, ..in_days(8) };
    let would = vacuum(&place, &nothing(), dry).await;
    assert_eq!(table_files(&place), all);
    let report = vacuum(&place, &nothing(), in_days(8)).await;
    assert_eq!(would, report);
    let left = table_files(&place);
    assert!(report.files_deleted() > 0 && report.bytes_deleted() > 0);
    assert_eq!(
        left.len() + report.files_deleted(),
        all.len() + data_files(&place.root().join("quarantine")).len() - quarantine_kept(&report)
    );
    assert_eq!(place.rows().await, rows);
    let table = report.places.iter().find(|report| report.place == "views/payments/v1").unwrap();
    assert_eq!((table.files_kept, table.oldest_version), (left.len(), Some(3)));
    assert_eq!(vacuum(&place, &nothing(), in_days(9)).await.files_deleted(), 0);
    // Loading goes on.
    place.write("b.parquet", 20, 900);
    place.run("third").await.unwrap();
    assert_eq!(place.rows().await, place.rows_of_a_new_table().await);
}

fn quarantine_kept(report: &VacuumReport) -> usize {
    report.places.iter().filter(|place| place.place.starts_with("quarantine")).map(|place| place.files_kept).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipes_pinned_versions_and_jobs_keep_their_files() {
    let place = Place::new();
    place.write("a.parquet", 60, 0);
    place.run("first").await.unwrap();
    let of_first = table_files(&place);
    place.write("a.parquet", 50, 7);
    place.run("second").await.unwrap();

    let extracts = place.root().join("extracts/payments/v1");
    std::fs::create_dir_all(&extracts).unwrap();
    for name in ["named.parquet", "left.parquet"] {
        std::fs::write(extracts.join(name), "x").unwrap();
    }
    // A recipe in the store, one elsewhere, a commit that is pinned, a plan that reads an extract.
    let one = of_first.first().unwrap().clone();
    let other = of_first.last().unwrap().clone();
    std::fs::create_dir_all(place.root().join("recipes")).unwrap();
    std::fs::create_dir_all(place.root().join("spines")).unwrap();
    let spine = "ab".repeat(32);
    let unused = "cd".repeat(32);
    for name in [&spine, &unused] {
        std::fs::write(place.root().join(format!("spines/{name}.parquet")), "x").unwrap();
    }
    let recipe = json!({ "spine_digest": format!("sha256:{spine}"), "views": [{ "files": [{ "path": one }] }] });
    std::fs::write(place.root().join("recipes/r.json"), recipe.to_string()).unwrap();
    let documents = vec![json!({ "files": [other] }), json!({ "files": [{ "path": "named.parquet" }] })];
    let used = Used(FilesInUse { documents, versions: BTreeMap::new() });
    let report = vacuum(&place, &used, in_days(8)).await;
    assert_eq!(data_files(&extracts), BTreeSet::from(["named.parquet".to_owned()]));
    let left = table_files(&place);
    assert!(left.contains(&one) && left.contains(&other));
    assert_eq!(of_first.intersection(&left).count(), 2, "{report:?}");
    assert_eq!(data_files(&place.root().join("spines")), BTreeSet::from([format!("{spine}.parquet")]));

    // The commit that is pinned stays whole.
    place.write("a.parquet", 40, 9);
    place.run("third").await.unwrap();
    let pinned = table_files(&place);
    let versions = BTreeMap::from([("payments@1".to_owned(), BTreeSet::from([2]))]);
    let used = Used(FilesInUse { documents: vec![json!({ "files": [other, "named.parquet"] })], versions });
    assert_eq!(vacuum(&place, &used, in_days(9)).await.files_deleted(), 0);
    assert_eq!(table_files(&place), pinned);

    // Without it, it goes; a recipe that cannot be read stops everything.
    std::fs::write(place.root().join("recipes/damaged.json"), "{").unwrap();
    let error = place.store.vacuum(&nothing(), in_days(9), None, &Cancel::default()).await.unwrap_err().to_string();
    assert!(error.contains("recipe"), "{error}");
    assert_eq!(table_files(&place), pinned);
    std::fs::remove_file(place.root().join("recipes/damaged.json")).unwrap();
    assert!(vacuum(&place, &nothing(), in_days(9)).await.files_deleted() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_job_that_has_not_committed_stay_while_it_may_go_on() {
    let place = Place::new();
    place.write("a.parquet", 15, 0);
    let ledger = Arc::new(MemoryLedger::default());
    let dying = DyingLedger { inner: ledger.clone(), calls_left: AtomicI64::new(8) };
    place.run_with("job", None, false, Arc::new(dying)).await.unwrap_err();
    let files = table_files(&place);
    assert!(!files.is_empty());
    // Young: they stay although nobody names them.
    assert_eq!(vacuum(&place, &nothing(), in_days(0)).await.files_deleted(), 0);
    // Old, but the job's outcomes name them.
    let outcomes = ledger.outcomes("job").await.unwrap();
    let documents = outcomes.iter().map(|outcome| serde_json::to_value(outcome).unwrap()).collect();
    let used = Used(FilesInUse { documents, versions: BTreeMap::new() });
    let report = vacuum(&place, &used, in_days(30)).await;
    assert_eq!((report.files_deleted(), table_files(&place)), (0, files));
    // Nobody answers for the job any more: the files go, and the job says so when it is resumed after all.
    assert!(vacuum(&place, &nothing(), in_days(30)).await.files_deleted() > 0);
    let error = place.run_with("job", None, false, ledger).await.unwrap_err();
    assert!(matches!(error, OfflineError::File { .. }) && error.to_string().contains("vacuum"), "{error}");
    assert!(place.rows().await.is_empty());
    place.run("new").await.unwrap();
    assert_eq!(place.rows().await, place.rows_of_a_new_table().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_killed_processes_had_half_written_goes_after_the_time_of_grace() {
    let place = Place::new();
    place.write("a.parquet", 15, 0);
    place.run("first").await.unwrap();
    let rows = place.rows().await;
    let half_written = [
        "views/payments/v1/event_date=2023-05-01/abc.zstd.parquet#1",
        "views/payments/v1/_delta_log/00000000000000000002.json#12",
        "spines/_building/one.parquet#1",
        "recipes/r.json#1",
    ];
    let whole = ["spines/_building/two.parquet"];
    let others = ["views/payments/v1/notes#", "views/payments/v1/notes#a1"];
    for file in half_written.iter().chain(&whole).chain(&others) {
        let path = place.root().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    let are_there = |files: &[&str]| files.iter().filter(|file| place.root().join(file).exists()).count();
    // Somebody may be writing them.
    assert_eq!(vacuum(&place, &nothing(), in_days(0)).await.files_deleted(), 0);
    let dry = VacuumOptions { dry_run: true, ..in_days(2) };
    let would = vacuum(&place, &nothing(), dry).await;
    assert_eq!((are_there(&half_written), are_there(&whole)), (half_written.len(), whole.len()));
    let report = vacuum(&place, &nothing(), in_days(2)).await;
    assert_eq!((would, report.files_deleted()), (report.clone(), half_written.len() + whole.len()));
    assert_eq!((are_there(&half_written), are_there(&whole), are_there(&others)), (0, 0, others.len()));
    assert_eq!(place.rows().await, rows);
}
