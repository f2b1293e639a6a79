//! What callers of the registry see.
