-- Entities that an erasure still has to find in the stores, by its job. Gone as soon as the job is done.
CREATE TABLE erasure_entity (
    job_id   TEXT COLLATE "C" NOT NULL REFERENCES job,
    entity   TEXT COLLATE "C" NOT NULL,
    key      BYTEA  NOT NULL,               -- the canonical encoding
    up_to_us BIGINT NOT NULL,
    PRIMARY KEY (job_id, key)
);

-- Training sets that cannot be made again, because an erasure deleted files that they were made of.
CREATE TABLE dataset_erasure (
    dataset_id   TEXT COLLATE "C" PRIMARY KEY REFERENCES dataset,
    job_id       TEXT COLLATE "C" NOT NULL, -- the first such erasure
    erased_at_us BIGINT NOT NULL
);
