//! Tables, reads, many callers at once, restarts.

use std::sync::Arc;

use eadem_semantics::ReadAt;
use tokio::task::JoinSet;

use super::{
    Dice, Outcome, Subject, Violation, all_rows, at, ensure, ensure_eq, key, order, read_one, ready_table, row, table,
    winner_of,
};
use crate::{Coverage, LoadState, PointRead, Row, StoreError, Trim};

pub(super) async fn an_empty_table_answers_without_proof(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ensure!(store.tables().await?.is_empty(), "a fresh store has tables");
    ready_table(&*store, table(1, 1)).await?;
    let answer = read_one(&*store, table(1, 1), &key("a"), at(100)).await?;
    ensure!(answer.winner.is_none(), "an empty table gave a row");
    ensure!(!answer.proved, "a table that claims nothing proved something");
    ensure!(store.read(table(1, 1), &[]).await?.is_empty(), "no read gave an answer");
    let status = store.status(table(1, 1)).await?;
    ensure_eq!((status.state, status.rows), (LoadState::Ready, 0), "status");
    ensure_eq!(status.coverage, Coverage::default(), "coverage");
    Ok(())
}

pub(super) async fn an_unknown_table_is_an_error_everywhere(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    for unknown in [table(1, 2), table(2, 1)] {
        let trim = Trim { complete_since_us: 0, forget_up_to_us: None };
        let name = key("a");
        let outcomes = [
            ("status", store.status(unknown).await.map(|_| ())),
            ("coverage", store.coverage(unknown).await.map(|_| ())),
            ("announce_trim", store.announce_trim(unknown, trim).await),
            ("merge", store.merge(unknown, vec![row("a", 1)]).await.map(|_| ())),
            ("bulk_load", store.bulk_load(unknown, vec![row("a", 1)]).await),
            ("finish_load", store.finish_load(unknown, Coverage::default()).await),
            ("cover", store.cover(unknown, Coverage::default()).await),
            ("read", store.read(unknown, &[PointRead { key: &name, at: at(1) }]).await.map(|_| ())),
            ("scan", store.scan(unknown, None, 1024).await.map(|_| ())),
            ("trim", store.trim(unknown, trim).await.map(|_| ())),
        ];
        for (method, outcome) in outcomes {
            ensure!(
                matches!(&outcome, Err(StoreError::UnknownTable(table)) if *table == unknown),
                "{method} on an unknown table gave {outcome:?}"
            );
        }
        store.drop_epoch(unknown).await?;
    }
    Ok(())
}

pub(super) async fn a_loading_table_takes_rows_and_answers_no_reads(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    let loading = table(1, 1);
    store.create_epoch(loading).await?;
    store.merge(loading, vec![row("a", 10)]).await?;
    ensure_eq!(store.status(loading).await?.state, LoadState::Loading, "state before the load has finished");
    ensure_eq!(store.coverage(loading).await?, Coverage::default(), "coverage before the load has finished");
    let name = key("a");
    let outcome = store.read(loading, &[PointRead { key: &name, at: at(10) }]).await;
    ensure!(matches!(outcome, Err(StoreError::StillLoading(_))), "a loading table answered: {outcome:?}");
    store.finish_load(loading, Coverage::since(5)).await?;
    let answer = read_one(&*store, loading, &name, at(10)).await?;
    ensure_eq!(answer.winner.map(|winner| winner.order), Some(order(10, 10, 0)), "the row merged while loading");
    ensure!(answer.proved, "the claim of finish_load does not count");
    Ok(())
}

pub(super) async fn creating_twice_changes_nothing(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.merge(table(1, 1), vec![row("a", 1)]).await?;
    store.create_epoch(table(1, 1)).await?;
    let status = store.status(table(1, 1)).await?;
    ensure_eq!((status.state, status.rows), (LoadState::Ready, 1), "after creating again");
    ensure_eq!(store.tables().await?.len(), 1, "number of tables");
    Ok(())
}

pub(super) async fn reads_answer_in_order_with_missing_and_repeated_keys(
    subject: &mut dyn Subject,
    _seed: u64,
) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let rows: Vec<Row> = (0..50).flat_map(|n| [row(&format!("e{n}"), 10), row(&format!("e{n}"), 20)]).collect();
    store.merge(table(1, 1), rows).await?;
    let keys: Vec<_> = (0..200).map(|n| key(&format!("e{}", (n * 7) % 80))).collect();
    let times: Vec<i64> = (0..200).map(|n| [5, 10, 19, 20, 99][n % 5]).collect();
    let reads: Vec<_> = keys.iter().zip(&times).map(|(key, time)| PointRead { key, at: at(*time) }).collect();
    let answers = store.read(table(1, 1), &reads).await?;
    ensure_eq!(answers.len(), reads.len(), "number of answers");
    for (n, answer) in answers.iter().enumerate() {
        let is_there = (n * 7) % 80 < 50;
        let expected = match times[n] {
            _ if !is_there => None,
            ..10 => None,
            10..20 => Some(order(10, 10, 0)),
            _ => Some(order(20, 20, 0)),
        };
        ensure_eq!(answer.winner.as_ref().map(|winner| winner.order), expected, "read {n} at {}", times[n]);
        if let Some(winner) = &answer.winner {
            let value = format!("e{} {1} {1} 0", (n * 7) % 80, winner.order.event_time_us);
            ensure_eq!(winner.body.values, value.as_bytes(), "value of read {n}");
        }
    }
    Ok(())
}

