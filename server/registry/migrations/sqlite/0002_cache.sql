-- How long what was read from an online store that several processes write to may be served from memory, in µs; null: not.
ALTER TABLE view_deployment ADD COLUMN cache_us INTEGER;
