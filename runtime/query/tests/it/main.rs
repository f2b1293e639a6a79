//! Boundary tests of eadem-query.
