//! Boundary tests of eadem-offline.
