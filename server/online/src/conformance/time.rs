//! Which row wins.

use eadem_semantics::{Lifetime, ReadAt, Status, resolve_status};

use super::{
    Dice, Outcome, Subject, all_rows, at, ensure_eq, key, order, read_one, ready_table, row, row_known, table,
    winner_of,
};
use crate::Row;

pub(super) async fn the_newest_row_up_to_t_wins(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.merge(table(1, 1), vec![row("a", 10), row("a", 20), row("a", 30), row("b", 25)]).await?;
    let expected =
        [(9, None), (10, Some(10)), (19, Some(10)), (20, Some(20)), (29, Some(20)), (30, Some(30)), (99, Some(30))];
    for (time, event_time) in expected {
        let found = winner_of(&*store, table(1, 1), &key("a"), at(time)).await?;
        ensure_eq!(found, event_time.map(|time| order(time, time, 0)), "read at {time}");
    }
    Ok(())
}

pub(super) async fn arrival_order_does_not_matter(subject: &mut dyn Subject, seed: u64) -> Outcome {
    let store = subject.store();
    let mut dice = Dice(seed);
    let mut rows: Vec<Row> = Vec::new();
    for time in 0..12 {
        rows.push(row_known("a", time, time + dice.between(0, 6), 0));
        rows.push(row_known("a", time, time + dice.between(0, 6), 1));
    }
    let mut first = None;
    for round in 0..5 {
        let table = table(1, round);
        ready_table(&*store, table).await?;
        dice.shuffle(&mut rows);
        // In parts of any size, some of them twice.
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(dice.between(1, rest.len() as i64) as usize);
            store.merge(table, part.to_vec()).await?;
            if dice.one_in(3) {
                store.merge(table, part.to_vec()).await?;
            }
            rest = after;
        }
        let found = all_rows(&*store, table).await?;
        ensure_eq!(found, *first.get_or_insert_with(|| found.clone()), "seed {seed}, round {round}");
    }
    Ok(())
}

pub(super) async fn ties_go_to_the_greatest_digest(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    for (epoch, ties) in [[0, 0x7f, 0x80], [0x80, 0, 0x7f], [0x7f, 0x80, 0]].into_iter().enumerate() {
        let table = table(1, epoch as u64);
        ready_table(&*store, table).await?;
        for tie in ties {
            store.merge(table, vec![row_known("a", 10, 12, tie)]).await?;
        }
        let found = winner_of(&*store, table, &key("a"), at(12)).await?;
        // Digests are unsigned numbers: 0x80… is greater than 0x7f….
        ensure_eq!(found, Some(order(10, 12, 0x80)), "ties arriving as {ties:x?}");
        ensure_eq!(store.status(table).await?.rows, 3, "rows kept beside the winner");
    }
    Ok(())
}

pub(super) async fn corrections_win_from_when_they_are_known(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    // The correction has the smaller digest: known-at decides before it.
    store.merge(table(1, 1), vec![row_known("a", 10, 15, 9), row_known("a", 10, 30, 1)]).await?;
    let expected =
        [(14, None), (15, Some(order(10, 15, 9))), (29, Some(order(10, 15, 9))), (30, Some(order(10, 30, 1)))];
    for (time, found) in expected {
        ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(time)).await?, found, "read at {time}");
    }
    // A correction of an older event never beats a newer event.
    store.merge(table(1, 1), vec![row_known("a", 11, 16, 0)]).await?;
    ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(99)).await?, Some(order(11, 16, 0)), "newer event");
    Ok(())
}

pub(super) async fn rows_ahead_become_visible_in_their_time(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let event_ahead = row_known("a", 50, 20, 0);
    let knowledge_ahead = row_known("a", 20, 60, 0);
    store.merge(table(1, 1), vec![row("a", 10), event_ahead, knowledge_ahead]).await?;
    let expected = [
        (20, order(10, 10, 0)),
        (49, order(10, 10, 0)),
        (50, order(50, 20, 0)),
        // The row known late is of an older event.
        (60, order(50, 20, 0)),
    ];
    for (time, found) in expected {
        ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(time)).await?, Some(found), "read at {time}");
    }
    Ok(())
}

pub(super) async fn many_unknown_rows_are_skipped(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    // Far more than a page of any store: newer events that nobody knows yet.
    let unknown = (0..20_000).map(|n| row_known("a", 100 + n, 1_000_000, 0));
    let mut rows: Vec<Row> = unknown.collect();
    rows.push(row("a", 50));
    store.merge(table(1, 1), rows).await?;
    let found = winner_of(&*store, table(1, 1), &key("a"), at(500_000)).await?;
    ensure_eq!(found, Some(order(50, 50, 0)), "the one row known");
    let found = winner_of(&*store, table(1, 1), &key("a"), at(1_000_000)).await?;
    ensure_eq!(found, Some(order(20_099, 1_000_000, 0)), "once all are known");
    Ok(())
}

pub(super) async fn the_knowledge_cut_may_differ_from_t(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store
        .merge(table(1, 1), vec![row_known("a", 10, 20, 0), row_known("a", 10, 40, 0), row_known("a", 30, 35, 0)])
        .await?;
    let expected = [
        (ReadAt { at_us: 30, known_by_us: 30 }, Some(order(10, 20, 0))),
        (ReadAt { at_us: 30, known_by_us: 35 }, Some(order(30, 35, 0))),
        (ReadAt { at_us: 29, known_by_us: 40 }, Some(order(10, 40, 0))),
        (ReadAt { at_us: 99, known_by_us: 19 }, None),
        (ReadAt::with_hindsight(12), Some(order(10, 40, 0))),
    ];
    for (read, found) in expected {
        ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), read).await?, found, "{read:?}");
    }
    Ok(())
}

pub(super) async fn ttl_and_horizon_are_decided_on_read(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.merge(table(1, 1), vec![row("a", 1_000), row("a", 100)]).await?;
    let lifetime = Lifetime { ttl_us: Some(50), horizon_us: Some(7) };
    let expected = [
        (999, Status::Missing),
        (1_000, Status::Present),
        (1_049, Status::Present),
        (1_050, Status::Expired),
        (1_056, Status::Expired),
        (1_057, Status::Missing),
    ];
    for (time, status) in expected {
        let winner = winner_of(&*store, table(1, 1), &key("a"), at(time)).await?;
        ensure_eq!(resolve_status(winner.as_ref(), false, false, lifetime, time), status, "status at {time}");
    }
    // The store gives the row however old it is: the same row serves a view without TTL.
    let answer = read_one(&*store, table(1, 1), &key("a"), at(i64::MAX)).await?;
    ensure_eq!(answer.winner.map(|winner| winner.order), Some(order(1_000, 1_000, 0)), "the row at the end of time");
    Ok(())
}

pub(super) async fn extreme_times_are_times(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let times = [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX];
    store.merge(table(1, 1), times.map(|time| row_known("a", time, i64::MIN, 0xff)).to_vec()).await?;
    for time in times {
        let found = winner_of(&*store, table(1, 1), &key("a"), at(time)).await?;
        ensure_eq!(found, Some(order(time, i64::MIN, 0xff)), "read at {time}");
    }
    ensure_eq!(all_rows(&*store, table(1, 1)).await?.len(), times.len(), "rows scanned");
    Ok(())
}
