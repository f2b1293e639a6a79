-- What is deprecated or retired. A version without a mark is neither.

CREATE TABLE view_mark (
    view_version_id BIGINT PRIMARY KEY REFERENCES view_version,
    state           TEXT COLLATE "C"    NOT NULL CHECK (state IN ('deprecated', 'retired')),
    message         TEXT COLLATE "C"    NOT NULL,
    at_us           BIGINT NOT NULL
);

CREATE TABLE service_mark (
    service_version_id BIGINT PRIMARY KEY REFERENCES service_version,
    state              TEXT COLLATE "C"    NOT NULL CHECK (state IN ('deprecated', 'retired')),
    message            TEXT COLLATE "C"    NOT NULL,
    at_us              BIGINT NOT NULL
);

CREATE TABLE transform_mark (
    transform_id BIGINT PRIMARY KEY REFERENCES transform,
    state        TEXT COLLATE "C"    NOT NULL CHECK (state IN ('deprecated', 'retired')),
    message      TEXT COLLATE "C"    NOT NULL,
    at_us        BIGINT NOT NULL
);

-- Plans that were applied although their effect was beyond what the policy tolerates.
CREATE TABLE accepted_effect (
    definitions_revision BIGINT PRIMARY KEY,
    at_us                BIGINT NOT NULL,
    reason               TEXT COLLATE "C"    NOT NULL,
    effect               TEXT COLLATE "C"    NOT NULL
);

-- The history of an object, and who made it; null for what was done before that was kept.
ALTER TABLE definition_change ADD COLUMN actor TEXT COLLATE "C";
CREATE INDEX definition_change_by_object ON definition_change (object_kind, object_name, definitions_revision);
-- What reads a request field.
CREATE INDEX view_binding_by_name ON view_binding (kind, name);
