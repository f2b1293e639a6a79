//! What is certain, and what may go.

use eadem_semantics::{Lifetime, ReadAt, Status, resolve_status};

use super::oracle::{Oracle, as_winner};
use super::{
    Dice, Outcome, Subject, all_rows, at, ensure, ensure_eq, key, order, read_one, ready_table, row, row_known, table,
    winner_of,
};
use crate::{Coverage, Retention, Row, Trim};

pub(super) async fn claims_merge_in_any_order(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    let claim = |since: Option<i64>, commit: Option<i64>, lanes: &[(&str, i64)]| Coverage {
        complete_since_us: since,
        offline_commit: commit,
        lanes: lanes.iter().map(|(lane, position)| ((*lane).to_owned(), *position)).collect(),
    };
    let claims = [
        claim(Some(100), Some(5), &[("x", 1)]),
        claim(Some(50), Some(5), &[]),
        claim(Some(80), Some(7), &[("x", 9), ("y", 2)]),
        claim(Some(10), None, &[("x", 4)]),
        claim(None, None, &[("y", 1), ("z", -3)]),
    ];
    let expected = claim(Some(80), Some(7), &[("x", 9), ("y", 2), ("z", -3)]);
    for (epoch, arrival) in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3], [3, 1, 0, 4, 2]].into_iter().enumerate()
    {
        let table = table(1, epoch as u64);
        ready_table(&*store, table).await?;
        for at in arrival {
            store.cover(table, claims[at].clone()).await?;
            // Read your writes, whichever way it is asked for.
            ensure_eq!(store.coverage(table).await?, store.status(table).await?.coverage, "coverage by itself");
        }
        ensure_eq!(store.status(table).await?.coverage, expected, "claims arriving as {arrival:?}");
    }
    Ok(())
}

pub(super) async fn proofs_follow_complete_since(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.merge(table(1, 1), vec![row("a", 10)]).await?;
    ensure!(!read_one(&*store, table(1, 1), &key("a"), at(99)).await?.proved, "proved without a claim");
    store.cover(table(1, 1), Coverage::since(50)).await?;
    for name in ["a", "nobody"] {
        for (read, proved) in [
            (at(49), false),
            (at(50), true),
            (at(i64::MAX), true),
            // Trimming may have taken what only another cut would find.
            (ReadAt { at_us: 60, known_by_us: 55 }, false),
            (ReadAt::with_hindsight(60), false),
        ] {
            let answer = read_one(&*store, table(1, 1), &key(name), read).await?;
            ensure_eq!(answer.proved, proved, "{name} at {read:?}");
        }
    }
    ready_table(&*store, table(1, 2)).await?;
    store.cover(table(1, 2), Coverage::whole()).await?;
    for read in [at(i64::MIN), at(0), ReadAt::with_hindsight(0), ReadAt { at_us: 60, known_by_us: 55 }] {
        ensure!(read_one(&*store, table(1, 2), &key("a"), read).await?.proved, "all history does not prove {read:?}");
    }
    Ok(())
}

pub(super) async fn trimming_spares_every_proved_answer(subject: &mut dyn Subject, seed: u64) -> Outcome {
    let store = subject.store();
    let mut dice = Dice(seed);
    for epoch in 0..4 {
        let table = table(1, epoch);
        ready_table(&*store, table).await?;
        let names = ["a", "b", "c"];
        let mut rows: Vec<Row> = (0..90)
            .map(|_| {
                let event_time = dice.between(0, 60);
                row_known(
                    names[dice.below(3) as usize],
                    event_time,
                    event_time + dice.between(-5, 30),
                    dice.below(3) as u8,
                )
            })
            .collect();
        let late = rows.split_off(70);
        let mut oracle = Oracle::default();
        oracle.merge(&rows);
        store.merge(table, rows).await?;
        store.cover(table, Coverage::whole()).await?;
        let mut removed = 0;
        for complete_since_us in [15, 30, 45] {
            removed += store.trim(table, Trim { complete_since_us, forget_up_to_us: None }).await?;
            // Late rows come between trims; they count from when they are there.
            store.merge(table, late.clone()).await?;
            oracle.merge(&late);
            for time in complete_since_us..=100 {
                for name in names {
                    let answer = read_one(&*store, table, &key(name), at(time)).await?;
                    ensure!(answer.proved, "seed {seed}: {time} is not proved after trimming to {complete_since_us}");
                    let found =
                        answer.winner.map(|winner| Row { key: key(name), order: winner.order, body: winner.body });
                    let expected = oracle.winner(&key(name), at(time));
                    ensure_eq!(
                        as_winner(found.as_ref()),
                        as_winner(expected),
                        "seed {seed}: {name} at {time} after trimming to {complete_since_us}"
                    );
                }
            }
            let before = read_one(&*store, table, &key("a"), at(complete_since_us - 1)).await?;
            ensure!(!before.proved, "seed {seed}: proved before complete_since");
        }
        ensure!(removed > 0, "seed {seed}: nothing was trimmed of {} rows", 90);
        // The late rows merged last may lose to what was there; trimming a third time finds nothing.
        let again = Trim { complete_since_us: 45, forget_up_to_us: None };
        store.trim(table, again).await?;
        ensure_eq!(store.trim(table, again).await?, 0, "seed {seed}: rows removed by trimming again");
    }
    Ok(())
}

