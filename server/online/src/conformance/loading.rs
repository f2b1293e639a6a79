//! Epochs, loads and scans.

use std::sync::Arc;

use super::{
    Dice, Outcome, Subject, Violation, all_rows, at, ensure, ensure_eq, key, order, read_one, ready_table, row,
    row_known, table, winner_of,
};
use crate::{Coverage, LoadState, Row, StoreError, Trim};

pub(super) async fn an_epoch_loads_beside_another(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    let (old, new) = (table(1, 1), table(1, 2));
    ready_table(&*store, old).await?;
    store.merge(old, vec![row("a", 10)]).await?;
    store.create_epoch(new).await?;
    store.bulk_load(new, vec![row_known("a", 10, 11, 7)]).await?;
    // A live writer feeds both.
    for table in [old, new] {
        store.merge(table, vec![row("b", 20)]).await?;
    }
    ensure_eq!(winner_of(&*store, old, &key("a"), at(99)).await?, Some(order(10, 10, 0)), "the old epoch meanwhile");
    store.finish_load(new, Coverage::whole()).await?;
    ensure_eq!(winner_of(&*store, new, &key("a"), at(99)).await?, Some(order(10, 11, 7)), "the new epoch");
    ensure_eq!(
        winner_of(&*store, new, &key("b"), at(99)).await?,
        Some(order(20, 20, 0)),
        "the live row in the new one"
    );
    ensure_eq!(winner_of(&*store, old, &key("a"), at(99)).await?, Some(order(10, 10, 0)), "the old epoch afterwards");
    let listed: Vec<_> = store.tables().await?.into_iter().map(|status| status.table).collect();
    ensure!(listed.contains(&old) && listed.contains(&new), "tables listed: {listed:?}");
    Ok(())
}

pub(super) async fn a_load_equals_a_merge(subject: &mut dyn Subject, seed: u64) -> Outcome {
    let store = subject.store();
    let mut dice = Dice(seed);
    let mut rows: Vec<Row> = Vec::new();
    for _ in 0..3_000 {
        let event_time = dice.between(0, 1_000);
        rows.push(row_known(
            &format!("e{}", dice.below(200)),
            event_time,
            event_time + dice.between(0, 9),
            dice.below(4) as u8,
        ));
    }
    let (merged, loaded) = (table(1, 1), table(1, 2));
    ready_table(&*store, merged).await?;
    store.merge(merged, rows.clone()).await?;
    dice.shuffle(&mut rows);
    store.create_epoch(loaded).await?;
    for part in rows.chunks(700) {
        store.bulk_load(loaded, part.to_vec()).await?;
    }
    store.bulk_load(loaded, rows[..10].to_vec()).await?;
    store.bulk_load(loaded, Vec::new()).await?;
    store.finish_load(loaded, Coverage::whole()).await?;
    ensure_eq!(all_rows(&*store, loaded).await?, all_rows(&*store, merged).await?, "seed {seed}: rows");
    // A second load adds to what is there.
    store.bulk_load(loaded, vec![row("later", 5), rows[0].clone()]).await?;
    store.finish_load(loaded, Coverage::default()).await?;
    ensure_eq!(winner_of(&*store, loaded, &key("later"), at(5)).await?, Some(order(5, 5, 0)), "a second load");
    ensure_eq!(
        store.status(loaded).await?.rows,
        store.status(merged).await?.rows + 1,
        "seed {seed}: rows after a second load"
    );
    ensure!(read_one(&*store, loaded, &key("e0"), at(0)).await?.proved, "an empty claim took the old one away");
    drop(store);
    subject.restart().await?;
    let store = subject.store();
    ensure_eq!(winner_of(&*store, loaded, &key("later"), at(5)).await?, Some(order(5, 5, 0)), "a load after a restart");
    Ok(())
}

pub(super) async fn loads_and_writers_may_meet(subject: &mut dyn Subject, seed: u64) -> Outcome {
    let store = subject.store();
    let loading = table(1, 1);
    store.create_epoch(loading).await?;
    let mut dice = Dice(seed);
    let mut batch = |size: usize| -> Vec<Row> {
        (0..size).map(|_| row(&format!("e{}", dice.below(30)), dice.between(0, 200))).collect()
    };
    let mut expected = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..6 {
        let batches: Vec<Vec<Row>> = (0..8).map(|_| batch(100)).collect();
        expected.extend(batches.iter().flatten().cloned());
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for batch in batches {
                if task % 2 == 0 {
                    store.bulk_load(loading, batch).await?;
                } else {
                    store.merge(loading, batch).await?;
                }
            }
            Ok::<(), StoreError>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|panic| Violation::new(format!("a task panicked: {panic}")))??;
    }
    store.finish_load(loading, Coverage::whole()).await?;
    expected.sort_by(|a, b| (&a.key, a.order).cmp(&(&b.key, b.order)));
    expected.dedup();
    ensure_eq!(all_rows(&*store, loading).await?, expected, "seed {seed}: rows");
    Ok(())
}