pub(super) async fn reading_at_once_agrees_with_reading(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.merge(table(1, 1), vec![row("a", 10), row("b", 20)]).await?;
    let keys = [key("a"), key("b"), key("c")];
    let reads: Vec<_> = keys.iter().map(|key| PointRead { key, at: at(15) }).collect();
    let Some(at_once) = store.read_now(table(1, 1), &reads) else { return Ok(()) };
    ensure_eq!(at_once?, store.read(table(1, 1), &reads).await?, "read_now");
    let unknown = store.read_now(table(9, 9), &reads);
    ensure!(matches!(unknown, Some(Err(StoreError::UnknownTable(_)))), "read_now of no table gave {unknown:?}");
    Ok(())
}

pub(super) async fn concurrent_writers_lose_nothing(subject: &mut dyn Subject, seed: u64) -> Outcome {
    const WRITERS: u64 = 8;
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let mut expected = Vec::new();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut dice = Dice(seed ^ writer);
        // Entities are shared, and some rows are written by several.
        let batches: Vec<Vec<Row>> = (0..12)
            .map(|_| (0..20).map(|_| row(&format!("e{}", dice.below(5)), dice.between(0, 400))).collect())
            .collect();
        expected.extend(batches.iter().flatten().cloned());
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for batch in batches {
                store.merge(table(1, 1), batch).await?;
            }
            Ok::<(), StoreError>(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done.map_err(|panic| Violation::new(format!("a writer panicked: {panic}")))??;
    }
    expected.sort_by(|a, b| (&a.key, a.order).cmp(&(&b.key, b.order)));
    expected.dedup();
    ensure_eq!(all_rows(&*store, table(1, 1)).await?, expected, "rows after concurrent writes");
    ensure_eq!(store.status(table(1, 1)).await?.rows, expected.len() as u64, "row count");
    Ok(())
}

/// A call's rows of one entity are seen all or not at all by one read of it.
pub(super) async fn readers_see_calls_whole(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let writing = Arc::clone(&store);
    let writer = tokio::spawn(async move {
        for time in 1..=40 {
            // Both rows of a call carry its number; the second is a correction of the first.
            let first = super::row_known("a", time, time, 0);
            let second = super::row_known("a", time, time, 1);
            writing.merge(table(1, 1), vec![first, second]).await?;
        }
        Ok::<(), StoreError>(())
    });
    let name = key("a");
    while !writer.is_finished() {
        let newest = winner_of(&*store, table(1, 1), &name, ReadAt::as_known_then(1_000)).await?;
        ensure!(newest.is_none_or(|newest| newest.tie == order(0, 0, 1).tie), "a reader saw half a call: {newest:?}");
        tokio::task::yield_now().await;
    }
    writer.await.map_err(|panic| Violation::new(format!("the writer panicked: {panic}")))??;
    let newest = winner_of(&*store, table(1, 1), &name, at(1_000)).await?;
    ensure_eq!(newest, Some(order(40, 40, 1)), "after the writer has finished");
    Ok(())
}

pub(super) async fn a_restart_loses_nothing(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.create_epoch(table(1, 2)).await?;
    store.create_epoch(table(2, 7)).await?;
    store.drop_epoch(table(2, 7)).await?;
    store.merge(table(1, 1), vec![row("a", 10), row("a", 20), row("b", 30), row("gone", 5)]).await?;
    store.merge(table(1, 2), vec![row("a", 20)]).await?;
    store.erase(table(1, 1).view, &key("gone"), 7).await?;
    let claim = Coverage {
        complete_since_us: Some(10),
        offline_commit: Some(4),
        lanes: [("topic/0".to_owned(), 99)].into_iter().collect(),
    };
    store.cover(table(1, 1), claim).await?;
    store.trim(table(1, 1), Trim { complete_since_us: 20, forget_up_to_us: None }).await?;
    let statuses = |mut statuses: Vec<crate::TableStatus>| {
        statuses.iter_mut().for_each(|status| status.bytes = 0);
        statuses
    };
    let before =
        (statuses(store.tables().await?), all_rows(&*store, table(1, 1)).await?, all_rows(&*store, table(1, 2)).await?);
    drop(store);
    subject.restart().await?;
    let store = subject.store();
    let after =
        (statuses(store.tables().await?), all_rows(&*store, table(1, 1)).await?, all_rows(&*store, table(1, 2)).await?);
    ensure_eq!(after, before, "after a restart");
    ensure_eq!(store.erased_up_to(table(1, 1).view, &key("gone")).await?, Some(7), "the erasure");
    let late = store.merge(table(1, 1), vec![row("gone", 6), row("a", 40)]).await?;
    ensure_eq!((late.kept, late.erased), (1, 1), "writes after a restart");
    ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(50)).await?, Some(order(40, 40, 0)), "a write after it");
    Ok(())
}
