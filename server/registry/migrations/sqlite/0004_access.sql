-- People: projects, tokens, and the trail of who did what.

CREATE TABLE project (
    project_id    INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL UNIQUE,
    created_at_us INTEGER NOT NULL
) STRICT;
-- What was there before there were projects.
INSERT INTO project VALUES (1, 'default', 0);

-- No row: whatever is not said is not limited.
CREATE TABLE project_quota (
    project_id INTEGER NOT NULL REFERENCES project,
    name       TEXT    NOT NULL,
    most       INTEGER NOT NULL CHECK (most >= 0),
    PRIMARY KEY (project_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE access_state (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    revision INTEGER NOT NULL  -- every change of tokens, projects and quotas
) STRICT;
INSERT INTO access_state VALUES (1, 0);

CREATE TABLE token (
    token_id        TEXT    PRIMARY KEY,
    name            TEXT    NOT NULL,
    role            TEXT    NOT NULL CHECK (role IN ('reader', 'writer', 'author', 'admin')),
    project         TEXT             REFERENCES project (name),  -- NULL: all
    secret_hash     BLOB    NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    created_at_us   INTEGER NOT NULL,
    created_by      TEXT    NOT NULL,
    expires_at_us   INTEGER,
    revoked_at_us   INTEGER,
    revoked_by      TEXT,
    last_used_at_us INTEGER
) STRICT;

-- Entries are only added; each has the hash of the one before it.

CREATE TABLE trail (
    sequence      INTEGER PRIMARY KEY,
    at_us         INTEGER NOT NULL,
    token_id      TEXT,
    name          TEXT    NOT NULL,
    project       TEXT,
    address       TEXT,
    request_id    TEXT,
    verb          TEXT    NOT NULL,
    object        TEXT    NOT NULL,
    digest_before BLOB,
    digest_after  BLOB,
    outcome       TEXT    NOT NULL,
    detail        TEXT    NOT NULL,
    event_count   INTEGER NOT NULL,
    previous_hash BLOB    NOT NULL,
    hash          BLOB    NOT NULL
) STRICT;
CREATE INDEX trail_by_time ON trail (at_us);
CREATE TRIGGER trail_is_not_changed BEFORE UPDATE ON trail BEGIN SELECT raise(ABORT, 'the trail is only added to'); END;
CREATE TRIGGER trail_is_not_deleted BEFORE DELETE ON trail BEGIN SELECT raise(ABORT, 'the trail is only added to'); END;

-- Where the trail ends, so that it cannot be cut off unnoticed.
CREATE TABLE trail_head (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    sequence INTEGER NOT NULL,
    hash     BLOB    NOT NULL
) STRICT;
INSERT INTO trail_head VALUES (1, 0, zeroblob(32));