/// Whatever a store leaves out while it loads: the table is the same as if everything had been loaded, and then trimmed.
pub(super) async fn a_trim_that_is_announced_changes_nothing_else(subject: &mut dyn Subject, seed: u64) -> Outcome {
    let store = subject.store();
    for round in 0..12 {
        let context = format!("seed {seed}, round {round}");
        let mut dice = Dice(seed ^ round);
        let random_row = |dice: &mut Dice| {
            let event_time_us = dice.between(0, 90);
            let known_at_us = event_time_us + dice.between(-10, 30);
            row_known(&format!("e{}", dice.below(40)), event_time_us, known_at_us, dice.below(3) as u8)
        };
        let mut rows: Vec<Row> = (0..dice.below(2_000)).map(|_| random_row(&mut dice)).collect();
        // Of some entities all rows are too old, and some rows come from elsewhere while the load is under way.
        let live: Vec<Row> = if dice.one_in(2) { (0..30).map(|_| random_row(&mut dice)).collect() } else { Vec::new() };
        if live.is_empty() {
            // Of rows that are handed in once it is known how many go.
            rows.sort_by(|a, b| (&a.key, a.order).cmp(&(&b.key, b.order)));
            rows.dedup_by(|a, b| (&a.key, a.order) == (&b.key, b.order));
        }
        let trim = Trim {
            complete_since_us: dice.between(0, 100),
            forget_up_to_us: dice.one_in(2).then(|| dice.between(0, 60)),
        };
        let (at_last, at_once) = (table(round as u8, 1), table(round as u8, 2));
        store.create_epoch(at_last).await?;
        store.bulk_load(at_last, [rows.clone(), live.clone()].concat()).await?;
        store.finish_load(at_last, Coverage::whole()).await?;
        let removed = store.trim(at_last, trim).await?;

        dice.shuffle(&mut rows);
        store.create_epoch(at_once).await?;
        store.announce_trim(at_once, trim).await?;
        for (number, part) in rows.chunks(300).enumerate() {
            if number == 1 {
                store.merge(at_once, live.clone()).await?;
            }
            store.bulk_load(at_once, part.to_vec()).await?;
        }
        if rows.len() <= 300 {
            store.merge(at_once, live.clone()).await?;
        }
        let left_out = store.finish_load_trimmed(at_once, Coverage::whole(), trim).await?;

        ensure_eq!(all_rows(&*store, at_once).await?, all_rows(&*store, at_last).await?, "{context}: rows");
        let (found, expected) = (store.status(at_once).await?, store.status(at_last).await?);
        ensure_eq!(
            (found.state, found.coverage, found.rows),
            (expected.state, expected.coverage, expected.rows),
            "{context}: status"
        );
        if live.is_empty() {
            ensure_eq!(left_out, removed, "{context}: rows that went");
        }
    }
    let unknown = table(1, 99);
    let trim = Trim { complete_since_us: 0, forget_up_to_us: None };
    for refused in [
        store.announce_trim(unknown, trim).await.map(|()| 0),
        store.finish_load_trimmed(unknown, Coverage::whole(), trim).await,
    ] {
        ensure!(matches!(refused, Err(StoreError::UnknownTable(_))), "an unknown table gave {refused:?}");
    }
    Ok(())
}

pub(super) async fn dropping_an_epoch_leaves_the_others(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    for table in [table(1, 1), table(1, 2), table(2, 1)] {
        ready_table(&*store, table).await?;
        store.merge(table, vec![row("a", 10)]).await?;
    }
    store.drop_epoch(table(1, 1)).await?;
    store.drop_epoch(table(1, 1)).await?;
    ensure!(matches!(store.status(table(1, 1)).await, Err(StoreError::UnknownTable(_))), "the dropped epoch is there");
    for table in [table(1, 2), table(2, 1)] {
        ensure_eq!(winner_of(&*store, table, &key("a"), at(10)).await?, Some(order(10, 10, 0)), "in {table}");
    }
    drop(store);
    subject.restart().await?;
    let listed: Vec<_> = subject.store().tables().await?.into_iter().map(|status| status.table).collect();
    let mut expected = vec![table(1, 2), table(2, 1)];
    expected.sort();
    ensure_eq!(listed, expected, "tables after a restart");
    Ok(())
}

