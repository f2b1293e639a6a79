-- How often erasures were recorded: whoever knows them reads them again only when this has moved.
ALTER TABLE registry_state ADD COLUMN erasures_revision BIGINT NOT NULL DEFAULT 0;
