#!/usr/bin/env python3
"""Payments of made-up users, and a spine of labelled moments, as Parquet. The same arguments give the same rows.

events/day=YYYY-MM-DD/part-0.parquet    one file a day, in order of time
    entity_id           string, "user_000123"; half of the rows uniform, half skewed towards the first users
    event_timestamp     timestamp[us, UTC]
    amount              float64, 1 % null
    merchant_category   string, 50 values
    is_foreign          boolean
    lat, lon            float64
    f0 … f4             float64
    embedding           16 float32, with --embedding
spine.parquet and its prefixes spine_10k, spine_100k, spine_1m
    entity_id           0.5 % are unknown users
    event_timestamp     in random order, never on the first day
    label               int64, 2 % are 1
    txn_lat, txn_lon, txn_amount    what a request would carry
meta.json               the arguments and the size; written last, so that it marks a whole data set
"""

import argparse
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = np.datetime64("2026-01-01T00:00:00", "us")
DAY_US = 86_400_000_000
CATEGORIES = 50
EXTRA_FEATURES = 5
EMBEDDING_WIDTH = 16
PREFIXES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write into")
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--spine", type=int, default=1_000_000, help="rows of the spine")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--embedding", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--skew", type=float, default=1.5, help="1 is uniform; with 3 the first users are very busy")
    return parser.parse_args()


def user_ids(codes):
    names = pa.array([f"user_{code:06d}" for code in range(int(codes.max()) + 1)], pa.string())
    return names.take(pa.array(codes, pa.int64()))


def skewed(random, entities, skew, rows):
    return (entities * random.random(rows) ** skew).astype(np.int64)


def amounts(random, rows):
    return np.round(np.exp(random.normal(3.5, 1.2, rows)), 2)


def events_of_day(arguments, random, day, rows):
    # The order of these draws is part of the data: another order is another data set.
    uniform = random.integers(0, arguments.entities, rows)
    busy = skewed(random, arguments.entities, arguments.skew, rows)
    codes = np.where(random.random(rows) < 0.5, uniform, busy)
    if day == 0:
        # Everybody pays once on the first day, if the day has room.
        covered = min(rows, arguments.entities)
        codes[:covered] = random.permutation(arguments.entities)[:covered]
    times_us = np.sort(random.integers(0, DAY_US, rows)) + day * DAY_US
    amount = amounts(random, rows)
    categories = pa.array([f"cat_{number:02d}" for number in range(CATEGORIES)])
    columns = {
        "entity_id": user_ids(codes),
        "event_timestamp": pa.array(START + times_us.astype("timedelta64[us]"), UTC_MICROSECONDS),
        "amount": pa.array(amount, pa.float64(), mask=random.random(rows) < 0.01),
        "merchant_category": categories.take(pa.array(random.integers(0, CATEGORIES, rows))),
        "is_foreign": pa.array(random.random(rows) < 0.07),
        "lat": pa.array(random.uniform(-60, 70, rows)),
        "lon": pa.array(random.uniform(-180, 180, rows)),
    }
    for number in range(EXTRA_FEATURES):
        columns[f"f{number}"] = pa.array(random.normal(size=rows))
    if arguments.embedding:
        numbers = random.standard_normal(rows * EMBEDDING_WIDTH, dtype=np.float32)
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(numbers), EMBEDDING_WIDTH)
    return pa.table(columns)


def spine(arguments, random):
    rows, entities = arguments.spine, arguments.entities
    is_uniform = random.random(rows) < 0.5
    uniform = random.integers(0, entities, rows)
    codes = np.where(is_uniform, uniform, skewed(random, entities, arguments.skew, rows))
    is_unknown = random.random(rows) < 0.005
    codes = np.where(is_unknown, entities + 1000 + codes % 1000, codes)
    times = START + random.integers(DAY_US, arguments.days * DAY_US, rows).astype("timedelta64[us]")
    return pa.table({
        "entity_id": user_ids(codes),
        "event_timestamp": pa.array(times, UTC_MICROSECONDS),
        "label": pa.array((random.random(rows) < 0.02).astype(np.int64)),
        "txn_lat": pa.array(random.uniform(-60, 70, rows)),
        "txn_lon": pa.array(random.uniform(-180, 180, rows)),
        "txn_amount": pa.array(amounts(random, rows)),
    })


def write_events(arguments, seeds):
    size = 0
    for day in range(arguments.days):
        rows = arguments.events // arguments.days + (1 if day < arguments.events % arguments.days else 0)
        table = events_of_day(arguments, np.random.default_rng(seeds[day]), day, rows)
        date = str(START + np.timedelta64(day, "D"))[:10]
        folder = os.path.join(arguments.out, "events", f"day={date}")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "part-0.parquet")
        pq.write_table(table, path, compression="snappy")
        size += os.path.getsize(path)
    return size


def write_spine(arguments, seed):
    table = spine(arguments, np.random.default_rng(seed))
    for name, rows in PREFIXES.items():
        if rows <= table.num_rows:
            pq.write_table(table.slice(0, rows), os.path.join(arguments.out, f"spine_{name}.parquet"))
    pq.write_table(table, os.path.join(arguments.out, "spine.parquet"))


def main():
    arguments = parse_arguments()
    seeds = np.random.SeedSequence(arguments.seed).spawn(arguments.days + 1)
    os.makedirs(arguments.out, exist_ok=True)
    event_bytes = write_events(arguments, seeds)
    if arguments.spine > 0:
        write_spine(arguments, seeds[-1])
    with open(os.path.join(arguments.out, "meta.json"), "w", encoding="utf-8") as file:
        json.dump(vars(arguments) | {"event_bytes": event_bytes}, file)
    print(f"{arguments.events} events of {arguments.entities} users, {event_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
