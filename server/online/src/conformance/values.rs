//! Keys and bytes.

use bytes::Bytes;
use eadem_values::{EntityKey, KeyValue};

use super::{
    Outcome, Subject, all_rows, at, ensure, ensure_eq, key, order, read_one, ready_table, row, table, winner_of,
};
use crate::{KEY_BYTES_MAX, KeyBytes, Origin, Row, RowBody, StoreError, VALUE_BYTES_MAX};

pub(super) async fn the_same_row_twice_is_one_row(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let merged = store.merge(table(1, 1), vec![row("a", 1), row("a", 1), row("a", 2)]).await?;
    ensure_eq!((merged.kept, merged.erased), (3, 0), "merged");
    store.merge(table(1, 1), vec![row("a", 1), row("a", 2)]).await?;
    ensure_eq!(store.status(table(1, 1)).await?.rows, 2, "row count");
    ensure_eq!(all_rows(&*store, table(1, 1)).await?, vec![row("a", 1), row("a", 2)], "rows");
    Ok(())
}

pub(super) async fn bodies_that_differ_settle_the_same_way(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    let body = |values: &'static [u8], error: Option<&str>, lane: &str| RowBody {
        values: Bytes::from_static(values),
        error: error.map(str::to_owned),
        origin: Some(Origin { lane: lane.to_owned(), sequence: 3 }),
    };
    // Equal in key and order, so the same row, though it should not happen that they say different things.
    let bodies = [body(b"x", None, "1"), body(b"x", None, "2"), body(b"y", None, "1"), body(b"", Some("trap"), "1")];
    let mut settled = None;
    for (epoch, arrival) in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 3, 2, 0]].into_iter().enumerate() {
        let table = table(1, epoch as u64);
        ready_table(&*store, table).await?;
        for at in arrival {
            let row = Row { key: key("a"), order: order(1, 1, 1), body: bodies[at].clone() };
            store.merge(table, vec![row]).await?;
        }
        let found = all_rows(&*store, table).await?;
        ensure_eq!(found.len(), 1, "rows");
        ensure_eq!(found, *settled.get_or_insert_with(|| found.clone()), "arriving as {arrival:?}");
    }
    Ok(())
}

pub(super) async fn rows_come_back_bit_for_bit(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let origin = Origin { lane: "sha256:äöü/0".to_owned(), sequence: i64::MIN };
    let every_byte: Vec<u8> = (0..=255).collect();
    let bodies = [
        RowBody::of_values(Bytes::new()),
        RowBody::of_values(every_byte),
        RowBody::of_error(""),
        RowBody::of_error("a panic with \0 and \u{1f980}"),
        RowBody { values: Bytes::from_static(b"v"), error: None, origin: Some(origin.clone()) },
        RowBody { values: Bytes::new(), error: Some("e".to_owned()), origin: Some(origin) },
    ];
    let row_of =
        |(n, body): (usize, &RowBody)| Row { key: key("a"), order: order(n as i64, n as i64, 0), body: body.clone() };
    let rows: Vec<Row> = bodies.iter().enumerate().map(row_of).collect();
    store.merge(table(1, 1), rows.clone()).await?;
    ensure_eq!(all_rows(&*store, table(1, 1)).await?, rows, "scanned");
    for (n, body) in bodies.iter().enumerate() {
        let answer = read_one(&*store, table(1, 1), &key("a"), at(n as i64)).await?;
        ensure_eq!(answer.winner.map(|winner| winner.body), Some(body.clone()), "read {n}");
    }
    Ok(())
}

pub(super) async fn large_values_fit_and_larger_are_refused(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let large = |time: i64, bytes: usize| {
        let value: Vec<u8> = (0..bytes).map(|n| (n as i64 * 31 + time) as u8).collect();
        Row { key: key("a"), order: order(time, time, 0), body: RowBody::of_values(value) }
    };
    const MIB: usize = 1024 * 1024;
    let rows = vec![large(1, MIB), large(2, MIB + 1), large(3, 4 * MIB)];
    store.merge(table(1, 1), rows.clone()).await?;
    store.merge(table(1, 1), vec![row("b", 1)]).await?;
    for expected in &rows {
        let time = expected.order.event_time_us;
        let answer = read_one(&*store, table(1, 1), &key("a"), at(time)).await?;
        ensure!(
            answer.winner.is_some_and(|winner| winner.body == expected.body),
            "a value of {} bytes changed",
            expected.body.values.len()
        );
    }
    let found = all_rows(&*store, table(1, 1)).await?;
    ensure!(found[..3] == rows, "large values changed in a scan");
    let refused = store.merge(table(1, 1), vec![row("c", 1), large(4, VALUE_BYTES_MAX)]).await;
    ensure!(matches!(refused, Err(StoreError::ValueTooLarge { .. })), "a row too large gave {refused:?}");
    let refused = store.bulk_load(table(1, 1), vec![row("c", 1), large(4, VALUE_BYTES_MAX)]).await;
    ensure!(matches!(refused, Err(StoreError::ValueTooLarge { .. })), "a row too large gave {refused:?}");
    store.finish_load(table(1, 1), crate::Coverage::default()).await?;
    ensure_eq!(store.status(table(1, 1)).await?.rows, 4, "rows after refusals");
    Ok(())
}

