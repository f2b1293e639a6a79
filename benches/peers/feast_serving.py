#!/usr/bin/env python3
"""Feast's feature server over payments: feast_serving.py DATA ENTITIES REDIS FOLDER

DATA is what gen.py wrote, ENTITIES a JSON file with the ids that are asked for, REDIS the `host:port` of an empty Redis. Makes
FOLDER a repository of Feast's, and writes the newest payment of each of these entities to Redis. `feast -c FOLDER serve` then has
three feature views: `payments`, ten stored features; and `payment_context` and `payment_context_python`, on demand, of three of
them and three fields of the request: the same function once over frames of pandas and once over Python's numbers.
"""

import json
import os
import sys

from feast_payments import FEATURES, VIEW, entity_and_view

OUTPUTS = ["log_amount", "amount_ratio", "distance_km"]
MOMENT = ["txn_lat", "txn_lon", "txn_amount"]

# Nothing of it is read again while serving: the registry is kept in memory and never grows old (0), and neither metrics nor
# logs of features are on.
CONFIG = """\
project: payments
provider: local
registry: {{path: registry.db, cache_ttl_seconds: 0}}
offline_store: {{type: duckdb}}
online_store: {{type: redis, connection_string: "{redis}", skip_dedup: true}}
entity_key_serialization_version: 3
"""


def definitions(data):
    from feast import Field, RequestSource
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64

    user, payments = entity_and_view(data)
    moment = RequestSource(name="moment", schema=[Field(name=name, dtype=Float64) for name in MOMENT])

    on_demand = {
        "sources": [payments, moment],
        "schema": [Field(name=name, dtype=Float64) for name in OUTPUTS],
    }

    # What transforms/payment_context computes. It is kept by its text, so everything that it needs stands in it. The columns are
    # taken out once and the frame is made once: one operation of pandas after the other would take longer.
    @on_demand_feature_view(mode="pandas", **on_demand)
    def payment_context(inputs):
        import numpy
        import pandas

        def column(name):
            return inputs[name].to_numpy(dtype=numpy.float64)

        amount = column("amount")
        lat, lon = numpy.radians(column("lat")), numpy.radians(column("lon"))
        txn_lat, txn_lon = numpy.radians(column("txn_lat")), numpy.radians(column("txn_lon"))
        north = numpy.sin((txn_lat - lat) / 2.0) ** 2
        east = numpy.sin((txn_lon - lon) / 2.0) ** 2
        chord = north + numpy.cos(lat) * numpy.cos(txn_lat) * east
        return pandas.DataFrame(
            {
                "log_amount": numpy.log1p(amount),
                "amount_ratio": column("txn_amount") / (amount + 1.0),
                "distance_km": 2.0 * 6371.0088 * numpy.arcsin(numpy.sqrt(numpy.minimum(chord, 1.0))),
            }
        )

    # `singleton`: it gets the values of a row, not lists of them.
    @on_demand_feature_view(mode="python", singleton=True, **on_demand)
    def payment_context_python(inputs):
        from math import asin, cos, log1p, radians, sin, sqrt

        amount = inputs["amount"]
        lat, lon = radians(inputs["lat"]), radians(inputs["lon"])
        txn_lat, txn_lon = radians(inputs["txn_lat"]), radians(inputs["txn_lon"])
        north = sin((txn_lat - lat) / 2.0) ** 2
        chord = north + cos(lat) * cos(txn_lat) * sin((txn_lon - lon) / 2.0) ** 2
        return {
            "log_amount": None if amount is None else log1p(amount),
            "amount_ratio": None if amount is None else inputs["txn_amount"] / (amount + 1.0),
            "distance_km": 2.0 * 6371.0088 * asin(sqrt(min(chord, 1.0))),
        }

    return [user, payments, payment_context, payment_context_python]


def newest(data, entities):
    """The newest payment of each entity."""
    import duckdb

    events = os.path.join(os.path.abspath(data), "events", "**", "*.parquet")
    names = ", ".join(FEATURES)
    return duckdb.sql(
        f"select entity_id, event_timestamp, {names} from read_parquet('{events}') "
        f"where entity_id in (select unnest({entities!r})) "
        "qualify row_number() over (partition by entity_id order by event_timestamp desc) = 1"
    ).df()


def prepare(data, entities, redis, folder):
    from feast import FeatureStore

    with open(entities, encoding="utf-8") as file:
        entities = json.load(file)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "feature_store.yaml"), "w", encoding="utf-8") as file:
        file.write(CONFIG.format(redis=redis))
    store = FeatureStore(repo_path=folder)
    store.apply(definitions(data))
    rows = newest(data, entities)
    store.write_to_online_store(VIEW, rows)
    print(f"{len(rows)} rows written")


if __name__ == "__main__":
    prepare(*sys.argv[1:])
