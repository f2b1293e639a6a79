//! Snapshots of embedded tables, and copies made of them.

use std::sync::Arc;

use bytes::Bytes;
use eadem_online::{
    BackedUpTable, BackupHeader, BackupPart, BackupReader, BackupWriter, Coverage, EmbeddedOptions, EmbeddedStore,
    Erasure, KeyBytes, MemoryStore, OnlineStore, Row, RowBody, TableId, Trim, scan_all,
};
use eadem_semantics::RowOrder;
use eadem_values::{Digest, EntityKey, KeyValue, TieDigest};

const ENTITIES: i64 = 300;

fn table(epoch: u64) -> TableId {
    TableId { view: Digest::of(b"view"), epoch }
}

fn key(entity: i64) -> KeyBytes {
    KeyBytes::from(&EntityKey(vec![KeyValue::Int64(entity)]))
}

fn row(entity: i64, time_us: i64) -> Row {
    let order = RowOrder { event_time_us: time_us, known_at_us: time_us, tie: TieDigest::default() };
    let values = Bytes::from(format!("{entity} at {time_us}"));
    Row { key: key(entity), order, body: RowBody::of_values(values) }
}

async fn rows_of(store: &dyn OnlineStore, table: TableId) -> Vec<Row> {
    let mut rows = Vec::new();
    scan_all(store, table, |row| {
        rows.push(row);
        std::ops::ControlFlow::Continue(())
    })
    .await
    .unwrap();
    sorted(rows)
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| (&a.key, a.order).cmp(&(&b.key, b.order)));
    rows
}

/// A table with two rows of every entity, of which one is erased.
async fn filled() -> (tempfile::TempDir, EmbeddedStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path(), EmbeddedOptions::default()).unwrap();
    store.create_epoch(table(1)).await.unwrap();
    let rows = (0..ENTITIES).flat_map(|entity| [row(entity, 10), row(entity, 20)]).collect();
    store.bulk_load(table(1), rows).await.unwrap();
    store.finish_load(table(1), Coverage { offline_commit: Some(3), ..Coverage::since(5) }).await.unwrap();
    store.erase(table(1).view, &key(7), 15).await.unwrap();
    (folder, store)
}

#[tokio::test]
async fn a_snapshot_shows_one_moment_whatever_is_written() {
    let (_folder, store) = filled().await;
    let expected = rows_of(&store, table(1)).await;
    let mut snapshot = store.snapshot(table(1)).unwrap().unwrap();
    let mut found = snapshot.next_rows(500).unwrap();
    assert!(!found.is_empty() && found.len() < 50, "{} rows of 500 bytes", found.len());
    // Newer rows, removed ones, and in the end no table at all.
    store.merge(table(1), (0..ENTITIES + 9).map(|entity| row(entity, 30)).collect()).await.unwrap();
    found.extend(snapshot.next_rows(500).unwrap());
    store.trim(table(1), Trim { complete_since_us: 40, forget_up_to_us: None }).await.unwrap();
    found.extend(snapshot.next_rows(500).unwrap());
    store.drop_epoch(table(1)).await.unwrap();
    loop {
        let rows = snapshot.next_rows(2_000).unwrap();
        if rows.is_empty() {
            break;
        }
        found.extend(rows);
    }
    assert!(snapshot.next_rows(2_000).unwrap().is_empty());
    assert_eq!(sorted(found), expected);
    let status = snapshot.status();
    assert_eq!((status.rows, status.coverage.complete_since_us), (expected.len() as u64, Some(5)));
    assert_eq!(snapshot.erasures().unwrap(), [(key(7), 15)]);
    assert!(store.snapshot(table(1)).unwrap().is_err(), "of a table that was dropped");
}

#[tokio::test]
async fn a_copy_holds_rows_coverage_and_erasures() {
    let (_folder, store) = filled().await;
    let mut snapshot = store.snapshot(table(1)).unwrap().unwrap();
    let header = BackupHeader {
        made_at_us: 1,
        row_encoding: 1,
        tables: vec![BackedUpTable {
            view: "view@1".to_owned(),
            table: table(1),
            epoch_created_at_us: 0,
            placement: "on_write".to_owned(),
            coverage: snapshot.status().coverage.clone(),
            rows: snapshot.status().rows,
        }],
    };
    let mut writer = BackupWriter::begin(Vec::new(), &header).unwrap();
    loop {
        let rows = snapshot.next_rows(700).unwrap();
        if rows.is_empty() {
            break;
        }
        writer.rows(0, &rows).unwrap();
    }
    let view = table(1).view;
    let erasures = snapshot.erasures().unwrap();
    let erasures: Vec<Erasure> = erasures.into_iter().map(|(key, up_to_us)| Erasure { view, key, up_to_us }).collect();
    writer.erasures(&erasures).unwrap();
    let (copy, digest) = writer.finish().unwrap();

    // Into a store of another kind.
    let other: Arc<dyn OnlineStore> = Arc::new(MemoryStore::new());
    other.create_epoch(table(9)).await.unwrap();
    let mut reader = BackupReader::open(copy.as_slice()).unwrap();
    let coverage = reader.header().tables[0].coverage.clone();
    while let Some(part) = reader.next_part().unwrap() {
        match part {
            BackupPart::Rows { rows, .. } => other.bulk_load(table(9), rows).await.unwrap(),
            BackupPart::Erasures(erasures) => {
                for erasure in erasures {
                    other.erase(erasure.view, &erasure.key, erasure.up_to_us).await.unwrap();
                }
            }
        }
    }
    other.finish_load(table(9), coverage).await.unwrap();
    assert_eq!(reader.digest(), Some(digest));
    assert_eq!(rows_of(&*other, table(9)).await, rows_of(&store, table(1)).await);
    assert_eq!(other.status(table(9)).await.unwrap().coverage, store.status(table(1)).await.unwrap().coverage);
    assert_eq!(other.erased_up_to(view, &key(7)).await.unwrap(), Some(15));
    assert!(other.snapshot(table(9)).is_none(), "a store in memory has no snapshots");
}
