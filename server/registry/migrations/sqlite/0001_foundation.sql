-- The registry. Times are microseconds since the Unix epoch, UTC. Digests are the 32 bytes of a SHA-256.
-- Tables named *_version, *_shape and *_meaning are immutable once written.

CREATE TABLE registry_state (
    only_row             INTEGER PRIMARY KEY CHECK (only_row = 1),
    revision             INTEGER NOT NULL,  -- every change that a server must follow
    definitions_revision INTEGER NOT NULL,  -- every `apply`
    erasure_salt         BLOB    NOT NULL
) STRICT;
INSERT INTO registry_state VALUES (1, 0, 0, randomblob(32));

CREATE TABLE definition_change (
    definitions_revision INTEGER NOT NULL,
    position             INTEGER NOT NULL,
    at_us                INTEGER NOT NULL,
    object_kind          TEXT    NOT NULL,
    object_name          TEXT    NOT NULL,
    action               TEXT    NOT NULL,
    PRIMARY KEY (definitions_revision, position)
) STRICT;

-- Transforms: one component each, addressed by the digest of its bytes.

CREATE TABLE transform (
    transform_id          INTEGER PRIMARY KEY,
    digest                BLOB    NOT NULL UNIQUE CHECK (length(digest) = 32),
    name                  TEXT    NOT NULL,
    doc                   TEXT    NOT NULL,
    owner                 TEXT    NOT NULL,
    total                 INTEGER NOT NULL,
    component_bytes       INTEGER NOT NULL,
    strict_nan            INTEGER NOT NULL,
    laws_corpus           INTEGER NOT NULL,
    laws_seed             INTEGER NOT NULL,
    laws_rows             INTEGER NOT NULL,
    fuel_per_row          INTEGER,
    nanoseconds_per_row   INTEGER,
    nanoseconds_per_call  INTEGER,
    memory_bytes          INTEGER,
    measured_rows         INTEGER,
    uploaded_at_us        INTEGER NOT NULL
) STRICT;
CREATE INDEX transform_by_name ON transform (name, transform_id);

CREATE TABLE component (
    transform_id INTEGER PRIMARY KEY REFERENCES transform,
    bytes        BLOB NOT NULL
) STRICT;

