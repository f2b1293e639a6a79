-- What a view version's placement is being switched to; null: it stays as it is.
ALTER TABLE view_deployment ADD COLUMN next_placement TEXT COLLATE "C";

-- The placements that a view version had before, in their order. The first one's table has the folder of the version.
CREATE TABLE view_placement (
    view_version_id BIGINT NOT NULL REFERENCES view_version,
    position        BIGINT NOT NULL,
    placement       TEXT COLLATE "C" NOT NULL,
    until_us        BIGINT NOT NULL,
    PRIMARY KEY (view_version_id, position)
);
