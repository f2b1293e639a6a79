-- What a view version's placement is being switched to; null: it stays as it is.
ALTER TABLE view_deployment ADD COLUMN next_placement TEXT;

-- The placements that a view version had before, in their order. The first one's table has the folder of the version.
CREATE TABLE view_placement (
    view_version_id INTEGER NOT NULL REFERENCES view_version,
    position        INTEGER NOT NULL,
    placement       TEXT    NOT NULL,
    until_us        INTEGER NOT NULL,
    PRIMARY KEY (view_version_id, position)
) STRICT, WITHOUT ROWID;
