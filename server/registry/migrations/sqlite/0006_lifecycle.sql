-- What is deprecated or retired. A version without a mark is neither.

CREATE TABLE view_mark (
    view_version_id INTEGER PRIMARY KEY REFERENCES view_version,
    state           TEXT    NOT NULL CHECK (state IN ('deprecated', 'retired')),
    message         TEXT    NOT NULL,
    at_us           INTEGER NOT NULL
) STRICT;

CREATE TABLE service_mark (
    service_version_id INTEGER PRIMARY KEY REFERENCES service_version,
    state              TEXT    NOT NULL CHECK (state IN ('deprecated', 'retired')),
    message            TEXT    NOT NULL,
    at_us              INTEGER NOT NULL
) STRICT;

CREATE TABLE transform_mark (
    transform_id INTEGER PRIMARY KEY REFERENCES transform,
    state        TEXT    NOT NULL CHECK (state IN ('deprecated', 'retired')),
    message      TEXT    NOT NULL,
    at_us        INTEGER NOT NULL
) STRICT;

-- Plans that were applied although their effect was beyond what the policy tolerates.
CREATE TABLE accepted_effect (
    definitions_revision INTEGER PRIMARY KEY,
    at_us                INTEGER NOT NULL,
    reason               TEXT    NOT NULL,
    effect               TEXT    NOT NULL
) STRICT;

-- The history of an object, and who made it; null for what was done before that was kept.
ALTER TABLE definition_change ADD COLUMN actor TEXT;
CREATE INDEX definition_change_by_object ON definition_change (object_kind, object_name, definitions_revision);
-- What reads a request field.
CREATE INDEX view_binding_by_name ON view_binding (kind, name);
