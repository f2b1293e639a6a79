-- Several directories may share a registry: who says that a worker's process is gone speaks of its own directory only.
ALTER TABLE job_worker ADD COLUMN home TEXT;
ALTER TABLE job_worker DROP COLUMN is_home;

-- Full-text search: which objects have which words. Made from the other tables, and made again where it is missing.
CREATE TABLE search_object (
    object_id   INTEGER PRIMARY KEY,
    kind        TEXT NOT NULL,
    name        TEXT NOT NULL,
    summary     TEXT NOT NULL,              -- the first line of its documentation
    owner       TEXT NOT NULL,
    words       BLOB NOT NULL,              -- the digest of what is indexed of it
    UNIQUE (kind, name)
) STRICT;

CREATE TABLE search_term (
    term_id INTEGER PRIMARY KEY,
    term    TEXT    NOT NULL UNIQUE,
    objects INTEGER NOT NULL                -- that have it
) STRICT;

CREATE TABLE search_posting (
    term_id   INTEGER NOT NULL REFERENCES search_term,
    spot      INTEGER NOT NULL, -- 8 times where it stands (0 name, 1 tag, 2 owner, 3 documentation), plus the kind of the object
    object_id INTEGER NOT NULL REFERENCES search_object,
    PRIMARY KEY (term_id, spot, object_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX search_posting_by_object ON search_posting (object_id, term_id, spot);
