"""The payments that gen.py wrote, as Feast is told about them."""

import os
from datetime import timedelta

FLOATS = ["amount", "lat", "lon", "f0", "f1", "f2", "f3", "f4"]
FEATURES = ["amount", "merchant_category", "is_foreign", "lat", "lon", "f0", "f1", "f2", "f3", "f4"]
VIEW = "payments"

os.environ.setdefault("FEAST_USAGE", "False")


def entity_and_view(data):
    """The paying user, and the view of ten features."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Bool, Float64, String

    user = Entity(name="user", join_keys=["entity_id"], value_type=ValueType.STRING)
    types = {"merchant_category": String, "is_foreign": Bool, **{name: Float64 for name in FLOATS}}
    source = FileSource(
        name="events",
        path=os.path.join(os.path.abspath(data), "events"),
        timestamp_field="event_timestamp",
        file_format=ParquetFormat(),
    )
    view = FeatureView(
        name=VIEW,
        entities=[user],
        ttl=timedelta(0),  # never
        source=source,
        schema=[Field(name=name, dtype=types[name]) for name in FEATURES],
    )
    return user, view