pub(super) async fn trimming_never_lowers_the_claim(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.merge(table(1, 1), vec![row("a", 10), row("a", 20), row("a", 30)]).await?;
    let trim_to = |complete_since_us| Trim { complete_since_us, forget_up_to_us: None };
    // Without a claim a trim makes none.
    store.trim(table(1, 1), trim_to(25)).await?;
    ensure_eq!(store.status(table(1, 1)).await?.coverage.complete_since_us, None, "a trim made a claim");
    // A claim of before the trim says less than it did.
    store.cover(table(1, 1), Coverage::since(5)).await?;
    ensure_eq!(store.status(table(1, 1)).await?.coverage.complete_since_us, Some(25), "a claim outlived a trim");
    store.trim(table(1, 1), trim_to(12)).await?;
    ensure_eq!(store.status(table(1, 1)).await?.coverage.complete_since_us, Some(25), "an older trim");
    store.trim(table(1, 1), trim_to(40)).await?;
    ensure_eq!(store.status(table(1, 1)).await?.coverage.complete_since_us, Some(40), "a newer trim");
    ensure_eq!(store.coverage(table(1, 1)).await?.complete_since_us, Some(40), "coverage after a trim");
    ensure_eq!(all_rows(&*store, table(1, 1)).await?, vec![row("a", 30)], "the row current at the trim");
    // Even a trim to the beginning of time leaves less than all history.
    ready_table(&*store, table(1, 2)).await?;
    store.merge(table(1, 2), vec![row_known("a", 50, 5, 0), row_known("a", 50, 50, 0)]).await?;
    store.cover(table(1, 2), Coverage::whole()).await?;
    store.trim(table(1, 2), trim_to(i64::MIN)).await?;
    let other_cut = read_one(&*store, table(1, 2), &key("a"), ReadAt { at_us: 60, known_by_us: 20 }).await?;
    ensure!(!other_cut.proved, "a trimmed table proves a read with another cut");
    ensure!(read_one(&*store, table(1, 2), &key("a"), at(0)).await?.proved, "the claim was lost");
    Ok(())
}

pub(super) async fn trimming_spares_rows_ahead(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    store.cover(table(1, 1), Coverage::since(0)).await?;
    let rows = vec![
        row("a", 10),
        row("a", 20),
        row_known("a", 20, 90, 0),
        row_known("a", 80, 30, 0),
        row_known("a", 15, 95, 0),
    ];
    store.merge(table(1, 1), rows).await?;
    store.trim(table(1, 1), Trim { complete_since_us: 50, forget_up_to_us: None }).await?;
    for (time, found) in
        [(50, order(20, 20, 0)), (79, order(20, 20, 0)), (80, order(80, 30, 0)), (99, order(80, 30, 0))]
    {
        ensure_eq!(winner_of(&*store, table(1, 1), &key("a"), at(time)).await?, Some(found), "read at {time}");
    }
    Ok(())
}

pub(super) async fn what_is_too_old_goes_and_what_never_ages_stays(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    let lifetime = Lifetime { ttl_us: Some(50), horizon_us: Some(20) };
    let ageing = Retention { lifetime, history_us: 100, slack_us: 5 };
    let ageless = Retention { lifetime: Lifetime::FOREVER, ..ageing };
    let last_gone = 1_000 - (50 + 20 + 100 + 5);
    let rows = vec![row("old", last_gone), row("young", last_gone + 1)];
    for table in [table(1, 1), table(2, 1)] {
        ready_table(&*store, table).await?;
        store.cover(table, Coverage::since(0)).await?;
        store.merge(table, rows.clone()).await?;
    }
    ensure_eq!(store.trim(table(1, 1), ageing.trim_at(1_000)).await?, 1, "rows too old");
    ensure_eq!(store.trim(table(2, 1), ageless.trim_at(1_000)).await?, 0, "rows without TTL");
    ensure_eq!(all_rows(&*store, table(1, 1)).await?, vec![row("young", last_gone + 1)], "rows left");
    ensure_eq!(all_rows(&*store, table(2, 1)).await?, rows, "rows without TTL left");
    // Nobody can tell, at any time that is still proved.
    let complete_since_us = store.status(table(1, 1)).await?.coverage.complete_since_us;
    ensure_eq!(complete_since_us, Some(900), "complete since");
    for time in 900..1_100 {
        for (name, event_time_us) in [("old", last_gone), ("young", last_gone + 1)] {
            let winner = winner_of(&*store, table(1, 1), &key(name), at(time)).await?;
            let found = resolve_status(winner.as_ref(), false, false, lifetime, time);
            let untrimmed = resolve_status(Some(&order(event_time_us, event_time_us, 0)), false, false, lifetime, time);
            ensure_eq!(found, untrimmed, "status of {name} at {time}");
            ensure_eq!(found, Status::Missing, "status of {name} at {time}");
        }
    }
    Ok(())
}