pub(super) async fn strange_keys_are_kept_apart(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let text = |text: &str| KeyValue::Utf8(text.to_owned());
    let keys: Vec<EntityKey> = vec![
        EntityKey(vec![text("")]),
        EntityKey(vec![text("\0")]),
        EntityKey(vec![text("\0\0")]),
        EntityKey(vec![text("a")]),
        EntityKey(vec![text("a\0")]),
        EntityKey(vec![text("ab")]),
        EntityKey(vec![text("a"), text("b")]),
        EntityKey(vec![text("a"), text("")]),
        EntityKey(vec![text("a,b")]),
        EntityKey(vec![text("a/b")]),
        EntityKey(vec![text("Zürich \u{1f6eb}")]),
        EntityKey(vec![KeyValue::Int64(0)]),
        EntityKey(vec![KeyValue::Int64(-1)]),
        EntityKey(vec![KeyValue::Int64(i64::MIN)]),
        EntityKey(vec![KeyValue::Int64(1), text("1")]),
        EntityKey(vec![text("k".repeat(8 * 1024).as_str())]),
    ];
    let encoded: Vec<KeyBytes> = keys.iter().map(KeyBytes::from).collect();
    let row_of = |(n, key): (usize, &KeyBytes)| Row {
        key: key.clone(),
        order: order(10, 10, 0),
        body: RowBody::of_values(n.to_string().into_bytes()),
    };
    store.merge(table(1, 1), encoded.iter().enumerate().map(row_of).collect()).await?;
    for (n, key) in encoded.iter().enumerate() {
        let answer = read_one(&*store, table(1, 1), key, at(10)).await?;
        let values = answer.winner.map(|winner| winner.body.values);
        ensure_eq!(values, Some(Bytes::from(n.to_string())), "value of {}", keys[n]);
    }
    for found in all_rows(&*store, table(1, 1)).await? {
        ensure!(encoded.contains(&found.key), "a scan gave the key {:?}", found.key);
        ensure!(keys.iter().any(|key| found.key.decode().as_ref() == Ok(key)), "{:?} does not decode", found.key);
    }
    store.erase(table(1, 1).view, &encoded[3], 10).await?;
    ensure_eq!(store.status(table(1, 1)).await?.rows, keys.len() as u64 - 1, "rows after one erasure");
    Ok(())
}

pub(super) async fn long_keys_are_refused_whole(subject: &mut dyn Subject, _seed: u64) -> Outcome {
    let store = subject.store();
    ready_table(&*store, table(1, 1)).await?;
    let key_of = |bytes: usize| KeyBytes::new(vec![b'k'; bytes]);
    let row_of = |bytes: usize| Row { key: key_of(bytes), ..row("", 1) };
    store.merge(table(1, 1), vec![row_of(KEY_BYTES_MAX)]).await?;
    ensure_eq!(
        winner_of(&*store, table(1, 1), &key_of(KEY_BYTES_MAX), at(1)).await?,
        Some(order(1, 1, 0)),
        "the longest key"
    );
    for too_long in [KEY_BYTES_MAX + 1, 70_000] {
        let refused = store.merge(table(1, 1), vec![row("a", 1), row_of(too_long)]).await;
        ensure!(matches!(refused, Err(StoreError::KeyTooLong { .. })), "a key of {too_long} gave {refused:?}");
        let message = refused.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(message.contains("kkkk") && message.len() < 300, "the message does not name the entity: {message}");
        let refused = store.erase(table(1, 1).view, &key_of(too_long), 1).await;
        ensure!(matches!(refused, Err(StoreError::KeyTooLong { .. })), "erasing it gave {refused:?}");
        // Nobody can have stored it, so asking is no error.
        ensure_eq!(winner_of(&*store, table(1, 1), &key_of(too_long), at(1)).await?, None, "a key of {too_long}");
    }
    ensure_eq!(store.status(table(1, 1)).await?.rows, 1, "rows after refusals");
    Ok(())
}
