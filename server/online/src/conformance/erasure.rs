//! Erased entities stay away.

use std::sync::Arc;

use super::{
    Outcome, Subject, Violation, all_rows, at, ensure, ensure_eq, key, order, ready_table, row, table, winner_of,
};
use crate::{Coverage, Row, StoreError};

pub(super) async fn an_erasure_removes_present_rows(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.merge(table(1, 1), vec![row("a", 10), row("a", 20), row("a", 21), row("b", 10)]).await?;
    let removed = store.erase(table(1, 1).view, &key("a"), 20).await?;
    ensure_eq!(removed, 2, "rows removed");
    ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(20)).await?, None, "the last instant erased");
    ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(21)).await?, Some(order(21, 21, 0)), "the first after it");
    ensure_eq!(winner_of(&*store, table(1, 1), &key("b"), at(20)).await?, Some(order(10, 10, 0)), "another entity");
    ensure_eq!(all_rows(&*store, table(1, 1)).await?, vec![row("a", 21), row("b", 10)], "rows left");
    ensure_eq!(store.status(table(1, 1)).await?.rows, 2, "row count");
    Ok(())
}

pub(super) async fn an_erasure_keeps_out_late_rows(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    // Before any row of it, and before the entity was ever seen.
    ensure_eq!(store.erase(table(1, 1).view, &key("a"), 20).await?, 0, "rows removed");
    let merged = store.merge(table(1, 1), vec![row("a", 20), row("a", 5), row("a", 21), row("b", 1)]).await?;
    ensure_eq!((merged.kept, merged.erased), (2, 2), "late rows");
    ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(20)).await?, None, "a late row came back");
    ensure_eq!(all_rows(&*store, table(1, 1)).await?, vec![row("a", 21), row("b", 1)], "rows left");
    drop(store);
    subject.restart().await?;
    let store = subject.store();
    let merged = store.merge(table(1, 1), vec![row("a", 19)]).await?;
    ensure_eq!((merged.kept, merged.erased), (0, 1), "a late row after a restart");
    Ok(())
}

pub(super) async fn erasures_merge_by_maximum(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let view = table(1, 1).view;
    ensure_eq!(store.erased_up_to(view, &key("a")).await?, None, "before any erasure");
    store.erase(view, &key("a"), 30).await?;
    store.erase(view, &key("a"), 10).await?;
    store.merge(table(1, 1), vec![row("a", 20), row("a", 31)]).await?;
    ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(30)).await?, None, "the smaller erasure counted");
    store.erase(view, &key("a"), 31).await?;
    ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(99)).await?, None, "the greater erasure did not count");
    ensure_eq!(store.erased_up_to(view, &key("a")).await?, Some(31), "erased up to");
    ensure_eq!(store.erased_up_to(view, &key("b")).await?, None, "another entity");
    ensure_eq!(store.erased_up_to(table(2, 1).view, &key("a")).await?, None, "another view");
    Ok(())
}

pub(super) async fn an_erasure_covers_every_epoch_and_no_other_view(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    for table in [table(1, 1), table(1, 2), table(2, 1)] {
        ready_table(&*store, table).await?;
        store.merge(table, vec![row("a", 10)]).await?;
    }
    store.erase(table(1, 1).view, &key("a"), 10).await?;
    ready_table(&*store, table(1, 3)).await?;
    store.merge(table(1, 3), vec![row("a", 9), row("a", 11)]).await?;
    let expected = [(table(1, 1), None), (table(1, 2), None), (table(2, 1), Some(10)), (table(1, 3), Some(11))];
    for (table, time) in expected {
        let found = winner_of(&*store, table, &key("a"), at(99)).await?;
        ensure_eq!(found, time.map(|time| order(time, time, 0)), "in {table}");
    }
    Ok(())
}

pub(super) async fn an_erasure_reaches_rows_that_are_loaded(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    let loading = table(1, 1);
    store.create_epoch(loading).await?;
    store.bulk_load(loading, vec![row("a", 10), row("b", 10)]).await?;
    store.erase(loading.view, &key("a"), 15).await?;
    store.bulk_load(loading, vec![row("a", 12), row("a", 16)]).await?;
    store.finish_load(loading, Coverage::whole()).await?;
    ensure_eq!(all_rows(&*store, loading).await?, vec![row("a", 16), row("b", 10)], "rows loaded");
    Ok(())
}

pub(super) async fn erasures_and_writers_may_race(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    for round in 0..10 {
        let name = format!("e{round}");
        let writing = Arc::clone(&store);
        let batch: Vec<Row> = (0..20).map(|time| row(&name, time)).collect();
        let writer = tokio::spawn(async move {
            for row in batch {
                writing.merge(table(1, 1), vec![row]).await?;
            }
            Ok::<(), StoreError>(())
        });
        store.erase(table(1, 1).view, &key(&name), 15).await?;
        // Whether or not the writer is done, nothing erased may be seen from here on.
        while !writer.is_finished() {
            let found = winner_of(&*store, table(1, 1), &key(&name), at(15)).await?;
            ensure!(found.is_none(), "{name}: an erased row came back: {found:?}");
            tokio::task::yield_now().await;
        }
        writer.await.map_err(|panic| Violation::new(format!("the writer panicked: {panic}")))??;
        ensure_eq!(winner_of(&*store, table(1, 1), &key(&name), at(15)).await?, None, "{name} at the end");
    }
    let left = all_rows(&*store, table(1, 1)).await?;
    ensure!(left.iter().all(|row| row.order.event_time_us > 15), "an erased row is still scanned");
    ensure_eq!(left.len(), 40, "rows left");
    Ok(())
}
