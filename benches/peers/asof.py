#!/usr/bin/env python3
"""The point-in-time join as one would write it by hand: asof.py duckdb|polars DATA SPINE OUT

DATA is what gen.py wrote. For each row of the Parquet file SPINE, the ten features of the entity's newest event that is not
younger, from Parquet to the Parquet file OUT. Both peers get two threads and write zstd, as the other side does. Rows may
come out in any order: asking the peers to keep the spine's would only slow them down.
"""

import os
import sys

FEATURES = ["amount", "merchant_category", "is_foreign", "lat", "lon", "f0", "f1", "f2", "f3", "f4"]
THREADS = 2


def duckdb_join(events, spine, out):
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET TimeZone = 'UTC'; SET threads = {THREADS}; SET preserve_insertion_order = false")
    columns = ", ".join(f"events.{name}" for name in FEATURES)
    connection.execute(f"""
        COPY (
            SELECT spine.*, {columns}
            FROM read_parquet('{spine}') AS spine
            ASOF LEFT JOIN read_parquet('{events}', hive_partitioning = false) AS events
            ON spine.entity_id = events.entity_id AND spine.event_timestamp >= events.event_timestamp
        ) TO '{out}' (FORMAT parquet, COMPRESSION zstd)
    """)


def polars_join(events, spine, out):
    os.environ["POLARS_MAX_THREADS"] = str(THREADS)
    import polars

    columns = ["entity_id", "event_timestamp", *FEATURES]
    history = polars.scan_parquet(events, hive_partitioning=False).select(columns).sort("event_timestamp")
    moments = polars.scan_parquet(spine).sort("event_timestamp")
    joined = moments.join_asof(history, on="event_timestamp", by="entity_id", strategy="backward").collect()
    joined.write_parquet(out, compression="zstd")


PEERS = {"duckdb": duckdb_join, "polars": polars_join}


def main():
    peer, data, spine, out = sys.argv[1:]
    PEERS[peer](os.path.join(data, "events", "*", "*.parquet"), spine, out)


if __name__ == "__main__":
    main()
