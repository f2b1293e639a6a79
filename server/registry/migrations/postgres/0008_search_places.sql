-- The index says of every word all places where it stands, not only the best. It is made again from the other tables.
DELETE FROM search_posting;
DELETE FROM search_term;
DELETE FROM search_object;
