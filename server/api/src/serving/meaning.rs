//! What the registry says of a view, in the terms of the crates that decide a value. One translation for requests, jobs and
//! training sets: were there two, they could differ.

use eadem_registry::model::{StoredView, ValidationPolicy};
use eadem_semantics::Lifetime;

/// How long a row of the view can be served.
pub fn lifetime(stored: &StoredView) -> Lifetime {
    Lifetime { ttl_us: stored.ttl_us, horizon_us: stored.horizon_us }
}

/// What happens to a value that breaks a constraint.
pub fn validation_policy(policy: ValidationPolicy) -> eadem_query::ValidationPolicy {
    match policy {
        ValidationPolicy::RefuseRow => eadem_query::ValidationPolicy::RefuseRow,
        ValidationPolicy::NullValue => eadem_query::ValidationPolicy::NullValue,
        ValidationPolicy::Clamp => eadem_query::ValidationPolicy::Clamp,
        ValidationPolicy::StopJob => eadem_query::ValidationPolicy::StopJob,
    }
}