CREATE TABLE transform_field (
    transform_id INTEGER NOT NULL REFERENCES transform,
    direction    TEXT    NOT NULL CHECK (direction IN ('input', 'output')),
    position     INTEGER NOT NULL,
    name         TEXT    NOT NULL,
    data_type    TEXT    NOT NULL,
    nullable     INTEGER NOT NULL,
    doc          TEXT    NOT NULL,
    PRIMARY KEY (transform_id, direction, position),
    UNIQUE (transform_id, direction, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX transform_field_by_name ON transform_field (direction, name, transform_id);

CREATE TABLE field_constraint (
    transform_id   INTEGER NOT NULL,
    direction      TEXT    NOT NULL,
    field_position INTEGER NOT NULL,
    position       INTEGER NOT NULL,  -- of the constraint among those of the field
    element        INTEGER NOT NULL,  -- of the literal within the constraint; length: 0 shortest, 1 longest
    kind           TEXT    NOT NULL CHECK (kind IN ('min', 'max', 'allowed', 'not_null', 'length', 'unit')),
    literal_type   TEXT             CHECK (literal_type IN ('boolean', 'int64', 'float64', 'utf8')),
    integer_value  INTEGER,           -- boolean: 0 or 1; float64: its bits
    text_value     TEXT,
    PRIMARY KEY (transform_id, direction, field_position, position, element),
    FOREIGN KEY (transform_id, direction, field_position) REFERENCES transform_field
) STRICT, WITHOUT ROWID;

-- Entities and sources: a name, and behind it the immutable shape (meaning) that it has now.

CREATE TABLE entity_shape (
    shape_id INTEGER PRIMARY KEY,
    name     TEXT NOT NULL,
    digest   BLOB NOT NULL UNIQUE
) STRICT;

CREATE TABLE entity_key (
    shape_id INTEGER NOT NULL REFERENCES entity_shape,
    position INTEGER NOT NULL,
    name     TEXT    NOT NULL,
    key_type TEXT    NOT NULL CHECK (key_type IN ('utf8', 'int64')),
    PRIMARY KEY (shape_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE entity (
    entity_id INTEGER PRIMARY KEY,
    name      TEXT    NOT NULL UNIQUE,
    shape_id  INTEGER NOT NULL REFERENCES entity_shape,
    doc       TEXT    NOT NULL,
    owner     TEXT    NOT NULL
) STRICT;

CREATE TABLE source_meaning (
    meaning_id        INTEGER PRIMARY KEY,
    name              TEXT NOT NULL,
    digest            BLOB NOT NULL UNIQUE,
    format            TEXT,     -- how rows are written, as JSON; NULL for a source that is only pushed to
    filter            TEXT,
    time_zone         TEXT,
    event_time_column TEXT,
    event_time_us     INTEGER,
    known_at_column   TEXT,
    known_after_us    INTEGER,
    event_id          TEXT,
    CHECK ((event_time_column IS NULL) <> (event_time_us IS NULL)),
    CHECK (known_at_column IS NULL OR known_after_us IS NULL)
) STRICT;

CREATE TABLE source_field (
    meaning_id INTEGER NOT NULL REFERENCES source_meaning,
    position   INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    data_type  TEXT    NOT NULL,
    PRIMARY KEY (meaning_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE source_type (
    meaning_id INTEGER NOT NULL REFERENCES source_meaning,
    name       TEXT    NOT NULL,
    data_type  TEXT    NOT NULL,
    PRIMARY KEY (meaning_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE source_expression (
    meaning_id INTEGER NOT NULL REFERENCES source_meaning,
    name       TEXT    NOT NULL,
    expression TEXT    NOT NULL,
    PRIMARY KEY (meaning_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE source (
    source_id    INTEGER PRIMARY KEY,
    name         TEXT    NOT NULL UNIQUE,
    meaning_id   INTEGER NOT NULL REFERENCES source_meaning,
    place        TEXT,     -- where rows lie, as JSON; never with credentials
    push         INTEGER NOT NULL,
    max_ahead_us INTEGER NOT NULL,
    doc          TEXT    NOT NULL,
    owner        TEXT    NOT NULL
) STRICT;

-- The columns of a source as last seen by `plan`.
CREATE TABLE source_column (
    source_id   INTEGER NOT NULL REFERENCES source,
    position    INTEGER NOT NULL,
    name        TEXT    NOT NULL,
    data_type   TEXT,     -- a type of the contract, or
    other_type  TEXT,     -- the name of any other Arrow type
    PRIMARY KEY (source_id, position),
    CHECK ((data_type IS NULL) <> (other_type IS NULL))
) STRICT, WITHOUT ROWID;

-- Views.

CREATE TABLE view (
    view_id         INTEGER PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    head_version_id INTEGER REFERENCES view_version DEFERRABLE INITIALLY DEFERRED,
    doc             TEXT NOT NULL,
    owner           TEXT NOT NULL
) STRICT;

CREATE TABLE view_version (
    view_version_id INTEGER PRIMARY KEY,
    view_id         INTEGER NOT NULL REFERENCES view,
    version         INTEGER NOT NULL CHECK (version > 0),
    digest          BLOB    NOT NULL,
    transform_id    INTEGER NOT NULL REFERENCES transform,
    shape_id        INTEGER REFERENCES entity_shape,
    meaning_id      INTEGER REFERENCES source_meaning,
    ttl_us          INTEGER,
    horizon_us      INTEGER,
    validation      TEXT    NOT NULL,
    created_at_us   INTEGER NOT NULL,
    UNIQUE (view_id, version),
    UNIQUE (view_id, digest),
    CHECK ((shape_id IS NULL) = (meaning_id IS NULL))
) STRICT;
CREATE INDEX view_version_by_transform ON view_version (transform_id);
CREATE INDEX view_version_by_shape ON view_version (shape_id);
CREATE INDEX view_version_by_meaning ON view_version (meaning_id);

CREATE TABLE view_binding (
    view_version_id     INTEGER NOT NULL REFERENCES view_version,
    position            INTEGER NOT NULL,  -- of the transform's input
    kind                TEXT    NOT NULL
                        CHECK (kind IN ('column', 'request', 'request_timestamp', 'feature', 'literal')),
    name                TEXT,              -- of the column, request field or feature
    upstream_version_id INTEGER REFERENCES view_version,
    role                TEXT,
    literal             TEXT,              -- JSON, read with the input's type
    PRIMARY KEY (view_version_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX view_binding_by_upstream ON view_binding (upstream_version_id, name);

CREATE TABLE view_default (
    view_version_id INTEGER NOT NULL REFERENCES view_version,
    feature         TEXT    NOT NULL,
    value           TEXT    NOT NULL,      -- JSON, read with the feature's type
    PRIMARY KEY (view_version_id, feature)
) STRICT, WITHOUT ROWID;

CREATE TABLE view_bound (
    view_version_id INTEGER NOT NULL REFERENCES view_version,
    feature         TEXT    NOT NULL,
    minimum         TEXT,                  -- JSON, read with the feature's type; null: no limit
    maximum         TEXT,
    allow_nan       INTEGER NOT NULL,
    allow_infinite  INTEGER NOT NULL,
    validation      TEXT,                  -- null: the view's own
    PRIMARY KEY (view_version_id, feature)
) STRICT, WITHOUT ROWID;

-- Settings that make no version.
CREATE TABLE view_deployment (
    view_version_id   INTEGER PRIMARY KEY REFERENCES view_version,
    placement         TEXT NOT NULL,
    online_history_us INTEGER,
    partition_by      TEXT NOT NULL,
    stop_share_ppm    INTEGER,             -- null: no share of refused rows stops a backfill
    stop_rows_min     INTEGER,
    CHECK ((stop_share_ppm IS NULL) = (stop_rows_min IS NULL))
) STRICT;

-- What the newest definition of a view names: the version as written, null where it follows the newest.
CREATE TABLE view_upstream (
    view_id          INTEGER NOT NULL REFERENCES view,
    input            TEXT    NOT NULL,
    upstream_view_id INTEGER NOT NULL REFERENCES view,
    pinned_version   INTEGER,
    PRIMARY KEY (view_id, input)
) STRICT, WITHOUT ROWID;
CREATE INDEX view_upstream_by_upstream ON view_upstream (upstream_view_id);

-- Online tables of a view version; at most one is current.
CREATE TABLE view_epoch (
    view_version_id INTEGER NOT NULL REFERENCES view_version,
    epoch           INTEGER NOT NULL CHECK (epoch > 0),
    placement       TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('loading', 'current', 'retired')),
    created_at_us   INTEGER NOT NULL,
    changed_at_us   INTEGER NOT NULL,
    PRIMARY KEY (view_version_id, epoch)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX view_epoch_current ON view_epoch (view_version_id) WHERE state = 'current';

-- Services.

CREATE TABLE service (
    service_id      INTEGER PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    head_version_id INTEGER REFERENCES service_version DEFERRABLE INITIALLY DEFERRED,
    doc             TEXT NOT NULL,
    owner           TEXT NOT NULL
) STRICT;

CREATE TABLE service_version (
    service_version_id INTEGER PRIMARY KEY,
    service_id         INTEGER NOT NULL REFERENCES service,
    version            INTEGER NOT NULL CHECK (version > 0),
    digest             BLOB    NOT NULL,
    created_at_us      INTEGER NOT NULL,
    UNIQUE (service_id, version),
    UNIQUE (service_id, digest)
) STRICT;

CREATE TABLE service_entry (
    service_version_id INTEGER NOT NULL REFERENCES service_version,
    position           INTEGER NOT NULL,
    output_name        TEXT    NOT NULL,
    view_version_id    INTEGER NOT NULL REFERENCES view_version,
    feature            TEXT    NOT NULL,
    role               TEXT,
    PRIMARY KEY (service_version_id, position),
    UNIQUE (service_version_id, output_name)
) STRICT, WITHOUT ROWID;
CREATE INDEX service_entry_by_feature ON service_entry (view_version_id, feature);

-- The entries of the newest definition, as written.
CREATE TABLE service_written_entry (
    service_id     INTEGER NOT NULL REFERENCES service,
    position       INTEGER NOT NULL,
    view_id        INTEGER NOT NULL REFERENCES view,
    pinned_version INTEGER,
    feature        TEXT,                    -- null: all
    role           TEXT,
    alias          TEXT,
    PRIMARY KEY (service_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX service_written_entry_by_view ON service_written_entry (view_id);

CREATE TABLE object_tag (
    object_kind TEXT NOT NULL,
    object_name TEXT NOT NULL,
    tag         TEXT NOT NULL,
    PRIMARY KEY (object_kind, object_name, tag)
) STRICT, WITHOUT ROWID;

-- Datasets.

CREATE TABLE dataset (
    dataset_id         TEXT    PRIMARY KEY,
    name               TEXT    NOT NULL,
    service_version_id INTEGER REFERENCES service_version,
    rows               INTEGER NOT NULL,
    content_digest     BLOB    NOT NULL,
    output             TEXT    NOT NULL,    -- the file that was written
    recipe             TEXT    NOT NULL,    -- a document of the dataset builder's own
    report             TEXT    NOT NULL,    -- likewise: statistics, and what was found and what not
    created_at_us      INTEGER NOT NULL
) STRICT;
CREATE INDEX dataset_by_name ON dataset (name, created_at_us);
CREATE INDEX dataset_by_service ON dataset (service_version_id);

CREATE TABLE dataset_column (
    dataset_id      TEXT    NOT NULL REFERENCES dataset,
    position        INTEGER NOT NULL,
    name            TEXT    NOT NULL,
    view_version_id INTEGER NOT NULL REFERENCES view_version,
    feature         TEXT    NOT NULL,
    role            TEXT,
    PRIMARY KEY (dataset_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX dataset_column_by_feature ON dataset_column (view_version_id, feature);

-- Jobs.

CREATE TABLE job (
    job_id        TEXT    PRIMARY KEY,
    kind          TEXT    NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('open', 'done', 'failed', 'cancelled')),
    cancel_asked  INTEGER NOT NULL DEFAULT 0,
    committing    INTEGER NOT NULL DEFAULT 0, -- its rows may be visible already, or any moment: too late to call it off
    spec          TEXT    NOT NULL,         -- a document of the job's own kind
    progress      TEXT,                     -- likewise
    outcome       TEXT,                     -- likewise; for a failed job its error
    created_at_us INTEGER NOT NULL,
    changed_at_us INTEGER NOT NULL
) STRICT;
CREATE INDEX job_by_state ON job (state, created_at_us);

CREATE TABLE job_chunk (
    job_id         TEXT    NOT NULL REFERENCES job,
    chunk          TEXT    NOT NULL,
    result         TEXT    NOT NULL,        -- add actions and counts, a document of the job's own kind
    recorded_at_us INTEGER NOT NULL,
    worker         TEXT,                    -- who did it; null for what is no work, such as a plan
    rows           INTEGER NOT NULL DEFAULT 0,
    refused        INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job_id, chunk)
) STRICT, WITHOUT ROWID;

-- Who works on a job. A lease that is not renewed in time says that its holder is gone; what it had claimed is free.
CREATE TABLE job_worker (
    job_id        TEXT    NOT NULL REFERENCES job,
    worker        TEXT    NOT NULL,         -- one process's run of the job
    label         TEXT    NOT NULL,         -- for people
    is_home       INTEGER NOT NULL,         -- runs in the process that holds the project's directory
    expires_at_us INTEGER NOT NULL,
    rows          INTEGER NOT NULL DEFAULT 0,
    refused       INTEGER NOT NULL DEFAULT 0,
    rows_per_s    REAL    NOT NULL DEFAULT 0,
    PRIMARY KEY (job_id, worker)
) STRICT, WITHOUT ROWID;

-- Parts of a job that somebody is at, for as long as the lease lasts.
CREATE TABLE job_claim (
    job_id TEXT NOT NULL REFERENCES job,
    part   TEXT NOT NULL,                   -- the name of the chunk that will be recorded
    worker TEXT NOT NULL,
    PRIMARY KEY (job_id, part)
) STRICT, WITHOUT ROWID;

-- Erasures, by salted hash of entity and key, merged by maximum.

CREATE TABLE erasure (
    entity        TEXT    NOT NULL,
    key_hash      BLOB    NOT NULL CHECK (length(key_hash) = 32),
    up_to_us      INTEGER NOT NULL,
    created_at_us INTEGER NOT NULL,
    PRIMARY KEY (entity, key_hash)
) STRICT, WITHOUT ROWID;
