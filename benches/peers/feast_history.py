#!/usr/bin/env python3
"""The training set as Feast makes it: feast_history.py prepare DATA | join DATA SPINE OUT

DATA is what gen.py wrote. `prepare` registers its events, once. `join` asks for the ten features of every row of the Parquet
file SPINE and writes them to the Parquet file OUT; beside it, OUT.json has the processor seconds of the one call, without
what Python takes to import Feast. The offline store is the one on DuckDB, which is Feast's fastest for files.
"""

import json
import os
import sys

from feast_payments import FEATURES, VIEW, entity_and_view


def open_store(data):
    from feast import FeatureStore, RepoConfig

    folder = os.path.join(os.path.abspath(data), "feast")
    os.makedirs(folder, exist_ok=True)
    config = RepoConfig(
        project="payments",
        provider="local",
        registry=os.path.join(folder, "registry.db"),
        offline_store={"type": "duckdb"},
        online_store={"type": "sqlite", "path": os.path.join(folder, "online.db")},
        entity_key_serialization_version=3,
    )
    return FeatureStore(config=config)


def prepare(data):
    open_store(data).apply(list(entity_and_view(data)))


def join(data, spine, out):
    import pandas
    import pyarrow.parquet

    store = open_store(data)
    before = os.times()
    moments = pandas.read_parquet(spine)
    asked = [f"{VIEW}:{name}" for name in FEATURES]
    rows = store.get_historical_features(entity_df=moments, features=asked).to_arrow()
    pyarrow.parquet.write_table(rows, out, compression="zstd")
    after = os.times()
    with open(f"{out}.json", "w", encoding="utf-8") as file:
        json.dump({"cpu_s": sum(after[:4]) - sum(before[:4])}, file)


def main():
    verb, *arguments = sys.argv[1:]
    {"prepare": prepare, "join": join}[verb](*arguments)


if __name__ == "__main__":
    main()