pub(super) async fn an_unfinished_load_goes_on_after_a_restart(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    if !subject.store().keeps_unfinished_loads() {
        return Ok(());
    }
    let loading = table(1, 1);
    subject.store().create_epoch(loading).await?;
    subject.store().bulk_load(loading, vec![row("a", 10), row("b", 10)]).await?;
    subject.restart().await?;
    let store = subject.store();
    store.create_epoch(loading).await?;
    store.bulk_load(loading, vec![row("b", 10), row("c", 10)]).await?;
    store.finish_load(loading, Coverage::whole()).await?;
    ensure_eq!(
        all_rows(&*store, loading).await?,
        vec![row("a", 10), row("b", 10), row("c", 10)],
        "rows of before and after the restart"
    );
    Ok(())
}

pub(super) async fn a_dropped_epoch_starts_empty_again(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.merge(table(1, 1), vec![row("a", 10)]).await?;
    store.cover(table(1, 1), Coverage::whole()).await?;
    store.bulk_load(table(1, 1), vec![row("never finished", 1)]).await?;
    store.drop_epoch(table(1, 1)).await?;
    store.create_epoch(table(1, 1)).await?;
    let status = store.status(table(1, 1)).await?;
    ensure_eq!((status.state, status.rows, status.coverage), (LoadState::Loading, 0, Coverage::default()), "status");
    store.finish_load(table(1, 1), Coverage::default()).await?;
    ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(99)).await?, None, "a row of its former life");
    ensure_eq!(all_rows(&*store, table(1, 1)).await?, vec![], "rows");
    Ok(())
}

pub(super) async fn a_scan_finds_every_row_once(subject: &mut dyn Subject, seed: u64) -> Outcome {
    let store = subject.store();
    let table = table(1, 1);
    store.create_epoch(table).await?;
    let mut dice = Dice(seed);
    let mut rows: Vec<Row> =
        (0..400).map(|n| row_known(&format!("e{}", dice.below(20)), n / 3, n, dice.below(250) as u8)).collect();
    store.merge(table, rows.clone()).await?;
    rows.sort_by(|a, b| (&a.key, a.order).cmp(&(&b.key, b.order)));
    for page_bytes_max in [0, 1, 100, 4_000, usize::MAX] {
        let mut found: Vec<Row> = Vec::new();
        let mut cursor = None;
        loop {
            let page = store.scan(table, cursor, page_bytes_max).await?;
            if page_bytes_max <= 100 {
                ensure!(page.rows.len() <= 10, "a page of {page_bytes_max} bytes has {} rows", page.rows.len());
            }
            found.extend(page.rows);
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
            ensure!(found.len() <= rows.len(), "seed {seed}: a scan does not end");
        }
        // An entity's rows stand together, newest first.
        for pair in found.windows(2) {
            ensure!(
                pair[0].key != pair[1].key || pair[0].order > pair[1].order,
                "seed {seed}: {:?} stands before {:?}",
                pair[0].order,
                pair[1].order
            );
        }
        found.sort_by(|a, b| (&a.key, a.order).cmp(&(&b.key, b.order)));
        ensure_eq!(found, rows, "seed {seed}: pages of {page_bytes_max} bytes");
    }
    Ok(())
}

pub(super) async fn a_scan_goes_on_beside_writers(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    let table = table(1, 1);
    ready_table(&*store, table).await?;
    let steady: Vec<Row> = (0..200).map(|n| row(&format!("steady {n:03}"), 10)).collect();
    store.merge(table, steady.clone()).await?;
    let mut found = Vec::new();
    let mut cursor = None;
    for round in 0.. {
        let page = store.scan(table, cursor, 400).await?;
        found.extend(page.rows);
        // Between pages rows come and go around the cursor.
        store.merge(table, vec![row(&format!("steady {round:03}"), 20), row(&format!("new {round:03}"), 20)]).await?;
        store.erase(table.view, &key(&format!("new {round:03}")), 30).await?;
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
        ensure!(round < 1_000, "a scan does not end");
    }
    found.retain(|row| row.order.event_time_us == 10);
    found.sort_by(|a, b| a.key.cmp(&b.key));
    let mut expected = steady;
    expected.sort_by(|a, b| a.key.cmp(&b.key));
    ensure_eq!(found, expected, "rows that were there all the time");
    Ok(())
}
