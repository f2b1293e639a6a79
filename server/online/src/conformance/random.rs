//! Random histories against the naive oracle.

use eadem_semantics::ReadAt;

use super::oracle::{Oracle, as_winner};
use super::{Dice, Outcome, Subject, all_rows, at, ensure, ensure_eq, key, row_known, table};
use crate::{Coverage, KeyBytes, OnlineStore, PointRead, Row, Trim};

const HISTORIES: u64 = 12;
const STEPS: u64 = 40;

/// Merges, loads, erasures, trims and restarts in random order; after every step proved answers equal the oracle's, and
/// answers without proof never exceed it.
pub(super) async fn random_histories_agree_with_the_oracle(subject: &mut dyn Subject, seed: u64) -> Outcome {
    for history in 0..HISTORIES {
        one_history(subject, seed, history).await?;
    }
    Ok(())
}

async fn one_history(subject: &mut dyn Subject, seed: u64, history: u64) -> Outcome {
    let mut dice = Dice(seed.wrapping_mul(1_000_003) ^ history);
    let table = table(history as u8, dice.below(3));
    let mut store = subject.store();
    store.create_epoch(table).await?;
    store.finish_load(table, Coverage::whole()).await?;
    let mut oracle = Oracle::default();
    let mut trimmed = false;
    for step in 0..STEPS {
        let context = format!("seed {seed}, history {history}, step {step}");
        match dice.below(20) {
            0..=9 => {
                let rows = random_rows(&mut dice);
                oracle.merge(&rows);
                store.merge(table, rows).await?;
            }
            10..=12 => {
                let rows = random_rows(&mut dice);
                oracle.merge(&rows);
                let trim = Trim { complete_since_us: dice.between(0, 50), forget_up_to_us: None };
                let ends_trimmed = dice.one_in(4);
                if ends_trimmed {
                    store.announce_trim(table, trim).await?;
                }
                for part in rows.chunks(3) {
                    store.bulk_load(table, part.to_vec()).await?;
                }
                if ends_trimmed {
                    store.finish_load_trimmed(table, Coverage::default(), trim).await?;
                    trimmed = true;
                } else {
                    store.finish_load(table, Coverage::default()).await?;
                }
            }
            13..=14 => {
                let (key, up_to_us) = (random_key(&mut dice), dice.between(0, 40));
                oracle.erase(&key, up_to_us);
                store.erase(table.view, &key, up_to_us).await?;
            }
            15..=16 => {
                let complete_since_us = dice.between(0, 50);
                store.trim(table, Trim { complete_since_us, forget_up_to_us: None }).await?;
                trimmed = true;
            }
            17 => {
                drop(store);
                subject.restart().await?;
                store = subject.store();
            }
            _ => {}
        }
        agree(&*store, table, &oracle, &mut dice, &context).await?;
        if !trimmed {
            ensure_eq!(all_rows(&*store, table).await?, oracle.all_rows(), "{context}: rows");
        }
    }
    Ok(())
}

async fn agree(
    store: &dyn OnlineStore,
    table: crate::TableId,
    oracle: &Oracle,
    dice: &mut Dice,
    context: &str,
) -> Outcome {
    let keys: Vec<KeyBytes> = (0..30).map(|_| random_key(dice)).collect();
    let times: Vec<ReadAt> = (0..30)
        .map(|_| match dice.below(5) {
            0 => ReadAt { at_us: dice.between(0, 90), known_by_us: dice.between(0, 90) },
            _ => at(dice.between(-1, 90)),
        })
        .collect();
    let reads: Vec<PointRead<'_>> = keys.iter().zip(&times).map(|(key, at)| PointRead { key, at: *at }).collect();
    let answers = store.read(table, &reads).await?;
    ensure_eq!(answers.len(), reads.len(), "{context}: answers");
    for (read, answer) in reads.iter().zip(answers) {
        let winner = answer.winner.map(|winner| Row { key: read.key.clone(), order: winner.order, body: winner.body });
        let (found, expected) = (as_winner(winner.as_ref()), as_winner(oracle.winner(read.key, read.at)));
        if answer.proved {
            ensure_eq!(found, expected, "{context}: {:?} at {:?}", read.key, read.at);
        } else {
            let rank = |winner: &Option<((i64, i64, u128), _)>| winner.as_ref().map(|(rank, _)| *rank);
            ensure!(
                rank(&found) <= rank(&expected),
                "{context}: {:?} at {:?} gave more than there is",
                read.key,
                read.at
            );
        }
    }
    Ok(())
}

fn random_key(dice: &mut Dice) -> KeyBytes {
    key(&format!("e{}", dice.below(6)))
}

/// Times collide often; corrections, rows known late and rows known early are common.
fn random_rows(dice: &mut Dice) -> Vec<Row> {
    (0..dice.between(1, 12))
        .map(|_| {
            let event_time_us = dice.between(0, 60);
            let known_at_us = event_time_us + dice.between(-10, 20);
            row_known(&format!("e{}", dice.below(6)), event_time_us, known_at_us, dice.below(3) as u8)
        })
        .collect()
}
